"""Counts of running requests for keys with `max_concurrency`, in this gateway and in all others.

One row per key and gateway holds the count, and when the gateway was last seen by the database's clock, so that the
gateways' clocks do not matter. A gateway writes its own counts as absolute numbers, never as differences. So the next
heartbeat repairs a row that could not be written. Rows not renewed for `KEPT_S` no longer count, which frees the slots
of a killed gateway. A gateway that takes a slot locks the key first, by a row that belongs to no gateway. No gateway
changes another's count: one that was only slow may find its slots taken, but never a count below zero.

This module holds the numbers and the statements; `sql_usage` runs them, one transaction after another.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Collection, Mapping

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters_registry.stores.database import insertion
from adapters_registry.stores.tables import running

BEAT_S = 5.0
"""Interval at which a gateway renews its rows, while it has any."""
KEPT_S = 15.0
"""How long a row counts without renewal. Longer than two heartbeats, so that one may fail."""

_NOBODY = ""
"""Gateway id of the row that locks a key."""
_NOW: dict[str, sa.ColumnElement[float]] = {
    "sqlite": sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Double),
    "postgresql": sa.literal_column("CAST(extract(epoch FROM clock_timestamp()) AS double precision)", sa.Double),
}
"""Seconds since 1970; on PostgreSQL the statement's time, because a transaction may have waited for a lock."""


class RunningRequests:
    """The running requests of one gateway, and its rows."""

    def __init__(self) -> None:
        self._gateway = secrets.token_hex(8)
        self._numbers: Counter[str] = Counter()
        self._rows: set[str] = set()  # keys for which this gateway may have a row
        self._due: set[str] = set()  # keys whose row must be written

    def num_of(self, key_id: str) -> int:
        """Return how many requests of a key run in this gateway."""
        return self._numbers[key_id]

    @property
    def has_rows(self) -> bool:
        """Whether there are rows to renew, or to release at the end."""
        return bool(self._rows)

    @property
    def is_due(self) -> bool:
        """Whether there are rows to write."""
        return bool(self._due)

    def begin(self, key_id: str) -> None:
        """Note that a request began; the transaction that took its slot has written it."""
        self._numbers[key_id] += 1

    def end(self, key_id: str) -> None:
        """Note that a request ended; the next transaction writes it."""
        self._numbers[key_id] -= 1
        if not self._numbers[key_id]:
            del self._numbers[key_id]
        self._due.add(key_id)

    def renew(self) -> None:
        """Make the next transaction write all rows."""
        self._due |= self._rows

    def take_due(self) -> frozenset[str]:
        """Return and clear the keys that the next transaction must write; if it fails, `renew` restores them."""
        due, self._due = frozenset(self._due), set()
        return due

    async def lock(self, connection: AsyncConnection, key_ids: Collection[str]) -> Counter[str]:
        """Return the running requests of keys; no other gateway takes a slot until the transaction ends."""
        found = Counter({key_id: self._numbers[key_id] for key_id in key_ids})
        if not key_ids:
            return found
        if connection.dialect.name != "sqlite":  # SQLite has only one writer anyway
            values = {"gateway": _NOBODY, "requests": 0, "seen_at": 0.0}
            lock = insertion(connection, running).values(key_id=sa.bindparam("key_id"), **values)
            lock = lock.on_conflict_do_update(index_elements=["key_id", "gateway"], set_={"requests": 0})
            await connection.execute(lock, [{"key_id": key_id} for key_id in sorted(key_ids)])
        others = (running.c.key_id.in_(key_ids), running.c.gateway.not_in((self._gateway, _NOBODY)))
        is_old = _is_old(connection)
        rows = await connection.execute(
            sa.select(running.c.key_id, running.c.requests, is_old.label("is_old")).where(*others)
        )
        any_is_old = False
        for row in rows:
            found[row.key_id] += 0 if row.is_old else row.requests
            any_is_old |= bool(row.is_old)
        if any_is_old:
            await connection.execute(sa.delete(running).where(*others, is_old))
        return found

    async def write(
        self, connection: AsyncConnection, due: Collection[str], begun: Mapping[str, int]
    ) -> dict[str, int]:
        """Write the rows of keys that are due or have beginning requests; returns the counts written."""
        numbers = {key_id: self._numbers[key_id] + begun.get(key_id, 0) for key_id in {*due, *begun}}
        some = sorted(key_id for key_id, number in numbers.items() if number)
        none = sorted(numbers.keys() - set(some))
        self._rows.update(some)
        if some:
            statement = insertion(connection, running).values(
                key_id=sa.bindparam("key_id"),
                gateway=self._gateway,
                requests=sa.bindparam("requests"),
                seen_at=_NOW[connection.dialect.name],
            )
            statement = statement.on_conflict_do_update(
                index_elements=["key_id", "gateway"],
                set_={"requests": statement.excluded.requests, "seen_at": statement.excluded.seen_at},
            )
            await connection.execute(statement, [{"key_id": key_id, "requests": numbers[key_id]} for key_id in some])
        if none:
            await self._delete(connection, running.c.key_id.in_(none))
        return numbers

    def written(self, numbers: Mapping[str, int]) -> None:
        """Note that the counts that `write` returned are committed."""
        self._rows -= {key_id for key_id, number in numbers.items() if not number}

    async def give_back(self, connection: AsyncConnection) -> None:
        """Delete this gateway's rows when it ends."""
        await self._delete(connection)

    async def under_way(self, key_id: str, connection: AsyncConnection) -> int:
        """Return the running requests of a key on all gateways, as far as they are written."""
        total = sa.func.coalesce(sa.func.sum(running.c.requests), 0)
        statement = sa.select(total).where(running.c.key_id == key_id, ~_is_old(connection))
        return int((await connection.execute(statement)).scalar_one())

    async def _delete(self, connection: AsyncConnection, *which: sa.ColumnElement[bool]) -> None:
        await connection.execute(sa.delete(running).where(running.c.gateway == self._gateway, *which))


def _is_old(connection: AsyncConnection) -> sa.ColumnElement[bool]:
    """Whether a row no longer counts. A row from the future does not either: the clock was set back, and a live gateway
    renews its rows."""
    return sa.func.abs(_NOW[connection.dialect.name] - running.c.seen_at) > KEPT_S
