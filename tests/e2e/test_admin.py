"""The admin API: registering from folders and uploads, bad input, removal, keys and what they hide."""

import asyncio
import contextlib
import errno
import io
import json
import sqlite3
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters_registry.keys import new_key
from adapters_registry.records import utc_now
from routers.embedders.hashing import HashingEncoder
from server.engine.fake import FakeEngine
from server.settings import Settings, SettingsError
from server.wiring import open_gateway, open_library
from tests.e2e.conftest import EXAMPLES, register_examples, routed_to
from tests.support.adapters import make_adapter, manifest
from tests.support.asking import answers
from tests.support.servers import Running, running_gateway
from tests.support.waiting import eventually


def parts(fields: dict[str, Any], *files: tuple[str, bytes]) -> dict[str, Any]:
    """A multipart body for httpx."""
    return {
        "data": {"manifest": json.dumps(fields)},
        "files": [("files", (name, content, "application/octet-stream")) for name, content in files],
    }


def zipped(folder: Path, *, prefix: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, prefix + file.name)
    return buffer.getvalue()


def tarred(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder, "adapter")
    return buffer.getvalue()


async def test_a_folder_becomes_routable_under_load(running: Running, tmp_path: Path) -> None:
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as http:
        stop = asyncio.Event()

        async def load() -> int:
            done = 0
            while not stop.is_set():
                response = await http.post("/v1/completions", json={"model": "auto", "prompt": EXAMPLES["sql"][0]})
                assert response.status_code == 200
                done += 1
            return done

        loads = [asyncio.create_task(load()) for _ in range(4)]
        folder = make_adapter(tmp_path / "poems", seed=9)
        body = manifest("poems", folder, "write a poem about rain", "a haiku on autumn leaves", "rhyme about the sea")
        created = await http.post("/admin/adapters", json=body)
        assert created.status_code == 201, created.text
        record = created.json()
        by_name = await http.post("/v1/completions", json={"model": "poems", "prompt": "x"})
        assert by_name.headers["x-moergate-recipe"] == record["id"]
        await routed_to(http, "a haiku on autumn leaves", record["id"])
        stop.set()
        assert all(await asyncio.gather(*loads))
    expected = {"name": "poems", "state": "active", "rank": 4, "target_modules": ["q_proj", "v_proj"]}
    assert expected.items() <= record.items()
    assert record["id"] == f"poems@{record['version']}"
    assert record["size_bytes"] > 0


async def test_uploads_of_every_kind_give_the_same_version(running: Running, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a", seed=5)
    loose = [(file.name, file.read_bytes()) for file in folder.iterdir()]
    bodies = [
        parts({"name": "u1"}, ("a.zip", zipped(folder))),
        parts({"name": "u2"}, ("a.zip", zipped(folder, prefix="top/"))),
        parts({"name": "u3"}, ("a.tar.gz", tarred(folder))),
        parts({"name": "u4"}, *loose),
    ]
    async with httpx.AsyncClient(base_url=running.url) as http:
        answers = [await http.post("/admin/adapters", **body) for body in bodies]
        assert [answer.status_code for answer in answers] == [201] * 4, [answer.text for answer in answers]
        assert len({answer.json()["sha256"] for answer in answers}) == 1
    assert not list((running.gateway.settings.home / "uploads").iterdir())


@pytest.mark.parametrize(
    ("body", "status", "hint"),
    [
        ({"content": b"{"}, 400, "manifest"),
        ({"json": {"name": "Bad Name!", "source": {"path": "/tmp"}}}, 400, "name"),  # noqa: S108
        ({"json": {"name": "ok"}}, 400, "no source"),
        ({"json": {"name": "ok", "source": {"path": "relative/path"}}}, 400, "not absolute"),
        ({"json": {"name": "ok", "source": {"path": "/does/not/exist"}}}, 400, "does/not/exist"),
        ({"json": {"name": "ok", "source": {"path": "/etc"}, "surprise": 1}}, 400, "surprise"),
        ({"json": {"name": "auto", "source": {"path": "/etc"}}}, 400, "auto"),
        (parts({"name": "ok"}), 400, "files"),
        (parts({"name": "ok"}, ("a.zip", b"not an archive")), 400, "archive"),
        (parts({"name": "ok"}, ("../../x", b"1"), ("adapter_config.json", b"{}")), 400, "name"),
        (parts({"name": "ok"}, ("adapter_model.bin", b"\x80\x04"), ("adapter_config.json", b"{}")), 400, "safetensors"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 400, "application/json"),
    ],
)
async def test_bad_registrations_say_what_to_do(body: dict[str, Any], status: int, hint: str, running: Running) -> None:
    if "content" in body and "headers" not in body:
        body = body | {"headers": {"content-type": "application/json"}}
    async with httpx.AsyncClient(base_url=running.url) as http:
        response = await http.post("/admin/adapters", **body)
        assert response.status_code == status, response.text
        assert hint in json.dumps(response.json()["error"])
        listed = (await http.get("/admin/adapters")).json()["data"]
    assert {record["name"] for record in listed} == {"sql", "dates"}


async def test_a_broken_adapter_lists_every_problem(running: Running, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True, "bias": "all"}))
    async with httpx.AsyncClient(base_url=running.url) as http:
        error = (await http.post("/admin/adapters", json=manifest("ok", folder))).json()["error"]
    assert error["code"] == "adapter_refused"
    assert len(error["problems"]) >= 2
    assert all({"where", "what", "fix"} == problem.keys() for problem in error["problems"])


