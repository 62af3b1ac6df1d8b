"""From a request's target to what is executed: view, embedding, decision, recipe.

A target that is no policy needs none of this. The embedder and slow routers work in threads; nothing here
blocks the event loop.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import orjson
import structlog

from adapters_registry.records import AdapterRecord
from routers.base import AsksBase, Decision, RouteQuery
from routers.segments import parts_of
from routers.views import View, view_of
from server.auth import Principal
from server.body import JsonBody, parse_body
from server.catalog import Catalog, Target
from server.engine.base import EngineRequest
from server.engine.errors import EngineFault
from server.engine.pool import EnginePool
from server.engine.recipes import MAX_EXPERTS, MAX_WEIGHT, Base, Gate, Mix, Recipe, experts_of, gate_of, mix_of
from server.errors import BadRequest, GatewayError
from server.metrics import Metrics
from server.policies import LivePolicy
from server.task_windows import TaskWindows

MAX_TASK_ID_CHARS = 200
MAX_CHOICE_TOKENS = 64
MAX_EXCLUDED = 256

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be executed for a request, and why.

    Attributes:
        target: What the caller asked for.
        recipe: What the engine gets.
        records: The records of the experts that are used.
        decision: The router's answer, if a policy was asked.
        query: What it was asked.
        embed_s, route_s: Time taken by each, in seconds.
    """

    target: Target
    recipe: Recipe
    records: tuple[AdapterRecord, ...] = ()
    decision: Decision | None = None
    embed_s: float = 0.0
    route_s: float = 0.0
    query: RouteQuery | None = None

    @property
    def policy_name(self) -> str | None:
        """The policy's name, if one decided."""
        return self.target.policy.name if self.target.policy else None

    @property
    def expert_name(self) -> str:
        """For metrics: the expert's name, ``base``, or the kind of what several experts do."""
        match self.recipe:
            case Mix():
                return "mix"
            case Gate():
                return "gate"
            case _:
                return self.records[0].name if self.records else "base"


class Planner:
    """Turns targets into plans.

    Args:
        pool: Decodes prompts that came as token ids, and lets the base answer routers that ask it.
        metrics: Counts decisions.
    """

    def __init__(self, pool: EnginePool, metrics: Metrics) -> None:
        self._pool = pool
        self._metrics = metrics
        self._windows = TaskWindows()

    async def plan(
        self, target: Target, path: str, body: JsonBody, catalog: Catalog, principal: Principal, request_id: str
    ) -> Plan:
        """Decide what to execute for a request."""
        policy = target.policy
        if policy is None:
            recipe = target.recipe or Base()
            return Plan(target, recipe, _records_of(recipe, catalog))
        started = time.perf_counter()
        query = await self._query(policy, target.threshold, path, body, catalog, principal, request_id)
        if policy.router.card.asks_base:
            query = await self._ask(cast(AsksBase, policy.router), query, request_id)
        embedded = time.perf_counter()
        decision = await asyncio.to_thread(policy.router.route, query) if policy.slow else policy.router.route(query)
        recipe = _recipe_of(decision)
        records = _records_of(recipe, catalog)
        if len(records) < len(experts_of(recipe)):  # one was removed while the router decided
            recipe, records = Base(), ()
        routed = time.perf_counter()
        plan = Plan(target, recipe, records, decision, embedded - started, routed - embedded, query)
        self._metrics.record_decision(policy.name, plan.expert_name if records else None, decision.confidence)
        return plan

    async def _query(
        self,
        policy: LivePolicy,
        threshold: float | None,
        path: str,
        body: JsonBody,
        catalog: Catalog,
        principal: Principal,
        request_id: str,
    ) -> RouteQuery:
        view = view_of(path, body.fields)
        text = view.text or await self._decode(view, request_id)
        candidates = catalog.visible_to(principal)
        if not policy.expert_ids <= catalog.experts.keys():
            candidates = (candidates if candidates is not None else policy.expert_ids) & catalog.experts.keys()
        if excluded := _excluded(body):
            candidates = candidates if candidates is not None else frozenset(catalog.experts)
            candidates -= {
                each.expert_id for each in catalog.experts.values() if {each.name, each.expert_id} & excluded
            }
        if not text:
            return RouteQuery("", None, frozenset())  # nothing to go by: no candidates, so the router abstains
        task_id, preference = _task_id(body), _preference(body)
        if not policy.router.card.needs_embedding and not policy.router.card.reads_task:
            return RouteQuery(text, None, candidates, task_id, None, preference, threshold)
        embedding = policy.embedder.cached(text)
        self._metrics.embedder_lookups.labels("miss" if embedding is None else "hit").inc()
        parts = None
        if policy.router.card.reads_parts:
            embedding, *parts = await policy.embedder.embed([text, *parts_of(text)])
        elif embedding is None:
            embedding = np.asarray((await policy.embedder.embed([text]))[0])
        window = None
        if policy.router.card.reads_task and task_id:
            window = self._windows.add(principal.key_id, policy.embedder.name, task_id, text, embedding)
        part_rows = None if parts is None else np.stack(parts)
        return RouteQuery(text, embedding, candidates, task_id, window, preference, threshold, parts=part_rows)

    async def _ask(self, router: AsksBase, query: RouteQuery, request_id: str) -> RouteQuery:
        """Let the base answer a router's question, one of its choices; without an answer the router has to do."""
        question = router.question(query)
        if question is None:
            return query
        fields = {
            "model": "base",
            "messages": [{"role": "user", "content": question.prompt}],
            "structured_outputs": {"choice": list(question.choices)},
            "temperature": 0,
            "max_tokens": MAX_CHOICE_TOKENS,
        }
        answer = await self._engine_json("/v1/chat/completions", fields, request_id)
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            return query
        return replace(query, answer=text if isinstance(text, str) else None)

    async def _decode(self, view: View, request_id: str) -> str:
        """Text of a prompt that came as token ids, by the engine's own tokeniser; empty if it cannot be had."""
        if not view.token_ids:
            return ""
        text = (await self._engine_json("/detokenize", {"tokens": list(view.token_ids)}, request_id)).get("prompt")
        return text if isinstance(text, str) else ""

    async def _engine_json(self, path: str, fields: dict[str, Any], request_id: str) -> dict[str, Any]:
        """The engine's answer to a question of ours; empty, with a warning, if there is none."""
        try:
            request = EngineRequest(path, JsonBody(orjson.dumps(fields), fields), Base(), request_id)
            response = await self._pool.forward(request)
            try:
                payload = await response.inner.read()
            finally:
                response.close()
            return parse_body(payload).fields
        except (GatewayError, EngineFault) as error:
            log.warning("the engine did not help to route", path=path, request_id=request_id, error=str(error))
            return {}


