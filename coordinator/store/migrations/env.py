"""Alembic's entry point: runs the steps in the transaction that `coordinator.store.schema` has begun."""

from __future__ import annotations

from alembic import context

from coordinator.store.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    # SQLite changes a table by copying it; so do the steps, and they run the same on PostgreSQL.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
