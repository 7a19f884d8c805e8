"""Uses of old content, what reports refer to, and work that one process does at a time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Creates the tables of retention."""
    op.create_table(
        "uses",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("used_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "links",
        sa.Column("report", sa.String(64), primary_key=True),
        sa.Column("digests", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "chores",
        sa.Column("name", sa.String(40), primary_key=True),
        sa.Column("holder", sa.String(200), nullable=False),
        sa.Column("until_us", sa.BigInteger, nullable=False),
        sa.Column("done_us", sa.BigInteger, nullable=False),
    )
