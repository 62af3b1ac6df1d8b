"""Drains versions: no request begins on them, running requests end, engines unload them, and their files are deleted.

Every gateway drains the library's draining versions, because each gateway has to unload them from its engines. The
first gateway that sees a version idle moves it to retired. A replaced version also waits until the conversations that
began on it are idle. The record stays, and the files of the newest replaced versions stay for a rollback. If a gateway
ends in between, another gateway or its next start continues.
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
"""Time for other gateways to notice that a version drains, and for requests that have just chosen it to begin."""

POLL_S = 0.2

log = structlog.get_logger(__name__)

Unload = Callable[[str], Awaitable[None]]


class Drainer:
    """Takes draining versions out of service, in the background.

    Args:
        library: Owns records and files.
        pool: Knows which experts have running requests.
        memory: Knows the versions that conversations use.
        unload: For each engine, a function that unloads an expert.
        kept_versions: Number of replaced versions of a name whose files are kept.
        conversation_idle_s: Idle time after which a conversation has ended.
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
        self._to_unload: set[str] = set()

    def follow(self, serving: Iterable[AdapterRecord]) -> None:
        """Begin to drain each draining version, once; returns at once.

        Args:
            serving: All versions that may have running requests.
        """
        by_id = {record.expert_id: record for record in serving}
        for expert_id, record in by_id.items():
            if record.state is AdapterState.DRAINING and expert_id not in self._tasks:
                self._tasks[expert_id] = asyncio.create_task(self._drain(record, by_id))
        gone = self._to_unload - by_id.keys() - self._tasks.keys()
        self._to_unload |= by_id.keys()
        for expert_id in gone:  # another gateway has retired it
            self._to_unload.discard(expert_id)
            self._tasks[expert_id] = asyncio.create_task(self._unload_idle(expert_id))

    async def close(self) -> None:
        """Stop; versions that are not drained yet stay in their state."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def collect(self, name: str | None = None) -> None:
        """Delete the files of rejected versions, and of all but the newest retired versions of each name.

        A name without any version in service keeps no files. The records stay.
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
            except RegistryError as error:  # registered again in the meantime, or the disk fails
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
                return  # it is in service again
            await self._unload_everywhere(expert_id)
            await self.collect(record.name)
        except RegistryError as error:
            log.warning("draining is postponed", expert=expert_id, error=str(error))
        finally:
            self._tasks.pop(expert_id, None)

    async def _unload_idle(self, expert_id: str) -> None:
        try:
            while self._pool.num_using(expert_id):  # noqa: ASYNC110 - once an expert, and at most for minutes
                await asyncio.sleep(POLL_S)
            await self._unload_everywhere(expert_id)
        finally:
            self._tasks.pop(expert_id, None)

    async def _unload_everywhere(self, expert_id: str) -> None:
        self._to_unload.discard(expert_id)
        await asyncio.gather(*(unload(expert_id) for unload in self._unload))

    def _in_conversation(self, expert_id: str) -> bool:
        return self._memory.idle_s(expert_id) < self._conversation_idle_s
