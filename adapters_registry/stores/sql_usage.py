"""`UsageStore` on SQL: one row a key and window, changed by statements that any number of gateways may run at once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters_registry.stores.database import Database
from adapters_registry.stores.tables import usage
from adapters_registry.usage import KeyLimits, Period, Reservation, Used, Window, check, windows_of

_KEPT_S = {"minute": 3600, "day": 40 * 86400, "month": 400 * 86400}
_INSERTS: dict[str, Callable[[sa.Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class SqlUsageStore:
    """Usage of keys in a `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def reserve(self, key_id: str, limits: KeyLimits, tokens: int, now: datetime) -> Reservation:
        """See `UsageStore.reserve`."""

        async def work(connection: AsyncConnection) -> Reservation:
            used: dict[Period, Used] = {}
            for window in windows_of(limits, now):  # in the same order everywhere, so that nobody waits in a ring
                after = await _add(connection, key_id, window, 1, tokens, 0.0)
                check(limits, Used(window, after.requests - 1, after.tokens - tokens, after.cost), tokens)
                used[window.period] = after
                if after.requests == 1:
                    await _forget_old(connection, key_id, window)
            return Reservation(key_id, tokens, used)

        return await self._database.count(work)

    async def settle(self, reservation: Reservation, tokens: int, cost: float) -> None:
        """See `UsageStore.settle`."""

        async def work(connection: AsyncConnection) -> None:
            for used in reservation.used.values():
                await _add(connection, reservation.key_id, used.window, 0, tokens - reservation.tokens, cost)

        await self._database.count(work)

    async def used(self, key_id: str, limits: KeyLimits, now: datetime) -> tuple[Used, ...]:
        """See `UsageStore.used`."""

        async def work(connection: AsyncConnection) -> tuple[Used, ...]:
            found = []
            for window in windows_of(limits, now):
                row = (await connection.execute(sa.select(usage).where(*_is(key_id, window)))).one_or_none()
                found.append(Used(window) if row is None else Used(window, row.requests, row.tokens, row.cost))
            return tuple(found)

        return await self._database.read(work)


async def _add(
    connection: AsyncConnection, key_id: str, window: Window, requests: int, tokens: int, cost: float
) -> Used:
    """Add to a window's row, which is locked until the transaction ends; gives its new content."""
    added = {"requests": requests, "tokens": tokens, "cost": cost}
    place = {"key_id": key_id, "period": window.period, "starts_at": window.starts_at}
    statement = _INSERTS[connection.dialect.name](usage).values(**place, **added)
    statement = statement.on_conflict_do_update(
        index_elements=list(place), set_={name: usage.c[name] + value for name, value in added.items()}
    ).returning(usage.c.requests, usage.c.tokens, usage.c.cost)
    row = (await connection.execute(statement)).one()
    return Used(window, row.requests, row.tokens, row.cost)


async def _forget_old(connection: AsyncConnection, key_id: str, window: Window) -> None:
    oldest = window.starts_at - _KEPT_S[window.period]
    is_old = (usage.c.key_id == key_id, usage.c.period == window.period, usage.c.starts_at < oldest)
    await connection.execute(sa.delete(usage).where(*is_old))


def _is(key_id: str, window: Window) -> tuple[sa.ColumnElement[bool], ...]:
    return usage.c.key_id == key_id, usage.c.period == window.period, usage.c.starts_at == window.starts_at
