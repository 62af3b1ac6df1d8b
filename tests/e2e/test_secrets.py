"""Keys: malformed ones are refused, good ones are seen nowhere; and metrics stay readable while experts come and go."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import sqlite3
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from adapters_registry.keys import new_key
from tests.e2e.conftest import register_examples
from tests.support.adapters import make_adapter, manifest
from tests.support.servers import Running, running_gateway

PROMPT = "a prompt that nobody else may ever read"
ROOT = Path(__file__).parents[2]
UNSAFE = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}


async def test_malformed_keys_are_refused(running: Running) -> None:
    record, secret = new_key("app", scopes=["infer", "admin"])
    await running.gateway.library.keys.add(record)
    running.gateway.authenticator.forget()
    wrong = [
        secret[:-1],
        secret + "x",
        secret.upper(),
        secret.swapcase(),
        "x" * 7000,
        "mg-",
        "\xff\xfe",
        "%00",
        "' OR 1=1 --",
        f"{record.key_id}",
        record.hash,
    ]
    async with httpx.AsyncClient(base_url=running.url) as http:
        for value in wrong:
            for header in (("authorization", f"Bearer {value}"), ("x-api-key", value), ("authorization", value)):
                headers = [(header[0].encode(), header[1].encode("latin-1"))]
                response = await http.get("/v1/models", headers=headers)
                assert response.status_code == 401, (header, response.text)
                assert secret not in response.text
        for good in ({"authorization": f"Bearer {secret}"}, {"x-api-key": secret}):
            assert (await http.get("/v1/models", headers=good)).status_code == 200


async def test_keys_and_prompts_are_seen_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with running_gateway(tmp_path / "home", log_level="debug", log_format="json") as running:
        await register_examples(running, tmp_path)
        record, secret = new_key("app", scopes=["infer", "admin"])
        await running.gateway.library.keys.add(record)
        running.gateway.authenticator.forget()
        good, bad = {"authorization": f"Bearer {secret}"}, {"authorization": "Bearer mg-wrong-and-secret"}
        async with httpx.AsyncClient(base_url=running.url) as http:
            for model in ("base", "sql", "auto", "nobody", "mix(sql*1"):
                for headers in (good, bad):
                    for stream in (False, True):
                        body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": PROMPT}]}
                        await http.post("/v1/chat/completions", json=body, headers=headers)
            await http.post("/v1/chat/completions", content=b"{" + PROMPT.encode(), headers=good)
            await http.post("/v1/route", json={"prompt": PROMPT}, headers=good)
            await http.delete("/admin/adapters/nobody", headers=good)
            seen = (await http.get("/metrics", headers=good)).text
        asked = [request for request in running.engine.seen if request.path == "/v1/chat/completions"]
        assert asked and not any(secret in str(request.headers) for request in asked)
    out, err = capfd.readouterr()
    stored = b"".join(file.read_bytes() for file in (tmp_path / "home").rglob("*") if file.is_file()).decode("latin-1")
    assert "adapter registered" in out + err
    for place in (out, err, seen, stored):
        assert secret not in place and secret[8:] not in place
        assert "wrong-and-secret" not in place
        assert PROMPT not in place


def test_nothing_is_unpickled() -> None:
    for file in [path for name in ("server", "routers", "adapters_registry") for path in (ROOT / name).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            module = getattr(node, "module", None) or ""
            assert not UNSAFE & {part for name in [*names, module] for part in name.split(".")}, file
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
                assert owner != "torch" or given.get("weights_only") is True, file
                assert owner not in ("np", "numpy") or given.get("allow_pickle", False) is False, file


async def test_metrics_can_be_read_while_experts_come_and_go(running: Running, tmp_path: Path) -> None:
    done = asyncio.Event()

    async def come_and_go(http: httpx.AsyncClient) -> None:
        for seed in range(8):
            body = manifest("guest", make_adapter(tmp_path / f"guest{seed}", seed=30 + seed), f"guest number {seed}")
            assert (await http.post("/admin/adapters", json=body)).status_code == 201
            await http.post("/v1/completions", json={"model": "guest", "prompt": "x"})
            if seed % 3 == 2:
                assert (await http.delete("/admin/adapters/guest")).status_code == 200
        done.set()

    num_scrapes = 0
    async with httpx.AsyncClient(base_url=running.url, timeout=60) as http:
        work = asyncio.create_task(come_and_go(http))
        while not done.is_set() and not work.done():
            response = await http.get("/metrics")
            assert response.status_code == 200
            families = {family.name for family in text_string_to_metric_families(response.text)}
            assert {"moergate_requests", "moergate_library_experts", "moergate_library_versions"} <= families
            num_scrapes += 1
        with contextlib.suppress(asyncio.CancelledError):
            await work
    assert num_scrapes > 3


def test_the_database_knows_only_hashes(tmp_path: Path) -> None:
    async def make() -> tuple[str, str]:
        async with running_gateway(tmp_path / "home") as running:
            record, secret = new_key("app")
            await running.gateway.library.keys.add(record)
            return record.hash, secret

    digest, secret = asyncio.run(make())
    with contextlib.closing(sqlite3.connect(tmp_path / "home" / "registry.sqlite3")) as database:
        rows = str(database.execute("SELECT * FROM api_keys").fetchall())
    assert digest in rows and secret not in rows
