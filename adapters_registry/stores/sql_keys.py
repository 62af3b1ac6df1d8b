"""`KeyStore` on SQL."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters_registry.errors import KeyNotFound, NameTaken
from adapters_registry.key_limits import KeyLimits
from adapters_registry.records import KeyRecord, utc_now
from adapters_registry.stores.audit import note_change
from adapters_registry.stores.base import KeyStore
from adapters_registry.stores.database import Database
from adapters_registry.stores.tables import api_keys
from adapters_registry.visibility import Sight


class SqlKeyStore(KeyStore):
    """API keys in a `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, key: KeyRecord, *, actor: str = "") -> KeyRecord:
        async def work(connection: AsyncConnection) -> KeyRecord:
            if await _find(connection, key.key_id) is not None:
                raise NameTaken(key.key_id, "create the key again to get another id.")
            values = {
                "key_id": key.key_id,
                "name": key.name,
                "hash": key.hash,
                "scopes": sorted(key.scopes),
                "experts": list(key.sight.experts),
                "created_at": key.created_at,
                "revoked_at": key.revoked_at,
                "expires_at": key.expires_at,
                "policies": list(key.sight.policies),
                "limits": key.limits.model_dump(exclude_none=True),
                "tags": list(key.sight.tags),
                "tenant": key.sight.tenant,
            }
            await connection.execute(sa.insert(api_keys).values(**values))
            await note_change(connection, "key-create", key.key_id, actor, utc_now())
            return key

        return await self._database.write(work)

    async def find(self, key_id: str) -> KeyRecord | None:
        async def work(connection: AsyncConnection) -> KeyRecord | None:
            return await _find(connection, key_id)

        return await self._database.read(work)

    async def list(self) -> tuple[KeyRecord, ...]:
        async def work(connection: AsyncConnection) -> tuple[KeyRecord, ...]:
            query = sa.select(api_keys).order_by(api_keys.c.created_at, api_keys.c.key_id)
            return tuple(_to_record(row) for row in await connection.execute(query))

        return await self._database.read(work)

    async def replace_secret(self, key_id: str, digest: str, *, actor: str = "") -> KeyRecord:
        async def work(connection: AsyncConnection) -> KeyRecord:
            key = await _find(connection, key_id)
            if key is None or key.revoked_at is not None:
                raise KeyNotFound(key_id)
            mine = api_keys.c.key_id == key_id
            await connection.execute(sa.update(api_keys).where(mine).values(hash=digest))
            await note_change(connection, "key-rotate", key_id, actor, utc_now())
            return await _find(connection, key_id) or key

        return await self._database.write(work)

    async def revoke(self, key_id: str, *, actor: str = "") -> KeyRecord:
        async def work(connection: AsyncConnection) -> KeyRecord:
            key = await _find(connection, key_id)
            if key is None:
                raise KeyNotFound(key_id)
            if key.revoked_at is None:
                now = utc_now()
                mine = api_keys.c.key_id == key_id
                await connection.execute(sa.update(api_keys).where(mine).values(revoked_at=now))
                await note_change(connection, "key-revoke", key_id, actor, now)
            return await _find(connection, key_id) or key

        return await self._database.write(work)


async def _find(connection: AsyncConnection, key_id: str) -> KeyRecord | None:
    row = (await connection.execute(sa.select(api_keys).where(api_keys.c.key_id == key_id))).one_or_none()
    return None if row is None else _to_record(row)


def _to_record(row: sa.Row[Any]) -> KeyRecord:
    return KeyRecord(
        key_id=row.key_id,
        name=row.name,
        hash=row.hash,
        scopes=frozenset(row.scopes),
        sight=Sight(tuple(row.experts), tuple(row.policies), tuple(row.tags), row.tenant),
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        expires_at=row.expires_at,
        limits=KeyLimits.model_validate(row.limits),
    )
