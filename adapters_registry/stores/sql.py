"""`AdapterStore` on SQL. Statements are portable between SQLite and PostgreSQL.

Every method is one transaction. Only one writer runs at a time (see `database`), so the rows it reads do not change
during its transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters_registry.errors import AdapterNotFound, DatabaseBroken, NameTaken, NotRetired, WrongState
from adapters_registry.records import (
    AT_ONCE,
    NOBODY,
    AdapterRecord,
    AuditEntry,
    Card,
    Change,
    LibraryChanges,
    ProbeReport,
    Publication,
    Transition,
    utc_now,
)
from adapters_registry.states import OVER, TRANSITIONS, AdapterState, may_become
from adapters_registry.stores.audit import note_change
from adapters_registry.stores.base import AdapterStore
from adapters_registry.stores.database import Database
from adapters_registry.stores.tables import adapters, audit, examples, library

_MAX_IDS_PER_QUERY = 500  # SQLite limits the number of parameters

_MADE_ROOM_FOR = {AdapterState.ACTIVE: AdapterState.DRAINING, AdapterState.CANARY: AdapterState.READY}
"""States that only one version of a name can have, and the next state of the version that leaves it."""

_NEXT_TO_END = {
    AdapterState.REGISTERED: AdapterState.REJECTED,
    AdapterState.VALIDATING: AdapterState.REJECTED,
    AdapterState.READY: AdapterState.RETIRED,
    AdapterState.CANARY: AdapterState.DRAINING,
    AdapterState.ACTIVE: AdapterState.DRAINING,
    AdapterState.DRAINING: AdapterState.RETIRED,
}

_ACTIONS = {
    AdapterState.REGISTERED: "register",
    AdapterState.VALIDATING: "validate",
    AdapterState.READY: "ready",
    AdapterState.CANARY: "canary",
    AdapterState.ACTIVE: "activate",
    AdapterState.DRAINING: "drain",
    AdapterState.RETIRED: "retire",
    AdapterState.REJECTED: "reject",
}


class SqlAdapterStore(AdapterStore):
    """Adapters' records in a `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, name: str, version: str | None = None) -> AdapterRecord | None:
        async def work(connection: AsyncConnection) -> AdapterRecord | None:
            row = await _find_row(connection, name, version)
            return None if row is None else (await _to_records(connection, [row]))[0]

        return await self._database.read(work)

    async def list(self, *states: AdapterState) -> tuple[AdapterRecord, ...]:
        return await self._database.read(lambda connection: _listed(connection, states))

    async def revision(self) -> int:
        return await self._database.read(_revision)

    async def changes(self, since: int, *states: AdapterState) -> LibraryChanges:
        # Writers take turns, so no change ever appears below a number that was returned before.
        async def work(connection: AsyncConnection) -> LibraryChanges:
            newest = (await connection.execute(sa.select(sa.func.max(audit.c.id)))).scalar() or 0
            subjects = await _subjects_since(connection, since) if 0 < since <= newest else None
            keys: frozenset[str] = frozenset()
            if subjects is None:
                records = await _listed(connection, states)
            else:
                keys = frozenset(subject for subject in subjects if "@" not in subject)
                versions = {subject.rpartition("@")[2] for subject in subjects - keys}
                query = sa.select(adapters).where(adapters.c.version.in_(versions))
                rows = [r for r in await connection.execute(query) if f"{r.name}@{r.version}" in subjects]
                records = await _to_records(connection, rows)
            revision = await _revision(connection)
            return LibraryChanges(revision, newest, records, is_whole=subjects is None, keys=keys)

        return await self._database.read(work)

    async def register(self, record: AdapterRecord, change: Change = NOBODY) -> AdapterRecord:
        async def work(connection: AsyncConnection) -> AdapterRecord:
            await _register(connection, record, change, utc_now())
            return await _reread(connection, record.name, record.version)

        return await self._database.write(work)

    async def activate(self, record: AdapterRecord, change: Change = NOBODY) -> AdapterRecord:
        async def work(connection: AsyncConnection) -> AdapterRecord:
            now = utc_now()
            row = await _register(connection, record, change, now)
            if AdapterState(row.state) is AdapterState.REGISTERED:
                row = await _move(connection, row, AdapterState.READY, change, now)
            await _move(connection, row, AdapterState.ACTIVE, change, now)
            return await _reread(connection, record.name, record.version)

        return await self._database.write(work)

    async def move(self, name: str, version: str, transition: Transition, change: Change = NOBODY) -> AdapterRecord:
        async def work(connection: AsyncConnection) -> AdapterRecord:
            row = await _required_row(connection, name, version)
            if transition.expected is not None and row.state != transition.expected:
                raise _wrong_state(row, transition.state)
            more: dict[str, object] = {"share": transition.share} if transition.state is AdapterState.CANARY else {}
            if transition.report is not None:
                more["report"] = transition.report.as_json()
            now = utc_now()
            for step in transition.through:
                row = await _move(connection, row, step, change, now)
            await _move(connection, row, transition.state, change, now, **more)
            return await _reread(connection, name, version)

        return await self._database.write(work)

    async def retire(self, name: str, version: str, change: Change = NOBODY) -> AdapterRecord:
        async def work(connection: AsyncConnection) -> AdapterRecord:
            row = await _required_row(connection, name, version)
            if row.state in OVER:
                raise AdapterNotFound(f"{name}@{version}")
            now = utc_now()
            while row.state not in OVER:
                row = await _move(connection, row, _NEXT_TO_END[AdapterState(row.state)], change, now)
            return await _reread(connection, name, version)

        return await self._database.write(work)

    async def set_examples(self, name: str, version: str, examples: Sequence[str], *, actor: str = "") -> AdapterRecord:
        async def work(connection: AsyncConnection) -> AdapterRecord:
            row = await _required_row(connection, name, version)
            if row.state in OVER:
                raise AdapterNotFound(f"{name}@{version}")
            now = utc_now()
            if await _replace_examples(connection, row.id, examples):
                await _update(connection, row.id, now)
                await note_change(connection, "examples", f"{name}@{version}", actor, now)
            return await _reread(connection, name, version)

        return await self._database.write(work)

    async def versions(self, name: str) -> tuple[AdapterRecord, ...]:
        async def work(connection: AsyncConnection) -> tuple[AdapterRecord, ...]:
            query = sa.select(adapters).where(adapters.c.name == name).order_by(adapters.c.id.desc())
            return await _to_records(connection, (await connection.execute(query)).all())

        return await self._database.read(work)

    async def audit(
        self, name: str | None = None, *, limit: int = 100, before: int | None = None
    ) -> tuple[AuditEntry, ...]:
        async def work(connection: AsyncConnection) -> tuple[AuditEntry, ...]:
            query = sa.select(audit).order_by(audit.c.id.desc()).limit(limit)
            if name is not None:
                whole = audit.c.subject == name
                query = query.where(whole | audit.c.subject.startswith(f"{name}@", autoescape=True))
            if before is not None:
                query = query.where(audit.c.id < before)
            return tuple(_to_entry(row) for row in await connection.execute(query))

        return await self._database.read(work)

    async def contents_in_use(self) -> frozenset[str]:
        async def work(connection: AsyncConnection) -> frozenset[str]:
            query = sa.select(adapters.c.sha256).where(adapters.c.purged_at.is_(None))
            return frozenset((await connection.execute(query)).scalars())

        return await self._database.read(work)

    async def mark_purged(self, name: str, version: str, *, actor: str = "") -> str:
        async def work(connection: AsyncConnection) -> str:
            row = await _required_row(connection, name, version)
            if row.state not in OVER:
                raise NotRetired(f"{name}@{version}")
            now = utc_now()
            if row.purged_at is None:
                await _update(connection, row.id, now, purged_at=now)
                await note_change(connection, "purge", f"{name}@{version}", actor, now)
            return str(row.sha256)

        return await self._database.write(work)


