"""Shadow decisions: which policies are fitted to which versions, and how their decisions are counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters_registry.records import AdapterRecord
from adapters_registry.states import AdapterState
from adapters_registry.visibility import Sight
from routers.artefacts import ArtefactStore
from routers.base import Artefact, Decision, MethodCard, RouteQuery, WeightedExpert
from routers.embedders.batching import BatchingEmbedder
from routers.embedders.hashing import HashingEncoder
from routers.methods.baselines import BaselineConfig, BaseRouter
from routers.methods.knn import KnnRouter
from routers.registry import router_class
from server.access.auth import Principal
from server.planning.catalog import Catalog
from server.planning.shadow import MAX_COUNTED, MAX_PENDING, Shadow, Tally
from server.policies.definitions import PolicySpec
from server.policies.embedders import Embedders
from server.policies.fit_data import PolicyData
from server.policies.fitter import Fitter
from server.policies.live import LivePolicy
from server.policies.vectors import VectorStore
from server.settings import PolicySettings
from server.telemetry.metrics import Metrics
from tests.support.policies import definitions, scores
from tests.support.records import record
from tests.support.waiting import eventually

ANYBODY = Principal("k", frozenset({"infer"}))
SQL = record("sql", "count all orders")
DATES = record("dates", "convert to ISO", "count the orders by date")
POEMS = record("poems", "write a sonnet about autumn")
NEW_SQL = record("sql", "write a sonnet", content=1)
"""A version of sql that answers other prompts than the active one."""


ROUTERS = ("knn", "centroid", "classifier", "llm_selector")


class CardOnly(BaseRouter):
    """A router that decides nothing and has the card of another method."""

    def __init__(self, card: MethodCard) -> None:
        super().__init__(BaselineConfig(), [])
        self.card = card  # type: ignore[misc]


def shadowed(version: AdapterRecord, share: float = 0.0) -> AdapterRecord:
    return replace(version, state=AdapterState.CANARY, share=share)


def live_policy(embedder: BatchingEmbedder, name: str = "auto", router: str = "knn") -> LivePolicy:
    """A policy as the catalogue has it; the shadow reads its definition and its method's card."""
    options = {"threshold": -1} if router in ("knn", "centroid") else {}
    spec = PolicySpec(name, PolicySettings(router=router, options=options))
    return LivePolicy(name, router, CardOnly(router_class(router).card), "v1", embedder, spec=spec)


def catalog_of(*canaries: AdapterRecord, policies: tuple[LivePolicy, ...]) -> Catalog:
    return Catalog(
        ("base",),
        experts={each.expert_id: each for each in (SQL, DATES, POEMS)},
        others={each.expert_id: each for each in canaries},
        policies={each.name: each for each in policies},
    )


def chosen(*versions: AdapterRecord) -> Decision:
    return Decision(tuple(WeightedExpert(each.expert_id) for each in versions), 1.0)


class Lab:
    """A shadow on a folder, and what it needs."""

    def __init__(self, root: Path) -> None:
        self.embedder = BatchingEmbedder(HashingEncoder())
        self.metrics = Metrics(max_experts=9, prices={})
        self.artefacts = ArtefactStore(root / "shadow")
        self.shadow = Shadow(
            Fitter(self.artefacts),
            lambda: PolicyData(scores(root), VectorStore(root / "vectors.sqlite")),
            definitions(root / "shadow").alone,
            Embedders(self.embedder, lambda name: HashingEncoder(16), 10),
            self.metrics,
        )

    async def follow(self, *canaries: AdapterRecord, policies: tuple[LivePolicy, ...] = ()) -> None:
        """Follow a catalogue, and wait until the last of its policies is fitted."""
        policies = policies or (live_policy(self.embedder),)
        self.shadow.follow(catalog_of(*canaries, policies=policies))
        if canaries:
            await eventually(lambda: bool(self.shadow.policies))

    async def note(self, text: str, decision: Decision, principal: Principal = ANYBODY, **fields: Any) -> None:
        embedding = (await self.embedder.embed([text]))[0]
        self.shadow.note("auto", RouteQuery(text, embedding, **fields), decision, principal)

    def counted(self, change: str, policy: str = "auto", expert: str = "sql") -> float:
        labels = {"policy": policy, "expert": expert, "change": change}
        return self.metrics.registry.get_sample_value("moergate_shadow_decisions_total", labels) or 0.0


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    opened = Lab(tmp_path)
    yield opened
    await opened.shadow.close()
    await opened.embedder.close()


