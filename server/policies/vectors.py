"""Embeddings of the library's examples on disk, so that a restarted gateway follows its library at once.

One SQLite file has a row for each embedder and text: hashes and vectors, no text. The file is a cache. Vectors that
cannot be read are computed again, and vectors that cannot be written are not kept; the log reports both. Prompts of
clients are never stored here. All methods block.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import structlog

from routers.base import Vector

_BUSY_S = 30.0
_TABLE = """CREATE TABLE IF NOT EXISTS vectors (
    embedder TEXT NOT NULL, text_hash BLOB NOT NULL, vector BLOB NOT NULL, PRIMARY KEY (embedder, text_hash)
)"""

log = structlog.get_logger(__name__)


class VectorStore:
    """A cache of embeddings in an SQLite file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, embedder: str, texts: Iterable[str], dim: int) -> dict[str, Vector]:
        """Return the vectors, shape (dim,), float32, of those texts that are known."""
        found: dict[str, Vector] = {}

        def read(connection: sqlite3.Connection) -> None:
            query = "SELECT vector FROM vectors WHERE embedder=? AND text_hash=?"
            for text in texts:
                row = connection.execute(query, (embedder, _hash(text))).fetchone()
                if row and len(row[0]) == 4 * dim:
                    found[text] = np.frombuffer(row[0], "<f4")

        self._use("read", read)
        return found

    def add(self, embedder: str, vectors: Mapping[str, Vector]) -> None:
        """Store the vectors of texts."""
        rows = [(embedder, _hash(text), np.asarray(row, "<f4").tobytes()) for text, row in vectors.items()]
        self._use("kept", lambda it: it.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows))

    def keep_only(self, embedder: str, texts: Iterable[str]) -> None:
        """Delete the vectors of all other texts."""
        kept = {_hash(text) for text in texts}

        def forget(connection: sqlite3.Connection) -> None:
            known = connection.execute("SELECT text_hash FROM vectors WHERE embedder=?", (embedder,)).fetchall()
            gone = [(embedder, digest) for (digest,) in known if digest not in kept]
            connection.executemany("DELETE FROM vectors WHERE embedder=? AND text_hash=?", gone)

        self._use("forgotten", forget)

    def _use(self, purpose: str, work: Callable[[sqlite3.Connection], object]) -> None:
        """Do work on the file in one transaction; log an error instead of raising it."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=_BUSY_S)) as connection, connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute(_TABLE)
                work(connection)
        except (sqlite3.Error, OSError) as error:
            log.warning(f"stored embeddings are not {purpose}", file=str(self._path), error=str(error))
            if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                self._path.unlink(missing_ok=True)  # the next use creates a new file


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
