"""Runs the migrations on the connection that the caller hands over."""

from __future__ import annotations

from alembic import context

from onnx_audit_server.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table="onnx_audit_version",
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
