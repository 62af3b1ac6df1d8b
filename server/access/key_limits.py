"""Limits of keys: counts a request before it runs and settles the actual usage when it ends.

`adapters_registry.key_limits` defines the limits. A request of a key without limits is not counted. Before a request
runs, its usage is estimated: the prompt at four bytes per token, plus the longest answer that the request allows. A
request that sets no bound reserves a fixed length.
"""

from __future__ import annotations

import asyncio
import re
import time

import structlog

from adapters_registry.errors import RegistryError
from adapters_registry.key_limits import KeyLimits, OverLimit, Reservation, TooManyAtOnce, Used
from adapters_registry.records import utc_now
from adapters_registry.stores.base import UsageStore
from server.access.auth import Principal
from server.engine.body import JsonBody
from server.errors import QuotaExceeded, RateLimited
from server.telemetry.metrics import Metrics

BYTES_PER_TOKEN = 4
ANSWER_TOKENS = 256
"""Reserved for an answer whose length the caller does not bound."""

_BINARY = re.compile(rb'"data:[^",]{0,100};base64,[^"]*"')
_UNITS = {"requests_per_minute": "requests", "tokens_per_minute": "tokens"}

log = structlog.get_logger(__name__)


class Grant:
    """Permission for one request of a key with limits; `settle` must be called when the request has ended.

    Args:
        limiter: Records the actual usage.
        principal: The caller.
        reservation: What was counted in advance.
        prompt_tokens: Estimated length of the prompt, charged if the engine reports no usage.
    """

    def __init__(self, limiter: Limiter, principal: Principal, reservation: Reservation, prompt_tokens: int) -> None:
        self._limiter: Limiter | None = limiter
        self._principal = principal
        self._reservation = reservation
        self.prompt_tokens = prompt_tokens

    @property
    def counts_tokens(self) -> bool:
        """Whether a limit depends on the length of the answer."""
        return bool(self._reservation.used)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the remaining allowance as OpenAI's ``x-ratelimit-`` headers."""
        limits = self._principal.limits
        if limits is None or (used := self._reservation.used.get("minute")) is None:
            return []
        return [(name.encode(), value.encode()) for name, value in _headers(limits, used).items()]

    def settle(self, tokens: int, cost: float) -> None:
        """Record the actual usage and release the reservation; further calls have no effect."""
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter.settle(self._reservation, tokens, cost)


class Limiter:
    """Counts requests against the limits of their keys.

    Args:
        usage: Store that counts the requests of all gateways.
        metrics: Counts refusals.
    """

    def __init__(self, usage: UsageStore, metrics: Metrics) -> None:
        self._usage = usage
        self._metrics = metrics
        self._writing: set[asyncio.Task[None]] = set()

    async def admit(self, principal: Principal, body: JsonBody, *, generates: bool) -> Grant | None:
        """Count a request and return its grant; None for a key without limits.

        Raises:
            RateLimited: Too many requests or tokens in this minute, or too many concurrent requests.
            QuotaExceeded: The key's budget is used up.
        """
        limits, key = principal.limits, principal.key_id
        if limits is None:
            return None
        prompt_tokens = estimated_prompt_tokens(body) if generates else 0
        tokens = prompt_tokens + max_total_answer_tokens(body) if generates else 0
        try:
            reserved = await self._usage.reserve(key, limits, tokens, utc_now())
        except TooManyAtOnce:
            self._metrics.record_limited(principal.name, "max_concurrency")
            raise RateLimited(
                f"This key may run {limits.max_concurrency} requests at once; wait for one of them to end.",
                retry_after_s=1,
            ) from None
        except OverLimit as over:
            self._metrics.record_limited(principal.name, over.limit)
            self._metrics.show_budget(principal.name, limits, over.used)
            raise _refusal(limits, over, tokens) from None
        for used in reserved.used.values():
            self._metrics.show_budget(principal.name, limits, used)
        return Grant(self, principal, reserved, prompt_tokens)

    def settle(self, reservation: Reservation, tokens: int, cost: float) -> None:
        """Write the usage of a request that has ended, in the background."""
        task = asyncio.create_task(self._write(reservation, tokens, cost))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def close(self) -> None:
        """Wait until all usage is written."""
        await asyncio.gather(*self._writing)

    async def _write(self, reservation: Reservation, tokens: int, cost: float) -> None:
        try:
            await self._usage.settle(reservation, tokens, cost)
        except RegistryError as error:
            log.error("usage not written", key=reservation.key_id, tokens=tokens, cost=cost, error=str(error))


def estimated_prompt_tokens(body: JsonBody) -> int:
    """Estimate the length of a prompt from the size of its text; inline binary data does not count."""
    return len(_BINARY.sub(b"", body.raw)) // BYTES_PER_TOKEN


def max_total_answer_tokens(body: JsonBody) -> int:
    """Return the maximum number of tokens of all answers together."""
    return (body.max_answer_tokens or ANSWER_TOKENS) * body.num_answers


def _refusal(limits: KeyLimits, over: OverLimit, tokens: int) -> RateLimited | QuotaExceeded:
    used, unit = over.used, _UNITS.get(over.limit)
    if unit is None:
        period = used.window.period
        return QuotaExceeded(f"This key's budget for the {period} is used up; ask the operator for a larger one.")
    limit = getattr(limits, over.limit)
    if unit == "tokens" and tokens > limit:
        return RateLimited(
            f"This request may use {tokens} tokens, but this key is limited to {limit} per minute. "
            "Set a smaller max_tokens."
        )
    wait_s = max(1, round(used.window.ends_at - time.time()))
    need = f" and this request may use {tokens}" if unit == "tokens" else ""
    spent = used.tokens if unit == "tokens" else used.requests
    text = f"This key is limited to {limit} {unit} per minute; {spent} are used{need}. Try again in {wait_s} s."
    return RateLimited(text, retry_after_s=wait_s, more_headers=_headers(limits, used))


def _headers(limits: KeyLimits, used: Used) -> dict[str, str]:
    """Return what is left of this minute as OpenAI's headers."""
    found = {}
    spent = {"requests": used.requests, "tokens": used.tokens}
    for name, unit in _UNITS.items():
        if (limit := getattr(limits, name)) is not None:
            found[f"x-ratelimit-limit-{unit}"] = str(limit)
            found[f"x-ratelimit-remaining-{unit}"] = str(max(0, limit - spent[unit]))
            found[f"x-ratelimit-reset-{unit}"] = f"{max(0, round(used.window.ends_at - time.time()))}s"
    return found
