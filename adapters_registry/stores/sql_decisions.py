"""`DecisionStore` and `FeedbackStore` on SQL: rows are only added, and deleted when they are old.

A condition without an index examines at most `MAX_EXAMINED` rows from the start of a page, so that no query reads a
whole large table. The page then says where to continue.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters_registry.decisions import (
    MAX_COMMENT_CHARS,
    MAX_PAGE,
    MAX_TEXT_CHARS,
    DecisionPage,
    DecisionQuery,
    DecisionRecord,
    Feedback,
)
from adapters_registry.stores.base import DecisionStore, FeedbackStore
from adapters_registry.stores.database import Database, insert_rows, insertion
from adapters_registry.stores.tables import decisions, feedback

MAX_EXAMINED = 20_000
CHUNK = 50
"""Rows per statement. More would block the event loop for milliseconds; fewer would make SQLite's thread and the event
loop wait for each other's interpreter lock at every row."""

_MOST_TOKENS = 2**53  # an engine may report any number
_OPINION = ("at", "rating", "comment", "expert")


class SqlDecisionStore(DecisionStore, FeedbackStore):
    """Decisions and feedback in a `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, made: Sequence[DecisionRecord]) -> None:
        rows = [_row(decision) for decision in made]

        async def work(connection: AsyncConnection) -> None:
            for start in range(0, len(rows), CHUNK):
                await insert_rows(connection, decisions, rows[start : start + CHUNK])

        if rows:
            await self._database.count(work)

    async def recent(self, query: DecisionQuery) -> DecisionPage:
        limit = min(query.limit, MAX_PAGE)

        async def work(connection: AsyncConnection) -> DecisionPage:
            last = await _last_examined(connection, query)
            wanted = _wanted(query, last).limit(limit + 1)
            found = [_decision(row) for row in (await connection.execute(wanted)).mappings()]
            if len(found) > limit:
                return DecisionPage(tuple(found[:limit]), found[limit - 1].number)
            return DecisionPage(tuple(found), last)

        return await self._database.read(work)

    async def prune(self, before: datetime, most: int) -> int:
        async def work(connection: AsyncConnection) -> int:
            num = 0
            for table in (decisions, feedback):
                key = table.primary_key.columns.values()
                old = sa.select(*key).where(table.c.at < before).order_by(table.c.at).limit(most)
                num += (await connection.execute(sa.delete(table).where(sa.tuple_(*key).in_(old)))).rowcount
            return num

        return await self._database.count(work)

    async def rate(self, opinion: Feedback) -> tuple[DecisionRecord, bool] | None:
        query = DecisionQuery(1, key_id=opinion.key_id, request_id=opinion.request_id)
        if not (await self.recent(query)).decisions:  # read first, so that no writer waits for an unknown id
            return None

        async def work(connection: AsyncConnection) -> tuple[DecisionRecord, bool] | None:
            row = (await connection.execute(_wanted(query, None).limit(1))).mappings().one_or_none()
            if row is None:
                return None
            values = {name: getattr(opinion, name) for name in _OPINION}
            values["comment"] = _storable(opinion.comment, MAX_COMMENT_CHARS)
            place = {"key_id": opinion.key_id, "request_id": opinion.request_id}
            statement = insertion(connection, feedback).values(**place, **values)
            await connection.execute(statement.on_conflict_do_update(index_elements=list(place), set_=values))
            decided = _decision(row)
            return decided, decided.feedback is None

        return await self._database.count(work)


async def _last_examined(connection: AsyncConnection, query: DecisionQuery) -> int | None:
    """Return the row number at which a scan without an index ends; None if there is no such condition or end."""
    searched = (query.policy, query.expert, query.abstained, query.key_id, query.rated)
    if query.request_id is not None or query.embedded or all(condition is None for condition in searched):
        return None
    start = sa.select(decisions.c.number).order_by(decisions.c.number.desc()).offset(MAX_EXAMINED - 1).limit(1)
    if query.before is not None:
        start = start.where(decisions.c.number < query.before)
    return (await connection.execute(start)).scalar_one_or_none()


def _wanted(query: DecisionQuery, last: int | None) -> sa.Select[Any]:
    columns = [column for column in decisions.c if query.embedded or column.name != "embedding"]
    opinion = [feedback.c[name].label(f"opinion_{name}") for name in _OPINION]
    same = sa.and_(feedback.c.key_id == decisions.c.key_id, feedback.c.request_id == decisions.c.request_id)
    found = sa.select(*columns, *opinion).select_from(decisions.outerjoin(feedback, same))
    for name in ("policy", "key_id", "request_id", "abstained"):
        if (value := getattr(query, name)) is not None:
            found = found.where(decisions.c[name] == value)
    if query.before is not None:
        found = found.where(decisions.c.number < query.before)
    if query.since is not None:
        found = found.where(decisions.c.at >= query.since)
    if query.expert is not None:
        found = found.where(decisions.c.experts.contains(_as_kept(query.expert), autoescape=True))
    if query.rated is not None:
        found = found.where(feedback.c.rating.is_not(None) if query.rated else feedback.c.rating.is_(None))
    if query.embedded:
        found = found.where(decisions.c.embedding.is_not(None))
    if last is not None:
        found = found.where(decisions.c.number >= last)
    return found.order_by(decisions.c.number.desc())


def _as_kept(expert: str) -> str:
    """Return the text that the column `experts` contains if this expert is among them."""
    return f" {expert} " if "@" in expert else f" {expert}@"


def _row(decision: DecisionRecord) -> dict[str, Any]:
    return {
        "request_id": decision.request_id,
        "at": decision.at,
        "key_id": decision.key_id,
        "endpoint": decision.endpoint,
        "kind": decision.kind,
        "policy": _storable(decision.policy, 63),
        "recipe": decision.recipe,
        "experts": f" {' '.join(decision.experts)} ",
        "confidence": decision.confidence,
        "abstained": decision.abstained,
        "status": decision.status,
        "input_tokens": min(decision.input_tokens, _MOST_TOKENS),
        "output_tokens": min(decision.output_tokens, _MOST_TOKENS),
        "duration_ms": decision.duration_ms,
        "ttft_ms": decision.ttft_ms,
        "cost": decision.cost,
        "text": _storable(decision.text, MAX_TEXT_CHARS),
        "embedder": _storable(decision.embedder, 255),
        "embedding": decision.embedding,
    }


def _decision(row: sa.RowMapping) -> DecisionRecord:
    values = {name: value for name, value in row.items() if not name.startswith("opinion_")}
    opinion = None
    if row["opinion_at"] is not None:
        given = {name: row[f"opinion_{name}"] for name in _OPINION}
        opinion = Feedback(row["key_id"], row["request_id"], **given)
    return DecisionRecord(**values | {"experts": tuple(row["experts"].split())}, feedback=opinion)


def _storable(text: str | None, most: int) -> str | None:
    """Make a text storable in every database: bounded, without NUL (PostgreSQL) and lone surrogates (UTF-8)."""
    return None if text is None else text[:most].replace("\0", "\ufffd").encode("utf-8", "replace").decode()
