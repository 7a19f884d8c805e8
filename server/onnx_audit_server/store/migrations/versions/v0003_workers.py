"""The workers that share the database, and what has been settled of each audit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Creates the tables of workers and of settled work."""
    op.create_table(
        "workers",
        sa.Column("id", sa.String(150), primary_key=True),
        sa.Column("name", sa.String(100), unique=True),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("process", sa.Integer, nullable=False),
        sa.Column("place", sa.String(32), nullable=False),
        sa.Column("device", sa.String(10), nullable=False),
        sa.Column("slots", sa.Integer, nullable=False),
        sa.Column("started_us", sa.BigInteger, nullable=False),
        sa.Column("beat", sa.BigInteger, nullable=False),
        sa.Column("reaper", sa.String(150)),
    )
    op.create_table(
        "settled",
        sa.Column("audit", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(100), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
