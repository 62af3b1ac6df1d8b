"""Questions of our own to the engine."""

from collections.abc import AsyncIterator, Mapping

import pytest

from server.engine.asking import ask
from server.engine.base import EngineHealth, EngineRequest, Residency
from server.engine.errors import EngineBroke, EngineFault, EngineRefused
from server.engine.pool import EnginePool
from server.engine.recipes import Single
from server.errors import Unavailable
from server.telemetry.metrics import Metrics


class Answering:
    """An engine in memory that always gives the same answer."""

    headers: Mapping[str, str] = {}
    model = "base"

    def __init__(self, status: int, body: bytes | EngineFault) -> None:
        self.status = status
        self._body = body
        self.asked: list[EngineRequest] = []
        self.num_closed = 0

    async def forward(self, request: EngineRequest) -> "Answering":
        self.asked.append(request)
        return self

    async def chunks(self) -> AsyncIterator[bytes]:
        yield await self.read()

    async def read(self) -> bytes:
        if isinstance(self._body, EngineFault):
            raise self._body
        return self._body

    def close(self) -> None:
        self.num_closed += 1

    async def health(self) -> EngineHealth:
        return EngineHealth(True)

    async def residency(self) -> Residency:
        return Residency()


def pool_of(engine: Answering, *, ready: bool = True) -> EnginePool:
    pool = EnginePool([("r0", engine)], Metrics(max_experts=5, prices={}))
    pool.replicas[0].health = EngineHealth(ready)
    return pool


async def test_fields_recipe_and_id_reach_the_engine_and_its_answer_comes_back() -> None:
    engine = Answering(200, b'{"count": 3}')
    pool = pool_of(engine)
    assert await ask(pool, "/tokenize", {"prompt": "hi"}, Single("sql@1f3a9c02"), "fit-1") == {"count": 3}
    asked = engine.asked[0]
    assert (asked.path, asked.body.raw, str(asked.recipe)) == ("/tokenize", b'{"prompt":"hi"}', "sql@1f3a9c02")
    assert (asked.request_id, engine.num_closed, pool.replicas[0].num_in_flight) == ("fit-1", 1, 0)


@pytest.mark.parametrize(
    ("status", "body", "kind", "told"),
    [
        (404, b'{"error": {"message": "no such model"}}', EngineRefused, "404: .*no such model"),
        (400, b'{"detail": "' + b"x" * 9000 + b'"}', EngineRefused, "400: .{480,500}$"),
        (502, b"<html>bad gateway</html>", EngineBroke, "no JSON object .status 502"),
        (200, b"[]", EngineBroke, "/tokenize is no JSON object"),
        (200, EngineBroke("broke off"), EngineBroke, "broke off"),
    ],
)
async def test_a_refusal_is_told_from_an_answer_that_is_not_the_engines(
    status: int, body: bytes | EngineFault, kind: type[EngineFault], told: str
) -> None:
    engine = Answering(status, body)
    pool = pool_of(engine)
    with pytest.raises(kind, match=told):
        await ask(pool, "/tokenize", {}, Single("sql@1f3a9c02"), "id")
    assert (engine.num_closed, pool.replicas[0].num_in_flight) == (1, 0)


async def test_nobody_to_ask() -> None:
    with pytest.raises(Unavailable):
        await ask(pool_of(Answering(200, b"{}"), ready=False), "/tokenize", {}, Single("sql@1f3a9c02"), "id")
