"""From a request's target to what is executed: view, embedding, decision, recipe.

A target that is no policy needs none of this. The embedder and slow routers work in threads; nothing here
blocks the event loop.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np
import structlog

from adapters_registry.records import AdapterRecord
from routers.base import Decision, RouteQuery
from routers.embedders.base import Embedder
from routers.views import View, view_of
from server.auth import Principal
from server.body import JsonBody, parse_body
from server.catalog import Catalog, Target
from server.engine.base import EngineRequest
from server.engine.errors import EngineFault
from server.engine.pool import EnginePool
from server.engine.recipes import MAX_EXPERTS, Base, Gate, Mix, Recipe, Single, experts_of, gate_of, mix_of
from server.errors import GatewayError
from server.metrics import Metrics
from server.policies import LivePolicy

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be executed for a request, and why.

    Attributes:
        target: What the caller asked for.
        recipe: What the engine gets.
        records: The records of the experts that are used.
        decision: The router's answer, if a policy was asked.
        embed_s, route_s: Time taken by each, in seconds.
    """

    target: Target
    recipe: Recipe
    records: tuple[AdapterRecord, ...] = ()
    decision: Decision | None = None
    embed_s: float = 0.0
    route_s: float = 0.0

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
        embedder: Embeds views.
        pool: Decodes prompts that came as token ids.
        metrics: Counts decisions.
    """

    def __init__(self, embedder: Embedder, pool: EnginePool, metrics: Metrics) -> None:
        self._embedder = embedder
        self._pool = pool
        self._metrics = metrics

    async def plan(
        self, target: Target, path: str, body: JsonBody, catalog: Catalog, principal: Principal, request_id: str
    ) -> Plan:
        """Decide what to execute for a request."""
        policy = target.policy
        if policy is None:
            recipe = target.recipe or Base()
            return Plan(target, recipe, _records_of(recipe, catalog))
        started = time.perf_counter()
        query = await self._query(policy, path, body, catalog, principal, request_id)
        embedded = time.perf_counter()
        decision = await asyncio.to_thread(policy.router.route, query) if policy.slow else policy.router.route(query)
        recipe = _recipe_of(decision)
        records = _records_of(recipe, catalog)
        if len(records) < len(experts_of(recipe)):  # one was removed while the router decided
            recipe, records = Base(), ()
        routed = time.perf_counter()
        plan = Plan(target, recipe, records, decision, embedded - started, routed - embedded)
        self._metrics.record_decision(policy.name, plan.expert_name if records else None, decision.confidence)
        return plan

    async def _query(
        self, policy: LivePolicy, path: str, body: JsonBody, catalog: Catalog, principal: Principal, request_id: str
    ) -> RouteQuery:
        view = view_of(path, body.fields)
        text = view.text or await self._decode(view, request_id)
        candidates = catalog.visible_to(principal)
        if not policy.expert_ids <= catalog.experts.keys():
            candidates = (candidates if candidates is not None else policy.expert_ids) & catalog.experts.keys()
        if not text:
            return RouteQuery("", None, frozenset())  # nothing to go by: no candidates, so the router abstains
        embedding = None
        if policy.router.card.needs_embedding:
            cached = self._embedder.cached(text)
            self._metrics.embedder_lookups.labels("miss" if cached is None else "hit").inc()
            embedding = cached if cached is not None else np.asarray((await self._embedder.embed([text]))[0])
        return RouteQuery(text, embedding, candidates)

    async def _decode(self, view: View, request_id: str) -> str:
        """Text of a prompt that came as token ids, by the engine's own tokeniser; empty if it cannot be had."""
        if not view.token_ids:
            return ""
        body = JsonBody(b"", {"tokens": list(view.token_ids)})
        try:
            response = await self._pool.forward(EngineRequest("/detokenize", body, Base(), request_id))
            try:
                payload = await response.inner.read()
            finally:
                response.close()
            text = parse_body(payload).fields.get("prompt")
        except (GatewayError, EngineFault) as error:
            log.warning("prompt of token ids not decoded, so not routed", request_id=request_id, error=str(error))
            return ""
        return text if isinstance(text, str) else ""


def _recipe_of(decision: Decision) -> Recipe:
    """The recipe that executes a decision; of more experts than a recipe can hold, those with the largest weights."""
    chosen = sorted(decision.experts, key=lambda expert: -expert.weight)[:MAX_EXPERTS]
    if not chosen:
        return Base()
    if len(chosen) == 1:
        return Single(chosen[0].expert_id)
    if (gate := decision.gate) is not None:
        ids = [expert.expert_id for expert in chosen]
        k = None if gate.k is None else min(gate.k, len(ids))
        return gate_of(gate.kind, ids, k, gate.temperature, gate.aggregation)
    try:
        return mix_of({expert.expert_id: expert.weight for expert in chosen})
    except ValueError:  # nothing is left of any weight
        return Base()


def _records_of(recipe: Recipe, catalog: Catalog) -> tuple[AdapterRecord, ...]:
    return tuple(record for expert in experts_of(recipe) if (record := catalog.experts.get(expert)) is not None)
