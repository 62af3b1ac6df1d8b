"""From a request to its plan, and from a decision to the recipe that executes it."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest

from routers.base import Decision, GateChoice, ScoredExpert, WeightedExpert
from server.access.auth import ANONYMOUS
from server.endpoints import CHAT, COMPLETIONS, MESSAGES, Endpoint
from server.engine.body import parse_body
from server.planning.catalog import Catalog
from server.planning.conversations import ConversationMemory
from server.planning.plan import RoutingRequest
from server.planning.planner import recipe_of
from tests.support.parts import (
    ChoosingRouter,
    MemoryEngine,
    catalog_of,
    metrics_with,
    planner_over,
    policy_of,
    pool_over,
)
from tests.support.records import record

A, B, C = "a@00000000", "b@00000000", "c@00000000"
MANY = {f"e{number:03d}@{number:08x}": 0.1 + number / 1000 for number in range(100)}


@pytest.mark.parametrize(
    ("weights", "gate", "recipe"),
    [
        ({}, None, "base"),
        ({A: 1.0}, None, A),
        ({A: 0.3}, None, f"mix({A}*0.3)"),
        ({A: 0.9, B: -0.2}, GateChoice("fixed", aggregation="ab"), f"mix({A}*0.9,{B}*-0.2;agg=ab)"),
        ({B: 0.6, A: 0.3}, None, f"mix({A}*0.3,{B}*0.6)"),
        ({A: 0.001, B: 0.002}, None, "base"),
        ({B: 1.0, A: 1.0, C: 1.0}, GateChoice("arrow", 2), f"gate(arrow,k=2,t=1;{A},{B},{C})"),
        ({A: 1.0, B: 1.0}, GateChoice("arrow", 4, 0.5, "ab"), f"gate(arrow,k=2,t=0.5,agg=ab;{A},{B})"),
        ({A: 0.5, B: 0.5}, GateChoice("uniform", aggregation="ab"), f"gate(uniform,k=2,t=1,agg=ab;{A},{B})"),
        ({A: 1.0}, GateChoice("arrow", 4), A),
    ],
)
def test_decisions_become_recipes(weights: dict[str, float], gate: GateChoice | None, recipe: str) -> None:
    experts = tuple(WeightedExpert(expert, weight) for expert, weight in weights.items())
    assert str(recipe_of(Decision(experts, 0.5, gate=gate))) == recipe


def test_of_too_many_experts_the_heaviest_are_kept() -> None:
    recipe = str(recipe_of(Decision(tuple(WeightedExpert(e, w) for e, w in MANY.items()), 0.5)))
    assert recipe.count("@") == 64
    assert "e036@" in recipe
    assert "e035@" not in recipe


SQL, DATES = record("sql"), record("dates")


def choosing(*experts: str) -> ChoosingRouter:
    chosen = tuple(WeightedExpert(expert) for expert in experts)
    ranked = tuple(ScoredExpert(expert, 1.0 - number / 10) for number, expert in enumerate(experts))
    return ChoosingRouter(lambda _query: Decision(chosen[:1], 0.75, ranked, reason="Because."))


def asking(catalog: Catalog, body: dict[str, Any], endpoint: Endpoint = CHAT) -> RoutingRequest:
    parsed = parse_body(orjson.dumps(body))
    target = catalog.resolve(parsed.model, ANONYMOUS)
    return RoutingRequest(target, endpoint, parsed, catalog, ANONYMOUS, "r1")


async def test_a_policy_sees_what_its_endpoint_reads() -> None:
    router = choosing(SQL.expert_id)
    catalog = catalog_of(SQL, DATES, policy=policy_of(router, SQL, DATES))
    metrics = metrics_with()
    planner = planner_over(pool_over(MemoryEngine(), metrics=metrics), metrics)
    body = {"system": "Write dates in ISO form.", "messages": [{"role": "user", "content": "14 May 2021"}]}
    plans = [await planner.plan(asking(catalog, body, endpoint)) for endpoint in (MESSAGES, CHAT)]
    assert [query.text for query in router.queries] == ["14 May 2021\nWrite dates in ISO form.", "14 May 2021"]
    assert {str(plan.recipe) for plan in plans} == {SQL.expert_id}
    assert (plans[0].policy_name, plans[0].expert_name, plans[0].records) == ("auto", "sql", (SQL,))


async def test_prompts_of_token_ids_are_decoded_by_the_engine() -> None:
    router = choosing(SQL.expert_id)
    catalog = catalog_of(SQL, policy=policy_of(router, SQL))
    engine = MemoryEngine(payload=(b'{"prompt":"decoded"}',))
    metrics = metrics_with()
    await planner_over(pool_over(engine, metrics=metrics), metrics).plan(
        asking(catalog, {"prompt": [1, 2]}, COMPLETIONS)
    )
    assert [request.path for request in engine.requests] == ["/detokenize"]
    assert router.queries[0].text == "decoded"


async def test_an_expert_that_was_removed_while_the_router_decided_is_not_executed() -> None:
    catalog = catalog_of(DATES, policy=policy_of(choosing(SQL.expert_id), SQL, DATES))
    metrics = metrics_with()
    plan = await planner_over(pool_over(MemoryEngine(), metrics=metrics), metrics).plan(
        asking(catalog, {"prompt": "x"}, COMPLETIONS)
    )
    assert (str(plan.recipe), plan.records, plan.expert_name) == ("base", (), "base")


async def test_an_explanation_is_neither_counted_nor_remembered() -> None:
    catalog = catalog_of(SQL, DATES, policy=policy_of(choosing(SQL.expert_id), SQL, DATES))
    metrics, memory = metrics_with(), ConversationMemory()
    planner = planner_over(pool_over(MemoryEngine(), metrics=metrics), metrics, memory)

    def seen() -> tuple[float, bool, bool]:
        counted = metrics.registry.get_sample_value("moergate_decisions_total", {"policy": "auto", "expert": "sql"})
        return counted or 0.0, memory.idle_s(SQL.expert_id) < math.inf, memory.idle_s("sql") < math.inf

    request = asking(catalog, {"messages": [{"role": "user", "content": "list all orders"}]})
    explained = await planner.explain(request)
    assert seen() == (0.0, False, False)
    decided = await planner.plan(request)
    assert seen() == (1.0, True, True)
    assert (explained.recipe, explained.decision) == (decided.recipe, decided.decision)


async def test_a_named_expert_asks_no_policy() -> None:
    router = choosing(SQL.expert_id)
    catalog = catalog_of(SQL, DATES, policy=policy_of(router, SQL, DATES))
    metrics = metrics_with()
    planner = planner_over(pool_over(MemoryEngine(), metrics=metrics), metrics)
    plan = await planner.plan(asking(catalog, {"model": "dates", "prompt": "x"}, COMPLETIONS))
    assert (str(plan.recipe), plan.decision, router.queries) == (DATES.expert_id, None, [])
