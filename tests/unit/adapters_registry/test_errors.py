from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import DBAPIError, OperationalError

from adapters_registry import errors
from adapters_registry.errors import (
    MAX_PROBLEMS,
    DatabaseBroken,
    DatabaseBusy,
    InvalidAdapter,
    Problem,
    StorageFull,
    quote,
)
from adapters_registry.stores.database_errors import translate


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or ""))
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.RegistryError) and value is not errors.RegistryError
    }
    assert drawn == defined


def test_long_lists_are_counted() -> None:
    error = InvalidAdapter([Problem(f"tensor {i}", "is bad", "Fix it.") for i in range(500)])
    assert len(error.problems) == MAX_PROBLEMS + 1
    assert "450 more" in error.problems[-1].what


def test_quotes_are_short_and_printable() -> None:
    assert quote("a\n\u202e\x1b[31m").isprintable()
    assert len(quote("x" * 10_000)) < 200


class PostgresError(Exception):
    def __init__(self, sqlstate: str) -> None:
        self.sqlstate = sqlstate


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("text that says nothing")
    error.sqlite_errorcode, error.sqlite_errorname = code, "NAME"
    return error


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (sqlite_error(sqlite3.SQLITE_BUSY), DatabaseBusy),
        (sqlite_error(sqlite3.SQLITE_BUSY_SNAPSHOT), DatabaseBusy),
        (sqlite_error(sqlite3.SQLITE_CORRUPT), DatabaseBroken),
        (sqlite_error(sqlite3.SQLITE_NOTADB), DatabaseBroken),
        (sqlite_error(sqlite3.SQLITE_IOERR), DatabaseBroken),
        (sqlite_error(sqlite3.SQLITE_FULL), StorageFull),
        (PostgresError("40P01"), DatabaseBusy),
        (PostgresError("08006"), DatabaseBusy),
        (PostgresError("57P03"), DatabaseBusy),
        (PostgresError("53100"), StorageFull),
        (PostgresError("42P01"), DatabaseBroken),
        (PostgresError("XX001"), DatabaseBroken),
        (AsyncAdapt_asyncpg_dbapi.InternalClientError("says nothing"), DatabaseBusy),  # type: ignore[no-untyped-call]
        (ConnectionRefusedError(111, "Connection refused"), DatabaseBusy),
    ],
)
def test_faults_are_told_apart_by_code(cause: Exception, expected: type[Exception]) -> None:
    assert isinstance(translate(cause, Path("x")), expected)
    assert isinstance(translate(OperationalError("SELECT 1", None, cause), Path("x")), expected)


def test_what_is_not_the_databases_fault() -> None:
    assert translate(ValueError("x"), Path("x")) is None
    assert translate(DatabaseBusy("x"), Path("x")) is None
    assert isinstance(translate(DBAPIError("SELECT 1", None, Exception("x")), Path("x")), DatabaseBroken)
