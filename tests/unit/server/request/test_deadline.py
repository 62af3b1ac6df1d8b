"""The deadline of a request: it ends the waiting, and tells its own cancellation from others'."""

import asyncio

import pytest

from server.request.deadline import Deadline


async def test_a_passed_deadline_claims_its_cancellation() -> None:
    deadline = Deadline(0.0)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.Event().wait()
    assert deadline.claims()
    await asyncio.sleep(0)  # the task goes on


async def test_a_cancellation_from_outside_is_not_claimed() -> None:
    claimed: list[bool] = []

    async def work() -> None:
        deadline = Deadline(60.0)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            claimed.append(deadline.claims())
            raise
        finally:
            deadline.end()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert claimed == [False]


async def test_when_both_come_at_once_the_outside_wins() -> None:
    claimed: list[bool] = []

    async def work() -> None:
        deadline = Deadline(0.0)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            claimed.append(deadline.claims())
            raise

    task = asyncio.create_task(work())
    asyncio.get_running_loop().call_later(0.0, task.cancel)  # in the same turn of the loop as the deadline
    with pytest.raises(asyncio.CancelledError):
        await task
    assert claimed == [False]


async def test_a_moved_deadline_counts_anew_and_an_ended_one_never_passes() -> None:
    moved, ended = Deadline(0.0), Deadline(0.0)
    moved.move(60.0)
    ended.end()
    await asyncio.sleep(0.01)
    moved.end()
    assert not moved.claims()
    assert not ended.claims()
