"""What models answered, kept on disk by content, so that nothing is generated or scored twice.

One SQLite file; a row is written when its answer is there, so that work goes on where it was interrupted. Keys are
hashes of everything that an answer depends on. Several processes may use one file.
"""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from server.engine.base_model import default_cache_dir

_BUSY_S = 30.0


class ResultCache:
    """A file of results; use it as a context, in one thread."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute("CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, value BLOB NOT NULL)")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def get(self, key: str) -> dict[str, Any] | None:
        """A result, or None."""
        row = self._connection.execute("SELECT value FROM results WHERE key = ?", (key,)).fetchone()
        return None if row is None else orjson.loads(row[0])

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Keep a result; a later one replaces it."""
        self._connection.execute("INSERT OR REPLACE INTO results VALUES (?, ?)", (key, orjson.dumps(value)))


def key_of(*parts: object) -> str:
    """The key of a result that depends on these parts, which JSON can write."""
    return hashlib.sha256(orjson.dumps(parts)).hexdigest()


def results_file() -> Path:
    """Where the command line keeps results, in the user's cache folder."""
    return default_cache_dir() / "results.sqlite"
