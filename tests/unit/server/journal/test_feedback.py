"""Feedback: how long it waits for a decision that another gateway has not written yet."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from adapters_registry.decisions import DecisionRecord, Feedback
from server.access.auth import ANONYMOUS
from server.errors import NotFound
from server.journal import feedback
from server.journal.decision_log import DecisionLog
from server.journal.feedback import LOOKS, FeedbackDesk, FeedbackRequest
from server.planning.catalog import Catalog
from server.telemetry.drift import RecentDecisions
from server.telemetry.metrics import Metrics
from tests.support.decisions import decision
from tests.unit.server.journal.test_decision_log import Memory

ORDER = FeedbackRequest(request_id="r", rating="up")


@dataclass
class Late:
    """A store in which the decision is found at the nth look."""

    found_at: int
    looks: int = 0
    kept: list[Feedback] = field(default_factory=list)

    async def rate(self, opinion: Feedback) -> tuple[DecisionRecord, bool] | None:
        self.looks += 1
        if self.looks < self.found_at:
            return None
        self.kept.append(opinion)
        return decision(opinion.request_id), True


def desk(store: Late, sample: float = 1.0) -> FeedbackDesk:
    metrics = Metrics(max_experts=1, prices={})
    log = DecisionLog(Memory(), RecentDecisions(), metrics, level="decisions", sample=sample)
    return FeedbackDesk(store, log, metrics)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "PAUSE_S", 0.0)


async def test_a_decision_of_another_gateway_is_waited_for() -> None:
    store = Late(found_at=1 + LOOKS)
    kept = await desk(store).take(ORDER, ANONYMOUS, Catalog(("base",)))
    assert (kept.feedback.rating, kept.feedback.key_id) == (1.0, "anonymous")
    assert store.kept == [kept.feedback]


async def test_it_is_not_waited_for_ever() -> None:
    store = Late(found_at=100)
    with pytest.raises(NotFound, match="x-request-id"):
        await desk(store).take(ORDER, ANONYMOUS, Catalog(("base",)))
    assert store.looks == 1 + LOOKS


async def test_what_is_left_out_of_the_sample_is_not_waited_for() -> None:
    store = Late(found_at=2)
    with pytest.raises(NotFound):
        await desk(store, sample=0.0).take(ORDER, ANONYMOUS, Catalog(("base",)))
    assert store.looks == 1


async def test_only_so_many_wait_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "MAX_PATIENT", 3)
    store = Late(found_at=1000)
    full = desk(store)
    orders = (full.take(ORDER, ANONYMOUS, Catalog(("base",))) for _ in range(10))
    results = await asyncio.gather(*orders, return_exceptions=True)
    assert [type(each) for each in results] == [NotFound] * 10
    assert store.looks == 10 + 3 * LOOKS
    with pytest.raises(NotFound):
        await full.take(ORDER, ANONYMOUS, Catalog(("base",)))
    assert store.looks == 10 + 3 * LOOKS + 1 + LOOKS  # places are given back
