"""Taking a version out of service: nothing new begins on it, what runs ends, the engines forget it, its files go.

Every gateway drains for itself what the library calls draining, so that each one's engines are told; whichever sees it
idle first moves it on to retired. A replaced version also waits for conversations that began on it to fall silent. The
record stays, and so do the files of the newest versions that were replaced, for a rollback. If a gateway ends in
between, another one, or its next start, goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

import structlog

from adapters_registry.errors import RegistryError
from adapters_registry.library import Library
from adapters_registry.records import AdapterRecord, Change, Transition, utc_now
from adapters_registry.states import OVER, AdapterState
from server.engine.pool import EnginePool
from server.planning.conversations import ConversationMemory

SETTLE_S = 3.0
"""Time for other gateways to see that a version drains, and for requests that chose it just before to begin."""

POLL_S = 0.2

log = structlog.get_logger(__name__)

Unload = Callable[[str], Awaitable[None]]


class Drainer:
    """Takes draining versions out of service, in the background.

    Args:
        library: Owns records and files.
        pool: Knows which experts have requests under way.
        memory: Knows which versions conversations are on.
        unload: For each engine, how it is told to forget an expert.
        kept_versions: Replaced versions of a name whose files are kept.
        conversation_idle_s: A conversation that has been silent for so long is over.
    """

    def __init__(
        self,
        library: Library,
        pool: EnginePool,
        memory: ConversationMemory,
        unload: Sequence[Unload],
        *,
        kept_versions: int,
        conversation_idle_s: float,
    ) -> None:
        self._library = library
        self._pool = pool
        self._memory = memory
        self._unload = unload
        self._kept_versions = kept_versions
        self._conversation_idle_s = conversation_idle_s
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._to_forget: set[str] = set()

    def follow(self, serving: Iterable[AdapterRecord]) -> None:
        """Drain what is draining and is not being drained here already; returns at once.

        Args:
            serving: All versions that may have requests under way.
        """
        here = {record.expert_id: record for record in serving}
        for expert_id, record in here.items():
            if record.state is AdapterState.DRAINING and expert_id not in self._tasks:
                self._tasks[expert_id] = asyncio.create_task(self._drain(record, here))
        gone = self._to_forget - here.keys() - self._tasks.keys()
        self._to_forget |= here.keys()
        for expert_id in gone:  # another gateway has seen it through
            self._to_forget.discard(expert_id)
            self._tasks[expert_id] = asyncio.create_task(self._forget(expert_id))

    async def close(self) -> None:
        """Stop; what is not drained yet stays as it is."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def collect(self, name: str | None = None) -> None:
        """Remove files that nobody will ask for again: of rejected versions, and of retired ones but the newest.

        A name that is out of service altogether keeps none. Only the files go; the records stay.
        """
        versions = await (self._library.versions(name) if name else self._library.list(*AdapterState))
        over = [each for each in versions if each.state in OVER and not each.is_purged]
        alive = {each.name for each in versions if each.state not in OVER}
        kept: dict[str, int] = {}
        for record in sorted(over, key=lambda each: each.updated_at, reverse=True):
            is_spare = record.state is AdapterState.RETIRED and record.name in alive
            if is_spare and kept.get(record.name, 0) < self._kept_versions:
                kept[record.name] = kept.get(record.name, 0) + 1
                continue
            try:
                await self._library.purge(record.expert_id)
            except RegistryError as error:  # registered again meanwhile, or the disk refuses: the files stay
                log.warning("files of a removed expert stay", expert=record.expert_id, error=str(error))

    async def _drain(self, record: AdapterRecord, serving: dict[str, AdapterRecord]) -> None:
        expert_id = record.expert_id
        try:
            age_s = (utc_now() - record.updated_at).total_seconds()
            await asyncio.sleep(max(SETTLE_S - max(age_s, 0.0), POLL_S))
            replaced = any(r.name == record.name and r.state is AdapterState.ACTIVE for r in serving.values())
            while self._pool.num_using(expert_id) or (replaced and self._in_conversation(expert_id)):  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
            current = await self._library.find(expert_id)
            if current.state is AdapterState.DRAINING:
                drained = Transition(AdapterState.RETIRED, expected=AdapterState.DRAINING)
                await self._library.move(current, drained, Change("gateway", "drained"))
            elif current.state not in OVER:
                return  # it came back
            await self._tell_engines(expert_id)
            await self.collect(record.name)
        except RegistryError as error:
            log.warning("draining is put off", expert=expert_id, error=str(error))
        finally:
            self._tasks.pop(expert_id, None)

    async def _forget(self, expert_id: str) -> None:
        try:
            while self._pool.num_using(expert_id):  # noqa: ASYNC110 - minutes at most, once an expert
                await asyncio.sleep(POLL_S)
            await self._tell_engines(expert_id)
        finally:
            self._tasks.pop(expert_id, None)

    async def _tell_engines(self, expert_id: str) -> None:
        self._to_forget.discard(expert_id)
        await asyncio.gather(*(unload(expert_id) for unload in self._unload))

    def _in_conversation(self, expert_id: str) -> bool:
        return self._memory.idle_s(expert_id) < self._conversation_idle_s
