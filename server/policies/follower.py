"""Keeps policies up to date with the library: decides when each is fitted, reopened, or left stale.

When the library changes, each policy of a cheap method is fitted again in a worker thread; only new examples are
embedded. A policy of a costly method keeps serving and is marked stale until somebody fits it again. A failed fit
leaves the old router in place and is retried with growing delays.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from functools import partial

import structlog

from adapters_registry.records import AdapterRecord
from routers.base import FitData, Progress, no_progress
from routers.embedders.base import Embedder
from routers.errors import RouterError
from server.policies.book import Cancelled, Entry, Failed, Fitted, Fitting, PolicyBook
from server.policies.embedders import Embedders
from server.policies.fit_data import Experts, PolicyData, as_experts
from server.policies.fitter import Fitter, Superseded
from server.policies.live import LivePolicy
from server.telemetry.metrics import Metrics

FIRST_RETRY_S, LAST_RETRY_S = 1.0, 300.0

FOLLOW_WAIT_S = 2.0
"""How long to wait for another gateway that fits the same policy, before going on with the other policies."""

log = structlog.get_logger(__name__)


class Follower:
    """Fits policies to the library as it changes.

    Args:
        book: The policies.
        fitter: Fits one policy.
        data: Gathers what policies are fitted to.
        embedders: Embedders by name.
        alone: Locks the fit of a policy, by its name, against other gateways on this home.
        metrics: Shows stale and lagging policies.
        start_job: Starts the background fit of a costly policy.
        announce: Called whenever policies changed.
        clock: Seconds, for retries.
    """

    def __init__(
        self,
        book: PolicyBook,
        fitter: Fitter,
        data: PolicyData,
        embedders: Embedders,
        metrics: Metrics,
        *,
        alone: Callable[[str], AbstractAsyncContextManager[None]],
        start_job: Callable[[Entry], object],
        announce: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._book = book
        self._fitter = fitter
        self._data = data
        self._embedders = embedders
        self._alone = alone
        self._metrics = metrics
        self._start_job = start_job
        self._announce = announce
        self._clock = clock
        self._scores_seen = data.scores_stamp
        self._gathering: dict[str, asyncio.Lock] = {}
        self._passed_over: set[str] = set()
        self._following: dict[str, asyncio.Task[None]] = {}
        self._shown: frozenset[str] = frozenset()
        self.num_jobs: Counter[str] = Counter()
        self.experts: Experts = ()

    # -- the library ----------------------------------------------------------------------------------------------

    def note_library(self, records: Sequence[AdapterRecord]) -> None:
        """Note the library's experts, so that policies can say how many they lack until they are fitted."""
        self._book.note_library([record.expert_id for record in records])
        self.show_lag()

    async def refresh(self, records: Sequence[AdapterRecord]) -> None:
        """Fit all policies to these experts; never raises, and keeps what served where a fit fails."""
        await self._book.read_stored()
        self._scores_seen = await asyncio.to_thread(lambda: self._data.scores_stamp)
        self._passed_over.clear()
        self.experts = as_experts(records)
        self.note_library(records)
        names = {entry.embedder for entry in self._book.entries}
        for name in names - {""}:  # other embedders may be slow; policies of the gateway's own do not wait for them
            if name not in self._following:
                task = self._following[name] = asyncio.create_task(self._follow_all(name))
                task.add_done_callback(partial(self._forget, name))
        await self._follow_all("")

    async def prepare(self, records: Sequence[AdapterRecord]) -> None:
        """Embed the examples of experts that will soon be in the library, so that a fit finds them embedded."""
        async with self.gathering(""):
            await self._data.gather(as_experts(records), self._embedders.default, with_scores=False)

    async def wants_refresh(self) -> bool:
        """Return whether there is work although the library has not changed.

        That is: new scores, a policy that another gateway on this home defined or fitted, one whose job was running
        when the library changed, or a failed fit whose retry is due.
        """
        now = self._clock()
        free = {entry.spec.name: entry for entry in self._book.entries if not self.num_jobs[entry.spec.name]}
        if self._passed_over & free.keys() or any(_is_due(entry, now) for entry in free.values()):
            return True
        return await asyncio.to_thread(lambda: self._data.scores_stamp) != self._scores_seen or (
            await self._book.has_unread()
        )

    async def close(self) -> None:
        """Cancel running fits of other embedders."""
        tasks = list(self._following.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def gathering(self, embedder: str) -> asyncio.Lock:
        """The lock of an embedder: held while texts are embedded, and while its policies follow the library."""
        return self._gathering.setdefault(embedder, asyncio.Lock())

    def _forget(self, embedder: str, _task: asyncio.Task[None]) -> None:
        self._following.pop(embedder, None)

    async def _follow_all(self, embedder: str) -> None:
        """Bring the policies of one embedder up to date; again if the library changed in the meantime."""
        experts = None
        while experts is not self.experts:
            experts = self.experts
            async with self.gathering(embedder):
                gathered: dict[str, FitData] = {}
                for entry in [entry for entry in self._book.entries if entry.embedder == embedder]:
                    await self._follow(entry, experts, gathered)
            self._announce()

    # -- one policy -----------------------------------------------------------------------------------------------

    async def _follow(self, entry: Entry, experts: Experts, gathered: dict[str, FitData]) -> None:
        """Bring one policy up to date with the library."""
        name, version = entry.spec.name, ""
        if self.num_jobs[name]:  # the job ends first; `wants_refresh` then brings us here again
            self._passed_over.add(name)
            return
        try:
            embedder = await self._embedders.get(entry.embedder)
            version = await self.version(entry, experts, embedder)
            live = entry.live if entry.live is not None and entry.live.spec == entry.spec else None
            if live is not None and live.version == version:
                self._note_current(entry, live, experts)
                return
            match entry.attempt:
                case Failed(version=failed, retry_at=float(at)) if failed == version and self._clock() < at:
                    return
            if live is None and (live := await self._fitter.reopen(entry, embedder, experts)) is not None:
                entry.live, entry.attempt = live, Fitted()
            if live is not None and live.version == version:
                self._note_current(entry, live, experts)
            elif entry.kind.card.refit == "costly":
                if live is not None:
                    await self._keep_stale(entry, live, version, embedder, experts)
                elif not isinstance(entry.attempt, Cancelled):
                    self._start_job(entry)
            else:
                key = f"{embedder.name}/{entry.reads_scores}"
                if key not in gathered:
                    gathered[key] = await self._data.gather(experts, embedder, with_scores=entry.reads_scores)
                if not await self.fit(entry, gathered[key], version, embedder, no_progress, wait_s=FOLLOW_WAIT_S):
                    self._passed_over.add(name)
                self._announce()  # this policy need not wait for the others
        except Superseded:
            self._passed_over.add(name)
        except Exception as error:
            self.note_failure(entry, error, version)

    async def fit(
        self,
        entry: Entry,
        data: FitData,
        version: str,
        embedder: Embedder,
        progress: Progress,
        *,
        afresh: bool = False,
        wait_s: float | None = None,
    ) -> bool:
        """Fit a policy, or take what another gateway fitted, and swap it in; returns False if `wait_s` ran out.

        Args:
            afresh: Fit even if an artefact of this version exists, and without the previous router.
            wait_s: How long to wait for another gateway that fits the policy; None for as long as it takes.

        Raises:
            Superseded: The policy was removed or redefined in the meantime.
            RouterError, OSError: The fit failed.
        """
        started, live = time.perf_counter(), entry.live
        num_failures = entry.attempt.num_failures if isinstance(entry.attempt, Failed) else 0
        previous = live.router if live and live.embedder is embedder and not afresh else None
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(wait_s):
                    await stack.enter_async_context(self._alone(entry.spec.name))
            except TimeoutError:
                return False
            fitted = None if afresh else await self._fitter.fitted_elsewhere(entry, version, embedder, data.experts)
            if fitted is None:
                entry.attempt = Fitting(num_failures)
                wanted = partial(self._book.is_current, entry)
                fitted = await self._fitter.fit(
                    entry, data, version, embedder, progress, previous=previous, is_wanted=wanted
                )
        if not self._book.is_current(entry):
            raise Superseded
        self._serve(entry, fitted, data.experts)
        took_ms = round((time.perf_counter() - started) * 1000)
        log.info("policy fitted", policy=entry.spec.name, experts=len(fitted.expert_ids), took_ms=took_ms)
        return True

    async def version(self, entry: Entry, experts: Experts, embedder: Embedder) -> str:
        """Return the version of everything that a policy learns from."""
        return await self._data.version(experts, embedder, entry.spec.samples, with_scores=entry.reads_scores)

    def note_failure(self, entry: Entry, error: Exception, version: str = "") -> None:
        """Note a failed fit of this version of the data, and when to retry."""
        before = entry.attempt.num_failures if isinstance(entry.attempt, (Failed, Fitting)) else 0
        delay_s = min(FIRST_RETRY_S * 2 ** (before + 1), LAST_RETRY_S)
        entry.attempt = Failed(str(error) or type(error).__name__, before + 1, self._clock() + delay_s, version)
        known = isinstance(error, (RouterError, OSError))
        log.error("policy not fitted", policy=entry.spec.name, error=entry.error, exc_info=None if known else error)
        if self._book.is_current(entry):
            self._metrics.policies.stale.labels(entry.spec.name).set(1)

    def _serve(self, entry: Entry, fitted: LivePolicy, experts: Experts) -> None:
        """Replace what serves by a policy that was fitted to these experts."""
        entry.attempt = Fitted()
        self._note_current(entry, fitted, experts)

    def _note_current(self, entry: Entry, live: LivePolicy, experts: Experts) -> None:
        """Note that a policy fits the data; the data may also have returned to what the policy was fitted to."""
        entry.stop_retrying()
        entry.live = replace(live, stale=False, known_ids=frozenset(expert.expert_id for expert in experts))
        self._metrics.policies.stale.labels(entry.spec.name).set(0)

    async def _keep_stale(
        self, entry: Entry, live: LivePolicy, version: str, embedder: Embedder, experts: Experts
    ) -> None:
        entry.stop_retrying()
        elsewhere = await self._fitter.fitted_elsewhere(entry, version, embedder, experts)
        if elsewhere is not None:
            self._serve(entry, elsewhere, experts)
        elif not live.stale:
            fix = f"moergate fit {live.name} --again"
            log.warning("policy is stale: the data it was fitted to has changed", policy=live.name, fix=fix)
            entry.live = replace(live, stale=True)
            self._metrics.policies.stale.labels(live.name).set(1)

    def show_lag(self) -> None:
        """Update since when, and by how many experts, each policy lags behind the library."""
        self._book.update_lag()
        shown = {entry.spec.name: self._book.num_missing(entry) for entry in self._book.entries}
        for gone in self._shown - shown.keys():  # this gateway or another one removed them
            self._metrics.forget_policy(gone)
        self._shown = frozenset(shown)
        for name, num_missing in shown.items():
            self._metrics.policies.missing_experts.labels(name).set(num_missing)


def _is_due(entry: Entry, now: float) -> bool:
    """Return whether a failed fit should be tried again."""
    return isinstance(entry.attempt, Failed) and entry.attempt.retry_at is not None and entry.attempt.retry_at <= now
