"""Keeps the catalog in step with the library, also when another gateway on the same database changes the library.

The library's revision is read every second and after every change by this gateway; if the revision has risen, only the
changed versions are read. A changed library is published in two steps: its experts at once, by name, and its policies
as soon as they are fitted. Policies are fitted in a separate task, so that a revoked key or a removed expert takes
effect within a second even while policies are being fitted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import structlog

from adapters_registry.errors import RegistryError
from adapters_registry.library import Library
from adapters_registry.records import AdapterRecord, LibraryChanges
from adapters_registry.states import SERVING, AdapterState
from server.planning.catalog import Catalog
from server.policies.live import LivePolicy
from server.policies.manager import PolicyManager
from server.telemetry.metrics import Metrics

POLL_S = 1.0
QUIET_S, MAX_REST_S = 1.0, 10.0

log = structlog.get_logger(__name__)


class LibraryWatcher:
    """Owns the current `Catalog`.

    Args:
        library: The library.
        policies: Fits the policies.
        base_names: Names of the base, the displayed name first.
        metrics: Shows the number of experts.
        on_keys: Called with the ids of changed keys; None means all keys.

    Attributes:
        catalog: The current catalog.
        may_fit: Cleared to pause fitting, as during a bulk registration.
        on_shown: Called with every new catalog.
        problem: Why the library could not be read at the last try; empty if it could.
    """

    def __init__(
        self,
        library: Library,
        policies: PolicyManager,
        base_names: tuple[str, ...],
        metrics: Metrics,
        on_keys: Callable[[Collection[str] | None], None],
    ) -> None:
        self._library = library
        self._policies = policies
        self._metrics = metrics
        self._on_keys = on_keys
        self._revision = -1
        self._seen = 0
        self._serving: Mapping[str, AdapterRecord] = {}
        self._wake = asyncio.Event()
        self._fitted_to = -1
        self._task: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._reading = asyncio.Lock()
        self._num_asked = self._num_answered = 0
        self.catalog = Catalog(base_names, text_of=library.texts.get, is_read=False, pending=lambda: policies.pending)
        policies.on_change = self._show_policies
        self.may_fit = asyncio.Event()
        self.may_fit.set()
        self.on_shown: Callable[[Catalog], None] = lambda _catalog: None
        self.problem = "the library has not been read yet"

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop watching."""
        for task in (self._task, self._refreshing):
            if task:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def show_experts(self) -> None:
        """Read the library now, so that its experts can be used by name; policies follow.

        Concurrent callers share a read: a read serves every caller that called before the read began.
        """
        self._num_asked += 1
        mine = self._num_asked
        async with self._reading:
            if self._num_answered >= mine:
                return
            answering = self._num_asked
            if await self._library.revision() != self._revision:
                changes = await self._library.changes(self._seen, *SERVING)
                self._on_keys(None if changes.is_whole else changes.keys)
                self._serving = _after(self._serving, changes)
                self._show(self._serving)
                self._seen, self._revision = changes.number, changes.revision
                self.on_shown(self.catalog)
            self._num_answered = answering
        self._wake.set()

    def _show(self, records: Mapping[str, AdapterRecord]) -> None:
        experts = {each: r for each, r in records.items() if r.state is AdapterState.ACTIVE}
        others = {each: r for each, r in records.items() if r.state is not AdapterState.ACTIVE}
        self.catalog = replace(self.catalog, experts=experts, others=others, is_read=True)
        self._policies.note_library(self.records)
        self._metrics.library.experts.set(len(experts))
        for state in SERVING:
            self._metrics.library.versions.labels(state.value).set(sum(r.state is state for r in records.values()))

    @property
    def records(self) -> tuple[AdapterRecord, ...]:
        """The active experts."""
        return tuple(self.catalog.experts.values())

    def _show_policies(self, live: Mapping[str, LivePolicy]) -> None:
        self.catalog = replace(self.catalog, policies=live)
        self.on_shown(self.catalog)

    async def _watch(self) -> None:
        while True:
            try:
                await self.show_experts()
                self._wake.clear()
                self._note("")
                if self.may_fit.is_set() and self._refreshing is None and await self._wants_refresh():
                    self._refreshing = asyncio.create_task(self._refresh(self._revision))
            except RegistryError as error:
                if not self.problem or not self.has_been_read:
                    log.error("library cannot be read", error=str(error))
                self._note(str(error))
            except Exception as error:  # a bug must not end the watch: the next turn may work
                self._note(f"the library could not be followed ({type(error).__name__})")
                log.exception("library not followed")
            try:
                await asyncio.wait_for(self._wake.wait(), POLL_S)
            except TimeoutError:
                continue

    @property
    def has_been_read(self) -> bool:
        """Whether there is a catalog to serve from while the database is down."""
        return self._revision >= 0

    def _note(self, problem: str) -> None:
        if self.problem and not problem and self.has_been_read:
            log.info("library can be read")
        self.problem = problem
        self._metrics.library.registry_up.set(not problem)

    async def _wants_refresh(self) -> bool:
        return self._revision != self._fitted_to or await self._policies.wants_refresh()

    async def _refresh(self, revision: int) -> None:
        """Refresh the policies to this revision of the library or a later one, then rest."""
        started = time.perf_counter()
        try:
            await self._policies.refresh(self.records)
            self._fitted_to = revision
            await self._rest(time.perf_counter() - started)
            self._wake.set()
        except Exception:  # a bug must not end refreshing: the next turn may work
            log.exception("policies not refreshed")
        finally:
            self._refreshing = None

    async def _rest(self, took_s: float) -> None:
        """Wait as long as fitting took, so that fitting takes at most half of the time while a library is registered.

        After `QUIET_S` seconds without a change of the library, the wait ends.
        """
        left_s = min(took_s, MAX_REST_S)
        while left_s > 0:
            seen, pause_s = self._revision, min(left_s, QUIET_S)
            await asyncio.sleep(pause_s)
            left_s -= pause_s
            if self._revision == seen:
                return


def _after(before: Mapping[str, AdapterRecord], changes: LibraryChanges) -> Mapping[str, AdapterRecord]:
    """Versions in service after changes, by id, sorted by name and then by age."""
    if changes.is_whole:
        return {record.expert_id: record for record in changes.records}
    after = dict(before)
    for record in changes.records:
        after.pop(record.expert_id, None)
        if record.state in SERVING:
            after[record.expert_id] = record
    return dict(sorted(after.items(), key=lambda item: (item[1].name, item[1].created_at)))
