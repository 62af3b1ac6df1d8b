"""Dump all rows of the library as plain JSON, and load them into an empty database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters_registry.disk.layout import SHA256
from adapters_registry.errors import BadBackup, NotEmpty
from adapters_registry.stores.database import Database
from adapters_registry.stores.tables import UtcDateTime, adapters, api_keys, audit, examples, library

Rows = Sequence[Mapping[str, Any]]

TABLES: Mapping[str, sa.Table] = {f"{table.name}": table for table in (adapters, examples, api_keys, audit)}
"""The tables of a backup, in the order in which they can be filled. Usage of keys is not part of the library."""

_ROWS_AT_ONCE = 200


class SqlBackup:
    """Dump and load of the library's rows in a `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def dump(self) -> dict[str, list[dict[str, Any]]]:
        """Return all rows by table, from one moment; times are ISO texts."""

        async def work(connection: AsyncConnection) -> dict[str, list[dict[str, Any]]]:
            return {name: await _rows(connection, table) for name, table in TABLES.items()}

        return await self._database.read(work)

    async def load(self, rows: Mapping[str, Rows]) -> None:
        """Fill an empty library; atomic. Raises NotEmpty, BadBackup."""
        found = {name: [_row(table, each) for each in rows.get(name, ())] for name, table in TABLES.items()}

        async def work(connection: AsyncConnection) -> None:
            for table in (adapters, api_keys):
                if (await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one():
                    raise NotEmpty()
            await connection.execute(sa.delete(audit))
            for name, table in TABLES.items():
                for start in range(0, len(found[name]), _ROWS_AT_ONCE):
                    await connection.execute(sa.insert(table), found[name][start : start + _ROWS_AT_ONCE])
            for table in (adapters, audit):
                await _continue_numbers(connection, table)
            await connection.execute(sa.update(library).values(revision=library.c.revision + 1))

        try:
            await self._database.write(work)
        except sa.exc.IntegrityError as error:
            raise BadBackup(f"its rows contradict each other ({type(error.orig).__name__})") from None


async def _rows(connection: AsyncConnection, table: sa.Table) -> list[dict[str, Any]]:
    result = await connection.execute(sa.select(table).order_by(*table.primary_key.columns))
    return [
        {str(key): value.isoformat() if isinstance(value, datetime) else value for key, value in row.items()}
        for row in result.mappings()
    ]


def _row(table: sa.Table, given: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a row for the database; missing columns get their defaults."""
    if unknown := given.keys() - table.columns.keys():
        raise BadBackup(f"its table {table.name} has an unknown column {sorted(unknown)[0][:50]!r}")
    row: dict[str, Any] = {}
    for column in table.columns:
        if column.name not in given and column.server_default is not None:
            continue
        value = given.get(column.name)
        if value is None and not column.nullable:
            raise BadBackup(f"its table {table.name} has a row without {column.name}")
        row[column.name] = _time(value) if isinstance(column.type, UtcDateTime) else value
    if "sha256" in row and not (SHA256.fullmatch(str(row["sha256"])) and row["sha256"].startswith(row["version"])):
        raise BadBackup("it has an expert whose version does not match its content")
    return row


def _time(value: Any) -> datetime | None:
    try:
        return None if value is None else datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise BadBackup(f"{str(value)[:50]!r} is not a time") from None


async def _continue_numbers(connection: AsyncConnection, table: sa.Table) -> None:
    """Number new rows after the restored ones; SQLite does so by itself."""
    if connection.dialect.name == "postgresql":
        sequence = sa.func.pg_get_serial_sequence(table.name, "id")
        highest = sa.select(sa.func.coalesce(sa.func.max(table.c.id), 0) + 1).scalar_subquery()
        await connection.execute(sa.select(sa.func.setval(sequence, highest, False)))