def _task_id(body: JsonBody) -> str | None:
    task_id = body.fields.get("task_id")
    if task_id is None or (isinstance(task_id, str) and 0 < len(task_id) <= MAX_TASK_ID_CHARS):
        return task_id
    raise BadRequest(f"'task_id' must be a text of 1 to {MAX_TASK_ID_CHARS} characters.", param="task_id")


def _excluded(body: JsonBody) -> frozenset[str]:
    """Names or ids in the request's own ``exclude_experts``, which a policy must not use for it."""
    given = body.fields.get("exclude_experts")
    if given is None:
        return frozenset()
    if not isinstance(given, list) or len(given) > MAX_EXCLUDED or not all(isinstance(each, str) for each in given):
        raise BadRequest(
            f"'exclude_experts' must be an array of at most {MAX_EXCLUDED} names.", param="exclude_experts"
        )
    return frozenset(given)


def _preference(body: JsonBody) -> dict[str, float] | None:
    given = body.fields.get("preference")
    if given is None:
        return None
    if not isinstance(given, dict) or not 0 < len(given) <= MAX_EXPERTS:
        raise BadRequest(f"'preference' must be an object of 1 to {MAX_EXPERTS} experts.", param="preference")
    for expert, weight in given.items():
        good = isinstance(weight, (int, float)) and not isinstance(weight, bool) and 0 <= weight <= MAX_WEIGHT
        if not good:
            raise BadRequest(f"The weight of {expert[:100]!r} must be from 0 to {MAX_WEIGHT:g}.", param="preference")
    return {expert: float(weight) for expert, weight in given.items()}


def _recipe_of(decision: Decision) -> Recipe:
    """The recipe that executes a decision; of more experts than a recipe can hold, those with the largest weights."""
    chosen = sorted(decision.experts, key=lambda expert: -abs(expert.weight))[:MAX_EXPERTS]
    if not chosen:
        return Base()
    weights = {expert.expert_id: expert.weight for expert in chosen}
    if (gate := decision.gate) is not None and gate.kind != "fixed":
        ids = [expert.expert_id for expert in chosen]
        k = None if gate.k is None else min(gate.k, len(ids))
        return gate_of(gate.kind, ids, k, gate.temperature, gate.aggregation)
    try:
        return mix_of(weights, gate.aggregation if gate else "output")
    except ValueError:  # nothing is left of any weight
        return Base()


def _records_of(recipe: Recipe, catalog: Catalog) -> tuple[AdapterRecord, ...]:
    return tuple(record for expert in experts_of(recipe) if (record := catalog.experts.get(expert)) is not None)
