"""Sections that later audits may take over."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Creates the table of stored sections."""
    op.create_table(
        "sections",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
    )
