"""A limit on a request's time that reaches over several blocks of code, with one timer for all of them.

``asyncio.timeout`` belongs to one ``async with``; a request is forwarded in one place and read in another, and two
of them cost more than the rest of the timing together.
"""

from __future__ import annotations

import asyncio


class Deadline:
    """Cancels the task that makes it, once `limit_s` seconds have passed.

    Whoever then catches the ``CancelledError`` asks `claims` whether it was this limit. `end` must be called.
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
        """Count `limit_s` seconds from now instead; no effect once it has passed."""
        if not self._passed:
            self._timer.cancel()
            self._timer = self._loop.call_later(max(0.0, limit_s), self._pass)

    def end(self) -> None:
        """The time does not matter any more; may be called twice."""
        self._timer.cancel()

    def claims(self) -> bool:
        """Whether a cancellation just caught was this limit's alone; it then no longer counts as one."""
        return self._passed and self._task.uncancel() <= self._num_cancelling

    def _pass(self) -> None:
        self._passed = True
        self._task.cancel()
