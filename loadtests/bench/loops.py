"""The two ways of sending: an open loop, which does not wait for answers, and a closed one, which does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

Ask = Callable[[int, float], Awaitable[None]]
"""Sends the request of this number, due at this moment of ``time.perf_counter()``, and takes the answer in."""


async def open_loop(
    offsets: Iterable[float], ask: Ask, *, started: float, max_under_way: int, patience_s: float
) -> tuple[int, int]:
    """Send at these times after `started`, however slow the answers are; the last ones are waited for so long.

    Returns:
        How many were not sent because too many were under way, and how many had no answer in time.
    """
    tasks: set[asyncio.Task[None]] = set()
    num_unsent = 0
    for number, offset in enumerate(offsets):
        intended = started + offset
        if (wait_s := intended - time.perf_counter()) > 0:
            await asyncio.sleep(wait_s)
        if len(tasks) >= max_under_way:
            num_unsent += 1
            continue
        task = asyncio.ensure_future(ask(number, intended))
        tasks.add(task)
        task.add_done_callback(_drop(tasks))
    return num_unsent, await _finish(tasks, patience_s)


async def closed_loop(seconds: float, ask: Ask, *, callers: int, patience_s: float) -> int:
    """So many callers for so long, each sending when its last request is answered; returns how many had no answer."""
    end = time.perf_counter() + seconds
    numbers = iter(range(1 << 62))

    async def caller() -> None:
        while (now := time.perf_counter()) < end:
            await ask(next(numbers), now)

    return await _finish({asyncio.create_task(caller()) for _ in range(callers)}, seconds + patience_s)


def _drop(tasks: set[asyncio.Task[None]]) -> Callable[[asyncio.Task[None]], None]:
    def done(task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            tasks.discard(task)  # else it stays, and `_finish` raises what it raised

    return done


async def _finish(tasks: set[asyncio.Task[None]], patience_s: float) -> int:
    """Wait for the last answers; returns how many did not come, and raises what a task raised."""
    if not tasks:
        return 0
    done, late = await asyncio.wait(tasks, timeout=patience_s)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    for task in done:
        task.result()
    return len(late)
