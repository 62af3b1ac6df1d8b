"""The decision log and callers' feedback."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)
_EMBEDDED = sa.text("embedding IS NOT NULL")


def upgrade() -> None:
    """Create both tables."""
    op.create_table(
        "decisions",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
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
        sa.PrimaryKeyConstraint("number", name="pk_decisions"),
    )
    op.create_index("ix_decisions_at", "decisions", ["at"])
    op.create_index("ix_decisions_request_id", "decisions", ["request_id"])
    op.create_index(
        "ix_decisions_embedded", "decisions", ["number"], sqlite_where=_EMBEDDED, postgresql_where=_EMBEDDED
    )
    op.create_table(
        "feedback",
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("rating", sa.Double, nullable=False),
        sa.Column("comment", sa.Text, nullable=True),
        sa.Column("expert", sa.String(80), nullable=True),
        sa.PrimaryKeyConstraint("key_id", "request_id", name="pk_feedback"),
    )
    op.create_index("ix_feedback_at", "feedback", ["at"])


def downgrade() -> None:
    """Forget what was decided and thought."""
    op.drop_table("feedback")
    op.drop_table("decisions")
