"""A time limit for a request that spans several functions, with a single timer.

``asyncio.timeout`` covers one ``async with`` block, but a request is forwarded in one function and read in another. Two
such blocks cost more than all other timing together.
"""

from __future__ import annotations

import asyncio


class Deadline:
    """Cancels the task that created it after `limit_s` seconds; `end` must be called.

    The code that catches the ``CancelledError`` calls `claims` to tell this timeout from an outside cancellation.
    """

    def __init__(self, limit_s: float) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._num_cancelling = task.cancelling()
        self._timer = self._loop.call_later(max(0.0, limit_s), self._pass)
        self._passed = False

    def move(self, limit_s: float) -> None:
        """Restart with `limit_s` seconds from now; no effect after the deadline has passed."""
        if not self._passed:
            self._timer.cancel()
            self._timer = self._loop.call_later(max(0.0, limit_s), self._pass)

    def end(self) -> None:
        """Stop the timer; further calls have no effect."""
        self._timer.cancel()

    def claims(self) -> bool:
        """Return whether this deadline alone caused the cancellation that was just caught.

        If so, the cancellation is taken back.
        """
        return self._passed and self._task.uncancel() <= self._num_cancelling

    def _pass(self) -> None:
        self._passed = True
        self._task.cancel()
