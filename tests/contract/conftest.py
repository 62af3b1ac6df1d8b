"""Databases of every kind, empty and migrated, for the contracts of stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters_registry.stores.database import Database


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a new database; a test that asks for it runs once for each kind."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path}/registry.sqlite3"


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    """The database behind `url`, with its tables."""
    made = Database(url)
    await made.migrate()
    yield made
    await made.close()
