from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy.ext.asyncio import AsyncConnection

import adapters_registry
from adapters_registry.disk.safe_files import sha256_of
from adapters_registry.errors import DatabaseBroken, DatabaseBusy, StorageUnwritable
from adapters_registry.keys import new_key
from adapters_registry.stores.database import Database
from adapters_registry.stores.sql import SqlAdapterStore
from adapters_registry.stores.sql_keys import SqlKeyStore
from adapters_registry.stores.tables import metadata


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "registry.sqlite3"


@pytest.fixture
async def database(file: Path) -> AsyncIterator[Database]:
    made = Database(f"sqlite:///{file}", busy_timeout_s=0.05, max_attempts=2)
    await made.migrate()
    yield made
    await made.close()


async def test_migrations_make_the_tables_that_the_code_knows(database: Database) -> None:
    def differences(connection: sa.Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async def work(connection: AsyncConnection) -> list[object]:
        return await connection.run_sync(differences)

    assert await database.read(work) == []


async def test_settings_that_make_writes_durable(database: Database) -> None:
    async def work(connection: AsyncConnection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [(await connection.execute(sa.text(f"PRAGMA {name}"))).scalar_one() for name in names]

    assert await database.read(work) == ["wal", 2, 1]


async def test_migrating_again_is_nothing(database: Database) -> None:
    await database.migrate()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_several_may_open_a_new_database_at_once(file: Path, kind: str, request: pytest.FixtureRequest) -> None:
    url = f"sqlite:///{file}" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    script = (
        "import asyncio, sys\n"
        "from adapters_registry.stores.database import Database\n"
        "async def main():\n"
        "    database = Database(sys.argv[1])\n"
        "    await database.migrate()\n"
        "    await database.close()\n"
        "asyncio.run(main())\n"
    )
    root = Path(adapters_registry.__file__).parents[1]
    processes = [await asyncio.create_subprocess_exec(sys.executable, "-c", script, url, cwd=root) for _ in range(4)]
    assert await asyncio.gather(*(process.wait() for process in processes)) == [0] * 4


async def test_going_back_before_tags_and_tenants_opens_nothing_to_their_keys(file: Path, database: Database) -> None:
    keys = SqlKeyStore(database)
    (free, _), (tagged, _), (tenants, _) = new_key("a"), new_key("b", tags=["x"]), new_key("c", tenant="bank")
    for key in (free, tagged, tenants):
        await keys.add(key)
    await database.close()
    engine = sa.create_engine(f"sqlite:///{file}")
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(adapters_registry.__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.downgrade(config, "0005")
        columns = {each["name"] for each in sa.inspect(connection).get_columns("api_keys")}
        query = "SELECT key_id FROM api_keys WHERE revoked_at IS NULL"
        assert connection.scalars(sa.text(query)).all() == [free.key_id]
    engine.dispose()
    assert "policies" in columns
    assert not {"tags", "tenant"} & columns


async def test_a_locked_database_is_busy_and_recovers(file: Path, database: Database) -> None:
    keys = SqlKeyStore(database)
    record, _ = new_key("k")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(DatabaseBusy, match="try again"):
        await keys.add(record)
    assert await keys.list() == ()  # readers go on
    other.execute("ROLLBACK")
    other.close()
    await keys.add(record)
    assert await keys.list() == (record,)


async def test_a_short_lock_is_waited_for(file: Path) -> None:
    database = Database(f"sqlite:///{file}", busy_timeout_s=5)
    await database.migrate()
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    asyncio.get_running_loop().call_later(0.2, other.execute, "ROLLBACK")
    record, _ = new_key("k")
    assert await SqlKeyStore(database).add(record) == record
    other.close()
    await database.close()


def spoil(file: Path, content: bytes, at: int = 0) -> None:
    """Write over a part of a file."""
    raw = bytearray(file.read_bytes()) if file.exists() else bytearray()
    raw[at : at + len(content)] = content
    file.write_bytes(raw)


async def test_a_file_that_is_no_database(file: Path) -> None:
    spoil(file, b"this is not a database" * 100)
    before = sha256_of(file)
    database = Database(f"sqlite:///{file}")
    with pytest.raises(DatabaseBroken, match="backup"):
        await database.migrate()
    await database.close()
    assert sha256_of(file) == before  # it was left as it was


async def test_a_damaged_database(file: Path, database: Database) -> None:
    for _ in range(50):
        await SqlKeyStore(database).add(new_key("k" * 200)[0])
    await database.close()
    spoil(file, b"\xff" * (4096 * 4), at=4096 * 2)
    again = Database(f"sqlite:///{file}")
    with pytest.raises(DatabaseBroken):
        await again.migrate()
    await again.close()


async def test_a_database_of_a_newer_release(database: Database) -> None:
    async def work(connection: AsyncConnection) -> None:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))

    await database.write(work)
    with pytest.raises(DatabaseBroken, match="newer release"):
        await database.migrate()


async def test_places_that_cannot_be_used(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/missing/registry.sqlite3")
    with pytest.raises(StorageUnwritable):
        await database.migrate()
    await database.close()
    for url in ("nonsense", "nosuchdatabase://x/y"):
        with pytest.raises(DatabaseBroken):
            Database(url)


async def test_constraints_back_the_code_up(database: Database) -> None:
    columns = "name, version, sha256, state, card, rank, alpha, target_modules, size_bytes, base_model"
    columns += ", created_at, updated_at"
    values = "'a', '{}', 'x', 'active', '{{}}', 1, 1, '[]', 1, '', '2026-01-01', '2026-01-01'"

    async def insert(version: str) -> None:
        async def work(connection: AsyncConnection) -> None:
            await connection.execute(sa.text(f"INSERT INTO adapters ({columns}) VALUES ({values.format(version)})"))  # noqa: S608

        await database.write(work)

    await insert("1")
    with pytest.raises(sa.exc.IntegrityError):
        await insert("2")


async def test_a_cancelled_writer_leaves_no_lock(database: Database) -> None:
    is_inside, may_go_on = asyncio.Event(), asyncio.Event()

    async def work(connection: AsyncConnection) -> None:
        await connection.execute(sa.text("UPDATE library SET revision = 7"))
        is_inside.set()
        await may_go_on.wait()

    task = asyncio.create_task(database.write(work))
    await is_inside.wait()
    task.cancel()
    asyncio.get_running_loop().call_soon(may_go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    await SqlKeyStore(database).add(new_key("k")[0])
    assert await SqlAdapterStore(database).revision() == 8  # the writer was let finish: never half a change


async def test_a_failed_write_leaves_nothing(database: Database) -> None:
    store = SqlAdapterStore(database)
    revision = await store.revision()

    async def work(connection: AsyncConnection) -> None:
        await connection.execute(sa.text("UPDATE library SET revision = 99"))
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        await database.write(work)
    assert await store.revision() == revision
