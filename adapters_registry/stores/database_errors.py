"""Errors of databases, classified by code (never by message) and translated to registry errors.

SQLite's result codes: https://www.sqlite.org/rescode.html. PostgreSQL's SQLSTATE classes: appendix A of its manual.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from adapters_registry.errors import (
    DatabaseBroken,
    DatabaseBusy,
    RegistryError,
    StorageFull,
    StorageUnwritable,
)

_SQLITE_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_SQLITE_UNWRITABLE = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM})
_SQLITE_PRIMARY = 0xFF

_PG_BUSY_CLASSES = ("08", "40", "53", "55", "57")
"""Connection lost, transaction rolled back, no resources, object in use, operator intervention."""
_PG_DISK_FULL = "53100"
_PG_INTERRUPTED = "InternalClientError"
"""asyncpg's code when the server closed the connection between two statements; the second statement gets it."""


def translate(error: BaseException, place: Path) -> RegistryError | None:
    """Translate a database's error; None if it is not a fault of the database (a constraint, a bug)."""
    if isinstance(error, RegistryError | IntegrityError):
        return None
    if isinstance(error, PoolTimeout):
        return DatabaseBusy("all connections are in use")
    cause: object = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return _from_sqlite(cause, place)
    sqlstate = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if isinstance(sqlstate, str):
        return _from_sqlstate(sqlstate, place)
    if type(cause).__name__ == _PG_INTERRUPTED:
        return DatabaseBusy("it closed the connection")
    if isinstance(cause, OSError):
        return DatabaseBusy(f"it cannot be reached: {cause.strerror or type(cause).__name__}")
    if isinstance(error, DBAPIError):
        return DatabaseBroken(type(cause).__name__)
    return None


def _from_sqlite(error: sqlite3.Error, place: Path) -> RegistryError | None:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return None
    primary = code & _SQLITE_PRIMARY
    if primary in _SQLITE_BUSY:
        return DatabaseBusy("another process holds its lock")
    if primary == sqlite3.SQLITE_FULL:
        return StorageFull(place)
    if primary in _SQLITE_UNWRITABLE:
        return StorageUnwritable(place, error.sqlite_errorname)
    if primary == sqlite3.SQLITE_CONSTRAINT:
        return None
    return DatabaseBroken(error.sqlite_errorname)


def _from_sqlstate(sqlstate: str, place: Path) -> RegistryError | None:
    if sqlstate == _PG_DISK_FULL:
        return StorageFull(place)
    if sqlstate.startswith(_PG_BUSY_CLASSES):
        return DatabaseBusy(f"SQLSTATE {sqlstate}")
    if sqlstate.startswith("23"):  # the store handles integrity constraints
        return None
    return DatabaseBroken(f"SQLSTATE {sqlstate}")
