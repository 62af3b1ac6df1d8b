"""The tables in SQLAlchemy Core. `migrations/` creates them; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """Timezone-aware datetimes in UTC on every database; SQLite itself does not store the zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Refuse naive times; convert to UTC."""
        if value is not None and value.tzinfo is None:
            raise ValueError("a datetime without time zone cannot be stored")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Restore the zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
    }
)

library = sa.Table(
    "library",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
)
"""One row, id 1. Every writing transaction locks it first, so writers on one database take turns."""

adapters = sa.Table(
    "adapters",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(63), nullable=False),
    sa.Column("version", sa.String(8), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("card", sa.JSON, nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("alpha", sa.Double, nullable=False),
    sa.Column("target_modules", sa.JSON, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("base_model", sa.String(255), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column("purged_at", UtcDateTime, nullable=True),
    sa.Column("publish", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("share", sa.Double, nullable=True),
    sa.Column("report", sa.JSON(none_as_null=True), nullable=True),
    sa.UniqueConstraint("name", "version", name="uq_adapters_name_version"),
    sa.Index("ix_adapters_version", "version"),
    sa.Index("ix_adapters_sha256", "sha256"),
    sa.Index(
        "uq_adapters_one_active",
        "name",
        unique=True,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    ),
    sa.Index(
        "uq_adapters_one_canary",
        "name",
        unique=True,
        sqlite_where=sa.text("state = 'canary'"),
        postgresql_where=sa.text("state = 'canary'"),
    ),
)

examples = sa.Table(
    "examples",
    metadata,
    sa.Column("adapter_id", sa.Integer, sa.ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("text", sa.Text, nullable=False),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("key_id", sa.String(8), primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("experts", sa.JSON, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("revoked_at", UtcDateTime, nullable=True),
    sa.Column("expires_at", UtcDateTime, nullable=True),
    sa.Column("policies", sa.JSON, nullable=False, server_default='["*"]'),
    sa.Column("limits", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("tags", sa.JSON, nullable=False, server_default="[]"),
    sa.Column("tenant", sa.String(64), nullable=False, server_default=""),
)

usage = sa.Table(
    "usage",
    metadata,
    sa.Column("key_id", sa.String(8), primary_key=True),
    sa.Column("period", sa.String(8), primary_key=True),
    sa.Column("starts_at", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("cost", sa.Double, nullable=False),
)
"""Usage of keys with limits, by window; not part of the library, so that counting does not increase its revision."""

running = sa.Table(
    "running",
    metadata,
    sa.Column("key_id", sa.String(8), primary_key=True),
    sa.Column("gateway", sa.String(16), primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("seen_at", sa.Double, nullable=False),
)
"""Running requests of keys with `max_concurrency`; `seen_at` is in seconds since 1970, see `sql_running`."""

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("subject", sa.String(255), nullable=False),
    sa.Column("from_state", sa.String(16), nullable=True),
    sa.Column("to_state", sa.String(16), nullable=True),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Index("ix_audit_subject", "subject"),
)
"""Who changed what, and when; append-only."""

decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("request_id", sa.String(64), nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("key_id", sa.String(16), nullable=False),
    sa.Column("endpoint", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(8), nullable=False),
    sa.Column("policy", sa.String(63), nullable=True),
    sa.Column("recipe", sa.Text, nullable=False),
    sa.Column("experts", sa.Text, nullable=False),
    sa.Column("confidence", sa.Double, nullable=True),
    sa.Column("abstained", sa.Boolean, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("input_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
    sa.Column("duration_ms", sa.Double, nullable=False),
    sa.Column("ttft_ms", sa.Double, nullable=True),
    sa.Column("cost", sa.Double, nullable=False),
    sa.Column("text", sa.Text, nullable=True),
    sa.Column("embedder", sa.String(255), nullable=True),
    sa.Column("embedding", sa.LargeBinary, nullable=True),
    sa.Index("ix_decisions_at", "at"),
    sa.Index("ix_decisions_request_id", "request_id"),
    sa.Index(
        "ix_decisions_embedded",
        "number",
        sqlite_where=sa.text("embedding IS NOT NULL"),
        postgresql_where=sa.text("embedding IS NOT NULL"),
    ),
)
"""Decisions for requests; not part of the library. `experts` holds ids, each with a blank before and after."""

feedback = sa.Table(
    "feedback",
    metadata,
    sa.Column("key_id", sa.String(16), primary_key=True),
    sa.Column("request_id", sa.String(64), primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("rating", sa.Double, nullable=False),
    sa.Column("comment", sa.Text, nullable=True),
    sa.Column("expert", sa.String(80), nullable=True),
    sa.Index("ix_feedback_at", "at"),
)
"""Callers' feedback on answers, one row per request."""
