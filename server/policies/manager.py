"""Live policies: fits routers to the library and swaps them in without dropping a request.

When the library changes, each policy of a cheap method is fitted anew in a worker thread, from embeddings of which only
the new ones are computed; a policy of a costly method goes on with what it has and is marked stale until somebody fits
it again. What somebody asks for, and a costly method's first fit, are jobs, which hold up no other policy. The result
is published as an artefact and then replaces the old router in one assignment. An artefact of an earlier start is used
again if it was fitted to the same data. A fit that fails leaves the old router in place.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import structlog

from adapters_registry.records import AdapterRecord
from adapters_registry.visibility import EVERYBODY, Audience
from routers.artefacts import ArtefactStore, code_version
from routers.base import (
    Artefact,
    FitData,
    LibraryExpert,
    Losses,
    RouteQuery,
    Router,
    RouterConfig,
)
from routers.embedders.base import Embedder
from routers.errors import BadArtefact, FitCancelled, NotFittable, RouterError
from routers.fitting import fit_policy, unmet_needs
from routers.library.subset import restrict, select
from routers.registry import make_config, router_class
from server.errors import BadRequest, NotFound
from server.jobs import Job, Jobs
from server.policies.definitions import PolicySpec, PolicyStore
from server.policies.embedders import Embedders
from server.policies.fit_data import Experts, PolicyData, blocking
from server.policies.scores import ScoreStore
from server.policies.vectors import VectorStore
from server.telemetry.drift import Profile, fitting_profile
from server.telemetry.metrics import Metrics

SLOW_ROUTE_S = 0.001
"""A router that takes longer than this for a decision is run in a worker thread."""

FIRST_RETRY_S, LAST_RETRY_S = 1.0, 300.0

FOLLOW_WAIT_S = 2.0
"""How long to wait for another gateway that fits the same policy, before going on with the others."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LivePolicy:
    """A policy that can decide now.

    Attributes:
        version: Of the data that the router was fitted to.
        expert_ids: The experts among them.
        embedder: What its prompts are embedded with.
        slow: Whether a decision takes long enough to be worth a thread.
        stale: Whether the library has changed since.
        provenance: When and by which version of the code it was fitted.
        spec: What it was fitted as; another gateway may have redefined the policy since.
        fitting: How it would choose for prompts like its examples; None if it was not fitted to examples.
        audience: Whom it is for.
    """

    name: str
    router_name: str
    router: Router
    version: str
    embedder: Embedder
    expert_ids: frozenset[str] = frozenset()
    slow: bool = False
    stale: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)
    spec: PolicySpec | None = None
    fitting: Profile | None = None
    audience: Audience = EVERYBODY

    def describe(self) -> dict[str, Any]:
        """The method's card, for people."""
        card = self.router.card
        return {"title": card.title, "paper": card.paper, "selection": card.selection, "cost": card.cost}


@dataclass(slots=True)
class _Entry:
    """A policy that is to be: what it is, and what became of the last try."""

    spec: PolicySpec
    kind: type[Router]
    config: RouterConfig
    error: str = ""
    failed_version: str = ""
    num_failures: int = 0
    retry_at: float = 0.0


