"""The decision log: what is kept at which level, and that a database that is slow or away holds nobody up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adapters_registry.decisions import MAX_TEXT_CHARS, DecisionPage, DecisionQuery, DecisionRecord
from adapters_registry.errors import DatabaseBusy
from routers.base import Decision, RouteQuery, ScoredExpert, WeightedExpert
from server.engine.recipes import Base, parse
from server.journal import decision_log
from server.journal.decision_log import BATCH, DecisionLog
from server.planning.catalog import Target
from server.planning.plan import Plan
from server.telemetry.drift import RecentDecisions
from server.telemetry.metrics import Metrics
from server.telemetry.prices import Price
from server.telemetry.traffic_counts import Outcome
from tests.support.waiting import eventually

CHAT = "/v1/chat/completions"
SECRET = "the patient's name is"


@dataclass
class Memory:
    """A store in memory, which can be away, and tells when something arrives."""

    kept: list[DecisionRecord] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    error: Exception | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event | None = None
    pruned: list[int] = field(default_factory=list)

    async def add(self, decisions: Sequence[DecisionRecord]) -> None:
        self.arrived.set()
        if self.gate:
            await self.gate.wait()
        if self.error:
            raise self.error
        self.kept += decisions
        self.batches.append(len(decisions))

    async def recent(self, query: DecisionQuery) -> DecisionPage:
        return DecisionPage(tuple(self.kept), None)

    async def prune(self, before: datetime, most: int) -> int:
        self.pruned.append(most)
        return 3 - len(self.pruned)


def made(store: Memory, **options: Any) -> tuple[DecisionLog, Metrics]:
    metrics = Metrics(max_experts=9, prices={"expert": Price(input=1e6, output=0)})
    options = {"level": "decisions"} | options
    return DecisionLog(store, RecentDecisions(), metrics, **options), metrics


def plan(recipe: str = "sql@00000001", decision: Decision | None = None, text: str = SECRET) -> Plan:
    policy: Any = SimpleNamespace(name="auto", embedder=SimpleNamespace(name="mini"))
    if decision is None:
        decision = Decision((WeightedExpert("sql@00000001"),), 0.9, (ScoredExpert("sql@00000001", 1.0),))
    records: Any = tuple(SimpleNamespace(name=e.expert_id.partition("@")[0]) for e in decision.experts)
    query = RouteQuery(text, np.eye(8, dtype=np.float32)[3])
    return Plan(Target("policy", "auto", policy=policy), parse(recipe), records, decision, query=query)


ABSTAINED = plan("base", Decision((), 0.2))
DIRECT = Plan(Target("base", "base", recipe=Base()), Base())


def note(log: DecisionLog, request_id: str = "r", what: Plan | None = None, **changes: Any) -> None:
    outcome = Outcome(CHAT, "auto", "sql", 200, duration_s=0.25, input_tokens=2)
    log.note(what or plan(), replace(outcome, **changes), request_id, "aaaaaaaa")


async def test_what_is_kept_of_a_request() -> None:
    store = Memory()
    log, _ = made(store)
    note(log, ttft_s=0.1, streamed=True)
    note(log, "s", DIRECT, ttft_s=0.1)
    assert store.kept == []
    await log.flush()
    routed, direct = store.kept
    assert (routed.request_id, routed.key_id, routed.endpoint, routed.status) == ("r", "aaaaaaaa", CHAT, 200)
    assert (routed.kind, routed.policy, routed.recipe) == ("policy", "auto", "sql@00000001")
    assert (routed.experts, routed.confidence, routed.abstained) == (("sql@00000001",), 0.9, False)
    assert (routed.duration_ms, routed.ttft_ms, routed.input_tokens, routed.cost) == (250.0, 100.0, 2, 2.0)
    assert (direct.kind, direct.policy, direct.experts, direct.confidence) == ("base", None, (), None)
    assert (direct.ttft_ms, direct.abstained) == (None, False)


@pytest.mark.parametrize(
    ("level", "texts", "embedded"),
    [
        ("decisions", [None, None], [False, False]),
        ("embeddings", [None, None], [False, True]),
        ("prompts", [SECRET, SECRET], [False, True]),
    ],
)
async def test_what_each_level_keeps_of_a_prompt(level: str, texts: list[str | None], embedded: list[bool]) -> None:
    store = Memory()
    log, _ = made(store, level=level)
    note(log)
    note(log, "s", ABSTAINED)
    await log.flush()
    assert [one.text for one in store.kept] == texts
    assert [one.embedding is not None for one in store.kept] == embedded
    assert [one.embedder for one in store.kept] == ["mini" if has else None for has in embedded]
    if embedded[1]:
        assert np.frombuffer(store.kept[1].embedding or b"", np.float16).tolist() == np.eye(8)[3].tolist()


async def test_texts_are_cut_and_empty_embeddings_left_out() -> None:
    store = Memory()
    log, _ = made(store, level="prompts")
    nothing = replace(ABSTAINED, query=RouteQuery("x" * 10_000, np.full(8, np.nan, np.float32)))
    note(log, what=nothing)
    await log.flush()
    assert store.kept[0].text == "x" * MAX_TEXT_CHARS
    assert (store.kept[0].embedding, store.kept[0].embedder) == (None, None)


async def test_off_keeps_nothing_but_the_window() -> None:
    store, traffic = Memory(), RecentDecisions()
    log = DecisionLog(store, traffic, made(store)[1], level="off")
    note(log)
    await log.flush()
    assert store.kept == []
    assert traffic.profile("auto").num == 1


async def test_a_sample_is_the_same_on_every_gateway() -> None:
    stores = Memory(), Memory()
    for store in stores:
        log, _ = made(store, sample=0.3)
        for number in range(2000):
            note(log, f"{number:032x}")
        await log.flush()
    one, other = ([each.request_id for each in store.kept] for store in stores)
    assert one == other
    assert 500 < len(one) < 700
    none, _ = made(Memory(), sample=0.0)
    assert not any(none.keeps(str(number)) for number in range(100))


async def test_batches_are_written_behind_the_requests() -> None:
    store = Memory()
    log, _ = made(store)
    log.start()
    for number in range(BATCH + 5):
        note(log, str(number))
    await store.arrived.wait()  # the first batch does not wait for the clock
    await log.close()
    assert store.batches == [BATCH, 5]
    assert [one.request_id for one in store.kept] == [str(number) for number in range(BATCH + 5)]


async def test_a_single_decision_is_written_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_log, "PAUSE_S", 0.01)
    store = Memory()
    log, _ = made(store)
    log.start()
    for number in range(3):
        note(log, str(number))
        await asyncio.wait_for(store.arrived.wait(), 5)
        store.arrived.clear()
    await log.close()
    assert [one.request_id for one in store.kept] == ["0", "1", "2"]


async def test_closing_does_not_write_twice_what_is_being_written() -> None:
    store = Memory(gate=asyncio.Event())
    log, _ = made(store)
    log.start()
    for number in range(BATCH):
        note(log, str(number))
    await store.arrived.wait()
    closing = asyncio.create_task(log.close())
    await asyncio.sleep(0)
    assert store.gate
    store.gate.set()
    await closing
    assert store.batches == [BATCH]


async def test_a_database_that_is_away_drops_only_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_log, "MAX_WAITING", 10)
    monkeypatch.setattr(decision_log, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(decision_log, "PAUSE_S", 0.0)
    store = Memory(error=DatabaseBusy("gone"))
    log, metrics = made(store)
    log.start()
    for number in range(15):
        note(log, str(number))
    await store.arrived.wait()
    dropped = metrics.registry.get_sample_value("moergate_decisions_dropped_total")
    assert dropped == 5
    store.error = None
    await eventually(lambda: len(store.kept) >= 10)
    await log.close()
    assert [one.request_id for one in store.kept] == [str(number) for number in range(10)]


async def test_what_cannot_be_written_at_the_end_is_counted() -> None:
    log, metrics = made(Memory(error=DatabaseBusy("gone")))
    note(log)
    await log.close()
    assert metrics.registry.get_sample_value("moergate_decisions_dropped_total") == 1


async def test_a_fault_of_ours_costs_its_batch_only() -> None:
    store = Memory(error=TypeError("a bug"))
    log, metrics = made(store)
    note(log)
    await log.flush()
    store.error = None
    note(log, "s")
    await log.flush()
    assert [one.request_id for one in store.kept] == ["s"]
    assert metrics.registry.get_sample_value("moergate_decisions_dropped_total") == 1


async def test_what_waits_is_found_by_its_own_key_only() -> None:
    log, _ = made(Memory())
    note(log, "mine")
    assert log.holds("aaaaaaaa", "mine")
    assert not log.holds("bbbbbbbb", "mine")
    assert not log.holds("aaaaaaaa", "other")
    await log.flush()
    assert not log.holds("aaaaaaaa", "mine")


async def test_pruning_goes_on_until_nothing_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_log, "PRUNE_PAUSE_S", 0.0)
    store = Memory()
    log, _ = made(store)
    await log.prune()
    assert store.pruned == [decision_log.PRUNE_BATCH] * 3
