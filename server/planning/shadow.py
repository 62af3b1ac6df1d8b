"""Shadow decisions: what the policies would choose if a version were offered, counted while nobody gets it.

A canary with a share of 0 is in the shadow. Every policy whose method is cheap to fit is fitted a second time to the
library with the shadowed versions in it, in place of the active ones of their names or beside them; each request
that asks the policy is decided by both routers, and the second decision is only counted.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from adapters_registry.records import AdapterRecord
from adapters_registry.states import AdapterState
from routers.base import Decision, RouteQuery
from server.access.auth import Principal
from server.planning.catalog import Catalog
from server.policies.definitions import PolicySpec
from server.policies.manager import LivePolicy, PolicyManager
from server.telemetry.metrics import Metrics

MAX_PENDING = 64
"""Decisions of slow routers that may wait for a thread; beyond, requests are not decided on in the shadow."""

MAX_COUNTED = 1000

log = structlog.get_logger(__name__)

Fitter = Callable[[Sequence[PolicySpec]], PolicyManager]


@dataclass(slots=True)
class Tally:
    """What became of a shadowed expert's decisions.

    Attributes:
        kept: Requests that both routers gave to it.
        gained: Requests that it would get, by the expert (or ``base``) that got them.
        lost: Requests that its active version got, by who would get them.
    """

    kept: int = 0
    gained: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """For the admin API."""
        return {"kept": self.kept, "gained": dict(self.gained), "lost": dict(self.lost)}


class Shadow:
    """See the module's docstring.

    Args:
        fitter: Makes a manager that fits these policies, apart from the live ones.
        metrics: Counts the decisions.
    """

    def __init__(self, fitter: Fitter, metrics: Metrics) -> None:
        self._fitter = fitter
        self._metrics = metrics
        self._wanted: tuple[Any, ...] = ()
        self._records: tuple[AdapterRecord, ...] = ()
        self._shadowed: Mapping[str, AdapterRecord] = {}
        self._replaces: Mapping[str, str] = {}
        self._policies: Mapping[str, LivePolicy] = {}
        self._task: asyncio.Task[None] | None = None
        self._pending: set[asyncio.Task[None]] = set()
        self.tallies: dict[str, Tally] = {}

    def follow(self, catalog: Catalog) -> None:
        """Fit to what is in the shadow now, if that has changed; returns at once."""
        shadowed = {r.name: r for r in catalog.others.values() if r.state is AdapterState.CANARY and not r.share}
        specs = tuple(
            live.spec
            for live in catalog.policies.values()
            if live.spec is not None and live.router.card.refit != "costly" and not live.router.card.asks_base
        )
        rest = tuple(r for r in catalog.experts.values() if r.name not in shadowed)
        wanted = (tuple(shadowed.values()), rest, specs) if shadowed else ()
        if wanted == self._wanted:
            return
        self._wanted, self._policies = wanted, {}
        if self._task:
            self._task.cancel()
        self.tallies = {r.expert_id: self.tallies.get(r.expert_id, Tally()) for r in shadowed.values()}
        if shadowed:
            replaces = {r.expert_id: shadowed[r.name].expert_id for r in catalog.experts.values() if r.name in shadowed}
            self._shadowed, self._replaces = shadowed, replaces
            self._task = asyncio.create_task(self._fit(specs, (*rest, *shadowed.values())))

    async def close(self) -> None:
        """Stop fitting and deciding."""
        tasks = [*self._pending, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fit(self, specs: Sequence[PolicySpec], records: Sequence[AdapterRecord]) -> None:
        manager = self._fitter(specs)
        try:
            self._policies = dict(await manager.refresh(records))
            log.info("shadow fitted", policies=sorted(self._policies), shadowed=sorted(self.tallies))
        finally:
            await manager.close()

    def note(self, policy: str, query: RouteQuery, decision: Decision, principal: Principal) -> None:
        """Decide on a request again, as if the shadowed versions were offered; returns at once."""
        live = self._policies.get(policy)
        if live is None or not query.text:
            return
        query = replace(query, candidates=self._candidates(query, principal))
        if not live.slow:
            self._count(policy, decision, live.router.route(query))
        elif len(self._pending) < MAX_PENDING:
            task = asyncio.create_task(self._note_later(live, query, decision))
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)

    async def _note_later(self, live: LivePolicy, query: RouteQuery, decision: Decision) -> None:
        self._count(live.name, decision, await asyncio.to_thread(live.router.route, query))

    def _candidates(self, query: RouteQuery, principal: Principal) -> frozenset[str] | None:
        if query.candidates is None:
            return None
        replaced = {self._replaces.get(each, each) for each in query.candidates}
        new = {r.expert_id for r in self._shadowed.values() if principal.sight.sees_expert(r.name, r.audience)}
        return frozenset(replaced | new)

    def _count(self, policy: str, decision: Decision, other: Decision) -> None:
        was, would_be = _names(decision), _names(other)
        for name in (was | would_be) & self._shadowed.keys():
            tally = self.tallies.get(self._shadowed[name].expert_id)
            if tally is None:
                continue
            if name in was and name in would_be:
                change = "kept"
                tally.kept += 1
            else:
                change, counter, elsewhere = (
                    ("gained", tally.gained, was) if name in would_be else ("lost", tally.lost, would_be)
                )
                whose = ",".join(sorted(elsewhere)) or "base"
                counter[whose if whose in counter or len(counter) < MAX_COUNTED else "other"] += 1
            self._metrics.record_shadow(policy, name, change)


def _names(decision: Decision) -> set[str]:
    return {expert.expert_id.partition("@")[0] for expert in decision.experts}
