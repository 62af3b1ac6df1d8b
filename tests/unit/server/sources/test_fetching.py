"""From a source to checked files: hub, object stores, pins, signatures, secrets, and what stays on disk."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from adapters_registry.errors import BadSource, InvalidAdapter, Problem, StorageFull
from adapters_registry.limits import AdapterLimits
from adapters_registry.sources import Source
from server.errors import PermissionDenied
from server.sources.config import SourceSettings
from server.sources.fetching import MAX_IDLE_S, SourceFetcher
from server.sources.http import Bounds, HttpFetcher
from server.sources.objects import check_driver
from server.sources.partial import PartialFile
from server.sources.proof import digest_of
from tests.support.adapters import make_adapter
from tests.support.hostile import Names, hostile_server
from tests.support.sources import COMMIT, TWO_FILES, FakeHub, FileServer, packed

QUICK = Bounds(connect_s=0.5, read_s=1.0, total_s=5.0, max_attempts=2, pause_s=0.01)
HOSTS = ("files.test", "hub.test", "cdn.test")
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()


def fetcher(folder: Path, settings: dict[str, Any], **options: Any) -> SourceFetcher:
    given = SourceSettings.model_validate({"private_hosts": list(HOSTS), **settings})
    http = HttpFetcher(given.private_hosts, Names({host: ["127.0.0.1"] for host in HOSTS}), QUICK)
    return SourceFetcher(given, folder / "downloads", AdapterLimits(), 1 << 20, http=http, **options)


def quiet(phase: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def files_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def left(folder: Path) -> list[str]:
    """What stays of downloads, but for locks."""
    return sorted(entry.name for entry in (folder / "downloads").glob("[0-9a-f]*/*"))


def signed(digest: str) -> dict[str, str]:
    return {"key": "release", "value": base64.b64encode(KEY.sign(bytes.fromhex(digest))).decode()}


@contextlib.asynccontextmanager
async def hub_and_cdn(adapter: Path, **hub: Any) -> AsyncIterator[tuple[FakeHub, str, Any, Any]]:
    """A hub whose weights come from another host: the double, its address, and both servers."""
    content = files_in(adapter)
    async with hostile_server(
        FileServer({"/adapter_model.safetensors?X-Signature=presigned": content[TWO_FILES[1]]})
    ) as cdn:
        double = FakeHub(content, f"http://cdn.test:{cdn.port}", **hub)
        async with hostile_server(double) as server:
            yield double, f"http://hub.test:{server.port}", server, cdn


# -- what is refused at once ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        {"url": "https://files.test/a.zip"},
        {"url": "s3://bucket/a.zip"},
        {"hub": {"repo": "org/name"}},
    ],
)
def test_nothing_is_allowed_by_default(tmp_path: Path, source: dict[str, Any]) -> None:
    with pytest.raises(PermissionDenied, match=r"sources\.urls"):
        fetcher(tmp_path, {}).check(Source.model_validate(source))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"url": "https://files.test/a.exe"}, "neither an archive nor a folder"),
        ({"url": "https://files.test/a.zip", "credentials": "nope"}, "credentials that the gateway does not have"),
        ({"url": "https://files.test/a.zip", "credentials": "hub"}, "not for this place"),
        ({"hub": {"repo": "other/name"}, "credentials": "hub"}, "not for this place"),
        ({"url": "https://files.test/a.zip", "signature": {"key": "x", "value": "A" * 86 + "=="}}, "no key"),
        ({"path": "/a"}, "nothing to fetch"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_fetched(
    tmp_path: Path, source: dict[str, Any], text: str
) -> None:
    settings = {
        "urls": ["https://files.test/", "hub:*"],
        "credentials": {"hub": {"use_for": ["hub:org/*"], "env": "HUB"}},
    }
    with pytest.raises(BadSource, match=text):
        fetcher(tmp_path, settings).check(Source.model_validate(source))


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"path": "/a", "url": "https://x/"},
        {"path": "/a", "sha256": "0" * 64},
        {"url": "https://x/", "sha256": "0" * 63},
        {"hub": {"repo": "name"}},
        {"hub": {"repo": "org/../name"}},
        {"hub": {"repo": "org/na..me"}},
        {"hub": {"repo": "org/name", "revision": "../../x"}},
        {"hub": {"repo": "org/name", "revision": "a?b"}},
        {"hub": {"repo": "org/name", "subfolder": "/etc"}},
        {"hub": {"repo": "org/name", "subfolder": "a/../b"}},
        {"url": "https://x/", "token": "secret"},
    ],
)
def test_sources_of_another_form_are_no_sources(source: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Source.model_validate(source)


@pytest.mark.parametrize(
    "settings",
    [
        {"urls": ["models.example.com"]},
        {"urls": ["file:///x/"]},
        {"private_hosts": ["http://x"]},
        {"keys": {"a": "short"}},
        {"require_signature": True},
        {"hub_endpoint": "s3://hub"},
        {"credentials": {"a": {"use_for": [], "env": "X"}}},
        {"credentials": {"a": {"use_for": ["https://x/"]}}},
        {"credentials": {"a": {"use_for": ["https://x/"], "env": "X", "file": "/x"}}},
        {"credentials": {"a": {"use_for": ["https://x/"], "secret": "X"}}},
        {"credentials": {"a": {"use_for": ["az://x/"], "options": {"account_key": "X"}}}},
    ],
)
def test_settings_that_cannot_be_meant_stop_the_start(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SourceSettings.model_validate(settings)


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for scheme in ("s3", "gs", "az"):
        with pytest.raises(BadSource, match=r"moergate\[sources\]"):
            check_driver(scheme)


# -- the hub ----------------------------------------------------------------------------------------------------------


async def test_a_repository_is_fetched_by_its_commit_with_its_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    monkeypatch.setenv("HUB_TOKEN", "t0p-s3cr3t\n")
    async with hub_and_cdn(adapter, token="t0p-s3cr3t") as (double, endpoint, hub, cdn):
        settings = {
            "urls": ["hub:org/*", f"{double.cdn}/"],
            "hub_endpoint": endpoint,
            "credentials": {"hub": {"use_for": ["hub:org/*"], "env": "HUB_TOKEN"}},
        }
        source = Source.model_validate({"hub": {"repo": "org/name", "revision": "refs/pr/1"}, "credentials": "hub"})
        async with fetcher(tmp_path, settings).fetch(source, quiet) as fetched:
            assert files_in(fetched.path) == files_in(adapter)
            assert fetched.provenance.source == "hub:org/name@refs/pr/1"
            assert fetched.provenance.commit == COMMIT
            assert fetched.provenance.sha256 == digest_of(adapter)
            assert "t0p-s3cr3t" not in str(fetched)
        assert hub.paths[0] == "/api/models/org/name/revision/refs%2Fpr%2F1?blobs=true"
        assert all("authorization" not in each.headers for each in cdn.asked)
        assert not left(tmp_path)
        assert "s3cr3t" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"commit": "main"}, "not answered with a commit"),
        ({"commit": "f" * 40}, "another commit"),
        ({"sha256": {"adapter_model.safetensors": "0" * 64}}, "not what the hub says"),
        ({"cdn": "http://evil.test:80"}, "not allowed"),
        ({"token": "wanted"}, "credentials"),
    ],
)
async def test_a_hub_that_lies_is_refused(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    async with hub_and_cdn(adapter) as (double, endpoint, _, _cdn):
        settings = {"urls": ["hub:org/*", f"{double.cdn}/"], "hub_endpoint": endpoint}
        for name, value in change.items():
            setattr(double, name, value)
        source = Source.model_validate({"hub": {"repo": "org/name", "revision": COMMIT}})
        with pytest.raises(BadSource, match=text):
            async with fetcher(tmp_path, settings).fetch(source, quiet):
                pass


async def test_a_branch_that_moves_does_not_mix_two_commits(tmp_path: Path) -> None:
    old, new = make_adapter(tmp_path / "old"), make_adapter(tmp_path / "new", seed=1)
    double = FakeHub(files_in(old) | {TWO_FILES[1]: b"short"}, sha256={TWO_FILES[1]: "0" * 64})
    async with hostile_server(double) as server:
        settings = {"urls": ["hub:org/name"], "hub_endpoint": f"http://hub.test:{server.port}"}
        source = Source.model_validate({"hub": {"repo": "org/name"}})
        with pytest.raises(BadSource):
            async with fetcher(tmp_path, settings).fetch(source, quiet):
                pass
        double.files, double.commit, double.sha256 = files_in(new), "f" * 40, {}
        async with fetcher(tmp_path, settings).fetch(source, quiet) as fetched:
            assert files_in(fetched.path) == files_in(new)
            assert fetched.provenance.commit == "f" * 40


# -- object stores ----------------------------------------------------------------------------------------------------


class Store:
    """fsspec's memory file system in a driver's place, with what was asked of it."""

    def __init__(self) -> None:
        self.memory = fsspec.filesystem("memory", skip_instance_cache=True)
        self.memory.store = {}
        self.memory.pseudo_dirs = [""]
        self.opened: list[tuple[str, dict[str, Any]]] = []
        self.reads: list[tuple[int, int]] = []
        self.tag = "v1"
        self.fail_at: int | None = None
        self.change_at: int | None = None

    def open(self, scheme: str, options: dict[str, Any]) -> Any:
        self.opened.append((scheme, options))
        return self

    def info(self, key: str) -> dict[str, Any]:
        return {**self.memory.info(key), "ETag": self.tag}

    def cat_file(self, key: str, start: int, end: int) -> bytes:
        self.reads.append((start, end))
        if start == self.fail_at:
            raise RuntimeError("InvalidAccessKeyId: AKIA-s3cr3t")
        if start == self.change_at:
            self.tag = "v2"
        return bytes(self.memory.cat_file(key, start=start, end=end))

    def put(self, key: str, content: bytes) -> None:
        self.memory.pipe_file(key, content)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr("server.sources.objects._STEP_BYTES", 1000)
    return Store()


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
async def test_a_folder_of_a_bucket(tmp_path: Path, store: Store, scheme: str) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    for name, content in files_in(adapter).items():
        store.put(f"/bucket/team/expert/{name}", content)
    place = fetcher(tmp_path, {"urls": [f"{scheme}://bucket/team/"]}, open_filesystem=store.open)
    async with place.fetch(Source(url=f"{scheme}://bucket/team/expert/"), quiet) as fetched:
        assert files_in(fetched.path) == files_in(adapter)
    assert store.opened[0][0] == scheme
    assert "anon" in str(store.opened[0][1])
    with pytest.raises(PermissionDenied):
        place.check(Source(url=f"{scheme}://bucket/other/"))


async def test_an_object_goes_on_after_an_error_and_its_text_is_not_repeated(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = packed(make_adapter(tmp_path / "adapter"))
    store.put("/bucket/a.zip", archive)
    monkeypatch.setenv("STORE", '{"key": "AKIA", "secret": "s3cr3t"}')
    credentials = {"store": {"use_for": ["s3://bucket/"], "env": "STORE", "options": {"endpoint_url": "https://minio"}}}
    settings = {"urls": ["s3://bucket/"], "credentials": credentials}
    place = fetcher(tmp_path, settings, open_filesystem=store.open)
    source = Source(url="s3://bucket/a.zip", credentials="store")
    store.fail_at = 1000
    with pytest.raises(BadSource) as caught:
        async with place.fetch(source, quiet):
            pass
    assert "RuntimeError" in caught.value.message
    assert "s3cr3t" not in caught.value.message
    assert store.opened[0][1] == {"endpoint_url": "https://minio", "key": "AKIA", "secret": "s3cr3t"}
    store.fail_at = None
    store.reads.clear()
    async with place.fetch(source, quiet) as fetched:
        assert fetched.path.read_bytes() == archive
    assert store.reads[0][0] == 1000


async def test_an_object_that_changes_is_not_believed(tmp_path: Path, store: Store) -> None:
    store.put("/bucket/a.zip", packed(make_adapter(tmp_path / "adapter")))
    store.change_at = 1000
    place = fetcher(tmp_path, {"urls": ["s3://bucket/"]}, open_filesystem=store.open)
    with pytest.raises(BadSource, match="changed"):
        async with place.fetch(Source(url="s3://bucket/a.zip"), quiet):
            pass
    async with place.fetch(Source(url="s3://bucket/a.zip"), quiet):
        assert store.reads[-1][0] > 0


async def test_a_driver_that_hangs_is_left(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("/bucket/a.zip", packed(make_adapter(tmp_path / "adapter")))
    monkeypatch.setattr("server.sources.objects._STEP_S", 0.05)
    release = threading.Event()
    monkeypatch.setattr(store, "cat_file", lambda *args, **kwargs: release.wait(10))
    place = fetcher(tmp_path, {"urls": ["s3://bucket/"]}, open_filesystem=store.open)
    with pytest.raises(BadSource, match="TimeoutError"):
        async with place.fetch(Source(url="s3://bucket/a.zip"), quiet):
            pass
    release.set()


async def test_objects_that_are_absent_or_too_large(tmp_path: Path, store: Store) -> None:
    store.put("/bucket/large.zip", b"x" * ((1 << 20) + 1))
    place = fetcher(tmp_path, {"urls": ["s3://bucket/"]}, open_filesystem=store.open)
    for name, text in (("absent.zip", "not there"), ("large.zip", "more than the 1048576 bytes")):
        with pytest.raises(BadSource, match=text):
            async with place.fetch(Source(url=f"s3://bucket/{name}"), quiet):
                pass
    assert not store.reads


@pytest.mark.parametrize("secret", ["", "not json", '["a"]'])
async def test_a_secret_that_is_no_set_of_options(
    tmp_path: Path, store: Store, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE", secret)
    settings = {"urls": ["s3://bucket/"], "credentials": {"s": {"use_for": ["s3://bucket/"], "env": "STORE"}}}
    with pytest.raises(BadSource, match=r"source\.credentials") as caught:
        async with fetcher(tmp_path, settings, open_filesystem=store.open).fetch(
            Source(url="s3://bucket/a.zip", credentials="s"), quiet
        ):
            pass
    assert not secret or secret not in caught.value.message


async def test_the_machines_own_role_is_used_only_if_the_operator_says_so(tmp_path: Path, store: Store) -> None:
    store.put("/bucket/a.zip", packed(make_adapter(tmp_path / "adapter")))
    settings = {"urls": ["s3://bucket/"], "credentials": {"role": {"use_for": ["s3://bucket/"]}}}
    place = fetcher(tmp_path, settings, open_filesystem=store.open)
    async with place.fetch(Source(url="s3://bucket/a.zip", credentials="role"), quiet):
        pass
    async with place.fetch(Source(url="s3://bucket/a.zip"), quiet):
        pass
    assert [options for _, options in store.opened] == [{}, {"anon": True}]


# -- pins, signatures, secrets ----------------------------------------------------------------------------------------


def test_the_digest_is_what_sha256sum_prints(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    printed = subprocess.run(["sha256sum", *TWO_FILES], cwd=adapter, capture_output=True, check=True).stdout
    assert digest_of(adapter) == hashlib.sha256(printed).hexdigest()
    assert digest_of(adapter / TWO_FILES[0]) == printed.split()[0].decode()


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("kind", ["sha256", "signature"])
@pytest.mark.parametrize("path", ["a.zip", "folder/"])
async def test_pins_and_signatures(tmp_path: Path, good: bool, kind: str, path: str) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    archive = packed(adapter)
    files = {"/a.zip": archive} | {f"/folder/{name}": content for name, content in files_in(adapter).items()}
    digest = digest_of(adapter) if path == "folder/" else hashlib.sha256(archive).hexdigest()
    promised = digest if good else hashlib.sha256(b"something else").hexdigest()
    promise = {"sha256": promised} if kind == "sha256" else {"signature": signed(promised)}
    async with hostile_server(FileServer(files)) as server:
        settings = {"urls": [f"http://files.test:{server.port}/"], "keys": {"release": PUBLIC}}
        place = fetcher(tmp_path, settings)
        source = Source.model_validate({"url": f"http://files.test:{server.port}/{path}", **promise})
        if good:
            async with place.fetch(source, quiet) as fetched:
                assert fetched.provenance.signed_by == ("release" if kind == "signature" else None)
        else:
            with pytest.raises(BadSource, match=rf"source\.{kind}"):
                async with place.fetch(source, quiet):
                    pass
        assert not left(tmp_path)


async def test_a_config_that_was_changed_breaks_the_pin(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    digest = digest_of(adapter)
    config = adapter / TWO_FILES[0]
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 800'))
    assert digest_of(adapter) != digest


def test_signatures_can_be_required(tmp_path: Path) -> None:
    settings = {"urls": ["hub:*"], "require_signature": True, "keys": {"release": PUBLIC}}
    with pytest.raises(BadSource, match="requires"):
        fetcher(tmp_path, settings).check(Source.model_validate({"hub": {"repo": "org/name"}}))


async def test_a_secret_is_read_anew_from_its_file(tmp_path: Path) -> None:
    async with hostile_server(FileServer({"/a.zip": packed(make_adapter(tmp_path / "adapter"))})) as server:
        origin = f"http://files.test:{server.port}/"
        secret = tmp_path / "secret"
        settings = {"urls": [origin], "credentials": {"s": {"use_for": [origin], "file": str(secret)}}}
        place = fetcher(tmp_path, settings)
        source = Source(url=f"{origin}a.zip", credentials="s")
        with pytest.raises(BadSource, match="not there now"):
            async with place.fetch(source, quiet):
                pass
        for text in ("first", "second"):
            secret.write_text(text)
            async with place.fetch(source, quiet):
                assert server.asked[-1].headers["authorization"] == f"Bearer {text}"


async def test_a_secret_with_a_line_break_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "s3cr3t\r\nx-evil: 1")
    settings = {"urls": ["hub:*"], "credentials": {"s": {"use_for": ["hub:*"], "env": "TOKEN"}}}
    with pytest.raises(BadSource) as caught:
        async with fetcher(tmp_path, settings).fetch(
            Source.model_validate({"hub": {"repo": "org/name"}, "credentials": "s"}), quiet
        ):
            pass
    assert "s3cr3t" not in caught.value.message


# -- what stays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "stays"),
    [(InvalidAdapter([Problem("x", "y", "z")]), False), (StorageFull(Path("/x")), True), (RuntimeError(), True)],
    ids=lambda value: type(value).__name__,
)
async def test_what_was_refused_goes_and_what_may_work_later_stays(
    tmp_path: Path, error: Exception, stays: bool
) -> None:
    async with hostile_server(FileServer({"/a.zip": packed(make_adapter(tmp_path / "adapter"))})) as server:
        place = fetcher(tmp_path, {"urls": [f"http://files.test:{server.port}/"]})
        with pytest.raises(type(error)):
            async with place.fetch(Source(url=f"http://files.test:{server.port}/a.zip"), quiet):
                raise error
        assert left(tmp_path) == (["archive.json", "archive.part"] if stays else [])


async def test_two_of_one_source_take_turns(tmp_path: Path) -> None:
    archive = packed(make_adapter(tmp_path / "adapter"))
    async with hostile_server(FileServer({"/a.zip": archive})) as server:
        place = fetcher(tmp_path, {"urls": [f"http://files.test:{server.port}/"]})
        inside = 0

        async def fetch() -> None:
            nonlocal inside
            async with place.fetch(Source(url=f"http://files.test:{server.port}/a.zip"), quiet) as fetched:
                inside += 1
                assert inside == 1
                assert await asyncio.to_thread(fetched.path.read_bytes) == archive
                inside -= 1

        await asyncio.gather(*(fetch() for _ in range(4)))


def test_old_downloads_are_removed_and_young_ones_stay(tmp_path: Path) -> None:
    place = fetcher(tmp_path, {})
    for name in ("0a", "0b"):
        PartialFile(tmp_path / "downloads" / name, "archive", 10).path.parent.mkdir(parents=True)
        (tmp_path / "downloads" / name / "archive.part").write_bytes(b"x")
    long_ago = time.time() - MAX_IDLE_S - 60
    for entry in (tmp_path / "downloads" / "0a" / "archive.part", tmp_path / "downloads" / "0a"):
        os.utime(entry, (long_ago, long_ago))
    place.remove_old()
    assert [folder.name for folder in (tmp_path / "downloads").iterdir()] == ["0b"]