# -- statements -----------------------------------------------------------------------------------------------------


async def _revision(connection: AsyncConnection) -> int:
    return int((await connection.execute(sa.select(library.c.revision))).scalar_one())


async def _listed(connection: AsyncConnection, states: Sequence[AdapterState]) -> tuple[AdapterRecord, ...]:
    query = sa.select(adapters).order_by(adapters.c.name, adapters.c.id)
    if states:
        query = query.where(adapters.c.state.in_([state.value for state in states]))
    return await _to_records(connection, (await connection.execute(query)).all())


async def _subjects_since(connection: AsyncConnection, number: int) -> frozenset[str] | None:
    """Return the ids of versions and keys changed after `number`; None if there are too many for one query."""
    query = sa.select(audit.c.subject).where(audit.c.id > number).distinct().limit(_MAX_IDS_PER_QUERY + 1)
    subjects = frozenset((await connection.execute(query)).scalars())
    return subjects if len(subjects) <= _MAX_IDS_PER_QUERY else None


async def _find_row(connection: AsyncConnection, name: str, version: str | None) -> sa.Row[Any] | None:
    query = sa.select(adapters).where(adapters.c.name == name)
    if version is None:
        query = query.where(adapters.c.state == AdapterState.ACTIVE.value)
    else:
        query = query.where(adapters.c.version == version)
    return (await connection.execute(query)).one_or_none()


async def _required_row(connection: AsyncConnection, name: str, version: str) -> sa.Row[Any]:
    row = await _find_row(connection, name, version)
    if row is None:
        raise AdapterNotFound(f"{name}@{version}")
    return row


async def _refuse_collision(connection: AsyncConnection, record: AdapterRecord) -> None:
    """Refuse a version whose first 8 digits another content has: engines identify contents by them, across names."""
    other = sa.select(adapters.c.name).where(adapters.c.version == record.version, adapters.c.sha256 != record.sha256)
    if (name := (await connection.execute(other.limit(1))).scalar()) is not None:
        why = f"{name}@{record.version} has other content with the same first digits; train or save it again."
        raise NameTaken(record.expert_id, why)


