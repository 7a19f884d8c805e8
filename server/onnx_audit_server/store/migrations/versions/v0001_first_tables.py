"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Creates models, probe sets, audits and events."""
    for name in ("models", "probe_sets"):
        op.create_table(
            name,
            sa.Column("sha256", sa.String(64), primary_key=True),
            sa.Column("created_us", sa.BigInteger, nullable=False),
            sa.Column("message", sa.LargeBinary, nullable=False),
        )
        op.create_index(f"ix_{name}_created_us", name, ["created_us"])
    op.create_table(
        "audits",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(100), unique=True),
        sa.Column("request_digest", sa.String(64), nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("verdict", sa.Integer, nullable=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
        sa.Column("stop", sa.LargeBinary),
        sa.Column("expire_us", sa.BigInteger),
        sa.Column("report", sa.String(64)),
        sa.Column("last_sequence", sa.BigInteger, nullable=False),
    )
    for column in ("created_us", "model", "state"):
        op.create_index(f"ix_audits_{column}", "audits", [column])
    op.create_table(
        "events",
        sa.Column("audit", sa.String(64), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("message", sa.LargeBinary, nullable=False),
    )
