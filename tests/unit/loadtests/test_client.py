"""The load generator's HTTP client and loops against servers that behave and misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import load_generator
import orjson
import pytest
from bench.client import Client, ConnectionLost
from bench.phase import PhaseSpec
from bench.traffic import Workload

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-moergate-overhead-ms: 0.25\r\n\r\nok"
WORKLOAD = Workload("base", stream=False, prompts="few", num_tokens=1, seed=0)


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    return await reader.readexactly(length)


async def test_connections_are_kept_and_headers_read() -> None:
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(3):
            await read_request(reader)
            writer.write(OK)

    async with server(handler) as port:
        client = Client(port)
        answers = [await client.post("/", b"{}") for _ in range(3)]
        client.close()
    assert connections == 1
    assert [(answer.status, answer.body, answer.overhead_ms) for answer in answers] == [(200, b"ok", 0.25)] * 3
    assert all(0 < answer.first_byte_at <= answer.done_at for answer in answers)


async def test_a_connection_closed_for_idleness_is_no_error() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)

    async with server(handler) as port:
        client = Client(port)
        for _ in range(3):
            assert (await client.post("/", b"{}")).body == b"ok"


async def test_a_break_in_the_middle_is_an_error() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK[:-1])

    async with server(handler) as port:
        with pytest.raises(ConnectionLost, match="in the middle"):
            await Client(port).post("/", b"{}")


def answer(model: str) -> bytes:
    body = orjson.dumps({"model": model, "choices": [{"message": {"content": "word0"}}]})
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


@pytest.mark.parametrize("rate", [None, 200.0])
async def test_a_phase_counts_good_and_bad_answers(rate: float | None) -> None:
    num = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num
        while True:
            try:
                await read_request(reader)
            except asyncio.IncompleteReadError:
                return
            num += 1
            writer.write(answer("base" if num % 2 else "other"))

    async with server(handler) as port:
        callers = 4 if rate is None else 1000  # an open loop that is held up must not leave requests out
        result = await load_generator.run(PhaseSpec(port, WORKLOAD, 0.2, 0.05, rate, callers))
    assert result.num_good + result.num_errors == num > 10
    assert set(result.errors) == {"another model"}
    assert abs(result.num_good - result.num_errors) <= 1
    assert 0 < len(result.latency_ms) == len(result.lag_ms) <= result.num_good
    assert all(0 < ttft <= whole for ttft, whole in zip(result.ttft_ms, result.latency_ms, strict=True))


async def test_latency_counts_from_the_intended_moment() -> None:
    """A server that answers one request at a time, 20 ms each, falls behind 100 requests a second, and this shows."""
    turn = asyncio.Lock()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                await read_request(reader)
            except asyncio.IncompleteReadError:
                return
            async with turn:
                await asyncio.sleep(0.02)
            writer.write(answer("base"))

    async with server(handler) as port:
        spec = PhaseSpec(port, WORKLOAD, 0.3, 0.01, 100.0, concurrency=100, arrivals="fixed")
        result = await load_generator.run(spec)
    assert not result.errors
    assert result.latency_ms[-1] > 200  # 31 requests of 20 ms each, sent within 300 ms


async def test_what_does_not_answer_is_an_error_and_ends() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async with server(handler) as port:
        spec = PhaseSpec(port, WORKLOAD, 0.1, 0.01, 100.0, concurrency=5, patience_s=0.1)
        result = await load_generator.run(spec)
    assert result.num_good == 0
    assert result.errors["no answer in time"] == 5
    assert result.errors["not sent, too many under way"] > 0
