"""A fitted policy: what people are shown of it, and whether its decisions are worth a thread."""

from __future__ import annotations

import pytest

from routers.base import Decision, RouteQuery
from routers.embedders.batching import BatchingEmbedder
from routers.methods.baselines import BaselineConfig, BaseRouter
from server.policies.live import SLOW_ROUTE_S, LivePolicy, is_slow
from tests.support.policies import Clock


class Taking(BaseRouter):
    """A router whose decisions take this long on a clock, one after the other."""

    def __init__(self, clock: Clock, *durations_s: float) -> None:
        super().__init__(BaselineConfig(), [])
        self._clock = clock
        self._durations_s = iter(durations_s)

    def route(self, query: RouteQuery) -> Decision:
        assert query.embedding is not None
        assert query.embedding.shape == (7,)
        self._clock.now += next(self._durations_s)
        return super().route(query)


@pytest.mark.parametrize(("second_s", "slow"), [(SLOW_ROUTE_S / 2, False), (SLOW_ROUTE_S * 2, True)])
def test_a_router_is_slow_by_its_second_decision(second_s: float, slow: bool) -> None:
    clock = Clock()
    assert is_slow(Taking(clock, 60, second_s), 7, clock) is slow  # the first decision builds caches


async def test_a_policy_shows_the_card_of_its_method(embedder: BatchingEmbedder) -> None:
    router = BaseRouter(BaselineConfig(), [])
    card = BaseRouter.card
    assert LivePolicy("auto", "base", router, "v1", embedder).describe() == {
        "title": card.title,
        "paper": card.paper,
        "selection": card.selection,
        "cost": card.cost,
    }
