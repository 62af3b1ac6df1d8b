"""Entry and leases: what a request takes on its way in is given back exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters_registry.key_limits import KeyLimits
from adapters_registry.library import Library
from adapters_registry.records import utc_now
from server.access.admission import Admission
from server.access.auth import ANONYMOUS
from server.access.entry import Entry, Lease
from server.access.key_limits import Limiter
from server.engine.body import parse_body
from server.errors import RateLimited, TooManyRequests
from tests.support.parts import confined, metrics_with
from tests.support.waiting import eventually

BODY = parse_body(b'{"model":"base","max_tokens":10}')
LIMITS = KeyLimits(tokens_per_minute=1000, max_concurrency=1)


@pytest.fixture
async def library(tmp_path: Path) -> AsyncIterator[Library]:
    library = await Library.open(tmp_path)
    yield library
    await library.close()


async def num_used(library: Library) -> tuple[int, int]:
    """Requests and tokens that the key has used in this minute."""
    (used,) = await library.usage.used("k1", LIMITS, utc_now())
    return used.requests, used.tokens


async def test_a_key_without_limits_needs_a_permit_only(library: Library) -> None:
    admission = Admission(1, 0, 5.0)
    lease = await Entry(Limiter(library.usage, metrics_with()), admission).enter(ANONYMOUS, BODY, generates=True)
    assert (lease.grant, lease.counts_tokens, admission.num_active) == (None, False, 1)
    lease.release()
    lease.release()
    assert admission.num_active == 0


async def test_a_lease_settles_its_grant_with_what_was_used(library: Library) -> None:
    admission, limiter = Admission(1, 0, 5.0), Limiter(library.usage, metrics_with())
    lease = await Entry(limiter, admission).enter(confined(LIMITS), BODY, generates=True)
    assert lease.counts_tokens
    assert await num_used(library) == (1, len(BODY.raw) // 4 + 10)
    lease.release(7, 0.5)
    lease.release(100, 0.5)
    await limiter.close()
    assert await num_used(library) == (1, 7)
    assert admission.num_active == 0


async def test_a_grant_is_given_back_if_there_is_no_permit(library: Library) -> None:
    admission, limiter = Admission(1, 0, 5.0), Limiter(library.usage, metrics_with())
    await admission.acquire()
    with pytest.raises(TooManyRequests):
        await Entry(limiter, admission).enter(confined(LIMITS), BODY, generates=True)
    await limiter.close()
    assert await num_used(library) == (1, 0)
    admission.release()
    lease = await Entry(limiter, admission).enter(confined(LIMITS), BODY, generates=True)
    with pytest.raises(RateLimited):  # max_concurrency: the first one would still count if it had not been settled
        await Entry(limiter, admission).enter(confined(LIMITS), BODY, generates=True)
    assert admission.num_active == 1
    lease.release()
    await limiter.close()


async def test_a_caller_that_leaves_the_queue_gives_its_grant_back(library: Library) -> None:
    admission, limiter = Admission(1, 1, 5.0), Limiter(library.usage, metrics_with())
    await admission.acquire()
    entering = asyncio.create_task(Entry(limiter, admission).enter(confined(LIMITS), BODY, generates=True))
    await eventually(lambda: admission.num_waiting)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    await limiter.close()
    assert await num_used(library) == (1, 0)
    assert (admission.num_active, admission.num_waiting) == (1, 0)


async def test_a_block_that_fails_releases_the_lease_and_one_that_ends_does_not() -> None:
    admission = Admission(2, 0, 5.0)
    await admission.acquire()
    with Lease(admission) as kept:
        pass
    assert admission.num_active == 1
    await admission.acquire()
    with pytest.raises(ValueError, match="failed"), Lease(admission):
        raise ValueError("failed")
    assert admission.num_active == 1
    kept.release()
    assert admission.num_active == 0
