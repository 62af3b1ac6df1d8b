"""What every engine must do, tried on the client in front of the double."""

from collections.abc import AsyncIterator

import aiohttp
import orjson
import pytest

from server.engine.base import Engine, EngineRequest
from server.engine.body import parse_body
from server.engine.errors import EngineBroke, EngineUnreachable
from server.engine.fake import FakeEngine
from server.engine.recipes import Base, Recipe, Single
from server.engine.vllm import VllmEngine
from tests.support.servers import http_server
from tests.support.waiting import eventually

CHAT = "/v1/chat/completions"


def request(recipe: Recipe = Base(), **fields: object) -> EngineRequest:  # noqa: B008 - frozen
    body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, **fields}
    return EngineRequest(CHAT, parse_body(orjson.dumps(body)), recipe, "request-7")


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


async def read(engine: Engine, asked: EngineRequest) -> bytes:
    response = await engine.forward(asked)
    try:
        return await response.read()
    finally:
        response.close()


async def test_recipe_and_request_id_reach_the_engine(session: aiohttp.ClientSession) -> None:
    double = FakeEngine()
    async with http_server(double) as url:
        engine = VllmEngine(url, session, key="secret")
        assert (await engine.health()).ready
        answer = orjson.loads(await read(engine, request(Single("sql@1f3a9c02"), temperature=0)))
        base = orjson.loads(await read(engine, request(Base())))
    assert (answer["model"], base["model"]) == ("sql@1f3a9c02", "base")
    seen = double.seen[0]
    assert orjson.loads(seen.body) == {**orjson.loads(request(temperature=0).body.raw), "model": "sql@1f3a9c02"}
    assert seen.headers["x-request-id"] == "request-7"
    assert seen.headers["authorization"] == "Bearer secret"


async def test_an_engine_that_is_not_there_is_unreachable(session: aiohttp.ClientSession) -> None:
    async with http_server(FakeEngine()) as url:
        pass
    engine = VllmEngine(url, session)
    assert not (await engine.health()).ready
    assert (await engine.residency()).num_running == 0
    with pytest.raises(EngineUnreachable):
        await engine.forward(request())


async def test_health_follows_the_engine(session: aiohttp.ClientSession) -> None:
    double = FakeEngine(healthy=False)
    async with http_server(double) as url:
        engine = VllmEngine(url, session)
        health = await engine.health()
        assert not health.ready
        assert "503" in health.detail
        double.healthy = True
        assert (await engine.health()).ready


async def test_residency_names_experts_in_use(session: aiohttp.ClientSession) -> None:
    async with http_server(FakeEngine()) as url:
        engine = VllmEngine(url, session)
        await read(engine, request(Single("sql@1f3a9c02")))
        assert (await engine.residency()).experts == {"sql@1f3a9c02"}


async def test_closing_an_answer_cancels_the_work(session: aiohttp.ClientSession) -> None:
    double = FakeEngine(tokens_per_s=50)
    async with http_server(double) as url:
        response = await VllmEngine(url, session).forward(request(stream=True, max_tokens=1000))
        assert await anext(aiter(response.chunks()))
        response.close()
        await eventually(lambda: double.cancelled)


async def test_chunks_and_read_give_the_same_bytes(session: aiohttp.ClientSession) -> None:
    async with http_server(FakeEngine()) as url:
        whole = await read(VllmEngine(url, session), request(stream=True))
        response = await VllmEngine(url, session).forward(request(stream=True))
        parts = [chunk async for chunk in response.chunks()]
        response.close()
    assert whole.endswith(b"data: [DONE]\n\n")
    assert whole.count(b"data: ") == b"".join(parts).count(b"data: ")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("whole", [True, False])
async def test_an_engine_that_breaks_off_is_noticed(whole: bool, session: aiohttp.ClientSession) -> None:
    async with http_server(FakeEngine(break_after=2)) as url:
        response = await VllmEngine(url, session).forward(request(stream=True, max_tokens=9))
        try:
            with pytest.raises(EngineBroke):
                await response.read() if whole else [chunk async for chunk in response.chunks()]
        finally:
            response.close()
