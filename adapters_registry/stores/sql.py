"""`AdapterStore` on SQL. Statements are portable between SQLite and PostgreSQL.

Every method is one transaction; writers are alone (see `database`), so what they read does not change under them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters_registry.errors import AdapterNotFound, DatabaseBroken, NameTaken, NotRetired
from adapters_registry.records import TRANSITIONS, AdapterRecord, AdapterState, Card, utc_now
from adapters_registry.stores.changes import note_change
from adapters_registry.stores.database import Database
from adapters_registry.stores.tables import adapters, examples, library

_MAX_IDS_PER_QUERY = 500  # SQLite bounds the number of parameters


class SqlAdapterStore:
    """All that is kept about adapters, in a `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- AdapterReader ------------------------------------------------------------------------------------------

    async def find(self, name: str, version: str | None = None) -> AdapterRecord | None:
        """See `AdapterReader.find`."""

        async def work(connection: AsyncConnection) -> AdapterRecord | None:
            row = await _find_row(connection, name, version)
            return None if row is None else (await _to_records(connection, [row]))[0]

        return await self._database.read(work)

    async def list(self, *states: AdapterState) -> tuple[AdapterRecord, ...]:
        """See `AdapterReader.list`."""

        async def work(connection: AsyncConnection) -> tuple[AdapterRecord, ...]:
            query = sa.select(adapters).order_by(adapters.c.name, adapters.c.id)
            if states:
                query = query.where(adapters.c.state.in_([state.value for state in states]))
            return await _to_records(connection, (await connection.execute(query)).all())

        return await self._database.read(work)

    async def revision(self) -> int:
        """See `AdapterReader.revision`."""

        async def work(connection: AsyncConnection) -> int:
            return int((await connection.execute(sa.select(library.c.revision))).scalar_one())

        return await self._database.read(work)

    # -- AdapterWriter ------------------------------------------------------------------------------------------

    async def activate(self, record: AdapterRecord, *, actor: str = "") -> AdapterRecord:
        """See `AdapterWriter.activate`."""

        async def work(connection: AsyncConnection) -> AdapterRecord:
            await _refuse_collision(connection, record)
            now = utc_now()
            existing = await _find_row(connection, record.name, record.version)
            if existing is None:
                await _retire_active(connection, record.name, now, actor)
                await _insert(connection, record, now)
                await note_change(connection, "register", record.expert_id, actor, now)
            elif AdapterState.ACTIVE in TRANSITIONS[AdapterState(existing.state)]:
                await _retire_active(connection, record.name, now, actor)
                await _update(connection, existing.id, now, state=AdapterState.ACTIVE, purged_at=None)
                await note_change(connection, "reactivate", record.expert_id, actor, now)
            if existing is not None:
                await _update_description(connection, existing, record, actor, now)
            return await _reread(connection, record.name, record.version)

        return await self._database.write(work)

    async def retire(self, name: str, version: str, *, actor: str = "") -> AdapterRecord:
        """See `AdapterWriter.retire`."""

        async def work(connection: AsyncConnection) -> AdapterRecord:
            row = await _find_row(connection, name, version)
            if row is None or AdapterState.RETIRED not in TRANSITIONS[AdapterState(row.state)]:
                raise AdapterNotFound(f"{name}@{version}")
            now = utc_now()
            await _update(connection, row.id, now, state=AdapterState.RETIRED)
            await note_change(connection, "retire", f"{name}@{version}", actor, now)
            return await _reread(connection, name, version)

        return await self._database.write(work)

    async def set_examples(self, name: str, version: str, examples: Sequence[str], *, actor: str = "") -> AdapterRecord:
        """See `AdapterWriter.set_examples`."""

        async def work(connection: AsyncConnection) -> AdapterRecord:
            row = await _find_row(connection, name, version)
            if row is None or row.state == AdapterState.RETIRED:
                raise AdapterNotFound(f"{name}@{version}")
            now = utc_now()
            if await _replace_examples(connection, row.id, examples):
                await _update(connection, row.id, now)
                await note_change(connection, "examples", f"{name}@{version}", actor, now)
            return await _reread(connection, name, version)

        return await self._database.write(work)

    # -- ContentLedger ------------------------------------------------------------------------------------------

    async def contents_in_use(self) -> frozenset[str]:
        """See `ContentLedger.contents_in_use`."""

        async def work(connection: AsyncConnection) -> frozenset[str]:
            query = sa.select(adapters.c.sha256).where(adapters.c.purged_at.is_(None))
            return frozenset((await connection.execute(query)).scalars())

        return await self._database.read(work)

    async def mark_purged(self, name: str, version: str, *, actor: str = "") -> str:
        """See `ContentLedger.mark_purged`."""

        async def work(connection: AsyncConnection) -> str:
            row = await _find_row(connection, name, version)
            if row is None:
                raise AdapterNotFound(f"{name}@{version}")
            if row.state != AdapterState.RETIRED:
                raise NotRetired(f"{name}@{version}")
            now = utc_now()
            if row.purged_at is None:
                await _update(connection, row.id, now, purged_at=now)
                await note_change(connection, "purge", f"{name}@{version}", actor, now)
            return str(row.sha256)

        return await self._database.write(work)


# -- statements -----------------------------------------------------------------------------------------------------


async def _find_row(connection: AsyncConnection, name: str, version: str | None) -> sa.Row[Any] | None:
    query = sa.select(adapters).where(adapters.c.name == name)
    if version is None:
        query = query.where(adapters.c.state == AdapterState.ACTIVE.value)
    else:
        query = query.where(adapters.c.version == version)
    return (await connection.execute(query)).one_or_none()


async def _refuse_collision(connection: AsyncConnection, record: AdapterRecord) -> None:
    """Engines tell contents apart by the first 8 digits, across all names."""
    other = sa.select(adapters.c.name).where(adapters.c.version == record.version, adapters.c.sha256 != record.sha256)
    if (name := (await connection.execute(other.limit(1))).scalar()) is not None:
        why = f"{name}@{record.version} has other content with the same first digits; train or save it again."
        raise NameTaken(record.expert_id, why)


async def _retire_active(connection: AsyncConnection, name: str, now: datetime, actor: str) -> None:
    if (row := await _find_row(connection, name, None)) is not None:
        await _update(connection, row.id, now, state=AdapterState.RETIRED)
        await note_change(connection, "retire", f"{name}@{row.version}", actor, now)


async def _insert(connection: AsyncConnection, record: AdapterRecord, now: datetime) -> None:
    values = {
        "name": record.name,
        "version": record.version,
        "sha256": record.sha256,
        "state": AdapterState.ACTIVE.value,
        "card": record.card.model_dump(),
        "rank": record.rank,
        "alpha": record.alpha,
        "target_modules": list(record.target_modules),
        "size_bytes": record.size_bytes,
        "base_model": record.base_model,
        "created_at": now,
        "updated_at": now,
    }
    result = await connection.execute(sa.insert(adapters).values(**values).returning(adapters.c.id))
    await _replace_examples(connection, int(result.scalar_one()), record.examples)


async def _update(connection: AsyncConnection, adapter_id: int, now: datetime, **values: object) -> None:
    await connection.execute(sa.update(adapters).where(adapters.c.id == adapter_id).values(updated_at=now, **values))


async def _update_description(
    connection: AsyncConnection, existing: sa.Row[Any], record: AdapterRecord, actor: str, now: datetime
) -> None:
    """Card and examples of a version that is registered again."""
    card = record.card.model_dump()
    changed_examples = await _replace_examples(connection, existing.id, record.examples)
    if changed_examples or existing.card != card:
        await _update(connection, existing.id, now, card=card)
        await note_change(connection, "describe", record.expert_id, actor, now)


async def _replace_examples(connection: AsyncConnection, adapter_id: int, texts: Sequence[str]) -> bool:
    """Store these examples; False if they are the ones that are there."""
    mine = examples.c.adapter_id == adapter_id
    current = (await connection.execute(sa.select(examples.c.text).where(mine).order_by(examples.c.position))).scalars()
    if list(current) == list(texts):
        return False
    await connection.execute(sa.delete(examples).where(mine))
    if texts:
        rows = [{"adapter_id": adapter_id, "position": i, "text": text} for i, text in enumerate(texts)]
        await connection.execute(sa.insert(examples), rows)
    return True


async def _reread(connection: AsyncConnection, name: str, version: str) -> AdapterRecord:
    row = await _find_row(connection, name, version)
    if row is None:
        raise DatabaseBroken(f"{name}@{version} vanished while it was written")
    return (await _to_records(connection, [row]))[0]


async def _to_records(connection: AsyncConnection, rows: Sequence[sa.Row[Any]]) -> tuple[AdapterRecord, ...]:
    """Rows as records, with their examples."""
    texts: dict[int, list[str]] = {row.id: [] for row in rows}
    ids = list(texts)
    for start in range(0, len(ids), _MAX_IDS_PER_QUERY):
        part = ids[start : start + _MAX_IDS_PER_QUERY]
        query = sa.select(examples).where(examples.c.adapter_id.in_(part))
        for example in await connection.execute(query.order_by(examples.c.adapter_id, examples.c.position)):
            texts[example.adapter_id].append(example.text)
    return tuple(_to_record(row, tuple(texts[row.id])) for row in rows)


def _to_record(row: sa.Row[Any], texts: tuple[str, ...]) -> AdapterRecord:
    return AdapterRecord(
        name=row.name,
        version=row.version,
        sha256=row.sha256,
        state=AdapterState(row.state),
        card=Card.model_validate(row.card),
        examples=texts,
        rank=row.rank,
        alpha=row.alpha,
        target_modules=tuple(row.target_modules),
        size_bytes=row.size_bytes,
        base_model=row.base_model,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
