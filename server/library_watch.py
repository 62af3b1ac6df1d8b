"""Keeps the catalogue in step with the library, also when another gateway on the same database changed it.

The library's revision is read every second and after every change made here. A changed library is shown in
two steps: its experts at once, by name; its policies as soon as they are fitted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from adapters_registry.errors import RegistryError
from adapters_registry.library import Library
from adapters_registry.records import AdapterRecord
from server.catalog import Catalog
from server.metrics import Metrics
from server.policies import LivePolicy, PolicyManager

POLL_S = 1.0

log = structlog.get_logger(__name__)


class LibraryWatcher:
    """Owns the current `Catalog`.

    Args:
        library: The library.
        policies: Fits the policies.
        base_names: Names of the base, the shown one first.
        metrics: Shows the number of experts.
        on_change: Called when the library's revision has changed, also by a change of keys.

    Policies wait for `may_fit`, which whoever registers a whole library clears meanwhile.
    """

    def __init__(
        self,
        library: Library,
        policies: PolicyManager,
        base_names: tuple[str, ...],
        metrics: Metrics,
        on_change: Callable[[], None],
    ) -> None:
        self._library = library
        self._policies = policies
        self._metrics = metrics
        self._on_change = on_change
        self._revision = -1
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._reading = asyncio.Lock()
        self.catalog = Catalog(base_names, text_of=library.texts.get)
        policies.on_change = self._show_policies
        self.may_fit = asyncio.Event()
        self.may_fit.set()
        self.problem = "the library has not been read yet"

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop watching."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def show_experts(self) -> None:
        """Read the library now, so that its experts can be used by name; policies follow."""
        async with self._reading:
            revision = await self._library.revision()
            if revision != self._revision:
                self._on_change()
                records = await self._library.list()
                experts = {record.expert_id: record for record in records}
                self.catalog = replace(self.catalog, experts=experts)
                self._metrics.experts.set(len(experts))
                self._revision = revision
        self._wake.set()

    @property
    def records(self) -> tuple[AdapterRecord, ...]:
        """The active experts."""
        return tuple(self.catalog.experts.values())

    def _show_policies(self, live: Mapping[str, LivePolicy]) -> None:
        self.catalog = replace(self.catalog, policies=live)

    async def _watch(self) -> None:
        fitted_to = -1
        while True:
            try:
                await self.show_experts()
                self._wake.clear()
                self.problem = ""
                if self.may_fit.is_set() and (self._revision != fitted_to or await self._policies.wants_refresh()):
                    revision = self._revision
                    await self._policies.refresh(self.records)
                    fitted_to = revision
            except RegistryError as error:
                self.problem = str(error)
                log.error("library cannot be read", error=str(error))
            except Exception as error:  # a fault of ours must not end the watch: the next turn may work
                self.problem = f"the library could not be followed ({type(error).__name__})"
                log.exception("library not followed")
            try:
                await asyncio.wait_for(self._wake.wait(), POLL_S)
            except TimeoutError:
                continue
