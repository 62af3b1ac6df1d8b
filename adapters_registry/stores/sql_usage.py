"""`UsageStore` on SQL: one row a key and window, changed by any number of gateways.

What is asked while a transaction runs goes into the next one together: a busy gateway makes a few transactions a
second for thousands of requests, an idle one answers at once. A transaction locks the rows that it needs, always in the
same order, looks at what is asked one after the other, and writes each row once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters_registry.stores.database import Database
from adapters_registry.stores.tables import usage
from adapters_registry.usage import KeyLimits, OverLimit, Period, Reservation, Used, Window, check, windows_of

MAX_BATCH = 500

_KEPT_S = {"minute": 3600, "day": 40 * 86400, "month": 400 * 86400}
_INSERTS: dict[str, Callable[[sa.Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}

UsedIn = dict[Period, Used]


@dataclass(slots=True, eq=False)
class _Change:
    """Something to be added to the windows of a key, within limits or in any case."""

    key_id: str
    windows: tuple[Window, ...]
    requests: int
    tokens: int
    cost: float
    limits: KeyLimits | None
    done: asyncio.Future[UsedIn] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class SqlUsageStore:
    """Usage of keys in a `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[_Change] = []
        self._worker: asyncio.Task[None] | None = None

    async def reserve(self, key_id: str, limits: KeyLimits, tokens: int, now: datetime) -> Reservation:
        """See `UsageStore.reserve`."""
        used = await self._change(_Change(key_id, windows_of(limits, now), 1, tokens, 0.0, limits))
        return Reservation(key_id, tokens, used)

    async def settle(self, reservation: Reservation, tokens: int, cost: float) -> None:
        """See `UsageStore.settle`."""
        windows = tuple(used.window for used in reservation.used.values())
        await self._change(_Change(reservation.key_id, windows, 0, tokens - reservation.tokens, cost, None))

    async def used(self, key_id: str, limits: KeyLimits, now: datetime) -> tuple[Used, ...]:
        """See `UsageStore.used`."""

        async def work(connection: AsyncConnection) -> tuple[Used, ...]:
            found = []
            for window in windows_of(limits, now):
                row = (await connection.execute(sa.select(usage).where(*_is(key_id, window)))).one_or_none()
                found.append(Used(window) if row is None else Used(window, row.requests, row.tokens, row.cost))
            return tuple(found)

        return await self._database.read(work)

    async def _change(self, change: _Change) -> UsedIn:
        self._waiting.append(change)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work_off())
        return await change.done

    async def _work_off(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            batch = [change for change in batch if not change.done.done()]  # some callers may have gone
            try:
                results = await self._database.count(partial(_apply, batch))
            except BaseException as error:
                for change in batch:
                    if not change.done.done():
                        change.done.set_exception(error)
                if not isinstance(error, Exception):
                    raise
                continue
            for change, result in zip(batch, results, strict=True):
                if change.done.done():
                    continue
                if isinstance(result, OverLimit):
                    change.done.set_exception(result)
                else:
                    change.done.set_result(result)


async def _apply(batch: Sequence[_Change], connection: AsyncConnection) -> list[UsedIn | OverLimit]:
    """Make changes in their order; of one that is refused, nothing."""
    places = sorted({(change.key_id, window) for change in batch for window in change.windows}, key=_order)
    rows = {place: await _locked(connection, *place) for place in places}
    before = dict(rows)
    results: list[UsedIn | OverLimit] = []
    for change in batch:
        used: UsedIn = {}
        try:
            for window in change.windows:
                row = rows[change.key_id, window]
                if change.limits is not None:
                    check(change.limits, row, change.tokens)
                used[window.period] = Used(
                    window, row.requests + change.requests, row.tokens + change.tokens, row.cost + change.cost
                )
        except OverLimit as over:
            results.append(over)
            continue
        rows |= {(change.key_id, after.window): after for after in used.values()}
        results.append(used)
    for (key_id, window), row in rows.items():
        if row != before[key_id, window]:
            values = {"requests": row.requests, "tokens": row.tokens, "cost": row.cost}
            await connection.execute(sa.update(usage).where(*_is(key_id, window)).values(**values))
        if row.requests and not before[key_id, window].requests:
            await _forget_old(connection, key_id, window)
    return results


def _order(place: tuple[str, Window]) -> tuple[str, str, int]:
    return place[0], place[1].period, place[1].starts_at


async def _locked(connection: AsyncConnection, key_id: str, window: Window) -> Used:
    """A window's row, made if it is not there; nobody else changes it until the transaction ends."""
    place = {"key_id": key_id, "period": window.period, "starts_at": window.starts_at}
    statement = _INSERTS[connection.dialect.name](usage).values(**place, requests=0, tokens=0, cost=0.0)
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
