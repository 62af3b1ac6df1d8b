"""The pool: which replica gets a request, and what happens when one fails."""

from collections.abc import AsyncIterator, Mapping

import pytest

from server.engine.base import EngineHealth, EngineRequest, Residency
from server.engine.body import parse_body
from server.engine.errors import EngineUnreachable
from server.engine.pool import AFFINITY_SLACK, EnginePool
from server.engine.recipes import Base, Single
from server.errors import EngineLost, Unavailable
from server.telemetry.metrics import Metrics
from tests.support.waiting import eventually


class Answering:
    """An engine in memory."""

    status = 200
    headers: Mapping[str, str] = {}
    model = "base"

    def __init__(self, *, reachable: bool = True) -> None:
        self.reachable = reachable
        self.closed = 0
        self.num_probes = 0
        self.slow_probes: set[int] = set()

    async def forward(self, request: EngineRequest) -> "Answering":
        if not self.reachable:
            raise EngineUnreachable("away")
        return self

    async def chunks(self) -> AsyncIterator[bytes]:
        yield b"{}"

    async def read(self) -> bytes:
        return b"{}"

    def close(self) -> None:
        self.closed += 1

    async def health(self) -> EngineHealth:
        self.num_probes += 1
        return EngineHealth(self.reachable and self.num_probes not in self.slow_probes)

    async def residency(self) -> Residency:
        return Residency()


REQUEST = EngineRequest("/v1/completions", parse_body(b"{}"), Base(), "id")


def pool_of(*engines: Answering) -> EnginePool:
    pool = EnginePool([(f"r{i}", engine) for i, engine in enumerate(engines)], Metrics(max_experts=5, prices={}))
    for replica in pool.replicas:
        replica.health = EngineHealth(True)
    return pool


async def test_the_least_busy_replica_is_taken() -> None:
    pool = pool_of(Answering(), Answering())
    first = await pool.forward(REQUEST)
    second = await pool.forward(REQUEST)
    assert [r.num_in_flight for r in pool.replicas] == [1, 1]
    first.close()
    first.close()
    second.close()
    assert [r.num_in_flight for r in pool.replicas] == [0, 0]


async def test_a_replica_with_the_expert_is_preferred_unless_much_busier() -> None:
    pool = pool_of(Answering(), Answering())
    pool.replicas[1].residency = Residency(experts=frozenset({"sql@1f3a9c02"}))
    request = EngineRequest("/v1/completions", parse_body(b"{}"), Single("sql@1f3a9c02"), "id")
    for _ in range(AFFINITY_SLACK + 1):
        await pool.forward(request)
    assert [r.num_in_flight for r in pool.replicas] == [0, AFFINITY_SLACK + 1]
    await pool.forward(request)
    assert pool.replicas[0].num_in_flight == 1
    assert pool.num_using("sql@1f3a9c02") == AFFINITY_SLACK + 2


async def test_a_request_goes_on_to_the_next_replica() -> None:
    pool = pool_of(Answering(reachable=False), Answering())
    response = await pool.forward(REQUEST)
    assert response.inner is pool.replicas[1].engine
    assert not pool.replicas[0].health.ready
    assert pool.replicas[0].num_in_flight == 0


async def test_when_every_replica_fails_the_caller_is_told() -> None:
    pool = pool_of(Answering(reachable=False), Answering(reachable=False))
    with pytest.raises(EngineLost):
        await pool.forward(REQUEST)
    with pytest.raises(Unavailable) as refused:
        await pool.forward(REQUEST)
    assert refused.value.retry_after_s
    assert "r0: not reachable" in refused.value.message


async def test_a_replica_that_could_not_be_reached_is_asked_again_at_once() -> None:
    engine = Answering()
    pool = pool_of(engine)
    pool.start()
    await eventually(lambda: engine.num_probes == 1)
    engine.reachable = False
    with pytest.raises(EngineLost):
        await pool.forward(REQUEST)
    engine.reachable = True
    await eventually(lambda: pool.ready)
    await pool.close()


async def test_one_failed_probe_does_not_put_a_replica_aside() -> None:
    engine = Answering()
    engine.slow_probes = {1}
    pool = pool_of(engine)
    pool.start()
    await eventually(lambda: engine.num_probes == 2)
    assert pool.ready
    await pool.close()
    engine.slow_probes = {3, 4}
    pool.start()
    await eventually(lambda: not pool.ready)
    await pool.close()
