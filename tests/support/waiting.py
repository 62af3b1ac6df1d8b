"""Waiting until something becomes true, with a deadline that a busy machine meets too."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

WITHIN_S = 30.0
"""Far more than any wait needs on an idle machine: a deadline finds what hangs, it does not measure."""


async def eventually(
    look: Callable[[], T | Awaitable[T]], within: float = WITHIN_S, message: str | Callable[[], str] = ""
) -> T:
    """Return the first true value of `look`, which may be a coroutine function.

    Args:
        look: Asked again and again, at first every millisecond, later every 50.
        within: Seconds after which the test fails.
        message: Text for the failure, or a function that gives it then.
    """
    seen: T | None = None
    try:
        async with asyncio.timeout(within) as limit:
            for pause_s in _pauses():
                found = look()
                seen = await found if inspect.isawaitable(found) else found
                if seen:
                    return seen
                await asyncio.sleep(pause_s)
    except TimeoutError:
        if not limit.expired():
            raise
    raise AssertionError(_failure(within, message, seen))


def eventually_sync(look: Callable[[], T], within: float = WITHIN_S, message: str | Callable[[], str] = "") -> T:
    """Do as `eventually` does where there is no event loop."""
    deadline = time.monotonic() + within
    for pause_s in _pauses():
        if seen := look():
            return seen
        if time.monotonic() > deadline:
            break
        time.sleep(pause_s)
    raise AssertionError(_failure(within, message, seen))


def _pauses() -> Iterator[float]:
    pause_s = 0.001
    while True:
        yield pause_s
        pause_s = min(pause_s * 1.5, 0.05)


def _failure(within: float, message: str | Callable[[], str], seen: object) -> str:
    text = message() if callable(message) else message
    return f"not within {within:g} s{': ' if text else ''}{text} (last seen: {seen!r})"
