"""Taking an expert out of service: no new requests, wait for the running ones, tell the engines, remove the files.

The library's record stays. If the gateway ends in between, the files stay too, unused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from adapters_registry.errors import RegistryError
from adapters_registry.library import Library
from server.engine.pool import EnginePool

SETTLE_S = 1.0
"""Time for requests that chose the expert just before it was taken away to reach the engine."""

POLL_S = 0.2

log = structlog.get_logger(__name__)

Unload = Callable[[str], Awaitable[None]]


class Drainer:
    """Removes retired experts in the background.

    Args:
        library: Owns the files.
        pool: Knows which experts have requests under way.
        unload: For each engine, how it is told to forget an expert.
    """

    def __init__(self, library: Library, pool: EnginePool, unload: Sequence[Unload]) -> None:
        self._library = library
        self._pool = pool
        self._unload = unload
        self._tasks: set[asyncio.Task[None]] = set()

    def drain(self, expert_id: str) -> None:
        """Begin to remove a retired expert; returns at once."""
        task = asyncio.create_task(self._drain(expert_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop; what is not removed yet stays on disk."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _drain(self, expert_id: str) -> None:
        await asyncio.sleep(SETTLE_S)
        while self._pool.num_using(expert_id):  # noqa: ASYNC110 - minutes at most, once an expert
            await asyncio.sleep(POLL_S)
        await asyncio.gather(*(unload(expert_id) for unload in self._unload))
        try:
            await self._library.purge(expert_id)
        except RegistryError as error:  # registered again meanwhile, or the disk refuses: the files stay
            log.warning("files of a removed expert stay", expert=expert_id, error=str(error))
