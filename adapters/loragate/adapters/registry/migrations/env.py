"""Runs inside Alembic, on the connection and in the transaction that `database` made."""

from alembic import context

from loragate.adapters.registry.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
