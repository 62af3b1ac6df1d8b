"""Admission: bounds how many requests run at once and how many wait for a permit.

Requests are served in order of arrival. A request that finds the queue full, or waits too long, is refused with a
retry time. A caller that hangs up while waiting leaves the queue.
"""

from __future__ import annotations

import asyncio
from collections import deque

from server.errors import TooManyRequests, Unavailable


class Admission:
    """Hands out a bounded number of permits, with a bounded queue of waiting requests.

    Args:
        max_active: Number of permits.
        max_queue: Maximum number of waiting requests.
        queue_timeout_s: Maximum wait for a permit, in seconds.
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
        """Number of requests in the queue."""
        return len(self._waiting)

    async def acquire(self) -> None:
        """Take a permit, waiting if necessary; every success must be paired with one `release`.

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
                f"The gateway is running {self._max_active} requests and {len(self._waiting)} are waiting; "
                "try again later.",
                retry_after_s=self._retry_after_s(),
            )
        permit: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(permit)
        try:
            async with asyncio.timeout(self._queue_timeout_s):
                await permit
        except TimeoutError:
            self._give_up(permit)
            raise TooManyRequests(
                f"The gateway is busy: no other request ended within {self._queue_timeout_s:g} s. Try again later.",
                retry_after_s=self._retry_after_s(),
            ) from None
        except BaseException:
            self._give_up(permit)
            raise

    def release(self) -> None:
        """Return a permit; the request that has waited longest gets it."""
        while self._waiting:
            permit = self._waiting.popleft()
            if not permit.done():
                permit.set_result(None)
                return
        self.num_active -= 1

    def close(self) -> None:
        """Refuse waiting and new requests."""
        self._closed = True
        while self._waiting:
            permit = self._waiting.popleft()
            if not permit.done():
                permit.set_exception(Unavailable("The gateway is shutting down.", retry_after_s=5))

    def _give_up(self, permit: asyncio.Future[None]) -> None:
        if permit.done() and not permit.cancelled() and permit.exception() is None:
            self.release()  # the permit was granted at the same moment: pass it on
        elif permit in self._waiting:
            self._waiting.remove(permit)

    def _retry_after_s(self) -> int:
        return max(1, min(60, round(self._queue_timeout_s / 2)))
