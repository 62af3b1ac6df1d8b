"""The life of a version: it is probed on the engine, then published as its manifest says, or rejected.

`AdapterState` defines the states. A registered version waits in the database, so that nothing is lost when a gateway
ends. The first gateway with a ready engine probes the version, and the other gateways wait for the result. Publishing,
withdrawing, rolling back and removing only change states; routing and engines follow through the library's watchers.
"""

from __future__ import annotations

import asyncio

import structlog

from adapters_registry.errors import AdapterNotFound, RegistryError, WrongState
from adapters_registry.library import Library
from adapters_registry.names import split_expert_id
from adapters_registry.records import AdapterRecord, Change, ProbeReport, Transition, utc_now
from adapters_registry.states import OVER, AdapterState
from server.engine.pool import EnginePool
from server.errors import Conflict
from server.experts.probes import CannotProbe, EngineBusy, Prober
from server.experts.watcher import LibraryWatcher
from server.telemetry.metrics import Metrics

POLL_S = 1.0
BUSY_S = 5.0
"""Pause before a busy engine is asked again."""

PATIENCE_S = 120.0
"""Longest wait for the next probe to end, at start-up. A first probe took 45 s on two cores under load."""

MAX_PARALLEL = 4
WAITING = (AdapterState.REGISTERED, AdapterState.VALIDATING)

_SHORT_S = 0.25

PROBER = "gateway"

log = structlog.get_logger(__name__)


