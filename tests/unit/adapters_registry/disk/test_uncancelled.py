"""Work whose caller is cancelled."""

import asyncio
import gc
import threading

import pytest

from adapters_registry.disk.uncancelled import in_thread, run_to_completion


async def test_a_result_and_an_error_come_through() -> None:
    async def fails() -> None:
        raise ValueError("no")

    assert await in_thread(sorted, [2, 1]) == [1, 2]
    with pytest.raises(ValueError, match="no"):
        await run_to_completion(fails())


async def test_a_cancelled_caller_waits_for_the_end() -> None:
    began, may_end = threading.Event(), threading.Event()
    ended = []

    def work() -> None:
        began.set()
        may_end.wait(10)
        ended.append(True)

    caller = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(began.wait, 10)
    caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done() and not ended
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended


async def test_an_error_after_the_cancellation_is_nobodys() -> None:
    """Also where the caller is cancelled again and leaves first."""
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    may_end = asyncio.Event()
    finished = asyncio.Event()

    async def work() -> None:
        await may_end.wait()
        finished.set()
        raise ValueError("too late")

    caller = asyncio.create_task(run_to_completion(work()))
    for _ in range(2):
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not finished.is_set()
    may_end.set()
    await finished.wait()
    await asyncio.sleep(0)
    gc.collect()
    assert not complaints
