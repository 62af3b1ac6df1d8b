"""How many requests this gateway has under way of keys with `max_concurrency`, and how many all others have.

A row a key and gateway says how many, and when the gateway was last seen, by the database's clock, so that the clocks
of gateways do not matter. A gateway knows its own numbers and writes them whole, never as differences: a row that
could not be written is right again with the next beat. Rows that were not renewed for `KEPT_S` no longer count; so a
gateway that was killed gives its places back. Who takes a place locks the key first, by a row that is no gateway's.
Nobody adds to what others have: a gateway that was only slow may come back to find its places taken, never a number
below zero.

This holds the numbers and the statements; when they run is for `sql_usage` to say, one transaction after the other.
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
"""How often a gateway renews its rows, while it has any."""
KEPT_S = 15.0
"""How long a row counts that nobody renews. Longer than two beats, so that one that fails does no harm."""

_NOBODY = ""
"""The gateway of the row by which a key is locked."""
_NOW: dict[str, sa.ColumnElement[float]] = {
    "sqlite": sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Double),
    "postgresql": sa.literal_column("CAST(extract(epoch FROM clock_timestamp()) AS double precision)", sa.Double),
}
"""Seconds since 1970; on PostgreSQL those of the statement, for a transaction may have waited for a lock."""


class RunningRequests:
    """The requests of one gateway, and its rows."""

    def __init__(self) -> None:
        self._gateway = secrets.token_hex(8)
        self._numbers: Counter[str] = Counter()
        self._rows: set[str] = set()  # keys that may have a row of ours
        self._due: set[str] = set()  # keys whose row is to be written

    def num_of(self, key_id: str) -> int:
        """How many of a key this gateway has under way."""
        return self._numbers[key_id]

    @property
    def has_rows(self) -> bool:
        """Whether there is anything to renew, or to give back at the end."""
        return bool(self._rows)

    @property
    def is_due(self) -> bool:
        """Whether there is anything to write."""
        return bool(self._due)

    def begin(self, key_id: str) -> None:
        """A request has begun; the transaction that took its place has written so."""
        self._numbers[key_id] += 1

    def end(self, key_id: str) -> None:
        """A request has ended; the next transaction writes so."""
        self._numbers[key_id] -= 1
        if not self._numbers[key_id]:
            del self._numbers[key_id]
        self._due.add(key_id)

    def renew(self) -> None:
        """Have all rows written by the next transaction."""
        self._due |= self._rows

    def take_due(self) -> frozenset[str]:
        """The keys that the next transaction must write; if it fails, `renew` brings them back."""
        due, self._due = frozenset(self._due), set()
        return due

    async def lock(self, connection: AsyncConnection, key_ids: Collection[str]) -> Counter[str]:
        """How many requests of keys are under way; no other gateway takes a place until the transaction ends."""
        found = Counter({key_id: self._numbers[key_id] for key_id in key_ids})
        if not key_ids:
            return found
        if connection.dialect.name != "sqlite":  # there, who writes is alone already
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
        """Write the rows of keys that are due or of which requests begin now; returns what they say."""
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
        """What `write` returned is in the database now."""
        self._rows -= {key_id for key_id, number in numbers.items() if not number}

    async def give_back(self, connection: AsyncConnection) -> None:
        """This gateway ends, and with it all its requests."""
        await self._delete(connection)

    async def under_way(self, key_id: str, connection: AsyncConnection) -> int:
        """Requests of a key that are under way on all gateways, as far as they are written."""
        total = sa.func.coalesce(sa.func.sum(running.c.requests), 0)
        statement = sa.select(total).where(running.c.key_id == key_id, ~_is_old(connection))
        return int((await connection.execute(statement)).scalar_one())

    async def _delete(self, connection: AsyncConnection, *which: sa.ColumnElement[bool]) -> None:
        await connection.execute(sa.delete(running).where(running.c.gateway == self._gateway, *which))


def _is_old(connection: AsyncConnection) -> sa.ColumnElement[bool]:
    """Whether a row counts no longer. One of the future is old too: the clock was set back, and who lives renews."""
    return sa.func.abs(_NOW[connection.dialect.name] - running.c.seen_at) > KEPT_S
