"""Finds what has expired and what is referred to, from one look at the records."""

from __future__ import annotations

from dataclasses import dataclass, field

import sqlalchemy as sa

from onnx_audit import v1
from onnx_audit_server.store.blobs import BlobStore
from onnx_audit_server.store.clock import now_us
from onnx_audit_server.store.records import ENDED
from onnx_audit_server.store.references import audits_named, digests
from onnx_audit_server.store.tables import audits, links, models, probe_sets, uses

PAGE = 500
"""Rows per read."""
MARGIN_US = 600 * 10**6
"""Clocks of servers may differ, and transactions last, by so much."""


@dataclass(frozen=True)
class Policy:
    """Seconds for which things are kept; 0 keeps them for ever.

    Attributes:
        audits: Audits and their reports, after their end.
        inputs: Models and probe sets that no audit refers to, after they were last registered.
        blobs: Blobs that nothing refers to and unfinished uploads, after their last use; never 0.
    """

    audits: float
    inputs: float
    blobs: float


@dataclass
class Marks:
    """What a look at the records has found.

    Attributes:
        moment_us: When it began.
        blobs_before_us: Blobs that were used since are kept in any case.
        audits: Ids of expired audits.
        models: Digests of expired models.
        probe_sets: Digests of expired probe sets.
        digests: All digests, 32 bytes each, that the rest refers to.
        reports: Digests of the reports that the rest has.
    """

    moment_us: int
    blobs_before_us: int
    audits: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    probe_sets: set[str] = field(default_factory=set)
    digests: set[bytes] = field(default_factory=set)
    reports: set[str] = field(default_factory=set)


def mark(engine: sa.Engine, blobs: BlobStore, policy: Policy) -> Marks:
    """Looks at all records; writes nothing but what it has read in reports for the first time."""
    moment = now_us()
    with engine.execution_options(read_only=True).begin() as connection:
        marks = Marks(moment, _blobs_before(connection, policy, moment))
        _mark_audits(connection, policy, marks)
        _mark_inputs(connection, policy, marks)
    for report in sorted(marks.reports):
        marks.digests |= linked(engine, blobs, report)
    return marks


def keep_audit(marks: Marks, message: bytes, report: str | None) -> None:
    """Notes what an audit refers to that stays; `linked` knows what its reports do."""
    marks.digests |= digests(message)
    baseline = v1.Audit.FromString(message).baseline
    for digest in (report, baseline.removeprefix("blobs/") if "blobs/" in baseline else None):
        if digest is not None:
            marks.reports.add(digest)
            marks.digests.add(bytes.fromhex(digest))


def linked(engine: sa.Engine, blobs: BlobStore, report: str) -> set[bytes]:
    """The digests that a report names; read from it once and kept."""
    with engine.execution_options(read_only=True).begin() as connection:
        known = connection.execute(
            sa.select(links.c.digests).where(links.c.report == report)
        ).scalar()
    if known is None:
        try:
            known = b"".join(sorted(digests(blobs.get(report))))
        except FileNotFoundError:
            return set()
        with engine.begin() as connection:
            connection.execute(sa.delete(links).where(links.c.report == report))
            connection.execute(sa.insert(links).values(report=report, digests=known))
    return {known[start : start + 32] for start in range(0, len(known), 32)}


def newer_references(connection: sa.Connection, marks: Marks) -> tuple[set[bytes], set[str]]:
    """Digests and audits that records name which were made since the look.

    Those that have expired themselves do not count.
    """
    since = marks.moment_us - MARGIN_US
    named, ids = set(), set()
    for table, key, expired in (
        (models, models.c.sha256, marks.models),
        (probe_sets, probe_sets.c.sha256, marks.probe_sets),
        (audits, audits.c.id, marks.audits),
    ):
        query = sa.select(key.label("key"), table.c.message).where(table.c.created_us >= since)
        for row in connection.execute(query):
            if row.key in expired:
                continue
            named |= digests(row.message)
            if table is audits:
                ids |= audits_named(row.message)
    return named, ids


def _blobs_before(connection: sa.Connection, policy: Policy, moment: int) -> int:
    """Since when blobs count as used.

    An unfinished audit relies on what it has stored; what was there already when it did may be
    older by half the retention, below which no use is noted.
    """
    retention = round(policy.blobs * 1e6)
    oldest = connection.execute(
        sa.select(sa.func.min(audits.c.created_us)).where(audits.c.state.not_in(ENDED))
    ).scalar()
    if oldest is None:
        return moment - retention
    return min(moment - retention, int(oldest) - retention // 2)


def _mark_audits(connection: sa.Connection, policy: Policy, marks: Marks) -> None:
    oldest_us = marks.moment_us - round(policy.audits * 1e6)
    old: dict[str, tuple[bytes, str | None]] = {}
    named: set[str] = set()
    query = sa.select(audits.c.id, audits.c.state, audits.c.message, audits.c.report)
    for row in connection.execution_options(yield_per=PAGE).execute(query):
        if policy.audits and row.state in ENDED and _ended_us(row.message) < oldest_us:
            old[row.id] = (row.message, row.report)
        else:
            keep_audit(marks, row.message, row.report)
            named |= audits_named(row.message)
    # A kept audit's baseline is kept, and that one's too.
    while saved := named & old.keys():
        for identifier in saved:
            message, report = old.pop(identifier)
            keep_audit(marks, message, report)
            named |= audits_named(message)
    marks.audits = set(old)


def _ended_us(message: bytes) -> int:
    end: int = v1.Audit.FromString(message).end_time.ToMicroseconds()
    return end


def _mark_inputs(connection: sa.Connection, policy: Policy, marks: Marks) -> None:
    oldest_us = marks.moment_us - round(policy.inputs * 1e6)
    for table, expired in ((models, marks.models), (probe_sets, marks.probe_sets)):
        kept = set()
        query = sa.select(table.c.sha256, table.c.created_us, table.c.message, uses.c.used_us)
        query = query.join(uses, uses.c.digest == table.c.sha256, isouter=True)
        for row in connection.execution_options(yield_per=PAGE).execute(query):
            last = max(row.created_us, row.used_us or 0)
            referred = bytes.fromhex(row.sha256) in marks.digests
            if policy.inputs and last < oldest_us and not referred:
                expired.add(row.sha256)
            else:
                kept |= digests(row.message)
        marks.digests |= kept
