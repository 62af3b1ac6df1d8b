"""The floor: a proxy on the gateway's own stack that does nothing but pass bytes on.

Raw ASGI on uvicorn with httptools and uvloop, aiohttp towards the engine; it reads the body, posts it on, and sends
back what comes. No parsing, no keys, no metrics, no timeouts. What the gateway needs beyond this is the price of what
it does.
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp
import uvicorn

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_OF_THE_CONNECTION = frozenset({"connection", "keep-alive", "transfer-encoding", "date", "server"})


class BareProxy:
    """Passes requests on to `engine_url`."""

    def __init__(self, engine_url: str) -> None:
        self._engine_url = engine_url
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        url = self._engine_url + scope["path"]
        headers = {"content-type": "application/json"}
        async with self._open_session().request(scope["method"], url, data=body, headers=headers) as response:
            passed = [
                (name.lower().encode("latin-1"), value.encode("latin-1"))
                for name, value in response.headers.items()
                if name.lower() not in _OF_THE_CONNECTION
            ]
            await send({"type": "http.response.start", "status": response.status, "headers": passed})
            async for chunk in response.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
                timeout=aiohttp.ClientTimeout(total=None),
                skip_auto_headers=("User-Agent",),
                read_bufsize=1 << 18,
            )
        return self._session


def main() -> None:
    """Serve on loopback until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine-url", required=True)
    arguments = parser.parse_args()
    uvicorn.run(
        BareProxy(arguments.engine_url),
        host="127.0.0.1",
        port=arguments.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
    )


if __name__ == "__main__":
    main()
