"""URLs and the allow-list: one reading, and nothing outside the list passes."""

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from adapters_registry.errors import BadSource
from adapters_registry.sources import HubSource
from server.sources.locations import AllowList, Location, is_hub_host, parse_location, parse_redirect

PATTERNS = ("https://models.example.com/adapters/", "https://one.example.com/a.zip", "s3://bucket/prefix/")
PARTS = st.sampled_from(
    ["https", "http", "s3", "file", "simplecache", "::", "://", "/", "//", "..", ".", "%2e", "%2f", "\\", "@", ":", "?"]  # noqa: RUF005
    + [
        "models.example.com",
        "MODELS.example.com",
        "one.example.com",
        "bucket",
        "adapters",
        "prefix",
        "a.zip",
        "evil.com",
    ]
    + ["#", ";", "443", "80", "[::1]", "127.0.0.1", "\u3002", "\uff0e", "\u2044", " ", "\t", "\n", "\0", "x", "."]
)


def allowed_by_hand(text: str) -> bool:
    """The rule in other words: one of the three prefixes, then plain letters in segments that do not climb."""
    plain = set(string.ascii_letters + string.digits + "._~+,=@-/")
    scheme, _, rest = text.partition("://")
    host, slash, path = rest.partition("/")
    scheme, host = scheme.lower(), host.lower() if scheme.lower() != "s3" else host
    host = host.removesuffix(":443") if scheme == "https" else host
    for pattern in PATTERNS:
        if pattern.endswith("/") and f"{scheme}://{host}/{path}".startswith(pattern):
            segments = path.removesuffix("/").split("/")
            return bool(slash) and set(path) <= plain and not set(segments) & {"", ".", ".."}
        if f"{scheme}://{host}/{path}" == pattern:
            return True
    return False


@given(st.lists(PARTS, max_size=10).map("".join) | st.text(max_size=60))
@example("https://one.example.com/a.zip/x.zip")
@example("https://one.example.com/a.zipx.zip")
@example("https://models.example.com/adapters/../secret.zip")
@example("https://models.example.com/adapters/%2e%2e/secret.zip")
@example("https://models.example.com/adapters//evil.com/x.zip")
@example("https://models.example.com/adaptersevil/x.zip")
@example("https://models.example.com.evil.com/adapters/x.zip")
@example("https://models.example.com@evil.com/adapters/x.zip")
@example("https://evil.com/https://models.example.com/adapters/x.zip")
@example("https://models.example.com\\@evil.com/adapters/x.zip")
@example("https://models.example.com:444/adapters/x.zip")
@example("https://models.example.com:443/adapters/x.zip")
@example("http://models.example.com/adapters/x.zip")
@example("simplecache::s3://bucket/prefix/x.zip")
@example("s3://bucket/prefix/x.zip::file:///etc/passwd")
@example("s3://bucket/prefixed/x.zip")
@example("HTTPS://MODELS.EXAMPLE.COM/adapters/x.zip")
def test_nothing_outside_the_list_passes(text: str) -> None:
    allowed = AllowList(PATTERNS)
    try:
        location = parse_location(text)
    except BadSource as error:
        assert len(error.message) < 400
        assert not allowed_by_hand(text)
        return
    assert allowed.allows(location) == allowed_by_hand(text)


@given(st.lists(PARTS, max_size=10).map("".join) | st.text(max_size=60))
def test_whoever_sends_the_request_reads_the_url_as_we_do(text: str) -> None:
    try:
        location = parse_location(f"https://models.example.com/{text}")
    except BadSource:
        return
    url = URL(str(location), encoded=True)
    assert (url.scheme, url.host, url.port, url.raw_path) == ("https", "models.example.com", 443, location.path)
    assert URL(str(location)).raw_path == location.path
    assert str(parse_location(str(location))) == str(location)


@pytest.mark.parametrize(
    "text",
    [
        "file:///etc/passwd",
        "ftp://host/x.zip",
        "local:///x.zip",
        "memory://x/x.zip",
        "https://user:secret@host/x.zip",
        "https://host/x.zip?token=secret",
        "https://host/x.zip#part",
        "https://h\u00f6st/x.zip",
        "https://host\u3002evil.com/x.zip",
        "https://2130706433/x.zip",
        "https://0x7f.1/x.zip",
        "https://127.1/x.zip",
        "https://[::1/x.zip",
        "https://[fe80::1%25eth0]/x.zip",
        "https://host:0/x.zip",
        "https://host:99999/x.zip",
        "https://host../x.zip",
        "https://-host/x.zip",
        "s3://bucket:80/x.zip",
        "s3://Bucket/x.zip",
        "s3:///x.zip",
        "https://host/" + "a" * 3000,
        "/x.zip",
        "",
    ],
)
def test_other_urls_are_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(BadSource) as caught:
        parse_location(text)
    assert "secret" not in caught.value.message
    assert caught.value.problems[0].fix


def test_addresses_have_one_form() -> None:
    assert str(parse_location("http://[0:0::0:1]:80/x")) == "http://[::1]/x"
    assert str(parse_location("https://EXAMPLE.com")) == "https://example.com/"


def test_a_pattern_of_a_whole_host_covers_what_is_not_plain() -> None:
    redirect = parse_redirect("https://cdn.example.com/a%2Fb?signature=x", "test")
    assert AllowList(["https://cdn.example.com/"]).allows(redirect)
    assert not AllowList(["https://cdn.example.com/a%2Fb".replace("%2F", "/")]).allows(redirect)
    assert not AllowList(["https://cdn.example.com/a/"]).allows(
        parse_redirect("https://cdn.example.com/a/%2e%2e/b", "test")
    )
    assert "signature" not in str(redirect)


@pytest.mark.parametrize(
    ("pattern", "repo", "covers"),
    [
        ("hub:*", "org/name", True),
        ("hub:org/*", "org/name", True),
        ("hub:org/*", "organ/name", False),
        ("hub:org/name", "org/name", True),
        ("hub:org/name", "org/names", False),
    ],
)
def test_repositories_are_matched_part_by_part(pattern: str, repo: str, covers: bool) -> None:
    assert AllowList([pattern]).allows_hub(HubSource(repo=repo)) is covers


@pytest.mark.parametrize("pattern", ["hub:", "hub:org", "hub:*/name", "hub:a/b/c", "host/path", "https://*.com/", "*"])
def test_bad_patterns_are_named(pattern: str) -> None:
    with pytest.raises(BadSource, match="pattern"):
        AllowList([pattern])


@pytest.mark.parametrize(
    ("host", "is_hubs"),
    [
        ("huggingface.co", True),
        ("cas-bridge.xethub.hf.co", True),
        ("cdn-lfs.huggingface.co", True),
        ("nothuggingface.co", False),
        ("huggingface.co.evil.com", False),
    ],
)
def test_the_public_hubs_hosts(host: str, is_hubs: bool) -> None:
    assert is_hub_host(Location("https", host, None, "/")) is is_hubs
    assert not is_hub_host(Location("http", host, None, "/"))
    assert not is_hub_host(Location("https", host, 8443, "/"))
