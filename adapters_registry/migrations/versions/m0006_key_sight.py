"""What a key may see, besides by names: tags and a tenant."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Keys that exist stay as they are: confined by names only."""
    op.add_column("api_keys", sa.Column("tags", sa.JSON, nullable=False, server_default="[]"))
    op.add_column("api_keys", sa.Column("tenant", sa.String(64), nullable=False, server_default=""))


def downgrade() -> None:
    """Revoke the keys that would see more without them, and forget."""
    op.execute("UPDATE api_keys SET revoked_at = CURRENT_TIMESTAMP WHERE tenant <> '' OR CAST(tags AS VARCHAR) <> '[]'")
    op.drop_column("api_keys", "tenant")
    op.drop_column("api_keys", "tags")
