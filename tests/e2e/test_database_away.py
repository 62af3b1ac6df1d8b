"""The database goes away under a running gateway and comes back: what is known is served on, nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx

from adapters_registry.key_limits import KeyLimits
from adapters_registry.keys import new_key
from tests.e2e.conftest import EXAMPLES, register_examples
from tests.support.adapters import make_adapter, manifest
from tests.support.servers import running_gateway
from tests.support.waiting import eventually


class Line:
    """A way to a PostgreSQL's socket that can be cut."""

    def __init__(self, server: Path, ours: Path) -> None:
        self._server = server / ".s.PGSQL.5432"
        self._ours = ours / ".s.PGSQL.5432"
        self._listener: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def connect(self) -> None:
        self._ours.unlink(missing_ok=True)
        self._listener = await asyncio.start_unix_server(self._carry, self._ours)

    async def cut(self) -> None:
        assert self._listener
        self._listener.close()
        for writer in list(self._open):
            writer.transport.abort()
        self._ours.unlink(missing_ok=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self._server)
        self._open |= {writer, far_writer}
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await asyncio.wait(
                [asyncio.create_task(_pump(reader, far_writer)), asyncio.create_task(_pump(far_reader, writer))],
                return_when=asyncio.FIRST_COMPLETED,
            )
        for each in (writer, far_writer):
            self._open.discard(each)
            each.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def line_to(url: str, folder: Path) -> AsyncIterator[tuple[Line, str]]:
    host = parse_qs(urlsplit(url).query)["host"][0]
    line = Line(Path(host), folder)
    await line.connect()
    yield line, url.replace(host, str(folder))
    await line.cut()


async def test_requests_for_known_experts_go_on(postgres_url: str, tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        line, url = await stack.enter_async_context(line_to(postgres_url, tmp_path))
        running = await stack.enter_async_context(running_gateway(tmp_path / "home", database_url=url))
        ids = await register_examples(running, tmp_path)
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=running.url, timeout=60))
        headers = {}
        all_limits = {
            "app": KeyLimits(),
            "limited": KeyLimits(requests_per_minute=100),
            "crowded": KeyLimits(max_concurrency=1),
            "unseen": KeyLimits(),
        }
        for name, key_limits in all_limits.items():
            record, secret = new_key(name, scopes=["infer", "admin"], limits=key_limits)
            await running.gateway.library.keys.add(record)
            headers[name] = {"authorization": f"Bearer {secret}"}

        async def ask(key: str, model: str) -> httpx.Response:
            body = {"model": model, "messages": [{"role": "user", "content": EXAMPLES["sql"][0]}]}
            return await http.post("/v1/chat/completions", json=body, headers=headers[key])

        async def knows_the_keys() -> bool:
            opened = (await ask("app", "sql")).status_code == 200 and (await http.get("/v1/models")).status_code == 401
            # Keys that were just made are asked for once more.
            return opened and running.gateway.watcher._revision == await running.gateway.library.revision()

        await eventually(knows_the_keys)
        for key in ("app", "limited", "crowded"):
            assert (await ask(key, "sql")).status_code == 200
        running.engine.tokens_per_s = 1000.0
        endless = {"model": "base", "messages": [], "max_tokens": 1_000_000, "stream": True}
        begun = http.stream("POST", "/v1/chat/completions", json=endless, headers=headers["crowded"])
        under_way = (await begun.__aenter__()).aiter_bytes()
        assert await anext(under_way)
        await line.cut()
        await eventually(lambda: running.gateway.watcher.problem, within=60)
        for _ in range(20):
            assert (await ask("app", "sql")).headers["x-moergate-recipe"] == ids["sql"]
            assert (await ask("app", "auto")).headers["x-moergate-recipe"] == ids["sql"]
        assert await anext(under_way)  # goes on, and holds its place
        assert (await ask("crowded", "sql")).status_code == 429
        await begun.__aexit__(None, None, None)
        await eventually(lambda: not running.engine.running)
        for key in ("limited", "crowded", "unseen"):
            refused = await ask(key, "sql")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
            assert refused.headers["retry-after"]
        body = manifest("late", make_adapter(tmp_path / "late", seed=5), "a prompt of its own")
        refused = await http.post("/admin/adapters", json=body, headers=headers["app"])
        assert refused.status_code == 503
        assert "Nothing was changed" in refused.json()["error"]["message"]
        assert (await http.get("/readyz")).status_code == 200
        metrics = (await http.get("/metrics", headers=headers["app"])).text
        assert "moergate_registry_up 0.0" in metrics

        await line.connect()

        async def is_registered() -> bool:
            return (await http.post("/admin/adapters", json=body, headers=headers["app"])).status_code == 201

        await eventually(is_registered, within=60)
        await eventually(lambda: not running.gateway.watcher.problem, within=60)
        for key in ("limited", "crowded", "unseen"):
            assert (await ask(key, "late")).status_code == 200
