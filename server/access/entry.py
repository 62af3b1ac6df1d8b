"""The way in: a request takes what its key allows and a permit to run, and holds both as one `Lease`."""

from __future__ import annotations

from types import TracebackType

from server.access.admission import Admission
from server.access.auth import Principal
from server.access.key_limits import Grant, Limiter
from server.engine.body import JsonBody


class Lease:
    """What a running request holds: a permit and, for a key with limits, the grant.

    Its owner calls `release` when the request ends. As a context manager, the lease releases itself only if the block
    fails; after a successful block, it belongs to the answer that took it over.

    Args:
        admission: Gave the permit, and takes it back.
        grant: The reservation against the key's limits, if the key has any.
    """

    __slots__ = ("_admission", "grant")

    def __init__(self, admission: Admission, grant: Grant | None = None) -> None:
        self._admission: Admission | None = admission
        self.grant = grant

    def release(self, tokens: int = 0, cost: float = 0.0) -> None:
        """Return the permit and record the actual usage; further calls have no effect."""
        admission, self._admission = self._admission, None
        if admission is None:
            return
        admission.release()
        if self.grant is not None:
            self.grant.settle(tokens, cost)

    @property
    def counts_tokens(self) -> bool:
        """Whether the key's limits depend on the length of the answer."""
        return self.grant is not None and self.grant.counts_tokens

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.release()


class Entry:
    """Lets requests in, within the limits of their key and of the gateway.

    Args:
        limiter: Counts requests against the limits of their keys.
        admission: Bounds how many requests run at once.
    """

    def __init__(self, limiter: Limiter, admission: Admission) -> None:
        self._limiter = limiter
        self._admission = admission

    async def enter(self, principal: Principal, body: JsonBody, *, generates: bool) -> Lease:
        """Reserve usage and wait for a permit; the caller must release the lease.

        Args:
            generates: Whether the request generates tokens, which are then reserved too.

        Raises:
            RateLimited, QuotaExceeded: The key is at a limit.
            TooManyRequests: The gateway is busy.
            Unavailable: The gateway is shutting down.
        """
        grant = await self._limiter.admit(principal, body, generates=generates)
        try:
            await self._admission.acquire()
        except BaseException:
            if grant is not None:
                grant.settle(0, 0.0)
            raise
        return Lease(self._admission, grant)
