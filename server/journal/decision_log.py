"""The decision log: records how each request was routed, asynchronously and off the request path.

`note` is called once at the end of a request, and only appends to a bounded queue. One task writes the queue to the
database in batches, every `PAUSE_S` seconds or `BATCH` rows. While the database is down, requests are still answered:
the queue fills, and further decisions are dropped and counted. If the connection breaks during a commit, the batch is
written again, so that its decisions may be stored twice.

The operator chooses by level what is stored of a prompt: nothing (``decisions``), the embedding of a prompt without an
expert (``embeddings``), or the routed text as well (``prompts``).
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

import numpy as np
import structlog

from adapters_registry.decisions import MAX_TEXT_CHARS, DecisionRecord
from adapters_registry.errors import RegistryError
from adapters_registry.records import utc_now
from adapters_registry.stores.base import DecisionStore
from routers.base import Vector
from server.engine.recipes import experts_of
from server.planning.plan import Plan
from server.telemetry.drift import RecentDecisions
from server.telemetry.metrics import Metrics
from server.telemetry.traffic_counts import Outcome

Level = Literal["off", "decisions", "embeddings", "prompts"]

PAUSE_S = 0.5
BATCH = 200
MAX_WAITING = 5_000
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 30.0
CLOSE_S = 5.0
PRUNE_EVERY_S = 3600.0
PRUNE_BATCH = 500
PRUNE_PAUSE_S = 0.05

log = structlog.get_logger(__name__)


class PendingDecision(NamedTuple):
    """An ended request whose decision is still to be written."""

    at: datetime
    plan: Plan
    outcome: Outcome
    request_id: str
    key_id: str


class DecisionLog:
    """Records decisions in memory and writes them to the database in the background.

    Args:
        store: Where decisions are stored.
        recent: Remembers the latest decisions in memory, at every level.
        metrics: Counts dropped decisions, and knows the prices.
        level: What is stored.
        sample: Share of the requests that is stored, chosen by request id, so that all gateways choose the same.
        keep_days: Days after which decisions and feedback are deleted.
    """

    def __init__(
        self,
        store: DecisionStore,
        recent: RecentDecisions,
        metrics: Metrics,
        *,
        level: Level,
        sample: float = 1.0,
        keep_days: int = 14,
    ) -> None:
        self._store = store
        self._recent = recent
        self._metrics = metrics
        self.level = level
        self._sampled_below = round(sample * 2**32) if level != "off" else 0
        self._keep = timedelta(days=keep_days)
        self._waiting: deque[PendingDecision] = deque()
        self._some, self._many = asyncio.Event(), asyncio.Event()
        self._writing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    # -- the hot path ---------------------------------------------------------------------------------------------

    def note(self, plan: Plan, outcome: Outcome, request_id: str, key_id: str) -> None:
        """Queue the decision of a request that has ended."""
        if plan.decision is not None and plan.target.policy is not None:
            self._recent.note(plan.target.policy.name, plan.decision)
        if not self.keeps(request_id):
            return
        waiting = self._waiting
        if len(waiting) >= MAX_WAITING:
            self._metrics.policies.decisions_dropped.inc()
            return
        waiting.append(PendingDecision(utc_now(), plan, outcome, request_id, key_id))
        if len(waiting) == 1:
            self._some.set()
        elif len(waiting) >= BATCH:
            self._many.set()

    def keeps(self, request_id: str) -> bool:
        """Whether the decision of a request with this id is stored."""
        if self._sampled_below >= 2**32:
            return True
        return zlib.crc32(request_id.encode()) < self._sampled_below

    # -- writing --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to write and to prune."""
        self._tasks += [asyncio.create_task(self._write_on()), asyncio.create_task(self._prune_on())]

    async def close(self) -> None:
        """Write the waiting decisions, within a bounded time, and stop."""
        with suppress(RegistryError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.flush()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._waiting:
            log.warning("decisions are lost", num=len(self._waiting))
            self._metrics.policies.decisions_dropped.inc(len(self._waiting))
            self._waiting.clear()

    def holds(self, key_id: str, request_id: str) -> bool:
        """Whether the decision of this key's request waits to be written."""
        return any(pending.request_id == request_id and pending.key_id == key_id for pending in self._waiting)

    async def flush(self) -> None:
        """Write all decisions that wait now; raises RegistryError."""
        num = len(self._waiting)
        while num > 0 and self._waiting:
            num -= await self._write_batch()

    async def _write_batch(self) -> int:
        """Write the oldest decisions; returns their number. They stay queued until they are written."""
        async with self._writing:
            batch = [self._waiting[number] for number in range(min(BATCH, len(self._waiting)))]
            if not batch:
                return 0
            try:
                await self._store.add([self._record(pending) for pending in batch])
            except RegistryError:
                raise
            except Exception:  # a bug: these rows would fail again
                log.exception("decisions cannot be written", num=len(batch))
                self._metrics.policies.decisions_dropped.inc(len(batch))
            for _ in batch:
                self._waiting.popleft()
            return len(batch)

    async def _write_on(self) -> None:
        pause_s = 0.0
        while True:
            await self._some.wait()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._many.wait(), PAUSE_S)
            try:
                await self.flush()
            except RegistryError as error:
                if not pause_s:
                    log.warning("decisions are not written; requests are still answered", error=str(error))
                pause_s = min(max(2 * pause_s, FIRST_RETRY_S), LAST_RETRY_S)
                await asyncio.sleep(pause_s)
                continue
            if pause_s:
                log.info("decisions are written again")
                pause_s = 0.0
            if len(self._waiting) < BATCH:
                self._many.clear()
            if not self._waiting:
                self._some.clear()

    async def _prune_on(self) -> None:
        while True:
            await self.prune()
            await asyncio.sleep(PRUNE_EVERY_S)

    async def prune(self) -> None:
        """Delete old decisions, in steps that do not block other writers."""
        try:
            while await self._store.prune(utc_now() - self._keep, PRUNE_BATCH):  # noqa: ASYNC110
                await asyncio.sleep(PRUNE_PAUSE_S)
        except RegistryError as error:
            log.warning("old decisions not deleted", error=str(error))
        except Exception:  # a bug must not end pruning: the next hour may work
            log.exception("old decisions not deleted")

    def _record(self, pending: PendingDecision) -> DecisionRecord:
        at, plan, outcome, request_id, key_id = pending
        abstained = plan.decision is not None and not plan.records
        query, text, embedder, embedding = plan.query, None, None, None
        if query is not None and self.level == "prompts":
            text = query.text[:MAX_TEXT_CHARS]
        if query is not None and abstained and self.level in ("embeddings", "prompts"):
            embedding = as_bytes(query.embedding)
            embedder = plan.target.policy.embedder.name if embedding and plan.target.policy else None
        return DecisionRecord(
            request_id=request_id,
            at=at,
            key_id=key_id,
            endpoint=outcome.endpoint,
            kind=plan.target.kind,
            policy=plan.policy_name,
            recipe=str(plan.recipe),
            experts=tuple(experts_of(plan.recipe)),
            confidence=plan.decision.confidence if plan.decision else None,
            abstained=abstained,
            status=outcome.status,
            input_tokens=outcome.input_tokens,
            output_tokens=outcome.output_tokens,
            duration_ms=round(outcome.duration_s * 1000, 3),
            ttft_ms=round(outcome.ttft_s * 1000, 3) if outcome.streamed and outcome.ttft_s is not None else None,
            cost=self._metrics.cost_of(outcome),
            text=text,
            embedder=embedder,
            embedding=embedding,
        )


def as_bytes(embedding: Vector | None) -> bytes | None:
    """An embedding, shape (d,), as d float16 numbers; None if it is absent or not finite."""
    if embedding is None or not np.isfinite(embedding).all():
        return None
    return np.asarray(embedding, np.float16).tobytes()
