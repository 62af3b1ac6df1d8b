"""The life of versions: what becomes of them, a canary's share, what the probes found, and why states changed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Versions that exist keep their states."""
    op.add_column("adapters", sa.Column("publish", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("adapters", sa.Column("share", sa.Double, nullable=True))
    op.add_column("adapters", sa.Column("report", sa.JSON(none_as_null=True), nullable=True))
    op.create_index(
        "uq_adapters_one_canary",
        "adapters",
        ["name"],
        unique=True,
        sqlite_where=sa.text("state = 'canary'"),
        postgresql_where=sa.text("state = 'canary'"),
    )
    op.add_column("audit", sa.Column("from_state", sa.String(16), nullable=True))
    op.add_column("audit", sa.Column("to_state", sa.String(16), nullable=True))
    op.add_column("audit", sa.Column("reason", sa.Text, nullable=False, server_default=""))
    op.create_index("ix_audit_subject", "audit", ["subject"])


def downgrade() -> None:
    """Forget shares, reports and reasons; versions that are not active or retired cannot be kept as they are."""
    op.execute("UPDATE adapters SET state = 'retired' WHERE state <> 'active'")
    op.drop_index("ix_audit_subject", "audit")
    for column in ("reason", "to_state", "from_state"):
        op.drop_column("audit", column)
    op.drop_index("uq_adapters_one_canary", "adapters")
    for column in ("report", "share", "publish"):
        op.drop_column("adapters", column)
