"""Limits of keys: a request is counted before it runs and settled when it ends; see `adapters_registry.key_limits`.

Keys without limits cost nothing here. What a request may take is estimated before: its text at four bytes a token, and
the longest answer that it allows, or a usual one if it sets no bound.
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
"""Set aside for an answer whose length the caller does not bound."""

_BINARY = re.compile(rb'"data:[^",]{0,100};base64,[^"]*"')
_LONGEST = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_UNITS = {"requests_per_minute": "requests", "tokens_per_minute": "tokens"}

log = structlog.get_logger(__name__)


class Grant:
    """A request that may run; `settle` must be called when it has ended, and may be called again."""

    def __init__(self, limiter: Limiter, principal: Principal, reservation: Reservation, prompt_tokens: int) -> None:
        self._limiter: Limiter | None = limiter
        self._principal = principal
        self._reservation = reservation
        self.prompt_tokens = prompt_tokens
        """What the prompt is charged as if the engine does not come to say it."""

    @property
    def counts_tokens(self) -> bool:
        """Whether it matters how many tokens the answer takes."""
        return bool(self._reservation.used)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What is left, in OpenAI's headers."""
        limits = self._principal.limits
        if limits is None or (used := self._reservation.used.get("minute")) is None:
            return []
        return [(name.encode(), value.encode()) for name, value in _headers(limits, used).items()]

    def settle(self, tokens: int, cost: float) -> None:
        """Say what it took."""
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter.settle(self._reservation, tokens, cost)


class Limiter:
    """Counts requests against the limits of their keys.

    Args:
        usage: Where they are counted.
        metrics: Counts those that were refused.
    """

    def __init__(self, usage: UsageStore, metrics: Metrics) -> None:
        self._usage = usage
        self._metrics = metrics
        self._settling: set[asyncio.Task[None]] = set()

    async def admit(self, principal: Principal, body: JsonBody, *, generates: bool) -> Grant | None:
        """Count a request; None for a key without limits.

        Raises:
            RateLimited: Too many requests or tokens in this minute, or too many requests at once.
            QuotaExceeded: The key's budget is used up.
        """
        limits, key = principal.limits, principal.key_id
        if limits is None:
            return None
        prompt_tokens = estimated_prompt_tokens(body) if generates else 0
        tokens = prompt_tokens + longest_answer(body) if generates else 0
        try:
            reserved = await self._usage.reserve(key, limits, tokens, utc_now())
        except TooManyAtOnce:
            self._metrics.record_limited(principal.name, "max_concurrency")
            raise RateLimited(
                f"This key may have {limits.max_concurrency} requests under way at once; wait for one to end.",
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
        """A request has ended; what it took is written in the background."""
        task = asyncio.create_task(self._write(reservation, tokens, cost))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def close(self) -> None:
        """Write what is still to be written."""
        await asyncio.gather(*self._settling)

    async def _write(self, reservation: Reservation, tokens: int, cost: float) -> None:
        try:
            await self._usage.settle(reservation, tokens, cost)
        except RegistryError as error:
            log.error("usage not written", key=reservation.key_id, tokens=tokens, cost=cost, error=str(error))


def estimated_prompt_tokens(body: JsonBody) -> int:
    """Tokens of a prompt, by the size of its text."""
    return len(_BINARY.sub(b"", body.raw)) // BYTES_PER_TOKEN


def longest_answer(body: JsonBody) -> int:
    """Tokens of all answers together at most, as far as the caller says."""
    given = [_count(body.fields.get(name)) for name in _LONGEST]
    longest = max(given) or ANSWER_TOKENS
    prompts = body.fields.get("prompt")
    is_several = isinstance(prompts, list) and bool(prompts) and isinstance(prompts[0], str | list)
    num_prompts = len(prompts) if is_several else 1  # type: ignore[arg-type]
    return longest * num_prompts * max(1, _count(body.fields.get("n")), _count(body.fields.get("best_of")))


def _count(value: object) -> int:
    """A number of tokens or answers as engines read it, who take 5.0 and "5" too; 0 if it is none."""
    if isinstance(value, str) and value.strip().isdecimal():
        value = float(value)
    return int(value) if isinstance(value, int | float) and value > 0 and value == value // 1 else 0


def _refusal(limits: KeyLimits, over: OverLimit, tokens: int) -> RateLimited | QuotaExceeded:
    used, unit = over.used, _UNITS.get(over.limit)
    if unit is None:
        period = used.window.period
        return QuotaExceeded(f"This key's budget for the {period} is used up; ask the operator for a larger one.")
    most = getattr(limits, over.limit)
    if unit == "tokens" and tokens > most:
        text = f"This request may take {tokens} tokens, more than this key's {most} a minute. Set a smaller max_tokens."
        return RateLimited(text)
    wait_s = max(1, round(used.window.ends_at - time.time()))
    need = f" and this request may take {tokens}" if unit == "tokens" else ""
    spent = used.tokens if unit == "tokens" else used.requests
    text = f"This key may use {most} {unit} a minute; {spent} are used{need}. Try again in {wait_s} s."
    return RateLimited(text, retry_after_s=wait_s, more_headers=_headers(limits, used))


def _headers(limits: KeyLimits, used: Used) -> dict[str, str]:
    """What is left of a minute, in OpenAI's headers."""
    found = {}
    spent = {"requests": used.requests, "tokens": used.tokens}
    for limit, unit in _UNITS.items():
        if (most := getattr(limits, limit)) is not None:
            found[f"x-ratelimit-limit-{unit}"] = str(most)
            found[f"x-ratelimit-remaining-{unit}"] = str(max(0, most - spent[unit]))
            found[f"x-ratelimit-reset-{unit}"] = f"{max(0, round(used.window.ends_at - time.time()))}s"
    return found
