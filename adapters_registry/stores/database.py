"""One database, SQLite or PostgreSQL: connections, transactions with retries, and schema migrations.

Writers take turns: on SQLite by ``BEGIN IMMEDIATE``, on PostgreSQL by locking the library's row first. A writing
transaction therefore never fails because it read stale data. SQLite runs with WAL, foreign keys and full
synchronisation: a write that has returned survives a loss of power.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from adapters_registry.disk.uncancelled import run_to_completion
from adapters_registry.errors import DatabaseBroken, DatabaseBusy
from adapters_registry.stores.database_errors import translate
from adapters_registry.stores.tables import library

Result = TypeVar("Result")
Work = Callable[[AsyncConnection], Awaitable[Result]]

_MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"
_SQLITE = frozenset({"sqlite", "sqlite+aiosqlite"})
_WRITES = "moergate_writes"
_NUMBERED = re.compile(r"\$([0-9]+)")
_ADVISORY_LOCK = 0x6D6F6572  # arbitrary, but fixed for Moergate
_INSERTS: dict[str, Callable[[sa.Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_FIRST_PAUSE_S = 0.05
_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}


class Database:
    """A database that holds one library.

    `url` is ``sqlite:///file`` or ``postgresql://…``, with or without the async driver's name. A transaction waits up
    to `busy_timeout_s` for a locked database and is tried `max_attempts` times; then it raises DatabaseBusy.
    """

    def __init__(self, url: str, *, busy_timeout_s: float = 5.0, max_attempts: int = 3) -> None:
        try:
            parsed = make_url(url)
            parsed = parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))
            is_sqlite = parsed.drivername in _SQLITE
            options = {} if is_sqlite else {"connect_args": _bounded(busy_timeout_s)}
            self._engine: AsyncEngine = create_async_engine(parsed, pool_pre_ping=not is_sqlite, **options)
            self._unsynced = create_async_engine(parsed) if is_sqlite else self._engine
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise DatabaseBroken(f"its URL is not usable: {type(error).__name__}") from None
        self._is_sqlite = parsed.drivername in _SQLITE
        self._place = Path(parsed.database or ".")
        self._busy_timeout_s = busy_timeout_s
        self._max_attempts = max_attempts
        self._turn = asyncio.Lock()  # writers of this process queue here in order, instead of polling SQLite's lock
        if self._is_sqlite:
            for engine, synchronous in ((self._engine, "FULL"), (self._unsynced, "NORMAL")):
                sa.event.listen(engine.sync_engine, "connect", partial(self._set_up_sqlite, synchronous=synchronous))
                sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)

    async def read(self, work: Work[Result]) -> Result:
        """Run `work` in a read-only transaction that sees one moment of the database."""
        return await self._attempt(work, write=False)

    async def write(self, work: Work[Result]) -> Result:
        """Run `work` as the only writer; its changes are durable when this returns. `work` may be retried."""

        async def locked(connection: AsyncConnection) -> Result:
            await connection.execute(sa.select(library.c.revision).with_for_update())
            return await work(connection)

        async with self._turn:
            return await self._attempt(locked, write=True)

    async def count(self, work: Work[Result]) -> Result:
        """Run `work`, which changes only rows outside the library, by statements that tolerate concurrent ones.

        Its changes survive the end of every process, but perhaps not a loss of power: this does not wait for the disk.
        """

        async def unsynced(connection: AsyncConnection) -> Result:
            if not self._is_sqlite:
                await connection.execute(sa.text("SET LOCAL synchronous_commit = off"))
            return await work(connection)

        if self._is_sqlite:  # one writer at a time, for any table
            async with self._turn:
                return await self._attempt(unsynced, write=True, engine=self._unsynced)
        return await self._attempt(unsynced, write=True)

    async def migrate(self) -> None:
        """Update the schema; several processes may do so at once. Raises DatabaseBroken if the database is damaged."""

        async def work(connection: AsyncConnection) -> None:
            if self._is_sqlite:
                verdict = (await connection.execute(sa.text("PRAGMA quick_check(1)"))).scalar_one()
                if verdict != "ok":
                    raise DatabaseBroken("its integrity check failed")
            else:
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
            await connection.run_sync(_upgrade)

        async with self._turn:
            await self._attempt(work, write=True)

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()
        await self._unsynced.dispose()

    async def _attempt(self, work: Work[Result], *, write: bool, engine: AsyncEngine | None = None) -> Result:
        pause_s = _FIRST_PAUSE_S
        for attempt in range(1, self._max_attempts + 1):
            try:
                # An interrupted migration would leave the database locked. It ends soon: waits for locks are bounded.
                return await run_to_completion(self._transact(work, engine or self._engine, write=write))
            except DatabaseBusy:
                if attempt == self._max_attempts:
                    raise
                await asyncio.sleep(pause_s)
                pause_s *= 2
        raise AssertionError("unreachable")

    async def _transact(self, work: Work[Result], engine: AsyncEngine, *, write: bool) -> Result:
        try:
            async with engine.connect() as plain:
                options: dict[str, Any] = {_WRITES: write}
                if not (write or self._is_sqlite):  # SQLite's readers always see one moment
                    options["isolation_level"] = "REPEATABLE READ"
                connection = await plain.execution_options(**options)
                async with connection.begin():
                    return await work(connection)
        except Exception as error:
            translated = translate(error, self._place)
            if translated is None:
                raise
            raise translated from error

    def _set_up_sqlite(self, connection: Any, _record: Any, *, synchronous: str) -> None:
        connection.isolation_level = None  # the "begin" event decides how transactions begin
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={int(self._busy_timeout_s * 1000)}",
            "journal_mode=WAL",
            f"synchronous={synchronous}",
            "foreign_keys=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()


def insertion(connection: AsyncConnection, table: sa.Table) -> Any:
    """Return an insert of the connection's dialect, which supports ON CONFLICT."""
    return _INSERTS[connection.dialect.name](table)


