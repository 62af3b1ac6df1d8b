"""Limits of keys: what is reserved, refused, shown and settled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from adapters_registry.errors import DatabaseBusy
from adapters_registry.key_limits import KeyLimits, Reservation
from adapters_registry.library import Library
from adapters_registry.records import utc_now
from server.access.auth import ANONYMOUS
from server.access.key_limits import ANSWER_TOKENS, Limiter, estimated_prompt_tokens, max_total_answer_tokens
from server.engine.body import JsonBody, parse_body
from server.errors import QuotaExceeded, RateLimited
from server.telemetry.metrics import Metrics
from tests.support.parts import confined, metrics_with


@pytest.fixture
async def library(tmp_path: Path) -> AsyncIterator[Library]:
    library = await Library.open(tmp_path)
    yield library
    await library.close()


@pytest.fixture
def metrics() -> Metrics:
    return metrics_with()


@pytest.fixture
async def limiter(library: Library, metrics: Metrics) -> AsyncIterator[Limiter]:
    limiter = Limiter(library.usage, metrics)
    yield limiter
    await limiter.close()


def body_of(num_chars: int = 400, **fields: Any) -> JsonBody:
    """A body whose text is at least this long."""
    return parse_body(orjson.dumps({"messages": [{"role": "user", "content": "x" * num_chars}], **fields}))


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, ANSWER_TOKENS),
        ({"max_tokens": 7}, 7),
        ({"max_tokens": 7, "max_completion_tokens": 3, "max_output_tokens": 5}, 7),
        ({"max_tokens": 7, "n": 3}, 21),
        ({"max_tokens": 7, "n": 2, "best_of": 4}, 28),
        ({"max_tokens": 7, "prompt": ["a", "b", "c"]}, 21),
        ({"max_tokens": 7, "prompt": [[1, 2], [3]]}, 14),
        ({"max_tokens": 7, "prompt": [1, 2, 3]}, 7),
        ({"max_tokens": 7, "prompt": []}, 7),
        ({"max_tokens": -1, "n": "x"}, ANSWER_TOKENS),
    ],
)
def test_tokens_that_are_reserved_for_answers(fields: dict[str, Any], tokens: int) -> None:
    assert max_total_answer_tokens(parse_body(orjson.dumps(fields))) == tokens


def test_inline_images_are_not_counted_as_text() -> None:
    without, image = body_of(400), "data:image/png;base64," + "A" * 100_000
    with_image = body_of(400, image_url={"url": image})
    assert estimated_prompt_tokens(without) == len(without.raw) // 4
    assert estimated_prompt_tokens(with_image) - estimated_prompt_tokens(without) < 20


async def test_a_key_without_limits_gets_no_grant(limiter: Limiter) -> None:
    assert await limiter.admit(ANONYMOUS, body_of(), generates=True) is None


async def test_a_grant_shows_what_is_left_and_settles_once(library: Library, limiter: Limiter) -> None:
    limits, body = KeyLimits(requests_per_minute=5, tokens_per_minute=1000), body_of(400, max_tokens=100)
    grant = await limiter.admit(confined(limits), body, generates=True)
    assert grant is not None
    assert grant.counts_tokens
    assert grant.prompt_tokens == len(body.raw) // 4
    headers = dict(grant.headers())
    assert headers[b"x-ratelimit-limit-requests"] == b"5"
    assert headers[b"x-ratelimit-remaining-requests"] == b"4"
    assert headers[b"x-ratelimit-remaining-tokens"] == str(1000 - grant.prompt_tokens - 100).encode()
    assert 0 <= int(headers[b"x-ratelimit-reset-tokens"].removesuffix(b"s")) <= 60
    grant.settle(40, 0.0)
    grant.settle(500, 0.0)
    await limiter.close()
    (used,) = await library.usage.used("k1", limits, utc_now())
    assert (used.requests, used.tokens) == (1, 40)


async def test_a_request_that_generates_nothing_reserves_no_tokens(library: Library, limiter: Limiter) -> None:
    limits = KeyLimits(tokens_per_minute=10)
    grant = await limiter.admit(confined(limits), body_of(4000), generates=False)
    assert grant is not None
    assert grant.prompt_tokens == 0
    (used,) = await library.usage.used("k1", limits, utc_now())
    assert (used.requests, used.tokens) == (1, 0)


async def test_budgets_and_concurrency_show_no_rate_limits(limiter: Limiter) -> None:
    budget = await limiter.admit(confined(KeyLimits(budget_per_day=1.0)), body_of(), generates=True)
    concurrency = await limiter.admit(confined(KeyLimits(max_concurrency=9)), body_of(), generates=True)
    assert budget is not None
    assert concurrency is not None
    assert (budget.headers(), concurrency.headers()) == ([], [])
    assert (budget.counts_tokens, concurrency.counts_tokens) == (True, False)
    budget.settle(0, 0.0)
    concurrency.settle(0, 0.0)


@pytest.mark.parametrize(
    ("limits", "limit", "refusal", "message", "waits"),
    [
        (KeyLimits(requests_per_minute=1), "requests_per_minute", RateLimited, "limited to 1 requests per", True),
        (KeyLimits(tokens_per_minute=250), "tokens_per_minute", RateLimited, "and this request may use", True),
        (KeyLimits(max_concurrency=1), "max_concurrency", RateLimited, "may run 1 requests at once", True),
        (KeyLimits(budget_per_day=0.5), "budget_per_day", QuotaExceeded, "budget for the day is used up", False),
        (KeyLimits(budget_per_month=0.5), "budget_per_month", QuotaExceeded, "budget for the month", False),
    ],
)
async def test_the_second_request_is_refused_for_the_limit_that_it_exceeds(
    limiter: Limiter,
    metrics: Metrics,
    limits: KeyLimits,
    limit: str,
    refusal: type[Exception],
    message: str,
    waits: bool,
) -> None:
    principal = confined(limits)
    first = await limiter.admit(principal, body_of(max_tokens=10), generates=True)
    assert first is not None
    if isinstance(refusal, type) and issubclass(refusal, QuotaExceeded):
        first.settle(100, 0.5)
        await limiter.close()
    with pytest.raises(refusal, match=message) as refused:
        await limiter.admit(principal, body_of(max_tokens=100), generates=True)
    assert (getattr(refused.value, "retry_after_s", None) is not None) is waits
    assert metrics.registry.get_sample_value("moergate_requests_limited_total", {"limit": limit}) == 1
    by_key = {"key": "app", "limit": limit}
    assert metrics.registry.get_sample_value("moergate_key_limited_total", by_key) == 1


async def test_a_request_that_never_fits_is_not_told_to_wait(limiter: Limiter) -> None:
    with pytest.raises(RateLimited, match="Set a smaller max_tokens") as refused:
        await limiter.admit(confined(KeyLimits(tokens_per_minute=50)), body_of(max_tokens=100), generates=True)
    assert refused.value.retry_after_s is None


class AwayStore:
    """A store that has counted a request, and is away when it ends."""

    async def reserve(self, key_id: str, limits: KeyLimits, tokens: int, now: Any) -> Reservation:
        return Reservation(key_id, tokens, {})

    async def settle(self, reservation: Reservation, tokens: int, cost: float) -> None:
        raise DatabaseBusy("away")

    async def used(self, key_id: str, limits: KeyLimits, now: Any) -> tuple[()]:
        return ()


async def test_usage_that_cannot_be_written_harms_no_request(metrics: Metrics) -> None:
    limiter = Limiter(AwayStore(), metrics)
    grant = await limiter.admit(confined(KeyLimits(max_concurrency=1)), body_of(), generates=True)
    assert grant is not None
    grant.settle(1, 0.0)
    await limiter.close()
