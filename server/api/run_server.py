"""Runs the gateway in this process: socket, application, signals, and a clean shutdown.

SIGINT or SIGTERM stops accepting requests, lets running answers finish within the drain time, then stops the engine. A
second signal ends the running answers at once.
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
        SettingsError: The port is taken, or the address does not belong to this machine.
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
    """Serve until a signal arrives.

    Args:
        settings: All settings.
        encoder: The sentence encoder, loaded.
        model: The base, as a folder or name for the engine.
        listener: The listening socket.
        on_ready: Called once, as soon as requests can be answered.
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
    """Announce once that everything is ready; until then, log every few seconds what is missing."""
    waited_s = 0.0
    while missing := gateway.missing():
        if waited_s and waited_s % WAITING_NOTICE_S < POLL_S:
            log.info("not ready yet", waited_s=round(waited_s), **missing)
        await asyncio.sleep(POLL_S)
        waited_s += POLL_S
    on_ready(gateway)
