"""Runs the gateway in this process: socket, application, signals, and a clean end.

SIGINT or SIGTERM stops accepting, lets running answers finish within the drain time, then ends the engine; a second one
cuts the answers short.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Generator

import structlog
import uvicorn

from routers.embedders.base import Encoder
from server.api.app import build_app
from server.gateway import Gateway
from server.settings import Settings, SettingsError
from server.wiring import open_gateway

POLL_S = 0.125
WAITING_NOTICE_S = 10.0

log = structlog.get_logger(__name__)


def bind(host: str, port: int) -> socket.socket:
    """Open the listening socket before anything is started.

    Raises:
        SettingsError: The port is taken or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(
            f"Cannot listen on {host}, port {port}: {error.strerror}. Choose another with --port or --host."
        ) from None


async def serve(
    settings: Settings,
    encoder: Encoder,
    model: str,
    listener: socket.socket,
    on_ready: Callable[[Gateway], None],
) -> None:
    """Serve until a signal comes.

    Args:
        settings: All settings.
        encoder: The sentence encoder, loaded.
        model: The base as the engine gets it.
        listener: The socket, listening.
        on_ready: Called once, when requests can be answered.
    """
    gateway = await open_gateway(settings, encoder, model)
    try:
        gateway.start()
        config = uvicorn.Config(
            build_app(gateway),
            loop="none",
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=round(settings.drain_timeout_s),
        )
        watcher = asyncio.create_task(_announce(gateway, on_ready))
        try:
            await _Server(config).serve(sockets=[listener])
        finally:
            watcher.cancel()
    finally:
        await gateway.close()


class _Server(uvicorn.Server):
    """uvicorn's server, but a signal ends `serve` normally instead of being raised again after it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


async def _announce(gateway: Gateway, on_ready: Callable[[Gateway], None]) -> None:
    """Say once when all is ready, and until then every few seconds what is missing."""
    waited_s = 0.0
    while missing := gateway.missing():
        if waited_s and waited_s % WAITING_NOTICE_S < POLL_S:
            log.info("not ready yet", waited_s=round(waited_s), **missing)
        await asyncio.sleep(POLL_S)
        waited_s += POLL_S
    on_ready(gateway)
