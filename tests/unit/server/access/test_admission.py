"""Admission: places, queue, waiting and giving up."""

import asyncio

import pytest

from server.access.admission import Admission
from server.errors import TooManyRequests, Unavailable
from tests.support.waiting import eventually


async def _queued(admission: Admission) -> asyncio.Task[None]:
    before = admission.num_waiting
    task = asyncio.create_task(admission.acquire())
    await eventually(lambda: admission.num_waiting != before or task.done())
    return task


async def test_places_are_handed_over_in_order() -> None:
    admission = Admission(max_active=1, max_queue=5, queue_timeout_s=5)
    await admission.acquire()
    first, second = await _queued(admission), await _queued(admission)
    admission.release()
    await first
    assert not second.done()
    admission.release()
    await second
    admission.release()
    assert (admission.num_active, admission.num_waiting) == (0, 0)


async def test_a_full_queue_is_refused_at_once() -> None:
    admission = Admission(max_active=1, max_queue=1, queue_timeout_s=5)
    await admission.acquire()
    waiting = await _queued(admission)
    with pytest.raises(TooManyRequests) as refused:
        await admission.acquire()
    assert refused.value.retry_after_s
    admission.release()
    await waiting


async def test_waiting_too_long_is_refused() -> None:
    admission = Admission(max_active=1, max_queue=1, queue_timeout_s=0.01)
    await admission.acquire()
    with pytest.raises(TooManyRequests, match=r"0\.01 s"):
        await admission.acquire()
    assert admission.num_waiting == 0


async def test_a_caller_that_leaves_gives_its_turn_to_the_next() -> None:
    admission = Admission(max_active=1, max_queue=5, queue_timeout_s=5)
    await admission.acquire()
    leaver, stayer = await _queued(admission), await _queued(admission)
    admission.release()  # hands the place to the leaver, who goes in the same moment
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    await stayer
    assert admission.num_active == 1


async def test_closing_refuses_those_who_wait() -> None:
    admission = Admission(max_active=1, max_queue=5, queue_timeout_s=5)
    await admission.acquire()
    waiting = await _queued(admission)
    admission.close()
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await admission.acquire()


async def test_no_place_is_ever_lost_or_doubled() -> None:
    admission = Admission(max_active=3, max_queue=100, queue_timeout_s=5)
    most = 0

    async def work(index: int) -> None:
        nonlocal most
        await admission.acquire()
        try:
            most = max(most, admission.num_active)
            await asyncio.sleep(0)
        finally:
            admission.release()

    tasks = [asyncio.create_task(work(i)) for i in range(60)]
    for task in tasks[::7]:
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 3
    assert (admission.num_active, admission.num_waiting) == (0, 0)
