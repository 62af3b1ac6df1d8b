"""A small HTTP/1.1 client: as little work a request as Python allows, so that the load generator is not what is
measured. Connections are kept alive and made as they are needed; the one used last is used next.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

import httptools

OVERHEAD_HEADER = b"x-moergate-overhead-ms"
RECIPE_HEADER = b"x-moergate-recipe"


class ConnectionLost(Exception):
    """The server closed the connection before the answer was whole; `started` says whether any of it had come."""

    def __init__(self, started: bool) -> None:
        super().__init__("connection lost in the middle" if started else "connection lost")
        self.started = started


@dataclass(slots=True)
class Exchange:
    """One answer.

    Attributes:
        status: HTTP status.
        parts: The body as it came.
        overhead_ms: The gateway's own figure, if it sent one.
        recipe: What the gateway says that it executed, if it does.
        first_byte_at, done_at: ``time.perf_counter()`` at the body's first and the answer's last byte.
    """

    status: int = 0
    parts: list[bytes] = field(default_factory=list)
    overhead_ms: float | None = None
    recipe: str = ""
    first_byte_at: float = 0.0
    done_at: float = 0.0

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(self.parts)


class Connection(asyncio.Protocol):
    """One kept-alive connection with at most one request under way; httptools calls its ``on_…`` methods."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._exchange = Exchange()
        self._answer: asyncio.Future[Exchange] | None = None
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is of no common class
        self.is_open = True

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self._answer and not self._answer.done():
            self._answer.set_exception(ConnectionLost(bool(self._exchange.status or self._exchange.parts)))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def send(self, request: bytes) -> asyncio.Future[Exchange]:
        """Send a request, head and body; the future holds its answer."""
        assert self._transport is not None  # noqa: S101
        self._exchange = Exchange()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        """Close the connection."""
        if self._transport:
            self._transport.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header came."""
        name = name.lower()
        if name == OVERHEAD_HEADER:
            self._exchange.overhead_ms = float(value)
        elif name == RECIPE_HEADER:
            self._exchange.recipe = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """All headers came."""
        self._exchange.status = self._parser.get_status_code()

    def on_body(self, part: bytes) -> None:
        """A piece of the body came."""
        if not self._exchange.parts:
            self._exchange.first_byte_at = time.perf_counter()
        self._exchange.parts.append(part)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        self._exchange.done_at = time.perf_counter()
        if not self._parser.should_keep_alive():
            self.is_open = False
            self.close()
        if self._answer and not self._answer.done():
            self._answer.set_result(self._exchange)


class Client:
    """Connections to one server.

    Args:
        port: Where it listens.
        host: Its name or address.
        key: API key that goes with every request.
        tls: Whether it is reached by https.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", key: str | None = None, *, tls: bool = False) -> None:
        self._port = port
        self._host = host
        self._tls = tls
        authorization = f"authorization: Bearer {key}\r\n" if key else ""
        self._head = f" HTTP/1.1\r\nhost: {host}:{port}\r\n{authorization}"
        self._idle: list[Connection] = []

    async def post(self, path: str, body: bytes, kind: str = "application/json") -> Exchange:
        """Send a body and wait for the whole answer; see `request`."""
        return await self.request("POST", path, body, kind)

    async def request(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> Exchange:
        """Send a request with a body of this content type and wait for the whole answer.

        Raises:
            ConnectionLost: The server broke off, or refused a fresh connection before the first byte.
            OSError: It cannot be reached.
        """
        head = f"{method} {path}{self._head}content-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        request = head.encode() + body
        connection = self._take_idle()
        if connection is not None:
            try:
                return await self._exchange(connection, request)
            except ConnectionLost as error:
                if error.started:
                    raise  # else: closed for idleness just as we sent; a fresh connection tells the truth
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=self._tls or None)
        return await self._exchange(connection, request)

    def close(self) -> None:
        """Close idle connections."""
        for connection in self._idle:
            connection.close()

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _exchange(self, connection: Connection, request: bytes) -> Exchange:
        try:
            exchange = await connection.send(request)
        except asyncio.CancelledError:
            connection.close()
            raise
        if connection.is_open:
            self._idle.append(connection)
        return exchange
