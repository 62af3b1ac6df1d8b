"""Requests under way, of keys that may have only so many at once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "running",
        sa.Column("key_id", sa.String(8), nullable=False),
        sa.Column("gateway", sa.String(16), nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("key_id", "gateway", name="pk_running"),
    )


def downgrade() -> None:
    """Forget what is under way."""
    op.drop_table("running")
