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
    sa.Column("principal", sa.String(256), nullable=False, server_default=""),
    sa.Index("ix_audits_principal_state", "principal", "state"),
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

workers = sa.Table(
    "workers",
    metadata,
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
"""One row per process that works: `beat` counts up while it lives, `place` is its data folder's id,
`reaper` the process that took over its work once it was taken for dead; its name is then free."""

settled = sa.Table(
    "settled",
    metadata,
    sa.Column("audit", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(100), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
"""The outcomes of an audit's tasks, and marks of what happens once; the first value stays."""

uses = sa.Table(
    "uses",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("used_us", sa.BigInteger, nullable=False),
)
"""When old content was last relied on; see uses.py."""

links = sa.Table(
    "links",
    metadata,
    sa.Column("report", sa.String(64), primary_key=True),
    sa.Column("digests", sa.LargeBinary, nullable=False),
)
"""`digests` are those that a report's text names, 32 bytes each: reports never change, so each is
read once."""

chores = sa.Table(
    "chores",
    metadata,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("holder", sa.String(200), nullable=False),
    sa.Column("until_us", sa.BigInteger, nullable=False),
    sa.Column("done_us", sa.BigInteger, nullable=False),
)
"""Work that one process of all does at a time: who, until when it is theirs, and when it was last
done."""

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.String(12), primary_key=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("scopes", sa.String(100), nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("expires_us", sa.BigInteger),
    sa.Column("revoked_us", sa.BigInteger),
)
"""`sha256` is the digest of the whole token, which is kept nowhere; `scopes` has commas."""

uploads = sa.Table(
    "uploads",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("principal", sa.String(256), nullable=False, index=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
)
"""Blobs that clients have uploaded or are uploading, and what they count for in quotas."""
