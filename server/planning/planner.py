"""Plans what is executed for a request: view, embedding, decision, recipe.

Only a policy needs all four steps; any other target already is a recipe. The embedder and slow routers run in threads,
so nothing here blocks the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import structlog

from adapters_registry.records import AdapterRecord
from adapters_registry.states import AdapterState
from routers.base import AsksBase, Decision, RouteQuery
from routers.text.request_views import View, excerpt
from routers.text.segments import parts_of
from server.access.auth import Principal
from server.endpoints import CHAT
from server.engine.asking import ask
from server.engine.errors import EngineFault, EngineRefused
from server.engine.pool import EnginePool
from server.engine.recipes import MAX_EXPERTS, Base, Recipe, experts_of, gate_of, mix_of
from server.errors import GatewayError
from server.planning.catalog import Catalog
from server.planning.conversations import Choice, ConversationMemory
from server.planning.near_ties import NearTies
from server.planning.plan import Plan, RoutingRequest
from server.planning.recent_task_prompts import TaskWindows
from server.planning.routing_fields import excluded_by, preference_of, task_id_of
from server.planning.shadow import Shadow
from server.planning.version_choice import VersionChooser
from server.policies.live import LivePolicy
from server.telemetry.metrics import Metrics

MAX_CHOICE_TOKENS = 64
log = structlog.get_logger(__name__)


class Planner:
    """Turns targets into plans.

    Args:
        pool: Decodes prompts of token ids, and asks the base the questions of routers.
        metrics: Counts decisions.
        memory: What was chosen for each conversation.
        shadow: Decides again, for the counters only, while a version is in the shadow.
    """

    def __init__(self, pool: EnginePool, metrics: Metrics, memory: ConversationMemory, shadow: Shadow) -> None:
        self._pool = pool
        self._metrics = metrics
        self._memory = memory
        self._shadow = shadow
        self._near_ties = NearTies(memory, pool)
        self._versions = VersionChooser(memory)
        self._windows = TaskWindows()
        self._explained_windows = TaskWindows()

    async def plan(self, request: RoutingRequest) -> Plan:
        """Decide what to execute for a request, and remember and count the decision."""
        plan = await self._decide(request, self._windows)
        self._note(plan, request.principal)
        return plan

    async def explain(self, request: RoutingRequest) -> Plan:
        """Decide as `plan` would, without counting the decision or affecting later requests.

        Explanations have separate task windows, so that methods that decide per task can be compared.
        """
        return await self._decide(request, self._explained_windows)

    def _note(self, plan: Plan, principal: Principal) -> None:
        """Remember the conversation's choices, count the decision, and decide again in the shadow."""
        if plan.conversation is not None:
            for subject, choice in plan.choices:
                self._memory.put(plan.conversation, subject, choice)
        policy, query, decision = plan.policy_name, plan.query, plan.routed
        if policy is not None and query is not None and decision is not None:
            self._shadow.note(policy, query, decision, principal)
            expert = plan.expert_name if plan.records else None
            self._metrics.record_decision(policy, expert, decision.confidence)

    async def _decide(self, request: RoutingRequest, windows: TaskWindows) -> Plan:
        target, catalog, policy = request.target, request.catalog, request.target.policy
        if policy is None:
            return self._plan_named(request)
        started = time.perf_counter()
        query = await self._query(policy, request, windows)
        if policy.router.card.asks_base:
            query = await self._ask_base(cast(AsksBase, policy.router), query, request.request_id)
        embedded = time.perf_counter()
        routed = await asyncio.to_thread(policy.router.route, query) if policy.slow else policy.router.route(query)
        decision, conversation = routed, None
        choices: tuple[Choice, ...] = ()
        if not routed.abstained:
            conversation = request.conversation()
            decision, choices = self._near_ties.resolve(routed, policy.name, catalog, conversation)
        recipe = recipe_of(decision)
        if len(_records_of(recipe, catalog)) < len(experts_of(recipe)):
            recipe = Base()  # an expert was removed while the router decided
        if not isinstance(recipe, Base) and conversation is not None:
            recipe, versions = self._versions.choose(recipe, (), catalog, conversation, request.principal.sight)
            choices = (*choices, *versions)
        records = _records_of(recipe, catalog)
        embed_s, route_s = embedded - started, time.perf_counter() - embedded
        role = _trial_role(records, catalog)
        return Plan(target, recipe, records, decision, embed_s, route_s, role, query, routed, conversation, choices)

    def _plan_named(self, request: RoutingRequest) -> Plan:
        """Return the plan for a target that is not a policy."""
        target, catalog = request.target, request.catalog
        recipe, conversation = target.recipe or Base(), None
        choices: tuple[Choice, ...] = ()
        if not isinstance(recipe, Base):
            conversation, sight = request.conversation(), request.principal.sight
            recipe, choices = self._versions.choose(recipe, target.pinned, catalog, conversation, sight)
        records = _records_of(recipe, catalog)
        role = _trial_role(records, catalog)
        return Plan(target, recipe, records, trial_role=role, conversation=conversation, choices=choices)

    async def _query(self, policy: LivePolicy, request: RoutingRequest, windows: TaskWindows) -> RouteQuery:
        body, catalog, principal = request.body, request.catalog, request.principal
        view = request.endpoint.view(body.fields)
        text = view.text or await self._decode(view, request.request_id)
        candidates = catalog.visible_to(principal)
        if not catalog.has_all_of(policy):
            candidates = (candidates if candidates is not None else policy.expert_ids) & catalog.experts.keys()
        if excluded := excluded_by(body):
            candidates = candidates if candidates is not None else frozenset(catalog.experts)
            candidates -= {
                each.expert_id for each in catalog.experts.values() if {each.name, each.expert_id} & excluded
            }
        if not text:
            return RouteQuery("", None, frozenset())  # no text, so no candidates: the router abstains
        task_id, preference = task_id_of(body), preference_of(body)
        if not policy.router.card.needs_embedding and not policy.router.card.reads_task:
            return RouteQuery(text, None, candidates, task_id, None, preference, request.target.threshold)
        embedding = policy.embedder.cached(text)
        self._metrics.record_lookup(hit=embedding is not None)
        parts = None
        if policy.router.card.reads_parts:
            embedding, *parts = await policy.embedder.embed([text, *parts_of(text)])
        elif embedding is None:
            embedding = np.asarray((await policy.embedder.embed([text]))[0])
        window = None
        if policy.router.card.reads_task and task_id:
            window = windows.add(principal.key_id, policy.embedder.name, task_id, text, embedding)
        part_rows = None if parts is None else np.stack(parts)
        return RouteQuery(
            text, embedding, candidates, task_id, window, preference, request.target.threshold, parts=part_rows
        )

    async def _ask_base(self, router: AsksBase, query: RouteQuery, request_id: str) -> RouteQuery:
        """Add the base's answer to the router's question; without an answer the query is returned unchanged."""
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
        answer = await self._ask_engine(CHAT.path, fields, request_id)
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            return query
        return replace(query, answer=text if isinstance(text, str) else None)

    async def _decode(self, view: View, request_id: str) -> str:
        """Decode a prompt of token ids with the engine's tokenizer; empty if the engine does not answer."""
        if not view.token_ids:
            return ""
        text = (await self._ask_engine("/detokenize", {"tokens": list(view.token_ids)}, request_id)).get("prompt")
        return excerpt(text) if isinstance(text, str) else ""

    async def _ask_engine(self, path: str, fields: dict[str, Any], request_id: str) -> dict[str, Any]:
        """Return the engine's answer to an internal request; empty, with a warning, if the engine fails."""
        try:
            return await ask(self._pool, path, fields, Base(), request_id)
        except EngineRefused as refusal:  # the message may repeat the prompt, so it is not logged
            why = f"refused with status {refusal.status}"
        except (GatewayError, EngineFault) as error:
            why = str(error)
        log.warning("engine did not answer a question about routing", path=path, request_id=request_id, error=why)
        return {}


def _trial_role(records: Sequence[AdapterRecord], catalog: Catalog) -> Literal["active", "canary"] | None:
    if len(records) != 1 or records[0].name not in catalog.canaries:
        return None
    return "canary" if records[0].state is AdapterState.CANARY else "active"


def recipe_of(decision: Decision) -> Recipe:
    """Return the recipe that executes a decision; a recipe that would be too long keeps the largest weights."""
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
    except ValueError:  # all weights round to zero
        return Base()


def _records_of(recipe: Recipe, catalog: Catalog) -> tuple[AdapterRecord, ...]:
    return tuple(record for expert in experts_of(recipe) if (record := catalog.record_of(expert)) is not None)