class Lifecycle:
    """Probes and publishes registered versions, and changes their states on request.

    Args:
        library: The library.
        watcher: Shows changes to callers.
        pool: The engines.
        metrics: Counts probes.
        probes: Whether versions are probed before they are offered.
    """

    def __init__(
        self, library: Library, watcher: LibraryWatcher, pool: EnginePool, metrics: Metrics, *, probes: bool
    ) -> None:
        self._library = library
        self._watcher = watcher
        self._pool = pool
        self._metrics = metrics
        self._probes = probes
        self._prober = Prober(pool)
        self._slots = asyncio.Semaphore(MAX_PARALLEL)
        self._in_progress: dict[str, asyncio.Task[AdapterRecord]] = {}
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for waiting versions."""
        self._worker = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Stop; versions that were being probed wait again."""
        tasks = [*self._in_progress.values(), *([self._worker] if self._worker else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- from registered to published -----------------------------------------------------------------------------

    async def see_through(self, record: AdapterRecord) -> AdapterRecord:
        """Probe a registered version and publish it as its manifest says; returns the new record.

        While no engine is ready to probe the version, it stays registered. It is probed as soon as an engine is ready.
        """
        if record.state in WAITING and (not self._probes or self._pool.ready):
            task = self._in_progress.get(record.expert_id) or self._begin(record)
            record = await asyncio.shield(task)
        elif record.state is AdapterState.READY:
            record = await self._publish(record, Change(PROBER, "published by its manifest"))
        await self._watcher.show_experts()
        return record

    async def all_seen_through(self, patience_s: float = PATIENCE_S) -> None:
        """Wait until no version waits for its probes, or no probe has ended for `patience_s` with a ready engine."""
        num_waiting, left_s = -1, patience_s
        while left_s > 0 and (waiting := await self._library.list(*WAITING)):
            if len(waiting) != num_waiting:
                num_waiting, left_s = len(waiting), patience_s
            await asyncio.sleep(_SHORT_S)
            left_s -= _SHORT_S if self._pool.ready else 0.0

    def _begin(self, record: AdapterRecord) -> asyncio.Task[AdapterRecord]:
        task = asyncio.create_task(self._validate(record))
        self._in_progress[record.expert_id] = task
        task.add_done_callback(lambda _done: self._in_progress.pop(record.expert_id, None))
        return task

    async def _validate(self, record: AdapterRecord) -> AdapterRecord:
        """Probe a version; while another gateway probes it, wait for the result or for that gateway's end."""
        if not self._probes:
            return await self._publish(record, Change(PROBER, "probes are off"))
        async with self._library.alone_with(record), self._slots:
            record = await self._library.find(record.expert_id)
            if record.state not in WAITING:
                return record
            if record.state is AdapterState.REGISTERED:
                record = await self._library.move(record, Transition(AdapterState.VALIDATING), Change(PROBER))
            try:
                report = await self._probe(record)
            except BaseException as error:
                why = str(error) or type(error).__name__
                back = Transition(AdapterState.REGISTERED)
                record = await asyncio.shield(self._library.move(record, back, Change(PROBER, why)))
                if isinstance(error, EngineBusy):
                    return record
                raise
            return await self._conclude(record, report)

    async def _probe(self, record: AdapterRecord) -> ProbeReport:
        try:
            return await self._prober.probe(record, self._watcher.records)
        except CannotProbe as error:
            log.warning("expert not probed", expert=record.expert_id, why=str(error))
            return ProbeReport(at=utc_now(), skipped=str(error))

    async def _conclude(self, record: AdapterRecord, report: ProbeReport) -> AdapterRecord:
        self._metrics.library.probes.labels("passed" if report.passed else "failed").inc()
        log.info("expert probed", expert=record.expert_id, passed=report.passed)
        if report.passed:
            return await self._publish(record, Change(PROBER, "probed"), report)
        why = "; ".join(f"{problem.where}: {problem.what}" for problem in report.problems)
        return await self._library.move(record, Transition(AdapterState.REJECTED, report=report), Change(PROBER, why))

    async def _publish(self, record: AdapterRecord, change: Change, report: ProbeReport | None = None) -> AdapterRecord:
        """Make a version ready and publish it as its manifest says, in one transaction."""
        wanted, state = record.publish, AdapterState.READY
        if wanted.to == "active":
            state = AdapterState.ACTIVE
        elif wanted.to == "canary":
            has_active = any(each.name == record.name for each in await self._library.list())
            state = AdapterState.CANARY if has_active or not wanted.share else state
        through = () if AdapterState.READY in (state, record.state) else (AdapterState.READY,)
        step = Transition(state, share=wanted.share, report=report, through=through)
        return await self._library.move(record, step, change)

    async def _work(self) -> None:
        """Probe waiting versions, which may be left from an earlier start or from gateways that have ended."""
        revision = -1
        while True:
            try:
                if not self._probes or self._pool.ready:
                    now = await self._library.revision()
                    if now != revision:
                        revision = now if await self._probe_waiting() else -1
            except RegistryError as error:
                log.warning("waiting experts not probed", error=str(error))
            except Exception:  # a bug must not end the worker: the next turn may work
                log.exception("waiting experts not probed")
            await asyncio.sleep(POLL_S)

    async def _probe_waiting(self) -> bool:
        """Probe waiting versions; returns whether none has to be tried again."""
        waiting = await self._library.list(*WAITING)
        ours = [self._in_progress.get(record.expert_id) or self._begin(record) for record in waiting]
        seen = await asyncio.gather(*ours, return_exceptions=True)
        if ours:
            await self._watcher.show_experts()
        is_busy = any(isinstance(record, BaseException) or record.state in WAITING for record in seen)
        if is_busy:
            await asyncio.sleep(BUSY_S)
        return not is_busy

    # -- on request ------------------------------------------------------------------------------------------------

    async def promote(self, ref: str, share: float | None, change: Change) -> AdapterRecord:
        """Make a version active, or with a `share` the canary of its name.

        Raises AdapterNotFound, WrongState; Conflict for a share without an active version that gets the rest.
        """
        record = await self._library.find(ref)
        if share is None:
            return await self._moved(record, AdapterState.ACTIVE, change)
        if share > 0 and not any(active.name == record.name for active in await self._library.list()):
            raise Conflict(f"{record.name} has no active version to share its traffic with; promote without a share.")
        moved = await self._library.move(record, Transition(AdapterState.CANARY, share=share), change)
        await self._watcher.show_experts()
        return moved

    async def withdraw(self, ref: str, change: Change) -> AdapterRecord:
        """Take away a canary's share; the version becomes ready. Raises AdapterNotFound, WrongState."""
        name, version = split_expert_id(ref)
        record = await self._library.find(ref)
        if version is None:
            canaries = [r for r in await self._library.versions(name) if r.state is AdapterState.CANARY]
            record = next(iter(canaries), record)
        if record.state is not AdapterState.CANARY:
            raise WrongState(record.expert_id, record.state.value, "withdrawn", ["withdrawn while it is a canary"])
        return await self._moved(record, AdapterState.READY, change)

    async def rollback(self, name: str, change: Change) -> AdapterRecord:
        """Make the previously active version active again. Raises AdapterNotFound, Conflict."""
        versions = {r.expert_id: r for r in await self._library.versions(name)}
        if not versions:
            raise AdapterNotFound(name)
        for entry in await self._library.audit(name, limit=1000):
            found = versions.get(entry.subject)
            if entry.to_state == AdapterState.ACTIVE and found is not None and found.state is not AdapterState.ACTIVE:
                if found.is_purged:
                    break
                return await self._moved(found, AdapterState.ACTIVE, change)
        raise Conflict(f"{name} has no earlier version with files; register that version again.")

    async def remove(self, ref: str, change: Change) -> AdapterRecord:
        """Take a version, or all versions of a name, out of service: it drains, then its files are deleted.

        Raises AdapterNotFound, also if it is already out of service.
        """
        name, version = split_expert_id(ref)
        versions = await self._library.versions(name)
        going = [r for r in versions if r.state not in OVER and version in (None, r.version)]
        going = [r for r in going if r.state is not AdapterState.DRAINING]
        if not going:
            raise AdapterNotFound(ref)
        shown = next((r for r in going if r.state is AdapterState.ACTIVE), going[0])
        moved = [await self._leave(record, change) for record in going]
        await self._watcher.show_experts()
        return next(r for r in moved if r.expert_id == shown.expert_id)

    async def _leave(self, record: AdapterRecord, change: Change) -> AdapterRecord:
        if record.state in (AdapterState.ACTIVE, AdapterState.CANARY):
            return await self._library.move(record, Transition(AdapterState.DRAINING), change)
        return await self._library.retire(record.expert_id, actor=change.actor)

    async def _moved(self, record: AdapterRecord, state: AdapterState, change: Change) -> AdapterRecord:
        moved = await self._library.move(record, Transition(state), change)
        await self._watcher.show_experts()
        return moved
