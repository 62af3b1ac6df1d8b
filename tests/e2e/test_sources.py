"""Adapters from elsewhere, through the admin API and the command: jobs, what they tell, and what survives."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import json
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.experts.remote_imports import MAX_AT_ONCE, MAX_WAITING
from server.sources.partial import PartialFile
from server.sources.proof import digest_of
from tests.support.adapters import make_adapter
from tests.support.asking import job_ended
from tests.support.hostile import Hostile, always, hostile_server, response
from tests.support.processes import fetch, free_port, run_cli, serving
from tests.support.servers import Running, running_gateway
from tests.support.sources import COMMIT, FakeHub, FileServer, packed
from tests.support.waiting import eventually, eventually_sync

HOST = "127.0.0.1"


@contextlib.asynccontextmanager
async def gateway(home: Path, *urls: str, **sources: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Running]]:
    """A gateway that may fetch from these places."""
    given = {"urls": list(urls), "private_hosts": [HOST], **sources}
    async with (
        running_gateway(home, sources=given) as running,
        httpx.AsyncClient(base_url=running.url, timeout=30) as client,
    ):
        yield client, running


async def ended(client: httpx.AsyncClient, accepted: httpx.Response) -> dict[str, Any]:
    """The job of an accepted request, once it has ended."""
    assert accepted.status_code == 202, accepted.text
    assert accepted.json()["status_url"] == f"/admin/jobs/{accepted.json()['job']['id']}"
    return await job_ended(client, accepted.json()["status_url"])


async def has_downloaded(client: httpx.AsyncClient, status_url: str, num_bytes: int) -> dict[str, Any]:
    """The job, once it has fetched this many bytes."""

    async def look() -> dict[str, Any] | None:
        job = dict((await client.get(status_url)).json())
        return job if job["done"] >= num_bytes else None

    job = await eventually(look)
    assert job is not None
    return job


def place(server: Hostile, path: str = "") -> str:
    return f"http://{HOST}:{server.port}/{path}"


def downloads(home: Path) -> list[str]:
    return sorted(entry.name for entry in (home / "downloads").glob("[0-9a-f]*/*"))


@pytest.mark.parametrize("source", [{"url": "https://x.example/a.zip"}, {"hub": {"repo": "org/name"}}])
async def test_by_default_nothing_is_fetched(tmp_path: Path, source: dict[str, Any]) -> None:
    async with running_gateway(tmp_path) as running, httpx.AsyncClient(base_url=running.url) as client:
        refused = await client.post("/admin/adapters", json={"name": "x", "source": source})
        assert refused.status_code == 403
        assert "sources.urls" in refused.json()["error"]["message"]
        assert not (await client.get("/admin/jobs")).json()["data"]


@pytest.mark.parametrize(
    "source",
    [
        {"url": "file:///etc/passwd"},
        {"url": "https://user:s3cr3t@x.example/a.zip"},
        {"url": "https://x.example/a.zip?key=s3cr3t"},
        {"url": "https://x.example/a.zip", "path": "/x"},
        {"url": "https://x.example/a.zip", "token": "s3cr3t"},
        {},
    ],
)
async def test_bad_sources_are_refused_at_once_without_being_repeated(tmp_path: Path, source: dict[str, Any]) -> None:
    async with gateway(tmp_path, "https://x.example/") as (client, _):
        refused = await client.post("/admin/adapters", json={"name": "x", "source": source})
        assert refused.status_code == 400
        assert refused.json()["error"]["problems"][0]["fix"]
        assert "s3cr3t" not in refused.text


async def test_an_archive_of_a_url_becomes_an_expert(tmp_path: Path) -> None:
    archive = packed(make_adapter(tmp_path / "adapter"))
    async with hostile_server(FileServer({"/a.zip": archive})) as server:
        async with gateway(tmp_path / "home", place(server)) as (client, _):
            forged = {"kind": "hub", "source": "hub:trusted/one"}
            order = {"name": "sql", "source": {"url": place(server, "a.zip")}, "card": {"obtained_from": forged}}
            job = await ended(client, await client.post("/admin/adapters", json=order))
            assert (job["state"], job["kind"], job["subject"]) == ("succeeded", "import", "sql"), job
            shown = (await client.get("/admin/adapters/sql")).json()
            assert job["result"]["id"] == shown["id"]
            obtained = shown["card"]["obtained_from"]
            assert (obtained["kind"], obtained["source"]) == ("url", place(server, "a.zip"))
            listed = (await client.get("/v1/models")).text
            assert "sql" in listed and str(server.port) not in listed
            answer = await client.post("/v1/completions", json={"model": "sql", "prompt": "x", "max_tokens": 1})
            assert answer.status_code == 200
            assert not downloads(tmp_path / "home")


async def test_folders_and_uploads_say_where_they_came_from(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter")
    async with gateway(tmp_path / "home") as (client, _):
        one = await client.post("/admin/adapters", json={"name": "a", "source": {"path": str(folder)}})
        assert one.json()["card"]["obtained_from"]["source"] == str(folder)
        files = [("files", ("a.zip", packed(folder)))]
        two = await client.post("/admin/adapters", data={"manifest": '{"name": "b"}'}, files=files)
        assert two.json()["card"]["obtained_from"]["kind"] == "upload"
        both = {"manifest": json.dumps({"name": "c", "source": {"url": "https://x.example/a.zip"}})}
        assert (await client.post("/admin/adapters", data=both, files=files)).status_code == 400


async def test_a_repository_with_a_secret_that_is_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    adapter = make_adapter(tmp_path / "adapter")
    monkeypatch.setenv("HUB_TOKEN", "t0p-s3cr3t")
    double = FakeHub({file.name: file.read_bytes() for file in adapter.iterdir()}, token="t0p-s3cr3t")
    async with hostile_server(double) as server:
        credentials = {"hub": {"use_for": ["hub:org/*"], "env": "HUB_TOKEN"}}
        home = tmp_path / "home"
        async with gateway(home, "hub:org/*", hub_endpoint=place(server), credentials=credentials) as (client, _):
            source = {"hub": {"repo": "org/name", "revision": "v1"}, "credentials": "hub"}
            job = await ended(client, await client.post("/admin/adapters", json={"name": "sql", "source": source}))
            assert job["state"] == "succeeded", job
            obtained = job["result"]["card"]["obtained_from"]
            assert (obtained["source"], obtained["commit"]) == ("hub:org/name@v1", COMMIT)
            texts = [(await client.get(path)).text for path in ("/admin/jobs", "/admin/adapters", "/metrics")]
            del source["credentials"]
            failed = await ended(client, await client.post("/admin/adapters", json={"name": "two", "source": source}))
            assert "credentials" in failed["error"]
        stored = b"".join(file.read_bytes() for file in home.rglob("*") if file.is_file())
        written = "".join([*texts, json.dumps(failed), *capfd.readouterr()]).encode() + stored
        assert b"s3cr3t" not in written


def climbing() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, kind in (("../../escape", tarfile.REGTYPE), ("adapter_config.json", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("a.tar.gz", climbing(), "The archive was refused"),
        ("a.zip", b"PK\x03\x04 not really", "The archive was refused"),
        ("a.zip", b"<html>please log in</html>", "neither zip nor tar"),
        ("a.tar.gz", b"\x1f\x8b" + b"\0" * 100, "The archive was refused"),
    ],
)
async def test_archive_tricks_are_refused_and_leave_nothing(tmp_path: Path, path: str, body: bytes, text: str) -> None:
    async with hostile_server(always(response(body=body))) as server:
        async with gateway(tmp_path / "home", place(server)) as (client, _):
            order = {"name": "sql", "source": {"url": place(server, path)}}
            job = await ended(client, await client.post("/admin/adapters", json=order))
            assert job["state"] == "failed"
            assert text in job["error"]
            assert job["problems"][0]["fix"]
            assert not downloads(tmp_path / "home")
            assert not list(tmp_path.rglob("escape"))
            assert not (await client.get("/admin/adapters")).json()["data"]


async def test_an_adapter_that_does_not_fit_is_refused_with_its_problems(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter")
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"bias": "none"', '"bias": "all"'))
    async with hostile_server(
        FileServer({f"/f/{file.name}": file.read_bytes() for file in folder.iterdir()})
    ) as server:
        async with gateway(tmp_path / "home", place(server, "f/")) as (client, _):
            order = {"name": "sql", "source": {"url": place(server, "f/")}}
            job = await ended(client, await client.post("/admin/adapters", json=order))
            assert any("bias" in str(problem) for problem in job["problems"])


async def test_a_cancelled_download_is_gone_on_with_also_after_a_restart(tmp_path: Path) -> None:
    archive = packed(make_adapter(tmp_path / "adapter"))
    files = FileServer({"/a.zip": archive}, hold_after=1000)
    home = tmp_path / "home"
    async with hostile_server(files) as server:
        order = {"name": "sql", "source": {"url": place(server, "a.zip")}}
        async with gateway(home, place(server)) as (client, _):
            accepted = (await client.post("/admin/adapters", json=order)).json()
            again = (await client.post("/admin/adapters", json=order)).json()
            assert again["job"]["id"] == accepted["job"]["id"]
            job = await has_downloaded(client, accepted["status_url"], 1000)
            assert (job["phase"], job["done"], job["total"]) == ("downloading", 1000, len(archive))
            await client.delete(accepted["status_url"])
            job = await job_ended(client, accepted["status_url"])
            assert job["state"] == "cancelled"
            assert downloads(home) == ["archive.json", "archive.part"]
        async with gateway(home, place(server)) as (client, _):
            job = await ended(client, await client.post("/admin/adapters", json=order))
            assert job["state"] == "succeeded", job
        assert [each.headers.get("range") for each in server.asked] == [None, "bytes=1000-"]


async def test_a_gateway_that_stops_keeps_what_has_come(tmp_path: Path) -> None:
    files = FileServer({"/a.zip": packed(make_adapter(tmp_path / "adapter"))}, hold_after=1000)
    async with hostile_server(files) as server:
        async with gateway(tmp_path / "home", place(server)) as (client, _):
            accepted = await client.post(
                "/admin/adapters", json={"name": "sql", "source": {"url": place(server, "a.zip")}}
            )
            await has_downloaded(client, accepted.json()["status_url"], 1000)
        assert downloads(tmp_path / "home") == ["archive.json", "archive.part"]


async def test_a_few_run_and_some_wait_and_a_waiting_one_can_be_cancelled(tmp_path: Path) -> None:
    archive = packed(make_adapter(tmp_path / "adapter"))
    files = FileServer({f"/{number}.zip": archive for number in range(200)}, hold_after=1000)
    async with hostile_server(files) as server:
        async with gateway(tmp_path / "home", place(server)) as (client, _):
            accepted = []
            for number in range(MAX_AT_ONCE + MAX_WAITING):
                order = {"name": f"e{number}", "source": {"url": place(server, f"{number}.zip")}}
                accepted.append(await client.post("/admin/adapters", json=order))
            one_more = {"name": "more", "source": {"url": place(server, "150.zip")}}
            refused = await client.post("/admin/adapters", json=one_more)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
            states = [(await client.get(each.json()["status_url"])).json()["state"] for each in accepted[:4]]
            assert states == ["running", "running", "queued", "queued"]
            for each in accepted[3:]:
                await client.delete(each.json()["status_url"])
            assert (await ended(client, accepted[3]))["state"] == "cancelled"
            files.release.set()
            assert [(await ended(client, each))["state"] for each in accepted[:3]] == ["succeeded"] * 3


async def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: PartialFile, piece: bytes) -> None:
        from adapters_registry.disk import safe_files

        with safe_files.storage_errors(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PartialFile, "append", full)
    async with hostile_server(FileServer({"/a.zip": packed(make_adapter(tmp_path / "adapter"))})) as server:
        async with gateway(tmp_path / "home", place(server)) as (client, _):
            order = {"name": "sql", "source": {"url": place(server, "a.zip")}}
            job = await ended(client, await client.post("/admin/adapters", json=order))
            assert job["state"] == "failed"
            assert "No room left" in job["error"]


async def test_the_command_waits_and_goes_on_after_the_gateway_was_killed(tmp_path: Path) -> None:
    archive = packed(make_adapter(tmp_path / "adapter"))
    (tmp_path / "a.zip").write_bytes(archive)
    files = FileServer({"/a.zip": archive, "/bad.zip": b"nothing"}, hold_after=1000)
    async with hostile_server(files) as server:
        source = place(server, "a.zip")
        await asyncio.to_thread(_begin_and_kill, tmp_path, place(server), source)
        async with gateway(tmp_path / "home", place(server)) as (_, running):
            digest = digest_of(tmp_path / "a.zip")
            options = ("--url", running.url, "--sha256", digest, "--json")
            added = await asyncio.to_thread(run_cli, "adapters", "add", "sql", source, *options)
            assert json.loads(added.stdout)["card"]["obtained_from"]["sha256"] == digest, added.stderr
            bad = await asyncio.to_thread(
                run_cli, "adapters", "add", "bad", place(server, "bad.zip"), "--url", running.url
            )
            assert bad.returncode == 1
            assert "neither zip nor tar" in bad.stderr
        ranges = [each.headers.get("range") for each in server.asked if each.path == "/a.zip"]
        assert ranges == [None, "bytes=1000-"]


def _begin_and_kill(folder: Path, allowed: str, source: str) -> None:
    """Let a gateway process fetch a little, and kill it."""
    config = folder / "moergate.toml"
    config.write_text(f'[sources]\nurls = ["{allowed}"]\nprivate_hosts = ["{HOST}"]\n')
    options = ("--engine-url", f"http://{HOST}:9", "--embedder", "hashing", "--base-model", "tiny-base")
    with serving(folder / "home", free_port(), *options, "--config", str(config)) as running:
        running.wait_alive()
        accepted = fetch(f"{running.url}/admin/adapters", {"name": "sql", "source": {"url": source}})
        assert accepted[0] == 202, accepted
        # Bytes are written a step at a time, or when the server has been silent for a while.
        eventually_sync(lambda: any(file.stat().st_size for file in (folder / "home").rglob("*.part")), within=120)
        running.process.kill()
        running.process.wait()
