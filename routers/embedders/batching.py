"""`BatchingEmbedder`: an encoder behind the event loop, with micro-batches, a cache and a bounded queue.

One worker thread runs the encoder. An idle worker starts at once with the texts that are waiting; texts that arrive
while it is busy form the next batch, so no text waits for a batch to fill. Calls with many texts (a library being
fitted) are bulk: they are cut into small batches, and every interactive text goes first. All state belongs to the event
loop's thread; only `encode` runs elsewhere.

Equal texts that are waiting are computed once. A caller that gives up does not affect others that wait for the same
text, and a text that no caller waits for is not computed. An encoder's error reaches only the callers of that batch.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from routers.base import Matrix, Vector
from routers.embedders.base import Encoder
from routers.errors import EmbedderBusy, EmbedderError

_MAX_BATCH_CHARS = 4_000
_MAX_KEY_CHARS = 512


@dataclass(slots=True)
class EmbedderStats:
    """Running totals for metrics; `batch_sizes` counts batches by their number of texts."""

    hits: int = 0
    misses: int = 0
    joined: int = 0
    refused: int = 0
    batches: int = 0
    failed_batches: int = 0
    batch_sizes: Counter[int] = field(default_factory=Counter)


@dataclass(slots=True, eq=False)
class _Job:
    """A text that is waiting or being computed."""

    text: str
    key: str | bytes
    result: asyncio.Future[Vector]
    keep: bool
    num_waiting: int = 0
    taken: bool = False


class BatchingEmbedder:
    """An `Embedder` around an `Encoder`, which it owns and closes."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        max_batch: int = 32,
        max_bulk_batch: int = 8,
        cache_entries: int = 8192,
        max_queue: int = 1024,
    ) -> None:
        """Take the encoder; with more than `max_queue` waiting interactive texts `embed` raises `EmbedderBusy`."""
        self.name = encoder.name
        self.dim = encoder.dim
        self.stats = EmbedderStats()
        self._encoder = encoder
        self._max_batch = max_batch
        self._max_bulk_batch = max_bulk_batch
        self._cache_entries = cache_entries
        self._max_queue = max_queue
        self._cache: OrderedDict[str | bytes, Vector] = OrderedDict()
        self._jobs: dict[str | bytes, _Job] = {}
        self._interactive: deque[_Job] = deque()
        self._bulk: deque[_Job] = deque()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="embedder")
        self._running: asyncio.Future[Matrix] | None = None
        self._closed = False

    def cached(self, text: str) -> Vector | None:
        """Return the text's vector if it is in the cache, in about a microsecond; call it on the loop's thread."""
        key = _key(text)
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
            self.stats.hits += 1
        return found

    async def embed(self, texts: Sequence[str], *, bulk: bool | None = None) -> Matrix:
        """Return unit rows, shape (len(texts), dim); more than `max_batch` texts are bulk unless `bulk` is given.

        Raises `EmbedderBusy` if the queue is full, `EmbedderError` if the encoder fails or this is closed.
        """
        if self._closed:
            raise EmbedderError("the embedder is closed")
        is_bulk = len(texts) > self._max_batch if bulk is None else bulk
        rows: list[Vector | None] = [self.cached(text) for text in texts]
        wanted = [text for text, row in zip(texts, rows, strict=True) if row is None]
        if wanted:
            jobs = self._enqueue(wanted, is_bulk)
            self._start()
            await self._wait(list(jobs.values()))
            rows = [jobs[t].result.result() if r is None else r for t, r in zip(texts, rows, strict=True)]
        return np.array(rows, dtype=np.float32).reshape(len(texts), self.dim)

    async def close(self) -> None:
        """Refuse new texts, fail the waiting ones, let the running batch finish, and close the encoder."""
        if self._closed:
            return
        self._closed = True
        for job in [*self._interactive, *self._bulk]:
            if not job.taken:
                self._fail(job, EmbedderError("the embedder was closed"))
        self._interactive.clear()
        self._bulk.clear()
        await asyncio.get_running_loop().run_in_executor(self._worker, self._encoder.close)
        self._worker.shutdown(wait=False)

    # -- the queue ------------------------------------------------------------------------------------------------

    def _enqueue(self, texts: Sequence[str], is_bulk: bool) -> dict[str, _Job]:
        """Return a job for each distinct text, existing or new; enqueues all of them or none."""
        distinct = {text: _key(text) for text in texts}
        num_new = sum(key not in self._jobs for key in distinct.values())
        if not is_bulk and num_new and len(self._interactive) + num_new > self._max_queue:
            self.stats.refused += 1
            raise EmbedderBusy(f"{len(self._interactive)} texts are waiting for the embedder", "try again in a moment")
        jobs = {}
        for text in sorted(distinct, key=len):
            key = distinct[text]
            job = self._jobs.get(key)
            if job is None:
                self.stats.misses += 1
                job = _Job(text, key, asyncio.get_running_loop().create_future(), keep=not is_bulk)
                self._jobs[key] = job
                (self._bulk if is_bulk else self._interactive).append(job)
            else:
                self.stats.joined += 1
                if not is_bulk and not job.keep:  # it waits as bulk: enqueue it as interactive too
                    job.keep = True
                    self._interactive.append(job)
            jobs[text] = job
        return jobs

    async def _wait(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            job.num_waiting += 1
        try:
            await asyncio.wait([job.result for job in jobs])
        finally:
            for job in jobs:
                job.num_waiting -= 1
                if not job.num_waiting and not job.taken and not job.result.done():
                    job.taken = True
                    self._jobs.pop(job.key, None)
                    if job.keep:
                        self._interactive.remove(job)
                    job.result.cancel()

    # -- the worker -----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Give the worker its next batch if it is idle."""
        if self._running is not None or self._closed:
            return
        batch = _take(self._interactive, self._max_batch) or _take(self._bulk, self._max_bulk_batch)
        if not batch:
            return
        batch.sort(key=lambda job: len(job.text))
        self.stats.batches += 1
        self.stats.batch_sizes[len(batch)] += 1
        loop = asyncio.get_running_loop()
        self._running = loop.run_in_executor(self._worker, self._encoder.encode, [job.text for job in batch])
        self._running.add_done_callback(lambda done: self._finish(batch, done))

    def _finish(self, batch: Sequence[_Job], done: asyncio.Future[Matrix]) -> None:
        self._running = None
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is None and np.shape(done.result()) != (len(batch), self.dim):
            error = ValueError(
                f"it gave shape {np.shape(done.result())} for {len(batch)} texts of {self.dim} dimensions"
            )
        if error is None:
            for job, row in zip(batch, done.result(), strict=True):
                self._deliver(job, row)
        else:
            self.stats.failed_batches += 1
            for job in batch:
                failure = EmbedderError(f"the embedder {self.name} failed ({error or type(error).__name__})")
                failure.__cause__ = error
                self._fail(job, failure)
        self._start()

    def _deliver(self, job: _Job, row: Vector) -> None:
        vector = np.array(row, dtype=np.float32)
        vector.flags.writeable = False
        self._jobs.pop(job.key, None)
        if job.keep and self._cache_entries:
            self._cache[job.key] = vector
            if len(self._cache) > self._cache_entries:
                self._cache.popitem(last=False)
        if not job.result.done():
            job.result.set_result(vector)

    def _fail(self, job: _Job, error: EmbedderError) -> None:
        self._jobs.pop(job.key, None)
        job.taken = True
        if not job.result.done():
            job.result.set_exception(error)
            job.result.exception()  # retrieved, so that a batch without callers does not log an unhandled error


def _take(queue: deque[_Job], max_batch: int) -> list[_Job]:
    """Take the next jobs of a queue: up to `max_batch`, fewer if they are long."""
    batch: list[_Job] = []
    num_chars = 0
    while queue and len(batch) < max_batch:
        if queue[0].taken:
            queue.popleft()
            continue
        num_chars += len(queue[0].text)
        if batch and num_chars > _MAX_BATCH_CHARS:
            break
        job = queue.popleft()
        job.taken = True
        batch.append(job)
    return batch


def _key(text: str) -> str | bytes:
    """Return the cache key of a text: the text itself, or its hash if it is long."""
    if len(text) <= _MAX_KEY_CHARS:
        return text
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).digest()
