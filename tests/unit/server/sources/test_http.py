"""Fetching over HTTP from servers that lie, stall, redirect and change their mind."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import ipaddress
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import SecretStr

from adapters_registry.errors import BadSource, StorageFull
from server.sources.http import Bounds, HttpFetcher, Route
from server.sources.locations import AllowList, parse_location
from server.sources.partial import PartialFile, Version
from tests.support.hostile import Answer, Asked, Names, Stalling, always, hostile_server, response
from tests.support.waiting import eventually

QUICK = Bounds(connect_s=0.5, read_s=0.2, total_s=5.0, rate_window_s=0.2, max_attempts=2, pause_s=0.01)
BODY = bytes(range(256)) * 40
LIMIT = 1 << 20
NAMES = {"files.test": ["127.0.0.1"], "other.test": ["127.0.0.1"], "rebound.test": ["1.1.1.1", "127.0.0.1"]}


class Place:
    """A fetcher, where it writes, and what it may read: everything on files.test."""

    def __init__(self, folder: Path, port: int, scheme: str = "http", **options: object) -> None:
        self.names = Names(NAMES)
        self.part = PartialFile(folder / "download", "file", LIMIT)
        self.url = f"{scheme}://files.test:{port}/file"
        self.allowed = AllowList([f"{scheme}://files.test:{port}/", *options.pop("also", [])])  # type: ignore[misc]
        bounds = options.pop("bounds", QUICK)
        private = options.pop("private", ("files.test",))
        self.http = HttpFetcher(private, self.names, bounds, **options)  # type: ignore[arg-type]
        self.seen: list[tuple[int, int]] = []

    async def fetch(self, token: str | None = None, url: str = "") -> bytes:
        """Download; the bytes that came."""
        secret = SecretStr(token) if token else None
        route = Route(parse_location(url or self.url), self.allowed.allows, secret)
        size = await self.http.download(route, self.part, lambda done, total: self.seen.append((done, total)))
        content = self.part.path.read_bytes()
        assert size == len(content)
        return content

    async def refused(self, token: str | None = None, url: str = "") -> str:
        """Download, which must fail; the text of the error."""
        with pytest.raises(BadSource) as caught:
            await self.fetch(token, url)
        return caught.value.message


async def test_a_file_is_fetched_with_progress(tmp_path: Path) -> None:
    async with hostile_server(always(response(body=BODY))) as server:
        place = Place(tmp_path, server.port)
        assert await place.fetch() == BODY
        assert place.seen[-1] == (len(BODY), len(BODY))
        assert server.asked[0].headers["accept-encoding"] == "identity"
        assert "cookie" not in server.asked[0].headers


# -- where it may lead ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost:{port}/x",
        "http://127.0.0.1:{port}/x",
        "http://[::1]:{port}/x",
        "http://[::ffff:127.0.0.1]:{port}/x",
        "http://other.test:{port}/x",
        "//other.test:{port}/x",
        "file:///etc/passwd",
        "ftp://files.test/x",
        "s3://bucket/x",
        "gopher://files.test/x",
        "http://files.test:{port}@other.test/x",
        "http://files.test:1/x",
        "http://fil\u00e9s.test:{port}/x",
        "http://files.test:{port}\\@other.test/x",
    ],
)
async def test_a_redirect_to_where_nobody_may_go_is_not_followed(tmp_path: Path, target: str) -> None:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(response(302, location=target.format(port=server.port)))

    async with hostile_server(answer) as server:
        place = Place(tmp_path, server.port)
        await place.refused()
        assert server.paths == ["/file"]
        assert set(place.names.looked_up) == {"files.test"}


async def test_an_allowed_name_that_means_an_inner_address_is_not_visited(tmp_path: Path) -> None:
    async with hostile_server(always(response(body=BODY))) as server:
        message = await Place(tmp_path, server.port, private=()).refused()
        assert "not public" in message
        assert "127.0.0.1" not in message
        assert not server.asked


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:7f00:1]"])
async def test_an_allowed_inner_address_is_not_visited_either(tmp_path: Path, host: str) -> None:
    async with hostile_server(always(response(body=BODY))) as server:
        url = f"http://{host}:{server.port}/file"
        place = Place(tmp_path, server.port, also=[url])
        assert "not public" in await place.refused(url=url)
        assert not server.asked


async def test_a_name_that_is_rebound_is_judged_each_time_it_is_looked_up(tmp_path: Path) -> None:
    async with hostile_server(always(response(body=BODY))) as server:
        url = f"http://rebound.test:{server.port}/file"
        bounds = Bounds(connect_s=0.2, max_attempts=2, pause_s=0.01)
        place = Place(tmp_path, server.port, also=[url], bounds=bounds)
        assert "not public" in await place.refused(url=url)  # first 1.1.1.1, where nobody answers; then 127.0.0.1
        assert place.names.looked_up == ["rebound.test", "rebound.test"]
        assert not server.asked


async def test_the_address_that_was_judged_is_the_one_that_is_used(tmp_path: Path) -> None:
    async with hostile_server(always(response(body=BODY))) as judged:
        place = Place(tmp_path, judged.port)
        place.names = Names({"files.test": ["127.0.0.1", "127.0.0.9"]})
        place.http = HttpFetcher(("files.test",), place.names, QUICK)
        assert await place.fetch() == BODY
        assert place.names.looked_up == ["files.test"]


async def test_redirects_within_what_is_allowed_are_followed_three_times(tmp_path: Path) -> None:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        number = int(asked.path.rpartition("=")[2] or 0) if "=" in asked.path else 0
        writer.write(response(302, location=f"/file?n={number + 1}") if number < hops else response(body=BODY))

    async with hostile_server(answer) as server:
        hops = 3
        assert await Place(tmp_path / "a", server.port).fetch() == BODY
        hops = 4
        assert "redirects more than 3 times" in await Place(tmp_path / "b", server.port).refused()
        hops = 1_000_000
        server.asked.clear()
        await Place(tmp_path / "c", server.port).refused()
        assert len(server.asked) == 4


async def test_credentials_go_to_their_origin_alone(tmp_path: Path) -> None:
    async with hostile_server(always(response(body=BODY))) as second:
        target = f"http://other.test:{second.port}/file"
        async with hostile_server(always(response(302, location=target))) as first:
            place = Place(tmp_path, first.port, also=[target], private=("files.test", "other.test"))
            assert await place.fetch(token="s3cr3t") == BODY
            assert first.asked[0].headers["authorization"] == "Bearer s3cr3t"
            assert "authorization" not in second.asked[0].headers


async def test_credentials_do_not_come_back_by_a_second_redirect(tmp_path: Path) -> None:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        back = f"http://files.test:{first.port}/again"
        writer.write(response(302, location=back))

    async def begin(asked: Asked, writer: asyncio.StreamWriter) -> None:
        target = f"http://other.test:{second.port}/x"
        writer.write(response(body=BODY) if asked.path == "/again" else response(302, location=target))

    async with hostile_server(answer) as second, hostile_server(begin) as first:
        also = [f"http://other.test:{second.port}/"]
        place = Place(tmp_path, first.port, also=also, private=("files.test", "other.test"))
        assert await place.fetch(token="s3cr3t") == BODY
        assert ["authorization" in each.headers for each in first.asked] == [True, False]


async def test_credentials_are_not_sent_in_the_clear_to_a_public_host(tmp_path: Path) -> None:
    place = Place(tmp_path, 80, private=())
    message = await place.refused(token="s3cr3t")
    assert "in the clear" in message
    assert "s3cr3t" not in message
    assert not place.names.looked_up


async def test_https_is_not_left_for_http_and_certificates_are_checked(tmp_path: Path) -> None:
    server_tls, client_tls = certificates(tmp_path)

    async with hostile_server(always(response(body=BODY))) as plain:

        async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
            down = response(302, location=f"http://files.test:{plain.port}/file")
            writer.write(down if asked.path == "/down" else response(body=BODY))

        async with hostile_server(answer, server_tls) as secure:
            also = [f"http://files.test:{plain.port}/"]
            place = Place(tmp_path, secure.port, "https", trust=client_tls, also=also)
            assert await place.fetch() == BODY
            assert "from https to http" in await place.refused(url=place.url.removesuffix("file") + "down")
            assert not plain.asked
            strict = Place(tmp_path / "strict", secure.port, "https")
            assert "certificate is not trusted" in await strict.refused()


async def test_proxies_of_the_environment_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        hostile_server(always(response(body=b"proxied"))) as proxy,
        hostile_server(always(response(body=BODY))) as s,
    ):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert await Place(tmp_path, s.port).fetch() == BODY
        assert not proxy.asked


# -- what it sends ----------------------------------------------------------------------------------------------------


async def test_a_size_that_is_too_large_is_believed_at_once(tmp_path: Path) -> None:
    async with hostile_server(always(response(body=b"x", content_length=str(LIMIT + 1)))) as server:
        place = Place(tmp_path, server.port)
        assert f"more than the {LIMIT} bytes" in await place.refused()
        assert not place.part.path.exists()


async def test_an_endless_body_is_cut_off(tmp_path: Path) -> None:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(response(content_length=None))
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    async with hostile_server(answer) as server:
        place = Place(tmp_path, server.port)
        assert f"more than the {LIMIT} bytes" in await place.refused()
        assert place.part.path.stat().st_size <= LIMIT


async def test_a_body_that_is_shorter_than_it_claims_is_not_believed(tmp_path: Path) -> None:
    async with hostile_server(always(response(body=BODY, content_length=str(len(BODY) + 5)))) as server:
        assert "broke off" in await Place(tmp_path, server.port).refused()
        assert len(server.asked) == QUICK.max_attempts


async def test_a_body_that_is_longer_than_it_claims_is_cut_or_refused(tmp_path: Path) -> None:
    async with hostile_server(always(response(body=BODY + b"more", content_length=str(len(BODY))))) as server:
        try:
            assert await Place(tmp_path, server.port).fetch() == BODY
        except BadSource as error:
            assert "failed" in error.message


async def test_a_silent_server_is_left(tmp_path: Path) -> None:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with hostile_server(answer) as server:
        assert "did not send anything" in await Place(tmp_path, server.port).refused()


async def test_a_crawling_server_is_left(tmp_path: Path) -> None:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(response(content_length="1000"))
        for _ in range(1000):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with hostile_server(answer) as server:
        assert "bytes a second" in await Place(tmp_path, server.port).refused()


async def test_headers_that_crawl_are_bounded_by_the_total(tmp_path: Path) -> None:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(1000):
            writer.write(f"x-{number}: y\r\n".encode())
            await writer.drain()
            await asyncio.sleep(0.05)

    async with hostile_server(answer) as server:
        bounds = Bounds(read_s=0.2, total_s=0.6, max_attempts=1)
        assert "took longer" in await Place(tmp_path, server.port, bounds=bounds).refused()


async def test_a_compressed_answer_is_not_unpacked(tmp_path: Path) -> None:
    bomb = gzip.compress(b"\0" * (64 << 20))
    async with hostile_server(always(response(body=bomb, content_encoding="gzip"))) as server:
        place = Place(tmp_path, server.port)
        assert "compressed" in await place.refused()
        assert not place.part.path.exists()


@pytest.mark.parametrize(
    ("status", "text", "asked"),
    [
        (401, "credentials", 1),
        (403, "credentials", 1),
        (404, "no such file", 1),
        (418, "status 418", 1),
        (503, "503", 2),
    ],
)
async def test_refusals_say_what_to_do(tmp_path: Path, status: int, text: str, asked: int) -> None:
    async with hostile_server(always(response(status, b"private text"))) as server:
        message = await Place(tmp_path, server.port).refused()
        assert text in message
        assert "private text" not in message
        assert len(server.asked) == asked


@pytest.mark.parametrize(
    "nonsense", [b"", b"\0\1\2\3", b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n", b"SSH-2.0-x\r\n"]
)
async def test_nonsense_is_a_broken_connection(tmp_path: Path, nonsense: bytes) -> None:
    async with hostile_server(always(nonsense)) as server:
        assert "Send the request again" in await Place(tmp_path, server.port).refused()


async def test_a_secret_in_a_redirect_is_in_no_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = "http://files.test:{port}/moved?X-Signature=s3cr3t"

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        is_first = asked.path == "/file"
        writer.write(response(302, location=target.format(port=server.port)) if is_first else response(403))

    async with hostile_server(answer) as server:
        message = await Place(tmp_path, server.port).refused(token="t0ken")
    assert server.paths == ["/file", "/moved?X-Signature=s3cr3t"]
    written = message + "".join(capfd.readouterr())
    assert "s3cr3t" not in written and "t0ken" not in written


# -- going on ---------------------------------------------------------------------------------------------------------


def ranged(body: Callable[[], bytes], tag: Callable[[], str], cut: Callable[[Asked], int | None]) -> Answer:
    """A server that knows ranges and tags, and falls silent after `cut` bytes."""

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        whole, etag = body(), tag()
        begin = 0
        if asked.headers.get("if-none-match") == etag:
            writer.write(response(304, etag=etag, content_length=None))
            return
        if "range" in asked.headers and asked.headers.get("if-range") == etag:
            begin = int(asked.headers["range"].removeprefix("bytes=").removesuffix("-"))
        rest = whole[begin:]
        content_range = f"bytes {begin}-{len(whole) - 1}/{len(whole)}" if begin else None
        head = {"etag": etag, "content_length": str(len(rest))} | ({"content_range": content_range} if begin else {})
        writer.write(response(206 if begin else 200, **head) + rest[: cut(asked)])
        if cut(asked) is not None:
            await asyncio.Event().wait()

    return answer


async def test_a_broken_download_goes_on_where_it_ended(tmp_path: Path) -> None:
    answer = ranged(lambda: BODY, lambda: '"v1"', lambda asked: None if "range" in asked.headers else 4000)
    async with hostile_server(answer) as server:
        assert await Place(tmp_path, server.port).fetch() == BODY
        assert [each.headers.get("range") for each in server.asked] == [None, "bytes=4000-"]


async def test_another_process_goes_on_and_asks_only_whether_a_whole_file_is_the_same(tmp_path: Path) -> None:
    cut: list[int | None] = [4000]
    async with hostile_server(ranged(lambda: BODY, lambda: '"v1"', lambda _: cut[0])) as server:
        once = Bounds(read_s=0.2, max_attempts=1)
        await Place(tmp_path, server.port, bounds=once).refused()
        cut[0] = None
        assert await Place(tmp_path, server.port).fetch() == BODY
        assert await Place(tmp_path, server.port).fetch() == BODY
        asked = [(each.headers.get("range"), each.headers.get("if-none-match")) for each in server.asked]
        assert asked == [(None, None), ("bytes=4000-", None), (None, '"v1"')]


async def test_a_changed_file_is_fetched_from_its_beginning(tmp_path: Path) -> None:
    versions = [(BODY, '"v1"'), (BODY[::-1], '"v2"')]
    answer = ranged(lambda: versions[0][0], lambda: versions[0][1], lambda _: 4000 if len(versions) > 1 else None)
    async with hostile_server(answer) as server:
        await Place(tmp_path, server.port, bounds=Bounds(read_s=0.2, max_attempts=1)).refused()
        versions.pop(0)
        assert await Place(tmp_path, server.port).fetch() == BODY[::-1]


@pytest.mark.parametrize(
    "headers",
    [
        {"content_range": "bytes 0-10239/10240", "etag": '"v1"'},
        {"content_range": "bytes 4001-10239/10240", "etag": '"v1"'},
        {"content_range": "bytes 4000-10239/99999", "etag": '"v1"'},
        {"content_range": "bytes 4000-10239/10240", "etag": '"v2"'},
        {"content_range": "bytes 4000-10239/*", "etag": '"v1"'},
        {"content_range": None, "etag": '"v1"'},
        {"content_range": "bytes 4000-99999999999999999999999999/1", "etag": '"v1"'},
    ],
)
async def test_another_part_than_was_asked_for_is_not_appended(tmp_path: Path, headers: dict[str, str | None]) -> None:
    head = response(etag='"v1"', content_length=str(len(BODY)))
    wrong = response(206, BODY[4000:], **headers)
    async with hostile_server(always(Stalling(head + BODY[:4000]), wrong, response(body=BODY))) as server:
        bounds = Bounds(read_s=0.2, max_attempts=3, pause_s=0.01)
        assert await Place(tmp_path, server.port, bounds=bounds).fetch() == BODY
        assert "range" not in server.asked[2].headers


@pytest.mark.parametrize("status", [304, 416])
async def test_a_server_that_says_no_more_too_early_is_not_believed(tmp_path: Path, status: int) -> None:
    head = response(etag='"v1"', content_length=str(len(BODY)))
    async with hostile_server(always(Stalling(head + BODY[:4000]), response(status), response(body=BODY))) as server:
        bounds = Bounds(read_s=0.2, max_attempts=3, pause_s=0.01)
        assert await Place(tmp_path, server.port, bounds=bounds).fetch() == BODY


@pytest.mark.parametrize("headers", [{}, {"etag": 'W/"v1"'}])
async def test_without_a_way_to_tell_versions_apart_it_starts_again(tmp_path: Path, headers: dict[str, str]) -> None:
    head = response(content_length=str(len(BODY)), **headers)
    async with hostile_server(always(Stalling(head + BODY[:4000]), response(body=BODY))) as server:
        assert await Place(tmp_path, server.port).fetch() == BODY
        assert "range" not in server.asked[1].headers


async def test_a_time_of_change_is_a_version_too(tmp_path: Path) -> None:
    modified = "Mon, 01 Jan 2024 00:00:00 GMT"
    head = response(content_length=str(len(BODY)), last_modified=modified)
    rest = response(206, BODY[4000:], content_range=f"bytes 4000-{len(BODY) - 1}/{len(BODY)}", last_modified=modified)
    async with hostile_server(always(Stalling(head + BODY[:4000]), rest)) as server:
        assert await Place(tmp_path, server.port).fetch() == BODY
        assert server.asked[1].headers["if-range"] == modified


async def test_a_cancelled_download_keeps_what_has_come(tmp_path: Path) -> None:
    reached = asyncio.Event()

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if "range" in asked.headers:
            size = 4000
            rest = f"bytes {size}-{len(BODY) - 1}/{len(BODY)}"
            writer.write(response(206, BODY[size:], content_range=rest, etag='"v1"'))
            return
        writer.write(response(etag='"v1"', content_length=str(len(BODY))) + BODY[:4000])
        await writer.drain()
        reached.set()
        await asyncio.Event().wait()

    async with hostile_server(answer) as server:
        place = Place(tmp_path, server.port, bounds=Bounds(read_s=20))
        task = asyncio.create_task(place.fetch())
        await reached.wait()
        await eventually(lambda: place.seen)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert place.part.path.read_bytes() == BODY[:4000]
        assert await place.fetch() == BODY


async def test_a_full_disk_is_named_and_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: PartialFile, piece: bytes) -> None:
        raise StorageFull(tmp_path, len(piece), 0)

    monkeypatch.setattr(PartialFile, "append", full)
    async with hostile_server(always(response(body=BODY))) as server:
        with pytest.raises(StorageFull):
            await Place(tmp_path, server.port).fetch()
        assert len(server.asked) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's full device")
def test_no_room_while_writing_is_a_full_disk(tmp_path: Path) -> None:
    part = PartialFile(tmp_path, "file", LIMIT)
    part.path.symlink_to("/dev/full")
    with pytest.raises(StorageFull):
        part.append(BODY)


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"url": 1, "other": 2}',
        b'{"etag": "x"}',
        b'{"url": "https://host/file", "etag": "x", "total": "y"}',
    ],
)
def test_a_damaged_note_is_no_note(tmp_path: Path, note: bytes) -> None:
    part = PartialFile(tmp_path, "file", LIMIT)
    part.begin(Version("https://host/file", '"v1"', total=10))
    part.append(b"12345")
    assert part.known("https://host/file")[1] == 5
    assert part.known("https://host/other") == (None, 0)
    (tmp_path / "file.json").write_bytes(note)
    assert part.known("https://host/file") == (None, 0)


def test_a_file_that_would_fill_the_disk_is_not_begun(tmp_path: Path) -> None:
    part = PartialFile(tmp_path, "file", 1 << 62)
    with pytest.raises(StorageFull) as caught:
        part.begin(Version("https://host/file", '"v1"', total=1 << 60))
    assert caught.value.needed_bytes == 1 << 61
    assert not part.path.exists()


async def test_a_short_answer_is_bounded(tmp_path: Path) -> None:
    async with hostile_server(always(response(body=BODY))) as server:
        place = Place(tmp_path, server.port)
        route = Route(parse_location(place.url), place.allowed.allows)
        assert await place.http.read(route, len(BODY)) == BODY
        with pytest.raises(BadSource, match="more than 100 bytes"):
            await place.http.read(route, 100)


def certificates(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a certificate of its own for files.test, and a client's that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "files.test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("files.test"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "certificate.pem").write_bytes(pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return server, ssl.create_default_context(cadata=pem.decode())
