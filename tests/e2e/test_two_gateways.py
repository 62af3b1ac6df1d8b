"""Two gateways on one home and one database: what one does the other shows, and either may be killed at any time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters_registry.keys import new_key
from adapters_registry.records import parse_manifest
from routers.base import Artefact
from routers.methods.knn import KnnRouter
from server.engine.fake import FakeEngine
from tests.e2e.conftest import EXAMPLES
from tests.support.adapters import make_adapter, manifest
from tests.support.processes import Serving, free_port, serving
from tests.support.servers import http_server, running_gateway
from tests.support.waiting import eventually


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> dict[str, str]:
    """The setting that says which database; none is SQLite in the home folder."""
    return {"database_url": request.getfixturevalue("postgres_url")} if request.param == "postgresql" else {}


@contextlib.asynccontextmanager
async def pair(home: Path, database: dict[str, str]) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for _ in range(2):
            gateway = await stack.enter_async_context(running_gateway(home, **database))
            clients.append(await stack.enter_async_context(httpx.AsyncClient(base_url=gateway.url, timeout=30)))
        yield clients[0], clients[1]


async def becomes(look: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    """Wait until `look` gives what is wanted; the last thing that it gave is shown if it never does."""
    seen: Any = None

    async def is_wanted() -> bool:
        nonlocal seen
        seen = await look()
        return bool(seen == wanted)

    await eventually(is_wanted, message=lambda: f"{seen!r} is not {wanted!r}")


async def recipe(client: httpx.AsyncClient, model: str, prompt: str) -> str | None:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    return (await client.post("/v1/route", json=body)).json().get("recipe")


async def test_experts_and_policies_of_one_are_the_others_too(tmp_path: Path, database: dict[str, str]) -> None:
    async with pair(tmp_path / "home", database) as (one, other):
        ids = {}
        for seed, (name, examples) in enumerate(EXAMPLES.items()):
            body = manifest(name, make_adapter(tmp_path / name, seed=seed), *examples)
            ids[name] = (await (one, other)[seed].post("/admin/adapters", json=body)).json()["id"]
        for client in (one, other):
            for name, examples in EXAMPLES.items():
                await becomes(lambda c=client, text=examples[0]: recipe(c, "auto", text), ids[name])
        made = await one.post("/admin/policies", json={"name": "mean", "router": "centroid"})
        assert made.status_code == 202
        await becomes(lambda: recipe(other, "mean", EXAMPLES["sql"][0]), ids["sql"])
        fitted = [(await c.get("/admin/policies/mean")).json()["provenance"] for c in (one, other)]
        assert fitted[0] == fitted[1]
        changed = {"name": "mean", "router": "centroid", "options": {"threshold": 2.0}}
        assert (await other.post("/admin/policies", json=changed)).status_code == 202
        await becomes(lambda: recipe(one, "mean", EXAMPLES["sql"][0]), "base")
        assert (await one.delete("/admin/policies/mean")).status_code == 200
        await becomes(lambda: recipe(other, "mean", "x"), None)
        assert (await other.delete("/admin/adapters/sql")).status_code == 200
        await becomes(lambda: recipe(one, "sql", "x"), None)


async def test_a_key_of_one_confines_callers_of_the_other(tmp_path: Path, database: dict[str, str]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(running_gateway(tmp_path / "home", **database))
        second = await stack.enter_async_context(running_gateway(tmp_path / "home", **database))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=second.url))

        async def status(headers: dict[str, str]) -> int:
            return (await client.get("/v1/models", headers=headers)).status_code

        assert await status({}) == 200
        record, secret = new_key("app")
        await first.gateway.library.keys.add(record)
        await becomes(lambda: status({}), 401)
        assert await status({"authorization": f"Bearer {secret}"}) == 200
        await first.gateway.library.keys.revoke(record.key_id)
        await becomes(lambda: status({"authorization": f"Bearer {secret}"}), 200)  # no key is left: open again


async def test_one_is_killed_while_both_register_and_the_other_goes_on(
    tmp_path: Path, database: dict[str, str]
) -> None:
    async with http_server(FakeEngine()) as engine, contextlib.AsyncExitStack() as stack:
        arguments = ["--engine-url", engine, "--embedder", "hashing", "--base-model", "tiny-base"]
        if database:
            arguments += ["--database-url", database["database_url"]]

        async def start(num: int) -> list[tuple[Serving, httpx.AsyncClient]]:
            servers = [stack.enter_context(serving(tmp_path / "home", free_port(), *arguments)) for _ in range(num)]
            for server in servers:
                await asyncio.to_thread(server.wait_ready, 60)
            clients = [httpx.AsyncClient(base_url=server.url, timeout=30) for server in servers]
            return [(server, await stack.enter_async_context(c)) for server, c in zip(servers, clients, strict=True)]

        (doomed, one), (_, other) = await start(2)
        bodies = [
            manifest(f"expert{number}", make_adapter(tmp_path / f"e{number}", seed=number), f"speak of topic{number}")
            for number in range(12)
        ]

        async def register(client: httpx.AsyncClient, body: dict[str, Any]) -> str | None:
            try:
                response = await client.post("/admin/adapters", json=body)
            except httpx.TransportError:
                return None
            assert response.status_code == 201, response.text
            return str(response.json()["id"])

        async def register_until_killed() -> list[str]:
            return [made for body in bodies[:8] if (made := await register(one, body))]

        async def kill() -> None:
            await asyncio.sleep(0.3)
            doomed.process.kill()

        told, by_other, _ = await asyncio.gather(
            register_until_killed(), asyncio.gather(*(register(other, body) for body in bodies[8:])), kill()
        )
        assert None not in by_other
        listed = {each["id"] for each in (await other.get("/admin/adapters")).json()["data"]}
        assert {*told, *by_other} <= listed  # what was said to be done is done
        for expert in (*told, *by_other):
            topic = f"speak of topic{expert.partition('@')[0].removeprefix('expert')}"
            await becomes(lambda text=topic: recipe(other, "auto", text), expert)
        ((_, again),) = await start(1)
        for body in bodies:
            assert await register(again, body)
        assert len((await other.get("/admin/adapters")).json()["data"]) == len(bodies)


async def test_a_key_is_revoked_while_policies_are_being_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()
    fit = KnnRouter.fit

    def slowly(*arguments: Any) -> Artefact:
        free.wait()
        return fit(*arguments)

    async with running_gateway(tmp_path / "home") as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        keep, _ = new_key("keeps the gateway closed")
        app, secret = new_key("app")
        for key in (keep, app):
            await gateway.gateway.library.keys.add(key)

        async def status() -> int:
            headers = {"authorization": f"Bearer {secret}"}
            return (await client.get("/v1/models", headers=headers)).status_code

        monkeypatch.setattr(KnnRouter, "fit", slowly)
        body = manifest("sql", make_adapter(tmp_path / "sql"), *EXAMPLES["sql"])
        await gateway.gateway.library.register_folder(parse_manifest(body), tmp_path / "sql")
        try:
            await becomes(status, 200)
            await gateway.gateway.library.keys.revoke(app.key_id)
            await becomes(status, 401)
        finally:
            free.set()
