"""Alembic's entry: runs the migrations on the connection, inside the transaction, of `Database.migrate`."""

from __future__ import annotations

from alembic import context

from adapters_registry.stores.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
