"""The tables of the records; migrations/ creates them."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

models = sa.Table(
    "models",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("created_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("message", sa.LargeBinary, nullable=False),
)
"""`message` is a v1.Model."""

probe_sets = sa.Table(
    "probe_sets",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("created_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("message", sa.LargeBinary, nullable=False),
)
"""`message` is a v1.ProbeSet."""

audits = sa.Table(
    "audits",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("created_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("model", sa.String(64), nullable=False, index=True),
    sa.Column("request_id", sa.String(100), unique=True),
    sa.Column("request_digest", sa.String(64), nullable=False),
    sa.Column("state", sa.Integer, nullable=False, index=True),
    sa.Column("verdict", sa.Integer, nullable=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
    sa.Column("stop", sa.LargeBinary),
    sa.Column("expire_us", sa.BigInteger),
    sa.Column("report", sa.String(64)),
    sa.Column("last_sequence", sa.BigInteger, nullable=False),
)
"""`message` is a v1.Audit, state and last_sequence aside; `stop` is a google.rpc.Status once the
audit must end early; `report` is the blob that holds the report."""

events = sa.Table(
    "events",
    metadata,
    sa.Column("audit", sa.String(64), primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
)
"""`message` is a v1.AuditEvent."""

sections = sa.Table(
    "sections",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
)
"""`key` is the digest of a v1.SectionKey, `message` is a v1.StoredSection."""
