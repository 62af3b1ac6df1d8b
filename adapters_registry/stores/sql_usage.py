"""`UsageStore` on SQL: one row per key and window, changed by any number of gateways.

Changes that arrive during a transaction go into the next one together. A busy gateway thus makes a few transactions a
second for thousands of requests, and an idle one answers at once. A transaction locks the rows that it needs, always in
the same order, applies the changes one after another, and writes each row once.

Concurrent requests of keys with `max_concurrency` are counted in the same transactions (see `sql_running`). A gateway
that runs any makes a transaction every few seconds as a heartbeat.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters_registry.errors import RegistryError
from adapters_registry.key_limits import (
    KeyLimits,
    OverLimit,
    Period,
    Reservation,
    TooManyAtOnce,
    Used,
    Window,
    check,
    windows_of,
)
from adapters_registry.stores import sql_running
from adapters_registry.stores.base import RunningReader, UsageStore
from adapters_registry.stores.database import Database, insertion
from adapters_registry.stores.sql_running import RunningRequests
from adapters_registry.stores.tables import usage

MAX_BATCH = 500

_KEPT_S = {"minute": 3600, "day": 40 * 86400, "month": 400 * 86400}

UsedIn = dict[Period, Used]
Refused = OverLimit | TooManyAtOnce
Rows = dict[tuple[str, Window], Used]

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Change:
    """An amount to add to the windows of a key, within limits or unconditionally."""

    key_id: str
    windows: tuple[Window, ...]
    requests: int
    tokens: int
    cost: float
    limits: KeyLimits | None
    done: asyncio.Future[UsedIn] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def takes_place(self) -> bool:
        """Whether this is a request of a key with `max_concurrency`."""
        return self.limits is not None and self.limits.max_concurrency is not None


class SqlUsageStore(UsageStore, RunningReader):
    """Usage and running requests of keys in a `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._running = RunningRequests()
        self._waiting: list[_Change] = []
        self._worker: asyncio.Task[None] | None = None
        self._heart: asyncio.Task[None] | None = None

    async def reserve(self, key_id: str, limits: KeyLimits, tokens: int, now: datetime) -> Reservation:
        if limits.max_concurrency is not None and self._running.num_of(key_id) >= limits.max_concurrency:
            raise TooManyAtOnce  # this gateway alone reaches the limit
        change = _Change(key_id, windows_of(limits, now), 1, tokens, 0.0, limits)
        try:
            used = await self._change(change)
        except asyncio.CancelledError:
            if not change.done.cancelled() and change.done.exception() is None:
                self._take_back(change, change.done.result())
            raise
        return Reservation(key_id, tokens, used, change.takes_place)

    async def settle(self, reservation: Reservation, tokens: int, cost: float) -> None:
        if reservation.holds_place:
            self._running.end(reservation.key_id)
        try:
            await self._change(_settlement(reservation, tokens, cost))
        except RegistryError:
            if reservation.used:
                raise  # a slot alone is not lost: the next heartbeat writes it

    async def under_way(self, key_id: str) -> int:
        return await self._database.read(partial(self._running.under_way, key_id))

    async def close(self) -> None:
        """Release the slots of this gateway, whose requests have all ended."""
        if self._worker:
            await asyncio.gather(self._worker, return_exceptions=True)
        if self._heart:
            self._heart.cancel()
            await asyncio.gather(self._heart, return_exceptions=True)
        if self._running.has_rows:
            try:
                await self._database.count(self._running.give_back)
            except RegistryError as error:
                log.warning("concurrency slots of keys not released; they expire in seconds", error=str(error))

    async def used(self, key_id: str, limits: KeyLimits, now: datetime) -> tuple[Used, ...]:
        async def work(connection: AsyncConnection) -> tuple[Used, ...]:
            found = []
            for window in windows_of(limits, now):
                row = (await connection.execute(sa.select(usage).where(*_is(key_id, window)))).one_or_none()
                found.append(Used(window) if row is None else Used(window, row.requests, row.tokens, row.cost))
            return tuple(found)

        return await self._database.read(work)

    async def _change(self, change: _Change) -> UsedIn:
        self._waiting.append(change)
        self._wake()
        return await change.done

    def _wake(self) -> None:
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work_off())

    async def _work_off(self) -> None:
        while self._waiting or self._running.is_due:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            batch = [change for change in batch if not change.done.done()]  # some callers may have been cancelled
            try:
                results, numbers = await self._database.count(partial(self._apply, batch, self._running.take_due()))
            except BaseException as error:
                for change in batch:
                    if not change.done.done():
                        change.done.set_exception(error)
                if not isinstance(error, Exception):
                    raise
                if not batch:
                    log.warning("running requests not written", error=str(error))
            else:
                self._running.written(numbers)
                for change, result in zip(batch, results, strict=True):
                    self._answer(change, result)
            if self._running.has_rows and (self._heart is None or self._heart.done()):
                self._heart = asyncio.create_task(self._beat())

    def _answer(self, change: _Change, result: UsedIn | Refused) -> None:
        """Return a change's result to its caller; a caller that was cancelled runs no request."""
        if isinstance(result, Exception):
            if not change.done.done():
                change.done.set_exception(result)
            return
        if change.takes_place:
            self._running.begin(change.key_id)
        if not change.done.done():
            change.done.set_result(result)
        elif change.limits is not None:
            self._take_back(change, result)

    def _take_back(self, change: _Change, used: UsedIn) -> None:
        """Settle a reservation whose caller was cancelled. The request itself stays counted."""
        reservation = Reservation(change.key_id, change.tokens, used, change.takes_place)
        if reservation.holds_place:
            self._running.end(change.key_id)
        settlement = _settlement(reservation, 0, 0.0)
        # No other code retrieves the exception, and asyncio would warn.
        settlement.done.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._waiting.append(settlement)
        self._wake()

    async def _beat(self) -> None:
        """Renew this gateway's rows, as long as it has any."""
        while self._running.has_rows:
            await asyncio.sleep(sql_running.BEAT_S)
            self._running.renew()
            self._wake()

    async def _apply(
        self, batch: Sequence[_Change], due: frozenset[str], connection: AsyncConnection
    ) -> tuple[list[UsedIn | Refused], dict[str, int]]:
        """Apply changes in order, skipping refused ones. Also returns the running counts that were written."""
        places = sorted({(change.key_id, window) for change in batch for window in change.windows}, key=_order)
        rows = {place: await _locked(connection, *place) for place in places}
        before = dict(rows)
        running = await self._running.lock(connection, {change.key_id for change in batch if change.takes_place})
        begun: Counter[str] = Counter()
        results: list[UsedIn | Refused] = []
        for change in batch:
            try:
                used = _counted(change, rows, running[change.key_id] + begun[change.key_id])
            except (OverLimit, TooManyAtOnce) as refused:
                results.append(refused)
                continue
            rows |= {(change.key_id, after.window): after for after in used.values()}
            begun[change.key_id] += change.takes_place
            results.append(used)
        await _write(connection, before, rows)
        return results, await self._running.write(connection, due, +begun)


def _settlement(reservation: Reservation, tokens: int, cost: float) -> _Change:
    windows = tuple(used.window for used in reservation.used.values())
    return _Change(reservation.key_id, windows, 0, tokens - reservation.tokens, cost, None)


def _counted(change: _Change, rows: Rows, num_running: int) -> UsedIn:
    """Return a change's windows after the change. Raises OverLimit, TooManyAtOnce."""
    limits = change.limits
    if limits is not None and limits.max_concurrency is not None and num_running >= limits.max_concurrency:
        raise TooManyAtOnce
    used: UsedIn = {}
    for window in change.windows:
        row = rows[change.key_id, window]
        if limits is not None:
            check(limits, row, change.tokens)
        used[window.period] = Used(
            window, row.requests + change.requests, row.tokens + change.tokens, row.cost + change.cost
        )
    return used


async def _write(connection: AsyncConnection, before: Rows, rows: Rows) -> None:
    """Write the changed windows."""
    for (key_id, window), row in rows.items():
        if row != before[key_id, window]:
            values = {"requests": row.requests, "tokens": row.tokens, "cost": row.cost}
            await connection.execute(sa.update(usage).where(*_is(key_id, window)).values(**values))
        if row.requests and not before[key_id, window].requests:
            await _forget_old(connection, key_id, window)


def _order(place: tuple[str, Window]) -> tuple[str, str, int]:
    return place[0], place[1].period, place[1].starts_at


async def _locked(connection: AsyncConnection, key_id: str, window: Window) -> Used:
    """Return a window's row, inserting it if needed, locked until the transaction ends."""
    place = {"key_id": key_id, "period": window.period, "starts_at": window.starts_at}
    statement = insertion(connection, usage).values(**place, requests=0, tokens=0, cost=0.0)
    statement = statement.on_conflict_do_update(
        index_elements=list(place), set_={"requests": usage.c.requests}
    ).returning(usage.c.requests, usage.c.tokens, usage.c.cost)
    row = (await connection.execute(statement)).one()
    return Used(window, row.requests, row.tokens, row.cost)


async def _forget_old(connection: AsyncConnection, key_id: str, window: Window) -> None:
    oldest = window.starts_at - _KEPT_S[window.period]
    is_old = (usage.c.key_id == key_id, usage.c.period == window.period, usage.c.starts_at < oldest)
    await connection.execute(sa.delete(usage).where(*is_old))


def _is(key_id: str, window: Window) -> tuple[sa.ColumnElement[bool], ...]:
    return usage.c.key_id == key_id, usage.c.period == window.period, usage.c.starts_at == window.starts_at