# -- what is fitted -----------------------------------------------------------------------------------------------


async def test_policies_are_fitted_to_the_shadowed_version_in_place_of_the_active_one(lab: Lab) -> None:
    await lab.follow(shadowed(NEW_SQL))
    (fitted,) = lab.shadow.policies.values()
    assert fitted.expert_ids == {NEW_SQL.expert_id, DATES.expert_id, POEMS.expert_id}
    assert lab.shadow.tallies == {NEW_SQL.expert_id: Tally()}


async def test_a_shadowed_version_without_an_active_one_is_fitted_beside_the_others(lab: Lab) -> None:
    cities = record("cities", "capital of France")
    await lab.follow(shadowed(cities))
    (fitted,) = lab.shadow.policies.values()
    assert fitted.expert_ids == {each.expert_id for each in (SQL, DATES, POEMS, cities)}


async def test_a_canary_with_a_share_is_not_in_the_shadow(lab: Lab) -> None:
    lab.shadow.follow(catalog_of(shadowed(NEW_SQL, share=0.1), policies=(live_policy(lab.embedder),)))
    assert lab.shadow.tallies == {}
    await lab.note("write a sonnet", chosen(POEMS))
    assert lab.shadow.policies == {}


async def test_costly_policies_and_those_that_ask_the_base_are_left_out(lab: Lab) -> None:
    policies = tuple(live_policy(lab.embedder, name=router, router=router) for router in ROUTERS)
    await lab.follow(shadowed(NEW_SQL), policies=policies)
    assert lab.shadow.policies.keys() == {"knn", "centroid"}


async def test_an_unchanged_shadow_is_not_fitted_again(lab: Lab) -> None:
    await lab.follow(shadowed(NEW_SQL))
    before = lab.shadow.policies
    lab.shadow.follow(catalog_of(shadowed(NEW_SQL), policies=(live_policy(lab.embedder),)))
    assert lab.shadow.policies is before


async def test_a_fit_that_fails_ends_no_other(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Artefact:
        raise RuntimeError("a fault in a method")

    monkeypatch.setattr(KnnRouter, "fit", fail)
    await lab.follow(
        shadowed(NEW_SQL), policies=(live_policy(lab.embedder), live_policy(lab.embedder, "c", "centroid"))
    )
    assert lab.shadow.policies.keys() == {"c"}


async def test_another_gateway_on_the_home_does_not_fit_again(lab: Lab, tmp_path: Path) -> None:
    await lab.follow(shadowed(NEW_SQL))
    other = Lab(tmp_path)
    await other.follow(shadowed(NEW_SQL))
    assert other.shadow.policies["auto"].provenance == lab.shadow.policies["auto"].provenance
    assert len(list((tmp_path / "shadow" / "auto").glob("*-*"))) == 1
    await other.shadow.close()
    await other.embedder.close()


async def test_when_the_shadow_ends_nothing_is_decided_any_more(lab: Lab) -> None:
    await lab.follow(shadowed(NEW_SQL))
    lab.shadow.follow(catalog_of(policies=(live_policy(lab.embedder),)))
    assert (lab.shadow.policies, lab.shadow.tallies) == ({}, {})
    await lab.note("write a sonnet", chosen(POEMS))
    assert lab.counted("gained") == 0


# -- what is counted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "was", "change", "tally"),
    [
        ("write a sonnet", chosen(SQL), "kept", Tally(kept=1)),
        ("write a sonnet", chosen(POEMS), "gained", Tally(gained=Counter(poems=1))),
        ("write a sonnet", chosen(), "gained", Tally(gained=Counter(base=1))),
        ("write a sonnet", chosen(POEMS, DATES), "gained", Tally(gained=Counter({"dates,poems": 1}))),
        ("convert to ISO", chosen(SQL), "lost", Tally(lost=Counter(dates=1))),
    ],
)
async def test_a_decision_is_kept_gained_or_lost(lab: Lab, text: str, was: Decision, change: str, tally: Tally) -> None:
    await lab.follow(shadowed(NEW_SQL))
    await lab.note(text, was)
    assert lab.shadow.tallies == {NEW_SQL.expert_id: tally}
    assert {each: lab.counted(each) for each in ("kept", "gained", "lost")} == {
        each: float(each == change) for each in ("kept", "gained", "lost")
    }


