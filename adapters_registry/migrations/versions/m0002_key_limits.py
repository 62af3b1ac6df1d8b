"""What a key may use and how much: visible policies, limits, and the usage that is counted against them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Keys that exist stay without limits."""
    op.add_column("api_keys", sa.Column("policies", sa.JSON, nullable=False, server_default='["*"]'))
    op.add_column("api_keys", sa.Column("limits", sa.JSON, nullable=False, server_default="{}"))
    op.create_table(
        "usage",
        sa.Column("key_id", sa.String(8), nullable=False),
        sa.Column("period", sa.String(8), nullable=False),
        sa.Column("starts_at", sa.BigInteger, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("cost", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("key_id", "period", "starts_at", name="pk_usage"),
    )


def downgrade() -> None:
    """Forget limits and usage."""
    op.drop_table("usage")
    op.drop_column("api_keys", "limits")
    op.drop_column("api_keys", "policies")
