"""What every change leaves behind: a line in the audit and a higher revision, in the same transaction."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters_registry.stores.tables import audit, library

_MAX_ACTOR_CHARS = 200


async def note_change(connection: AsyncConnection, action: str, subject: str, actor: str, now: datetime) -> None:
    """Record that `actor` did `action` to `subject`, and raise the library's revision."""
    who = actor.replace("\0", "")[:_MAX_ACTOR_CHARS]
    await connection.execute(sa.insert(audit).values(at=now, actor=who, action=action, subject=subject))
    await connection.execute(sa.update(library).values(revision=library.c.revision + 1))
