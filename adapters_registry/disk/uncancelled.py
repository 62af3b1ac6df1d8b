"""Steps that are not left half done when their caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; a cancellation is raised only when it has ended, so that nothing goes on behind one's back.

    Who is cancelled a second time does not wait any longer; `work` goes to its end all the same.
    """
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        running.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else will look
        if not running.done():
            await asyncio.wait([running])
        raise


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `asyncio.to_thread`, to its end."""
    return await to_its_end(asyncio.to_thread(work, *args, **kwargs))