async def _register(connection: AsyncConnection, record: AdapterRecord, change: Change, now: datetime) -> sa.Row[Any]:
    """Insert or update the version's row; one that was retired or rejected starts again."""
    await _refuse_collision(connection, record)
    existing = await _find_row(connection, record.name, record.version)
    record = await _with_tenant(connection, record)
    if existing is None:
        await _insert(connection, record, now)
        states = (None, AdapterState.REGISTERED.value)
        await note_change(
            connection, "register", record.expert_id, change.actor, now, states=states, reason=change.reason
        )
        return await _required_row(connection, record.name, record.version)
    if may_become(AdapterState(existing.state), AdapterState.REGISTERED) and existing.state != AdapterState.VALIDATING:
        existing = await _move(connection, existing, AdapterState.REGISTERED, change, now, purged_at=None, report=None)
    await _update_description(connection, existing, record, change, now)
    return await _required_row(connection, record.name, record.version)


async def _with_tenant(connection: AsyncConnection, record: AdapterRecord) -> AdapterRecord:
    """Return the record with its name's tenant if its card does not name one.

    The tenant is that of the same version if it is known, else of the active version, else of the newest.
    """
    if record.card.tenant is not None:
        return record
    is_same, is_active = adapters.c.version == record.version, adapters.c.state == AdapterState.ACTIVE.value
    query = sa.select(adapters.c.card).where(adapters.c.name == record.name)
    nearest = query.order_by(is_same.desc(), is_active.desc(), adapters.c.id.desc()).limit(1)
    card = (await connection.execute(nearest)).scalar_one_or_none()
    tenant = None if card is None else card.get("tenant")
    return record if tenant is None else replace(record, card=record.card.model_copy(update={"tenant": tenant}))


async def _move(
    connection: AsyncConnection,
    row: sa.Row[Any],
    state: AdapterState,
    change: Change,
    now: datetime,
    **values: object,
) -> sa.Row[Any]:
    """Take a version to a state, and the version that held a unique state out of it. The same state is not a change.

    Raises WrongState if `TRANSITIONS` has no such step.
    """
    before = AdapterState(row.state)
    if before is state and (state is not AdapterState.CANARY or values.get("share") == row.share):
        return row
    if before is not state and not may_become(before, state):
        raise _wrong_state(row, state)
    if state is AdapterState.ACTIVE and row.purged_at is not None:
        raise WrongState(f"{row.name}@{row.version}", "retired and without its files", "active", ["registered"])
    if before is not state and state in _MADE_ROOM_FOR:
        query = sa.select(adapters).where(adapters.c.name == row.name, adapters.c.state == state.value)
        if (other := (await connection.execute(query)).one_or_none()) is not None:
            because = Change(change.actor, f"replaced by {row.name}@{row.version}")
            await _move(connection, other, _MADE_ROOM_FOR[state], because, now)
    await _update(connection, row.id, now, **({"share": None, "state": state.value} | values))
    states = (before.value, state.value)
    subject = f"{row.name}@{row.version}"
    await note_change(connection, _ACTIONS[state], subject, change.actor, now, states=states, reason=change.reason)
    return await _required_row(connection, row.name, row.version)


def _wrong_state(row: sa.Row[Any], wanted: AdapterState) -> WrongState:
    state = AdapterState(row.state)
    return WrongState(f"{row.name}@{row.version}", state.value, wanted.value, [s.value for s in TRANSITIONS[state]])


async def _insert(connection: AsyncConnection, record: AdapterRecord, now: datetime) -> None:
    values = {
        "name": record.name,
        "version": record.version,
        "sha256": record.sha256,
        "state": AdapterState.REGISTERED.value,
        "publish": record.publish.model_dump(),
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
    connection: AsyncConnection, existing: sa.Row[Any], record: AdapterRecord, change: Change, now: datetime
) -> None:
    """Update card, examples and publication of a version that is registered again."""
    card, publish = record.card.model_dump(), record.publish.model_dump()
    changed_examples = await _replace_examples(connection, existing.id, record.examples)
    if changed_examples or existing.card != card or (existing.publish or AT_ONCE.model_dump()) != publish:
        await _update(connection, existing.id, now, card=card, publish=publish)
        await note_change(connection, "describe", record.expert_id, change.actor, now, reason=change.reason)


async def _replace_examples(connection: AsyncConnection, adapter_id: int, texts: Sequence[str]) -> bool:
    """Store these examples; returns False if they are unchanged."""
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
    """Convert rows to records, with their examples."""
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
        publish=Publication.model_validate(row.publish),
        share=row.share,
        report=None if row.report is None else ProbeReport.model_validate(row.report),
        is_purged=row.purged_at is not None,
    )


def _to_entry(row: sa.Row[Any]) -> AuditEntry:
    return AuditEntry(row.id, row.at, row.actor, row.action, row.subject, row.from_state, row.to_state, row.reason)
