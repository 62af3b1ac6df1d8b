"""Running parts over real sockets, inside a test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from routers.embedders.hashing import HashingEncoder
from server.api.app import build_app
from server.engine.fake import FakeEngine
from server.gateway import Gateway
from server.settings import Settings
from server.wiring import open_gateway
from tests.support.waiting import eventually


@contextlib.asynccontextmanager
async def http_server(app: ASGIApp) -> AsyncIterator[str]:
    """Serve an application on a free loopback port; gives its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan="off", loop="none", timeout_graceful_shutdown=1)
    server = _QuietServer(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    await eventually(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()


class _QuietServer(uvicorn.Server):
    """Leaves the process's signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@dataclass
class Running:
    """A gateway with fake engines, over HTTP."""

    url: str
    gateway: Gateway
    engines: list[FakeEngine] = field(default_factory=list)

    @property
    def engine(self) -> FakeEngine:
        """The only engine."""
        (engine,) = self.engines
        return engine


@contextlib.asynccontextmanager
async def running_gateway(
    home: Path,
    *engines: FakeEngine,
    ready: bool = True,
    model: str = "",
    **settings: Any,
) -> AsyncIterator[Running]:
    """A gateway in front of fake engines, with the hashing embedder; ready to answer unless told otherwise."""
    doubles = list(engines) or [FakeEngine()]
    async with contextlib.AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(http_server(engine)) for engine in doubles]
        defaults: Mapping[str, Any] = {
            "home": home,
            "engine_url": urls,
            "embedder": "hashing",
            "base_model": "tiny-base",
            "log_level": "error",
        }
        gateway = await open_gateway(Settings(**{**defaults, **settings}), HashingEncoder(), model)
        gateway.start()
        stack.push_async_callback(gateway.close)
        if ready:
            await eventually(lambda: not gateway.missing(), message=lambda: str(gateway.missing()))
        url = await stack.enter_async_context(http_server(build_app(gateway)))
        yield Running(url, gateway, doubles)
