"""Admission: how many requests are worked on at once, and how many may wait for that.

First come, first served. A request that finds the queue full, or waits too long in it, is told to come back. A caller
that hangs up while waiting leaves the queue.
"""

from __future__ import annotations

import asyncio
from collections import deque

from server.errors import TooManyRequests, Unavailable


class Admission:
    """A bounded number of places with a bounded queue before them.

    Args:
        max_active: Places.
        max_queue: Requests that may wait.
        queue_timeout_s: Longest wait.
    """

    def __init__(self, max_active: int, max_queue: int, queue_timeout_s: float) -> None:
        self._max_active = max_active
        self._max_queue = max_queue
        self._queue_timeout_s = queue_timeout_s
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed = False
        self.num_active = 0

    @property
    def num_waiting(self) -> int:
        """Requests in the queue now."""
        return len(self._waiting)

    async def acquire(self) -> None:
        """Take a place, waiting for one if need be; every success must be paired with one `release`.

        Raises:
            TooManyRequests: The queue is full or the wait was too long.
            Unavailable: The gateway is shutting down.
        """
        if self._closed:
            raise Unavailable("The gateway is shutting down; try another replica.", retry_after_s=5)
        if self.num_active < self._max_active and not self._waiting:
            self.num_active += 1
            return
        if len(self._waiting) >= self._max_queue:
            raise TooManyRequests(
                f"All {self._max_active} places are taken and {len(self._waiting)} requests wait already; try later.",
                retry_after_s=self._retry_after_s(),
            )
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(self._queue_timeout_s):
                await place
        except TimeoutError:
            self._give_up(place)
            raise TooManyRequests(
                f"No place became free within {self._queue_timeout_s:g} s; try later.",
                retry_after_s=self._retry_after_s(),
            ) from None
        except BaseException:
            self._give_up(place)
            raise

    def release(self) -> None:
        """Give a place back; the longest waiting request gets it."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.num_active -= 1

    def close(self) -> None:
        """Refuse what comes from now on, and what waits."""
        self._closed = True
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_exception(Unavailable("The gateway is shutting down.", retry_after_s=5))

    def _give_up(self, place: asyncio.Future[None]) -> None:
        if place.done() and not place.cancelled() and place.exception() is None:
            self.release()  # the place was handed over in the same moment: pass it on
        elif place in self._waiting:
            self._waiting.remove(place)

    def _retry_after_s(self) -> int:
        return max(1, min(60, round(self._queue_timeout_s / 2)))
