"""An HTTP server that answers with exactly the bytes that a test wants, and names that mean what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp.abc import AbstractResolver, ResolveResult


@dataclass(frozen=True)
class Asked:
    """A request as it came: path with query, and headers in lower case."""

    path: str
    headers: Mapping[str, str]


Answer = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Hostile:
    """A running server; `asked` holds what came, in order."""

    port: int
    asked: list[Asked] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """The paths alone."""
        return [each.path for each in self.asked]


@contextlib.asynccontextmanager
async def hostile_server(
    answer: Answer, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Hostile]:
    """Serve on a free port; each connection gets one answer."""
    hostile = Hostile(0)
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        serving.add(task)
        task.add_done_callback(serving.discard)
        try:
            await respond(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            writer.close()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        asked = Asked(head[0].split(" ")[1], headers)
        hostile.asked.append(asked)
        await answer(asked, writer)
        await writer.drain()

    server = await asyncio.start_server(serve, host, 0, ssl=tls)
    hostile.port = server.sockets[0].getsockname()[1]
    try:
        yield hostile
    finally:
        server.close()
        for task in tuple(serving):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


def response(status: int = 200, body: bytes = b"", **headers: str | None) -> bytes:
    """A whole answer; a header of None is left out, underscores are dashes."""
    given = {"content_length": str(len(body)), "connection": "close"} | headers
    lines = [f"HTTP/1.1 {status} x"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in given.items() if value is not None]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Stalling(bytes):
    """An answer after which the server says nothing more, and does not hang up."""


def always(*answers: bytes) -> Answer:
    """Give these answers in turn, the last one again and again."""
    left = list(answers)

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        given = left.pop(0) if len(left) > 1 else left[0]
        writer.write(given)
        if isinstance(given, Stalling):
            await asyncio.Event().wait()

    return answer


class Names(AbstractResolver):
    """Resolves names as it is told: to these addresses in turn, the last one again and again."""

    def __init__(self, names: Mapping[str, list[str]]) -> None:
        self._names = {host: list(addresses) for host, addresses in names.items()}
        self.looked_up: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """One address, or OSError for a name that nobody has."""
        self.looked_up.append(host)
        if host not in self._names:
            raise OSError("no such name")
        addresses = self._names[host]
        address = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=0)]

    async def close(self) -> None:
        """Nothing to close."""