async def insert_rows(connection: AsyncConnection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows with equal columns by one statement.

    SQLAlchemy's own multi-row insert names every value of every row. SQLite's driver releases and reacquires the
    interpreter lock once per statement; row by row, that costs more than the write.
    """
    columns = tuple(rows[0])
    head, group, processors = _insertion_of(connection.dialect, table, columns)
    values = [row[column] for row in rows for column in columns]
    for place, process in processors:
        values[place :: len(columns)] = map(process, values[place :: len(columns)])
    groups = (_renumbered(group, number * len(columns)) for number in range(len(rows)))
    await connection.exec_driver_sql(head + ", ".join(groups), tuple(values))


@lru_cache(maxsize=16)
def _insertion_of(
    dialect: sa.Dialect, table: sa.Table, columns: tuple[str, ...]
) -> tuple[str, str, list[tuple[int, Callable[[Any], Any]]]]:
    """Return an insert's text before the values, the text of one row, and each column's value processor."""
    text = str(sa.insert(table).inline().values(dict.fromkeys(columns)).compile(dialect=dialect))
    head, values, group = text.partition(" VALUES ")
    processors = [table.c[column].type.dialect_impl(dialect).bind_processor(dialect) for column in columns]
    return head + values, group, [(place, process) for place, process in enumerate(processors) if process is not None]


def _renumbered(group: str, first: int) -> str:
    """Shift the numbers of a row's placeholders (PostgreSQL numbers them) by `first`."""
    return _NUMBERED.sub(lambda found: f"${int(found[1]) + first}", group) if "$" in group else group


def _bounded(wait_s: float) -> dict[str, Any]:
    """Return PostgreSQL's own limits: no client waits forever for a lock of a frozen or disconnected gateway."""
    lock_ms = str(int(wait_s * 1000))
    idle_ms = str(int(wait_s * 4000))
    return {
        "command_timeout": wait_s * 12,
        "server_settings": {"lock_timeout": lock_ms, "idle_in_transaction_session_timeout": idle_ms},
    }


def _begin_sqlite(connection: sa.Connection) -> None:
    """Take SQLite's write lock at the start of a writing transaction; upgrading a reading one could fail half-way."""
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _upgrade(connection: sa.Connection) -> None:
    """Run Alembic inside the open transaction, so that a migration is atomic."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError:
        raise DatabaseBroken("it was made by a newer release; use that release or a separate database") from None
