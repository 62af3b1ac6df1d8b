"""Shadow decisions: what the policies would choose if a version were offered, counted but not executed.

A canary with a share of 0 is in the shadow. Every policy whose method is cheap to fit is fitted a second time, to the
library with the shadowed versions in place of the active versions of their names, or beside the other experts. Both
routers decide each request that asks for the policy; the second decision is only counted.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from adapters_registry.records import AdapterRecord
from adapters_registry.states import AdapterState
from routers.base import Decision, RouteQuery, name_of, no_progress
from routers.errors import RouterError
from server.access.auth import Principal
from server.planning.catalog import Catalog
from server.policies.book import Entry
from server.policies.definitions import PolicySpec
from server.policies.embedders import Embedders
from server.policies.fit_data import Experts, PolicyData, as_experts
from server.policies.fitter import Fitter
from server.policies.live import LivePolicy
from server.telemetry.metrics import Metrics

MAX_PENDING = 64
"""Maximum number of decisions of slow routers that wait for a thread; further requests get no shadow decision."""

MAX_COUNTED = 1000
"""Maximum number of experts that a tally counts by name; further ones are counted as ``other``."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Tally:
    """Counts of decisions about one shadowed expert.

    Attributes:
        kept: Requests that both routers gave to the expert.
        gained: Requests that the shadowed version would get, by the expert (or ``base``) that got them.
        lost: Requests that the active version got, by the expert (or ``base``) that would get them.
    """

    kept: int = 0
    gained: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """Return the counts for the admin API."""
        return {"kept": self.kept, "gained": dict(self.gained), "lost": dict(self.lost)}


class Shadow:
    """Fits policies to the library with the shadowed versions, and counts what they would decide.

    Args:
        fitter: Fits a policy; its artefacts are kept apart from those of the live policies.
        open_data: Opens what policies are fitted to. Embeddings are released after each round of fits.
        alone: Locks the fit of a policy, by its name, against other gateways on this home.
        embedders: Embedders by name.
        metrics: Counts the decisions.

    Attributes:
        policies: The policies that are fitted to the shadowed versions, by name.
        tallies: Counts of decisions by the id of a shadowed version.
    """

    def __init__(
        self,
        fitter: Fitter,
        open_data: Callable[[], PolicyData],
        alone: Callable[[str], AbstractAsyncContextManager[None]],
        embedders: Embedders,
        metrics: Metrics,
    ) -> None:
        self._fitter = fitter
        self._open_data = open_data
        self._alone = alone
        self._embedders = embedders
        self._metrics = metrics
        self._wanted: tuple[Any, ...] = ()
        self._shadowed: Mapping[str, AdapterRecord] = {}
        self._replaces: Mapping[str, str] = {}
        self._task: asyncio.Task[None] | None = None
        self._pending: set[asyncio.Task[None]] = set()
        self.policies: Mapping[str, LivePolicy] = {}
        self.tallies: dict[str, Tally] = {}

    def follow(self, catalog: Catalog) -> None:
        """Start fitting to the versions in the shadow if they have changed; returns at once."""
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
        self._wanted, self.policies = wanted, {}
        if self._task:
            self._task.cancel()
        self.tallies = {r.expert_id: self.tallies.get(r.expert_id, Tally()) for r in shadowed.values()}
        if shadowed:
            replaces = {r.expert_id: shadowed[r.name].expert_id for r in catalog.experts.values() if r.name in shadowed}
            self._shadowed, self._replaces = shadowed, replaces
            self._task = asyncio.create_task(self._fit(specs, (*rest, *shadowed.values())))

    async def close(self) -> None:
        """Cancel running fits and decisions."""
        tasks = [*self._pending, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fit(self, specs: Sequence[PolicySpec], records: Sequence[AdapterRecord]) -> None:
        experts, data, fitted = as_experts(records), self._open_data(), dict[str, LivePolicy]()
        for spec in specs:
            try:
                fitted[spec.name] = await self._fit_one(Entry.of(spec), experts, data)
            except Exception as error:  # the other policies are fitted all the same
                known = isinstance(error, (RouterError, OSError))
                log.warning(
                    "policy not fitted in the shadow",
                    policy=spec.name,
                    error=str(error),
                    exc_info=None if known else error,
                )
        self.policies = fitted
        log.info("shadow fitted", policies=sorted(fitted), shadowed=sorted(self.tallies))

    async def _fit_one(self, entry: Entry, experts: Experts, data: PolicyData) -> LivePolicy:
        embedder = await self._embedders.get(entry.embedder)
        version = await data.version(experts, embedder, entry.spec.samples, with_scores=entry.reads_scores)
        async with self._alone(entry.spec.name):
            live = await self._fitter.fitted_elsewhere(entry, version, embedder, experts)
            if live is None:
                gathered = await data.gather(experts, embedder, with_scores=entry.reads_scores)
                live = await self._fitter.fit(entry, gathered, version, embedder, no_progress)
        return live

    def note(self, policy: str, query: RouteQuery, decision: Decision, principal: Principal) -> None:
        """Decide a request again as if the shadowed versions were offered; returns at once."""
        live = self.policies.get(policy)
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
    return {name_of(expert.expert_id) for expert in decision.experts}
