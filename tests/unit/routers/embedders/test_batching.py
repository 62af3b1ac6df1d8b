"""Micro-batches, cache, single flight and back-pressure; ordered by events, not by time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np
import pytest

from routers.base import Matrix
from routers.embedders.batching import BatchingEmbedder
from routers.embedders.hashing import HashingEncoder
from routers.errors import EmbedderBusy, EmbedderError


class GatedEncoder(HashingEncoder):
    """Hashing, but each batch waits for `gate` and says that it has begun."""

    def __init__(self) -> None:
        super().__init__(dim=16)
        self.gate = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.batches: list[list[str]] = []
        self.threads: set[int] = set()
        self.closed = False

    def encode(self, texts: Sequence[str]) -> Matrix:
        self.batches.append(list(texts))
        self.threads.add(threading.get_ident())
        self.begun.release()
        self.gate.acquire()
        if "poison" in texts:
            raise RuntimeError("out of order")
        rows = super().encode(texts)
        return rows[:-1] if "short" in texts else rows

    def close(self) -> None:
        self.closed = True

    def open(self, num_batches: int = 1000) -> None:
        self.gate.release(num_batches)


@pytest.fixture
def encoder() -> GatedEncoder:
    return GatedEncoder()


MakeEmbedder = Callable[..., BatchingEmbedder]


@pytest.fixture
async def make(encoder: GatedEncoder) -> AsyncIterator[MakeEmbedder]:
    made: list[BatchingEmbedder] = []

    def build(**options: int) -> BatchingEmbedder:
        made.append(BatchingEmbedder(encoder, **options))
        return made[-1]

    yield build
    encoder.open()
    for embedder in made:
        await embedder.close()


async def begun(encoder: GatedEncoder) -> None:
    await asyncio.to_thread(encoder.begun.acquire)


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


def ask(embedder: BatchingEmbedder, *texts: str, bulk: bool | None = None) -> asyncio.Task[Matrix]:
    return asyncio.create_task(embedder.embed(texts, bulk=bulk))


async def test_rows_are_the_encoders_in_the_order_asked(encoder: GatedEncoder, make: MakeEmbedder) -> None:
    encoder.open()
    texts = ["bb", "a", "", "bb", "ccc"]
    rows = await make().embed(texts)
    np.testing.assert_array_equal(rows, HashingEncoder(16).encode(texts))
    assert rows.dtype == np.float32
    assert (await make().embed([])).shape == (0, 16)


async def test_idle_starts_at_once_and_what_arrives_meanwhile_is_the_next_batch(
    encoder: GatedEncoder, make: MakeEmbedder
) -> None:
    embedder = make()
    first = ask(embedder, "first")
    await begun(encoder)
    others = [ask(embedder, text) for text in ("longest of them", "mid one", "x")]
    await settle()
    encoder.open()
    await asyncio.gather(first, *others)
    assert encoder.batches == [["first"], ["x", "mid one", "longest of them"]]
    assert dict(embedder.stats.batch_sizes) == {1: 1, 3: 1}
    assert len(encoder.threads) == 1
    assert threading.get_ident() not in encoder.threads


async def test_batches_are_bounded_in_number_and_length(encoder: GatedEncoder, make: MakeEmbedder) -> None:
    embedder = make(max_batch=3)
    tasks = [ask(embedder, "first")]
    await begun(encoder)
    tasks += [ask(embedder, f"text {i}") for i in range(4)]
    tasks += [ask(embedder, "z" * 3000 + str(i)) for i in range(2)]
    await settle()
    encoder.open()
    await asyncio.gather(*tasks)
    assert [len(batch) for batch in encoder.batches] == [1, 3, 2, 1]


async def test_interactive_goes_between_bulk(encoder: GatedEncoder, make: MakeEmbedder) -> None:
    embedder = make(max_batch=4, max_bulk_batch=2)
    bulk = ask(embedder, *(f"example {i}" for i in range(6)))
    await begun(encoder)
    urgent = ask(embedder, "urgent")
    await settle()
    encoder.open()
    await asyncio.gather(bulk, urgent)
    assert [len(batch) for batch in encoder.batches] == [2, 1, 2, 2]
    assert encoder.batches[1] == ["urgent"]
    assert embedder.cached("urgent") is not None
    assert embedder.cached("example 0") is None


async def test_a_bulk_text_that_someone_waits_for_goes_first(encoder: GatedEncoder, make: MakeEmbedder) -> None:
    embedder = make(max_batch=4, max_bulk_batch=1)
    bulk = ask(embedder, "a", "b", "c", "d", "e")
    await begun(encoder)
    urgent = ask(embedder, "e")
    await settle()
    encoder.open()
    await asyncio.gather(bulk, urgent)
    assert encoder.batches == [["a"], ["e"], ["b"], ["c"], ["d"]]
    assert embedder.cached("e") is not None


async def test_equal_texts_are_computed_once(encoder: GatedEncoder, make: MakeEmbedder) -> None:
    embedder = make()
    tasks = [ask(embedder, "same") for _ in range(5)]
    await begun(encoder)
    tasks += [ask(embedder, "same", "same")]
    await settle()
    encoder.open()
    results = await asyncio.gather(*tasks)
    assert encoder.batches == [["same"]]
    assert all((rows == results[0][0]).all() for rows in results)
    assert (embedder.stats.misses, embedder.stats.joined) == (1, 5)


async def test_the_cache_answers_forgets_the_oldest_and_cannot_be_spoilt(
    encoder: GatedEncoder, make: MakeEmbedder
) -> None:
    encoder.open()
    embedder = make(cache_entries=2)
    long = "l" * 10_000
    await embedder.embed(["a"])
    rows = await embedder.embed([long])
    rows[:] = 0
    assert embedder.cached("a") is not None
    await embedder.embed(["b"])
    assert embedder.cached(long) is None
    vector = embedder.cached("a")
    assert vector is not None
    assert not vector.flags.writeable
    await embedder.embed(["a", "b"])
    assert len(encoder.batches) == 3
    assert embedder.stats.hits == 4


async def test_no_cache_if_it_may_hold_nothing(encoder: GatedEncoder, make: MakeEmbedder) -> None:
    encoder.open()
    embedder = make(cache_entries=0)
    await embedder.embed(["a"])
    await embedder.embed(["a"])
    assert len(encoder.batches) == 2


async def test_who_gives_up_does_not_take_others_along(encoder: GatedEncoder, make: MakeEmbedder) -> None:
    embedder = make()
    first = ask(embedder, "first")
    await begun(encoder)
    quitter, stayer, alone = ask(embedder, "shared"), ask(embedder, "shared"), ask(embedder, "alone")
    await settle()
    for task in (first, quitter, alone):
        task.cancel()
    await settle()
    encoder.open()
    assert (await stayer).shape == (1, 16)
    with pytest.raises(asyncio.CancelledError):
        await quitter
    assert encoder.batches == [["first"], ["shared"]]
    assert (await embedder.embed(["alone"])).shape == (1, 16)


@pytest.mark.parametrize(("text", "problem"), [("poison", "out of order"), ("short", "shape")])
async def test_an_error_reaches_its_batch_and_nobody_else(
    encoder: GatedEncoder, make: MakeEmbedder, text: str, problem: str
) -> None:
    embedder = make(max_batch=2)
    before = ask(embedder, "before")
    await begun(encoder)
    struck, fellow, after = ask(embedder, text), ask(embedder, "fellow"), ask(embedder, "after")
    await settle()
    encoder.open()
    results = await asyncio.gather(before, struck, fellow, after, return_exceptions=True)
    assert [isinstance(result, EmbedderError) for result in results] == [False, True, True, False]
    assert problem in str(results[1])
    assert embedder.stats.failed_batches == 1
    assert (await embedder.embed(["fellow"])).shape == (1, 16)


async def test_an_error_that_nobody_waits_for_is_silent(encoder: GatedEncoder, make: MakeEmbedder) -> None:
    embedder = make()
    task = ask(embedder, "poison")
    await begun(encoder)
    task.cancel()
    await settle()
    encoder.open()
    assert (await embedder.embed(["next"])).shape == (1, 16)


async def test_a_full_queue_refuses_and_recovers(encoder: GatedEncoder, make: MakeEmbedder) -> None:
    embedder = make(max_queue=2)
    tasks = [ask(embedder, "running")]
    await begun(encoder)
    tasks += [ask(embedder, "one"), ask(embedder, "two")]
    await settle()
    with pytest.raises(EmbedderBusy):
        await embedder.embed(["three"])
    joined = ask(embedder, "two")
    bulk = ask(embedder, *(f"example {i}" for i in range(40)))
    await settle()
    encoder.open()
    await asyncio.gather(*tasks, joined, bulk)
    assert embedder.stats.refused == 1
    assert (await embedder.embed(["three"])).shape == (1, 16)


async def test_closing_fails_what_waits_and_closes_the_encoder(encoder: GatedEncoder, make: MakeEmbedder) -> None:
    embedder = make()
    running = ask(embedder, "running")
    await begun(encoder)
    waiting = ask(embedder, "waiting")
    await settle()
    closing = asyncio.create_task(embedder.close())
    await settle()
    encoder.open()
    await closing
    assert (await running).shape == (1, 16)
    with pytest.raises(EmbedderError, match="closed"):
        await waiting
    with pytest.raises(EmbedderError, match="closed"):
        await embedder.embed(["late"])
    assert encoder.closed
    await embedder.close()


async def test_many_callers_at_once_each_get_their_own(encoder: GatedEncoder, make: MakeEmbedder) -> None:
    encoder.open()
    embedder = make(max_batch=7)
    expected = HashingEncoder(16).encode([f"text {i}" for i in range(50)])
    results = await asyncio.gather(*(embedder.embed([f"text {i % 50}"]) for i in range(400)))
    for number, rows in enumerate(results):
        np.testing.assert_array_equal(rows[0], expected[number % 50])
    assert sum(map(len, encoder.batches)) == 50