class PolicyManager:
    """Keeps every policy fitted to the library.

    Args:
        specs: The policies of the settings.
        embedders: For the library's examples.
        artefacts: Where fitted artefacts are kept.
        store: Where definitions are kept that were made while running.
        scores: The table that some methods learn from.
        metrics: Shows stale policies.
        vectors: Where embeddings of examples outlive this process.
        losses: The engine, for methods that search for weights; None if there is none now.
    """

    def __init__(
        self,
        specs: Sequence[PolicySpec],
        embedders: Embedders,
        artefacts: ArtefactStore,
        store: PolicyStore,
        scores: ScoreStore,
        metrics: Metrics,
        vectors: VectorStore,
        losses: Callable[[], Losses | None] = lambda: None,
    ) -> None:
        self._embedders = embedders
        self._artefacts = artefacts
        self._store = store
        self._data = PolicyData(scores, vectors)
        self._metrics = metrics
        self._losses = losses
        self._entries = {spec.name: _entry(spec) for spec in specs}
        self._required = frozenset(self._entries)
        self._stamp: dict[str, tuple[int, int]] = {}
        self._defining = asyncio.Lock()
        self._scores_seen = scores.stamp
        self._scores = scores
        self._live: dict[str, LivePolicy] = {}
        self._experts: tuple[LibraryExpert, ...] = ()
        self._gathering: dict[str, asyncio.Lock] = {}
        self._fitting: dict[str, asyncio.Lock] = {}
        self._ordered: Counter[str] = Counter()
        self._passed_over: set[str] = set()
        self._following: dict[str, asyncio.Task[None]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self.jobs = Jobs()
        self.on_change: Callable[[Mapping[str, LivePolicy]], None] = lambda _live: None

    # -- following the library ------------------------------------------------------------------------------------

    async def refresh(self, records: Sequence[AdapterRecord]) -> dict[str, LivePolicy]:
        """Fit all policies to these experts; never raises, keeps what it had where a fit fails."""
        await self._read_stored()
        self._scores_seen = await asyncio.to_thread(lambda: self._scores.stamp)
        self._passed_over.clear()
        self._experts = _as_experts(records)
        names = {_embedder_of(entry) for entry in self._entries.values()}
        for name in names - {""}:  # other embedders may be slow, and nobody else should wait for them
            if name not in self._following:
                task = self._following[name] = asyncio.create_task(self._follow_all(name))
                task.add_done_callback(partial(self._forget_following, name))
        await self._follow_all("")
        return self._announce()

    async def prepare(self, records: Sequence[AdapterRecord]) -> None:
        """Embed the examples of experts that will soon be the library's, so that fitting to them finds them done."""
        async with self._one_gathering(""):
            await self._data.gather(_as_experts(records), self._embedders.default, with_scores=False)

    def _forget_following(self, name: str, _task: asyncio.Task[None]) -> None:
        self._following.pop(name, None)

    async def _follow_all(self, embedder: str) -> None:
        """Bring the policies of one embedder up to date, again if the library changes meanwhile."""
        experts = None
        while experts is not self._experts:
            experts = self._experts
            async with self._one_gathering(embedder):
                gathered: dict[str, FitData] = {}
                for entry in [entry for entry in self._entries.values() if _embedder_of(entry) == embedder]:
                    await self._follow(entry, experts, gathered)
            self._announce()

    def _one_gathering(self, embedder: str) -> asyncio.Lock:
        """Held while texts are embedded, and while policies follow the library."""
        return self._gathering.setdefault(embedder, asyncio.Lock())

    def _one_fit(self, policy: str) -> asyncio.Lock:
        """Held by a job while it fits a policy; never waited for while `_one_gathering` is held."""
        return self._fitting.setdefault(policy, asyncio.Lock())

    @property
    def missing(self) -> dict[str, str]:
        """Policies of the settings that cannot decide yet, and why."""
        absent = [name for name in self._required if name in self._entries and name not in self._live]
        return {name: self._entries[name].error or "not fitted yet" for name in sorted(absent)}

    @property
    def pending(self) -> dict[str, Audience]:
        """All policies that are defined, but cannot decide yet, and whom they are for."""
        return {name: e.spec.settings.audience for name, e in self._entries.items() if name not in self._live}

    async def wants_refresh(self) -> bool:
        """Whether there is work though the library has not changed.

        New scores, a policy that another gateway on this home made, one that was being fitted when the library changed,
        or a failed fit to be tried again.
        """
        now = time.monotonic()
        free = {name: entry for name, entry in self._entries.items() if not self._ordered[name]}
        is_due = any(entry.num_failures and entry.retry_at <= now for entry in free.values())
        if is_due or self._passed_over & free.keys():
            return True
        seen = self._scores_seen, self._stamp
        return await asyncio.to_thread(lambda: (self._scores.stamp, self._store.stamp())) != seen

    async def _follow(self, entry: _Entry, experts: Experts, gathered: dict[str, FitData]) -> None:
        """Bring one policy up to date with the library, without a caller who waits for it."""
        name, version = entry.spec.name, ""
        if self._ordered[name]:  # a job will end first
            self._passed_over.add(name)
            return
        try:
            embedder = await self._embedders.get(_embedder_of(entry))
            version = await self._version(entry, experts, embedder)
            live = self._live.get(name)
            if live is not None and live.spec != entry.spec:  # it serves until its successor is ready
                live = None
            elif live is not None and live.version == version:
                self._note_current(entry, live)
                return
            if entry.failed_version == version and time.monotonic() < entry.retry_at:
                return
            if live is None and (live := await self._reopen(entry, embedder)) is not None:
                self._live[name] = live
            if live is not None and live.version == version:
                self._note_current(entry, live)
            elif entry.kind.card.refit == "costly":
                if live is not None:
                    await self._keep_stale(entry, live, version, embedder)
                elif entry.retry_at < float("inf"):  # nobody has cancelled it
                    self._order(entry, afresh=False)
            else:
                key = f"{embedder.name}/{_reads_scores(entry)}"
                if key not in gathered:
                    gathered[key] = await self._data.gather(experts, embedder, with_scores=_reads_scores(entry))
                await self._fit(entry, gathered[key], version, embedder, None, afresh=False)
                self._announce()  # it need not wait for the others
        except FitCancelled:  # removed or redefined meanwhile
            self._passed_over.add(name)
        except Exception as error:
            self._note_failure(entry, error, version)

    def _note_current(self, entry: _Entry, live: LivePolicy) -> None:
        """A policy is what it should be, also if the library has come back to what it was fitted to."""
        entry.num_failures = 0
        if live.stale:
            self._live[live.name] = replace(live, stale=False)
        self._metrics.policy_stale.labels(live.name).set(0)

    async def _keep_stale(self, entry: _Entry, live: LivePolicy, version: str, embedder: Embedder) -> None:
        entry.num_failures = 0
        elsewhere = await self._fitted_elsewhere(entry, version, embedder)
        if elsewhere is not None:
            self._live[live.name] = elsewhere
            self._metrics.policy_stale.labels(live.name).set(0)
        elif not live.stale:
            fix = f"moergate fit {live.name} --again"
            log.warning("policy is stale: what it was fitted to has changed", policy=live.name, fix=fix)
            self._live[live.name] = replace(live, stale=True)
            self._metrics.policy_stale.labels(live.name).set(1)

    def _note_failure(self, entry: _Entry, error: Exception, version: str = "") -> None:
        name = entry.spec.name
        entry.failed_version = version
        entry.error = str(error) or type(error).__name__
        entry.num_failures += 1
        entry.retry_at = time.monotonic() + min(FIRST_RETRY_S * 2**entry.num_failures, LAST_RETRY_S)
        known = isinstance(error, (RouterError, OSError))
        log.error("policy not fitted", policy=name, error=entry.error, exc_info=None if known else error)
        self._metrics.policy_stale.labels(name).set(1)

    # -- policies made while running ------------------------------------------------------------------------------

    async def create(self, spec: PolicySpec) -> Job:
        """Define or redefine a policy and fit it in the background.

        Raises:
            BadRequest: It stands in the settings, which this cannot change.
            RouterError: The router, an option or a need is wrong, with what to do.
        """
        await self._read_stored()
        if spec.name in self._required:
            raise BadRequest(
                f"The policy {spec.name!r} stands in the settings; change it there, or choose another name.",
                param="name",
            )
        entry = _entry(spec)
        if self._experts:
            table = await asyncio.to_thread(self._data.table, self._experts)
            asked = FitData(self._experts, {}, "", "", scores=table, samples=spec.samples, losses=self._losses())
            for sentence in unmet_needs(entry.kind.card, asked).values():
                raise NotFittable(sentence)
        async with self._defining:
            await asyncio.to_thread(self._store.save, spec)
            self._entries[spec.name] = entry
        self._announce()  # whom it is for holds at once
        return self.refit(spec.name)

    def refit(self, name: str) -> Job:
        """Fit a policy anew in the background, whether or not anything has changed."""
        if name not in self._entries:
            raise NotFound(f"There is no policy {name[:100]!r}.")
        return self._order(self._entries[name], afresh=True)

    def _order(self, entry: _Entry, *, afresh: bool) -> Job:
        """Fit a policy in the background; unless `afresh`, what another gateway has made of it meanwhile will do."""
        job = self.jobs.open("fit", entry.spec.name)
        self._ordered[entry.spec.name] += 1
        task = asyncio.create_task(self._run(job, entry, afresh=afresh))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return job

    async def remove(self, name: str) -> None:
        """Take a policy away with its artefacts; raises NotFound, or BadRequest for one of the settings."""
        if name in self._required:
            raise BadRequest(f"The policy {name!r} stands in the settings; remove it there.", param="name")
        if name not in self._entries:
            raise NotFound(f"There is no policy {name[:100]!r}.")
        async with self._defining:
            await asyncio.to_thread(self._store.remove, name)
            self._entries.pop(name, None)
            self._live.pop(name, None)
        self._announce()

    def describe(self) -> list[dict[str, Any]]:
        """Every policy with its state, for operators."""
        return [self._describe(entry) for entry in self._entries.values()]

    def describe_one(self, name: str) -> dict[str, Any]:
        """One of them; raises NotFound."""
        if name not in self._entries:
            raise NotFound(f"There is no policy {name[:100]!r}.")
        return self._describe(self._entries[name])

    async def close(self) -> None:
        """End fits that are under way."""
        tasks = [*self._running, *self._following.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, job: Job, entry: _Entry, *, afresh: bool) -> None:
        version = ""
        try:
            async with self._one_fit(entry.spec.name):
                async with self._one_gathering(_embedder_of(entry)):
                    job.begin("embedding examples")
                    experts = self._experts
                    embedder = await self._embedders.get(_embedder_of(entry))
                    version = await self._version(entry, experts, embedder)
                    data = await self._data.gather(experts, embedder, job, with_scores=_reads_scores(entry))
                await self._fit(entry, data, version, embedder, job, afresh=afresh)
            job.end("succeeded")
        except FitCancelled:
            entry.error = "cancelled"
            entry.retry_at = float("inf")
            job.end("cancelled")
        except asyncio.CancelledError:
            job.end("cancelled", "the gateway is stopping")
            raise
        except Exception as error:
            self._note_failure(entry, error, version)
            job.end("failed", entry.error)
        finally:
            self._ordered[entry.spec.name] -= 1
        self._announce()

    async def _read_stored(self) -> None:
        """Take up what was defined or removed on this home, by an earlier process or by another gateway."""
        async with self._defining:
            stamp = await asyncio.to_thread(self._store.stamp)
            if stamp == self._stamp:
                return
            defined = {name for name, (defined_at, _) in stamp.items() if defined_at}
            for name in self._entries.keys() - defined - self._required:
                del self._entries[name]
                self._live.pop(name, None)
            for spec in await asyncio.to_thread(self._store.load):
                known = self._entries.get(spec.name)
                if spec.name in self._required:
                    log.warning("policy is in the settings too, which win", policy=spec.name)
                elif known is None or known.spec != spec:
                    try:
                        self._entries[spec.name] = _entry(spec)
                    except RouterError as error:
                        log.error("policy cannot be used", policy=spec.name, error=str(error))
            self._stamp = stamp

    def _announce(self) -> dict[str, LivePolicy]:
        live = {name: _for_its_audience(self._live[name], e) for name, e in self._entries.items() if name in self._live}
        self.on_change(live)
        return live

    def _describe(self, entry: _Entry) -> dict[str, Any]:
        live = self._live.get(entry.spec.name)
        state = "failed" if entry.error else "fitting"
        if live is not None:
            state = "stale" if live.stale else "ready"
        return {
            "name": entry.spec.name,
            "state": state,
            "error": entry.error or None,
            "origin": entry.spec.origin,
            **entry.spec.settings.model_dump(mode="json", exclude={"data"}),
            "options": entry.config.model_dump(mode="json"),
            "num_samples": len(entry.spec.samples),
            "num_experts": len(live.expert_ids) if live else None,
            "data_version": live.version if live else None,
            "embedded_by": live.embedder.name if live else None,
            "provenance": dict(live.provenance) if live else None,
        }

    # -- fitting --------------------------------------------------------------------------------------------------

    async def _fit(
        self, entry: _Entry, data: FitData, version: str, embedder: Embedder, job: Job | None, *, afresh: bool
    ) -> None:
        """Fit, publish, and swap in; raises FitCancelled if the policy has been removed or redefined meanwhile."""
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        live = self._live.get(entry.spec.name)
        if job:
            job.begin("fitting")

        def progress(done: int, total: int) -> None:
            if job:
                job.progress(done, total)

        def work() -> Artefact:
            mine = replace(
                data,
                version=version,
                samples=entry.spec.samples,
                losses=self._losses(),
                embed=blocking(embedder, loop),
                previous=live.router if live and live.embedder is embedder and not afresh else None,
            )
            if entry.spec.settings.subset is not None:
                mine = restrict(mine, select(entry.spec.settings.subset, mine))
            fitted = fit_policy(entry.spec.settings.router, entry.config, mine, progress)
            used = [expert.expert_id for expert in mine.experts]
            made = {"code_version": code_version(), "fitted_at": datetime.now(UTC).isoformat(timespec="seconds")}
            extra = {"config": _config_of(entry), "library": used, "provenance": made}
            artefact = replace(fitted, data={**fitted.data, **extra})
            self._check_wanted(entry)
            self._artefacts.publish(entry.spec.name, artefact)
            return artefact

        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(None if job else FOLLOW_WAIT_S):
                    await stack.enter_async_context(self._store.alone(entry.spec.name))
            except TimeoutError:
                self._passed_over.add(entry.spec.name)
                return
            fitted = None if afresh else await self._fitted_elsewhere(entry, version, embedder)
            if fitted is None:
                fitted = await self._open(entry, await asyncio.to_thread(work), embedder)
        self._check_wanted(entry)
        self._live[entry.spec.name] = fitted
        entry.error, entry.num_failures, entry.failed_version, entry.retry_at = "", 0, "", 0.0
        self._metrics.policy_stale.labels(entry.spec.name).set(0)
        took_ms = round((time.perf_counter() - started) * 1000)
        log.info("policy fitted", policy=entry.spec.name, experts=len(fitted.expert_ids), took_ms=took_ms)

    def _check_wanted(self, entry: _Entry) -> None:
        if self._entries.get(entry.spec.name) is not entry:
            raise FitCancelled

    async def _open(self, entry: _Entry, artefact: Artefact, embedder: Embedder) -> LivePolicy:
        router = await asyncio.to_thread(entry.kind.load, entry.config, artefact)
        slow = await asyncio.to_thread(_is_slow, router, embedder.dim)
        library = artefact.data.get("library")
        if not isinstance(library, list):
            raise BadArtefact("the artefact does not say which experts it was fitted to")
        ids = frozenset(map(str, library))
        mine = [expert for expert in self._experts if expert.expert_id in ids]
        fitting = fitting_profile(mine, artefact.data) if "examples" in entry.kind.card.needs else None
        entry.error = ""
        return LivePolicy(
            entry.spec.name,
            entry.spec.settings.router,
            router,
            artefact.library_version,
            embedder,
            ids,
            slow,
            provenance=artefact.data.get("provenance", {}),
            spec=entry.spec,
            fitting=fitting,
            audience=entry.spec.settings.audience,
        )

    async def _reopen(self, entry: _Entry, embedder: Embedder) -> LivePolicy | None:
        """The policy as an earlier start left it, if it has the same router and options and can be read."""
        name = entry.spec.name
        try:
            artefact = await asyncio.to_thread(self._artefacts.current, name)
            if artefact is None or artefact.router != entry.spec.settings.router:
                return None
            if artefact.data.get("config") != _config_of(entry) or artefact.embedder != embedder.name:
                return None
            return await self._open(entry, artefact, embedder)
        except BadArtefact as error:
            log.warning("stored policy cannot be used, fitting it again", policy=name, error=str(error))
            return None

    async def _fitted_elsewhere(self, entry: _Entry, version: str, embedder: Embedder) -> LivePolicy | None:
        """The policy as another gateway on this home has fitted it to this version of the data, if one has."""
        if not await asyncio.to_thread(self._artefacts.may_be_of, entry.spec.name, version):
            return None
        found = await self._reopen(entry, embedder)
        return found if found is not None and found.version == version else None

    async def _version(self, entry: _Entry, experts: Experts, embedder: Embedder) -> str:
        return await self._data.version(experts, embedder, entry.spec.samples, with_scores=_reads_scores(entry))


def _as_experts(records: Sequence[AdapterRecord]) -> tuple[LibraryExpert, ...]:
    """What routers know of versions, sorted by id."""
    return tuple(
        LibraryExpert(r.expert_id, r.card.description, tuple(r.card.tags), tuple(r.examples), tuple(r.card.tasks))
        for r in sorted(records, key=lambda record: record.expert_id)
    )


def _entry(spec: PolicySpec) -> _Entry:
    return _Entry(spec, router_class(spec.settings.router), make_config(spec.settings.router, spec.settings.options))


def _for_its_audience(live: LivePolicy, entry: _Entry) -> LivePolicy:
    """A policy for whom it is now, which may be others than when it was fitted."""
    audience = entry.spec.settings.audience
    return live if live.audience == audience else replace(live, audience=audience)


def _embedder_of(entry: _Entry) -> str:
    """Name of the policy's embedder; empty for the gateway's own."""
    return entry.spec.settings.embedder or entry.kind.card.embedder


def _reads_scores(entry: _Entry) -> bool:
    """Whether a policy may learn from the table of scores."""
    return entry.kind.card.reads_scores or entry.spec.settings.subset is not None


def _config_of(entry: _Entry) -> dict[str, Any]:
    """Everything about a policy that its artefact depends on, apart from the data."""
    subset = entry.spec.settings.subset
    return entry.config.model_dump(mode="json") | {"subset": subset.model_dump(mode="json") if subset else None}


def _is_slow(router: Router, dim: int) -> bool:
    embedding = np.zeros(dim, np.float32)
    embedding[0] = 1.0
    query = RouteQuery("", embedding)
    router.route(query)
    started = time.perf_counter()
    router.route(query)
    return time.perf_counter() - started > SLOW_ROUTE_S
