"""The trace of every change: an audit entry and a higher revision, in the same transaction."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters_registry.stores.tables import audit, library

_MAX_ACTOR_CHARS = 200
_MAX_REASON_CHARS = 2000


async def note_change(
    connection: AsyncConnection,
    action: str,
    subject: str,
    actor: str,
    now: datetime,
    *,
    states: tuple[str | None, str | None] = (None, None),
    reason: str = "",
) -> None:
    """Record that `actor` did `action` to `subject`, and increase the library's revision."""
    who = actor.replace("\0", "")[:_MAX_ACTOR_CHARS]
    why = reason.replace("\0", "")[:_MAX_REASON_CHARS]
    line = {"at": now, "actor": who, "action": action, "subject": subject, "reason": why}
    await connection.execute(sa.insert(audit).values(from_state=states[0], to_state=states[1], **line))
    await connection.execute(sa.update(library).values(revision=library.c.revision + 1))