async def test_two_registrations_of_one_name_at_once_end_clearly(running: Running, tmp_path: Path) -> None:
    folders = [make_adapter(tmp_path / f"v{i}", seed=100 + i) for i in range(6)]
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as http:
        answers = await asyncio.gather(*(http.post("/admin/adapters", json=manifest("same", f)) for f in folders))
        assert {answer.status_code for answer in answers} == {201}
        listed = [r for r in (await http.get("/admin/adapters")).json()["data"] if r["name"] == "same"]
    assert len(listed) == 1
    assert listed[0]["id"] in {answer.json()["id"] for answer in answers}


async def test_an_expert_removed_in_use_finishes_its_requests(running: Running) -> None:
    running.engine.tokens_per_s = 40
    async with httpx.AsyncClient(base_url=running.url, timeout=30) as http:
        record = (await http.get("/admin/adapters/sql")).json()
        files = running.gateway.library.folder_of(await running.gateway.library.get("sql"))
        body = {"model": "sql", "prompt": "x", "stream": True, "max_tokens": 60}
        async with http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.aiter_lines()
            await anext(lines)
            assert (await http.delete("/admin/adapters/sql")).status_code == 200
            refused = await http.post("/v1/completions", json={"model": "sql", "prompt": "x"})
            assert refused.json()["error"]["code"] == "model_not_found"
            by_version = await http.post("/v1/completions", json={"model": record["id"], "prompt": "x"})
            assert by_version.status_code == 404
            assert files.exists()
            rest = [line async for line in lines]
        assert rest[-2:] == ["data: [DONE]", ""] or rest[-1] == "data: [DONE]"
        routed = (await http.post("/v1/route", json={"prompt": EXAMPLES["sql"][0]})).json()
        assert "sql" not in json.dumps([routed["recipe"], routed["candidates"], routed["neighbours"]])
        await eventually(lambda: not files.exists())
    assert "/v1/unload_lora_adapter" in [seen.path for seen in running.engine.seen]


async def test_examples_can_be_replaced(running: Running) -> None:
    async with httpx.AsyncClient(base_url=running.url) as http:
        changed = await http.put("/admin/adapters/sql/examples", json={"examples": ["brew a good espresso at home"]})
        assert changed.json()["examples"] == ["brew a good espresso at home"]
        await routed_to(http, "brew a good espresso at home", changed.json()["id"])
        for bad in ({"examples": "text"}, {"examples": [1]}, {"examples": [""]}, {}):
            assert (await http.put("/admin/adapters/sql/examples", json=bad)).status_code == 400
        assert (await http.put("/admin/adapters/nope/examples", json={"examples": []})).status_code == 404


async def add_key(running: Running, *scopes: str, experts: tuple[str, ...] = ("*",), **changes: Any) -> dict[str, str]:
    record, plaintext = new_key("test", scopes=scopes, experts=experts)
    record = replace(record, **changes)
    await running.gateway.library.keys.add(record)
    return {"authorization": f"Bearer {plaintext}"}


async def test_keys_confine(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "home") as running:
        ids = await register_examples(running, tmp_path)
        infer = await add_key(running, "infer")
        sql_only = await add_key(running, "infer", experts=("s*",))
        admin = await add_key(running, "admin")
        expired = await add_key(running, "infer", expires_at=utc_now())
        async with httpx.AsyncClient(base_url=running.url) as http:
            await eventually(lambda: answers(http, "/v1/models", 401))  # the gateway looks for changes every second
            await eventually(lambda: answers(http, "/admin/adapters", 200, admin))
            for path in ("/v1/models", "/admin/adapters"):
                assert (await http.get(path)).status_code == 401
                assert (await http.get(path, headers={"authorization": "Bearer mg-00000000-x"})).status_code == 401
            assert (await http.get("/v1/models", headers=expired)).status_code == 401
            assert (await http.get("/admin/adapters", headers=infer)).status_code == 403
            assert (await http.get("/v1/models", headers=admin)).status_code == 403
            secret = infer["authorization"].removeprefix("Bearer ")
            assert (await http.get("/v1/models", headers={"x-api-key": secret})).status_code == 200

            listed = (await http.get("/v1/models", headers=sql_only)).text
            assert "dates" not in listed
            hidden = {"model": "dates", "prompt": "x"}
            unknown = {"model": "absent", "prompt": "x"}
            refused = [await http.post("/v1/completions", json=b, headers=sql_only) for b in (hidden, unknown)]
            assert refused[0].status_code == refused[1].status_code == 404
            assert refused[0].text.replace("dates", "?") == refused[1].text.replace("absent", "?")
            explained = await http.post("/v1/route", json={"prompt": EXAMPLES["dates"][0]}, headers=sql_only)
            assert "dates@" not in explained.text
            assert not any(example in explained.text for example in EXAMPLES["dates"])
            by_version = await http.post(
                "/v1/completions", json={"model": ids["dates"], "prompt": "x"}, headers=sql_only
            )
            assert by_version.status_code == 404
            routed = await http.post(
                "/v1/completions", json={"model": "auto", "prompt": EXAMPLES["dates"][0]}, headers=sql_only
            )
            assert not routed.headers["x-moergate-recipe"].startswith("dates")


