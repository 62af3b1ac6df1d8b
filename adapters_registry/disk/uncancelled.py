"""Run work to completion although its caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def run_to_completion(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; re-raise a cancellation once `work` has finished, so that no work outlives its caller.

    A second cancellation stops the wait; `work` still runs to completion.
    """
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        # No other code retrieves the exception, and asyncio would warn.
        running.add_done_callback(lambda done: done.cancelled() or done.exception())
        if not running.done():
            await asyncio.wait([running])
        raise


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Like `asyncio.to_thread`, but run to completion."""
    return await run_to_completion(asyncio.to_thread(work, *args, **kwargs))
