"""Near-ties: a conversation keeps its expert, and a resident expert goes before one that must be loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from routers.base import Decision, GateChoice, ScoredExpert, WeightedExpert, name_of
from server.engine.body import JsonBody
from server.planning.catalog import Catalog
from server.planning.conversations import ConversationMemory, conversation_of
from server.planning.near_ties import NearTies, near_ties
from tests.support.records import record

NAMES = ("sql", "dates", "logs", "units")
RECORDS = {name: record(name) for name in NAMES}
CATALOG = Catalog(("base",), experts={each.expert_id: each for each in RECORDS.values()})
QUESTION = {"role": "user", "content": "a"}
FIRST = conversation_of("key", JsonBody(b"", {"messages": [QUESTION]}), "1")
LATER = conversation_of("key", JsonBody(b"", {"messages": [QUESTION, {"role": "assistant"}]}), "2")


@dataclass
class Pool:
    residents: set[str] = field(default_factory=set)

    def is_resident(self, expert_id: str) -> bool:
        return expert_id in {RECORDS[name].expert_id for name in self.residents}


def decision(*scores: float, gate: GateChoice | None = None) -> Decision:
    ranked = tuple(ScoredExpert(RECORDS[name].expert_id, score) for name, score in zip(NAMES, scores, strict=True))
    return Decision((WeightedExpert(ranked[0].expert_id),), 0.9, ranked, reason="Because.", gate=gate)


def breaking(*residents: str, had: str | None = None) -> NearTies:
    memory = ConversationMemory()
    if had:
        memory.put(FIRST, "policy auto", had)
    return NearTies(memory, cast(Any, Pool(set(residents))))


def chosen(resolved: Decision) -> str:
    return name_of(resolved.experts[0].expert_id)


@pytest.mark.parametrize(
    ("scores", "had", "residents", "wanted"),
    [
        ((1.0, 0.99, 0.5, 0.0), None, (), "sql"),  # nothing nearer at hand
        ((1.0, 0.98, 0.5, 0.0), None, ("dates",), "dates"),  # a near-tie, and resident
        ((1.0, 0.98, 0.5, 0.0), None, ("sql", "dates"), "sql"),  # both are
        ((1.0, 0.96, 0.5, 0.0), None, ("dates",), "sql"),  # no near-tie
        ((1.0, 0.9, 0.5, 0.0), "dates", (), "dates"),  # the conversation's own
        ((1.0, 0.8, 0.5, 0.0), "dates", (), "sql"),  # but another one is clearly better
        ((1.0, 0.9, 0.88, 0.0), "logs", ("dates",), "logs"),
        ((1.0, 1.0, 1.0, 1.0), None, ("units",), "units"),  # equal all over
    ],
)
def test_what_is_nearer_at_hand_goes_first_if_it_is_nearly_as_good(
    scores: tuple[float, ...], had: str | None, residents: tuple[str, ...], wanted: str
) -> None:
    resolved, choices = breaking(*residents, had=had).resolve(decision(*scores), "auto", CATALOG, LATER)
    assert chosen(resolved) == wanted
    assert choices == (("policy auto", wanted),)
    assert ("Chosen instead of" in resolved.reason) == (wanted != "sql")


def test_the_first_turn_has_no_history() -> None:
    resolved, _ = breaking(had="dates").resolve(decision(1.0, 0.99, 0.5, 0.0), "auto", CATALOG, FIRST)
    assert chosen(resolved) == "sql"


def test_an_expert_that_is_gone_is_not_taken() -> None:
    without = Catalog(("base",), experts={each.expert_id: each for each in RECORDS.values() if each.name != "dates"})
    resolved, _ = breaking("dates").resolve(decision(1.0, 0.99, 0.5, 0.0), "auto", without, LATER)
    assert chosen(resolved) == "sql"


def test_mixes_and_gates_are_left_alone() -> None:
    gated = decision(1.0, 0.99, 0.5, 0.0, gate=GateChoice("arrow"))
    assert breaking("dates").resolve(gated, "auto", CATALOG, LATER) == (gated, ())


def test_a_decision_without_candidates_has_no_near_ties() -> None:
    assert list(near_ties(Decision((WeightedExpert("sql@00000000"),), 1.0), 0.5)) == []
