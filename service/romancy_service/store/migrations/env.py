"""Run by Alembic. The connection, its transaction and the lock that goes with it come from the store."""

from __future__ import annotations

from alembic import context

from romancy_service.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,  # SQLite alters tables by copying them
)
context.run_migrations()
