"""The client of a vLLM server and connections that the server has closed meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from aiohttp.connector import Connection

from server.engine.base import EngineRequest
from server.engine.body import parse_body
from server.engine.errors import EngineUnreachable
from server.engine.recipes import Base
from server.engine.vllm import MAX_ATTEMPTS, VllmEngine

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
REQUEST = EngineRequest("/v1/completions", parse_body(b"{}"), Base(), "id")


class Resetting:
    """A server that answers each connection's first requests, and resets it at the next one."""

    def __init__(self, num_answers: int) -> None:
        self._num_answers = num_answers
        self.num_connections = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        for _ in range(self._num_answers):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
            writer.write(OK)
        await reader.read(1)
        writer.transport.abort()


@pytest.mark.parametrize(("num_answers", "fails"), [(1, False), (0, True)])
async def test_a_connection_that_was_closed_meanwhile_is_replaced(num_answers: int, fails: bool) -> None:
    resetting = Resetting(num_answers)
    server = await asyncio.start_server(resetting.handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, aiohttp.ClientSession() as session:
        engine = VllmEngine(f"http://127.0.0.1:{port}", session, base_model="base")
        if fails:
            with pytest.raises(EngineUnreachable):
                await engine.forward(REQUEST)
            assert resetting.num_connections == MAX_ATTEMPTS
            return
        for _ in range(3):
            response = await engine.forward(REQUEST)
            assert await response.read() == b"ok"
            response.close()
    assert resetting.num_connections == 3


async def test_a_server_that_is_not_there_is_not_asked_again() -> None:
    async with aiohttp.ClientSession() as session:
        engine = VllmEngine("http://127.0.0.1:9", session, base_model="base")
        with pytest.raises(EngineUnreachable, match=r"127\.0\.0\.1:9"):
            await engine.forward(REQUEST)


class HeldUp(aiohttp.TCPConnector):
    """Finds that the time for its first connections has run out."""

    def __init__(self, num_late: int) -> None:
        super().__init__()
        self._num_late = num_late

    async def connect(self, *args: Any, **kwargs: Any) -> Connection:
        self._num_late -= 1
        if self._num_late >= 0:
            raise TimeoutError
        return await super().connect(*args, **kwargs)


@pytest.mark.parametrize(("num_late", "fails"), [(1, False), (2, True)])
async def test_a_connection_that_took_too_long_is_tried_once_more(num_late: int, fails: bool) -> None:
    answering = Resetting(1)
    server = await asyncio.start_server(answering.handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, aiohttp.ClientSession(connector=HeldUp(num_late)) as session:
        engine = VllmEngine(f"http://127.0.0.1:{port}", session, base_model="base")
        if fails:
            with pytest.raises(EngineUnreachable):
                await engine.forward(REQUEST)
            return
        response = await engine.forward(REQUEST)
        assert await response.read() == b"ok"
        response.close()
