"""From a request's target to what is executed: view, embedding, decision, recipe.

A target that is no policy needs none of this. The embedder and slow routers work in threads; nothing here
blocks the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import structlog

from adapters_registry.records import AdapterRecord
from adapters_registry.states import AdapterState
from routers.base import AsksBase, Decision, RouteQuery
from routers.text.request_views import View, excerpt, view_of
from routers.text.segments import parts_of
from server.access.auth import Principal
from server.engine.asking import ask
from server.engine.body import JsonBody
from server.engine.errors import EngineFault, EngineRefused
from server.engine.pool import EnginePool
from server.engine.recipes import MAX_EXPERTS, Base, Gate, Mix, Recipe, experts_of, gate_of, mix_of
from server.errors import GatewayError
from server.planning.catalog import Catalog, Target
from server.planning.conversations import Choice, Conversation, ConversationMemory, conversation_of
from server.planning.near_ties import Settling
from server.planning.recent_task_prompts import TaskWindows
from server.planning.routing_fields import excluded_by, preference_of, task_id_of
from server.planning.shadow import Shadow
from server.planning.version_choice import Versions
from server.policies.live import LivePolicy
from server.telemetry.metrics import Metrics

MAX_CHOICE_TOKENS = 64
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
        trial_role: Which of the two a version is whose expert has a canary.
        query: What the router was asked.
        routed: What it answered, before the conversation and the engines' residents had their say.
        conversation: Whose the request is, if anything was chosen for it.
        choices: What is to be remembered of it.
    """

    target: Target
    recipe: Recipe
    records: tuple[AdapterRecord, ...] = ()
    decision: Decision | None = None
    embed_s: float = 0.0
    route_s: float = 0.0
    trial_role: Literal["active", "canary"] | None = None
    query: RouteQuery | None = None
    routed: Decision | None = None
    conversation: Conversation | None = None
    choices: tuple[Choice, ...] = ()

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


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that something has to be decided for.

    Attributes:
        target: What its ``model`` means.
        path: Its endpoint.
        catalog: The library at its moment.
    """

    target: Target
    path: str
    body: JsonBody
    catalog: Catalog
    principal: Principal
    request_id: str

    def conversation(self) -> Conversation:
        """The conversation that it belongs to."""
        return conversation_of(self.principal.key_id, self.body.fields, self.request_id)


class Planner:
    """Turns targets into plans.

    Args:
        pool: Decodes prompts that came as token ids, and lets the base answer routers that ask it.
        metrics: Counts decisions.
        memory: What conversations began with.
        shadow: Decides again, and counts, where a version is in the shadow.
    """

    def __init__(self, pool: EnginePool, metrics: Metrics, memory: ConversationMemory, shadow: Shadow) -> None:
        self._pool = pool
        self._metrics = metrics
        self._memory = memory
        self._shadow = shadow
        self._settling = Settling(memory, pool)
        self._versions = Versions(memory)
        self._windows = TaskWindows()
        self._explained_windows = TaskWindows()

    async def plan(self, asked: Asked) -> Plan:
        """Decide what to execute for a request, and note it."""
        plan = await self._decide(asked, self._windows)
        self._note(plan, asked.principal)
        return plan

    async def explain(self, asked: Asked) -> Plan:
        """Decide as `plan` would, without leaving anything behind that counts or that a later request could feel.

        Tasks of explanations have windows of their own, so that methods that decide for a task can be compared.
        """
        return await self._decide(asked, self._explained_windows)

    def _note(self, plan: Plan, principal: Principal) -> None:
        """Count a decision, have it made in the shadow too, and remember what the conversation got."""
        if plan.conversation is not None:
            for subject, choice in plan.choices:
                self._memory.put(plan.conversation, subject, choice)
        policy, query, decision = plan.policy_name, plan.query, plan.routed
        if policy is not None and query is not None and decision is not None:
            self._shadow.note(policy, query, decision, principal)
            expert = plan.expert_name if plan.records else None
            self._metrics.record_decision(policy, expert, decision.confidence)

    async def _decide(self, asked: Asked, windows: TaskWindows) -> Plan:
        target, catalog, policy = asked.target, asked.catalog, asked.target.policy
        if policy is None:
            return self._named(asked)
        started = time.perf_counter()
        query = await self._query(policy, asked, windows)
        if policy.router.card.asks_base:
            query = await self._ask(cast(AsksBase, policy.router), query, asked.request_id)
        embedded = time.perf_counter()
        routed = await asyncio.to_thread(policy.router.route, query) if policy.slow else policy.router.route(query)
        decision, conversation = routed, None
        choices: tuple[Choice, ...] = ()
        if not routed.abstained:
            conversation = asked.conversation()
            decision, choices = self._settling.settle(routed, policy.name, catalog, conversation)
        recipe = _recipe_of(decision)
        if len(_records_of(recipe, catalog)) < len(experts_of(recipe)):  # one was removed while the router decided
            recipe = Base()
        if not isinstance(recipe, Base) and conversation is not None:
            recipe, versions = self._versions.choose(recipe, (), catalog, conversation, asked.principal.sight)
            choices = (*choices, *versions)
        records = _records_of(recipe, catalog)
        embed_s, route_s = embedded - started, time.perf_counter() - embedded
        role = _trial_role(records, catalog)
        return Plan(target, recipe, records, decision, embed_s, route_s, role, query, routed, conversation, choices)

    def _named(self, asked: Asked) -> Plan:
        """The plan for a target that is no policy."""
        target, catalog = asked.target, asked.catalog
        recipe, conversation = target.recipe or Base(), None
        choices: tuple[Choice, ...] = ()
        if not isinstance(recipe, Base):
            conversation = asked.conversation()
            recipe, choices = self._versions.choose(recipe, target.pinned, catalog, conversation, asked.principal.sight)
        records = _records_of(recipe, catalog)
        role = _trial_role(records, catalog)
        return Plan(target, recipe, records, trial_role=role, conversation=conversation, choices=choices)

    async def _query(self, policy: LivePolicy, asked: Asked, windows: TaskWindows) -> RouteQuery:
        body, catalog, principal = asked.body, asked.catalog, asked.principal
        view = view_of(asked.path, body.fields)
        text = view.text or await self._decode(view, asked.request_id)
        candidates = catalog.visible_to(principal)
        if not catalog.has_all_of(policy):
            candidates = (candidates if candidates is not None else policy.expert_ids) & catalog.experts.keys()
        if excluded := excluded_by(body):
            candidates = candidates if candidates is not None else frozenset(catalog.experts)
            candidates -= {
                each.expert_id for each in catalog.experts.values() if {each.name, each.expert_id} & excluded
            }
        if not text:
            return RouteQuery("", None, frozenset())  # nothing to go by: no candidates, so the router abstains
        task_id, preference = task_id_of(body), preference_of(body)
        if not policy.router.card.needs_embedding and not policy.router.card.reads_task:
            return RouteQuery(text, None, candidates, task_id, None, preference, asked.target.threshold)
        embedding = policy.embedder.cached(text)
        self._metrics.embedder_lookups.labels("miss" if embedding is None else "hit").inc()
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
            text, embedding, candidates, task_id, window, preference, asked.target.threshold, parts=part_rows
        )

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
        answer = await self._asked_engine("/v1/chat/completions", fields, request_id)
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            return query
        return replace(query, answer=text if isinstance(text, str) else None)

    async def _decode(self, view: View, request_id: str) -> str:
        """Text of a prompt that came as token ids, by the engine's own tokeniser; empty if it cannot be had."""
        if not view.token_ids:
            return ""
        text = (await self._asked_engine("/detokenize", {"tokens": list(view.token_ids)}, request_id)).get("prompt")
        return excerpt(text) if isinstance(text, str) else ""

    async def _asked_engine(self, path: str, fields: dict[str, Any], request_id: str) -> dict[str, Any]:
        """The engine's answer to a question of ours; empty, with a warning, if there is none."""
        try:
            return await ask(self._pool, path, fields, Base(), request_id)
        except EngineRefused as refusal:  # its words may repeat the prompt, and stay out of the log
            why = f"refused with status {refusal.status}"
        except (GatewayError, EngineFault) as error:
            why = str(error)
        log.warning("the engine did not help to route", path=path, request_id=request_id, error=why)
        return {}


def _trial_role(records: Sequence[AdapterRecord], catalog: Catalog) -> Literal["active", "canary"] | None:
    if len(records) != 1 or records[0].name not in catalog.canaries:
        return None
    return "canary" if records[0].state is AdapterState.CANARY else "active"


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
    return tuple(record for expert in experts_of(recipe) if (record := catalog.record_of(expert)) is not None)