async def test_a_decision_about_other_experts_is_not_counted(lab: Lab) -> None:
    await lab.follow(shadowed(NEW_SQL))
    await lab.note("convert to ISO", chosen(DATES))
    await lab.note("", chosen(SQL))  # the prompt could not be read
    lab.shadow.note("other", RouteQuery("write a sonnet"), chosen(POEMS), ANYBODY)
    assert lab.shadow.tallies == {NEW_SQL.expert_id: Tally()}


async def test_counts_survive_a_change_of_other_experts(lab: Lab) -> None:
    await lab.follow(shadowed(NEW_SQL))
    await lab.note("write a sonnet", chosen(SQL))
    cities = record("cities", "capital of France")
    await lab.follow(shadowed(NEW_SQL), shadowed(cities))
    assert lab.shadow.tallies == {NEW_SQL.expert_id: Tally(kept=1), cities.expert_id: Tally()}


async def test_a_key_gets_only_shadowed_versions_that_it_may_see(lab: Lab) -> None:
    await lab.follow(shadowed(NEW_SQL))
    confined = Principal("k", frozenset({"infer"}), Sight(experts=("poems",)))
    await lab.note("write a sonnet", chosen(POEMS), confined, candidates=frozenset({POEMS.expert_id}))
    assert lab.shadow.tallies == {NEW_SQL.expert_id: Tally()}
    allowed = Principal("k", frozenset({"infer"}), Sight(experts=("poems", "sql")))
    await lab.note("write a sonnet", chosen(POEMS), allowed, candidates=frozenset({POEMS.expert_id, SQL.expert_id}))
    assert lab.shadow.tallies == {NEW_SQL.expert_id: Tally(gained=Counter(poems=1))}


async def test_a_tally_names_a_bounded_number_of_experts(lab: Lab) -> None:
    await lab.follow(shadowed(NEW_SQL))
    for number in range(MAX_COUNTED + 2):
        await lab.note("write a sonnet", chosen(record(f"n{number}")))
    gained = lab.shadow.tallies[NEW_SQL.expert_id].gained
    assert (len(gained), gained["other"], gained["n0"]) == (MAX_COUNTED + 1, 2, 1)
    await lab.note("write a sonnet", chosen(record("n0")))
    assert gained["n0"] == 2


def test_a_tally_is_shown_as_json() -> None:
    tally = Tally(3, Counter(base=1), Counter(poems=2))
    assert tally.as_json() == {"kept": 3, "gained": {"base": 1}, "lost": {"poems": 2}}


async def test_slow_routers_decide_in_threads_and_only_so_many_wait(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    free, route = threading.Event(), KnnRouter.route

    def slowly(router: KnnRouter, query: RouteQuery) -> Decision:
        free.wait()
        return route(router, query)

    monkeypatch.setattr("server.policies.fitter.is_slow", lambda *_: True)
    await lab.follow(shadowed(NEW_SQL))
    monkeypatch.setattr(KnnRouter, "route", slowly)
    for _ in range(MAX_PENDING + 5):
        await lab.note("write a sonnet", chosen(SQL))
    assert lab.shadow.tallies == {NEW_SQL.expert_id: Tally()}
    free.set()
    await eventually(lambda: lab.shadow.tallies[NEW_SQL.expert_id].kept == MAX_PENDING)
    await lab.note("write a sonnet", chosen(SQL))
    await eventually(lambda: lab.shadow.tallies[NEW_SQL.expert_id].kept == MAX_PENDING + 1)