async def test_a_locked_database_is_told_and_nothing_is_lost(running: Running, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "late", seed=77)
    path = running.gateway.settings.home / "registry.sqlite3"
    async with httpx.AsyncClient(base_url=running.url, timeout=120) as http:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            locked = await http.post("/admin/adapters", json=manifest("late", folder))
            assert (locked.status_code, locked.json()["error"]["code"]) == (503, "unavailable")
            assert locked.headers["retry-after"]
            served = await http.post("/v1/completions", json={"model": "sql", "prompt": "x"})
            assert served.status_code == 200
            other.execute("ROLLBACK")
        assert (await http.post("/admin/adapters", json=manifest("late", folder))).status_code == 201
        assert {r["name"] for r in (await http.get("/admin/adapters")).json()["data"]} == {"sql", "dates", "late"}


async def test_a_full_disk_is_told_and_nothing_is_lost(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_adapter(tmp_path / "late", seed=78)

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with httpx.AsyncClient(base_url=running.url, timeout=60) as http:
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            for answer in (
                await http.post("/admin/adapters", json=manifest("late", folder)),
                await http.post("/admin/adapters", **parts({"name": "late"}, ("a.zip", zipped(folder)))),
            ):
                assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_failed")
        listed = {r["name"] for r in (await http.get("/admin/adapters")).json()["data"]}
        assert listed == {"sql", "dates"}
        assert (await http.post("/admin/adapters", json=manifest("late", folder))).status_code == 201


async def test_without_keys_web_pages_and_other_hosts_are_refused(running: Running) -> None:
    async with httpx.AsyncClient(base_url=running.url) as http:
        for headers in (
            {"origin": "https://evil.example"},
            {"host": "evil.example"},
            {"host": "[::1"},
            {"origin": "http://["},
        ):
            response = await http.get("/v1/models", headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (403, "permission_denied")
        assert (await http.get("/v1/models", headers={"origin": "http://localhost:3000"})).status_code == 200


async def test_strangers_need_keys_before_the_gateway_listens(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, host="0.0.0.0", engine_url=["http://127.0.0.1:1"], embedder="hashing")
    with pytest.raises(SettingsError, match="moergate keys create"):
        await open_gateway(settings, HashingEncoder(), "")
    library = await open_library(settings)
    await library.keys.add(new_key("app")[0])
    await library.close()
    gateway = await open_gateway(settings, HashingEncoder(), "")
    await gateway.close()


async def test_only_allowed_folders_may_be_registered(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    inside, outside = make_adapter(allowed / "a"), make_adapter(tmp_path / "outside")
    (allowed / "link").symlink_to(outside)
    async with running_gateway(tmp_path / "home", source_dirs=[allowed]) as running:
        async with httpx.AsyncClient(base_url=running.url) as http:
            assert (await http.post("/admin/adapters", json=manifest("a", inside))).status_code == 201
            for folder in (outside, allowed / "link", allowed / ".." / "outside"):
                assert (await http.post("/admin/adapters", json=manifest("b", folder))).status_code == 403


async def test_a_library_file_is_registered_at_start(tmp_path: Path) -> None:
    make_adapter(tmp_path / "lib" / "sql")
    entries = [
        {"name": "sql", "source": {"path": "sql"}, "examples": ["list all orders"]},
        {"name": "broken", "source": {"path": "missing"}},
    ]
    (tmp_path / "lib" / "library.json").write_text(json.dumps(entries))
    async with running_gateway(tmp_path / "home", FakeEngine(), library=tmp_path / "lib" / "library.json") as running:
        async with httpx.AsyncClient(base_url=running.url) as http:
            assert [r["name"] for r in (await http.get("/admin/adapters")).json()["data"]] == ["sql"]
