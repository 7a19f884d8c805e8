"""Removes what has expired.

Each piece is removed in a transaction that excludes notes of uses and new references, after another
look for both: whoever comes first wins, and whoever comes second sees what happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import sqlalchemy as sa

from onnx_audit import v1
from onnx_audit_server import metrics
from onnx_audit_server.jobs.queue import JobQueue
from onnx_audit_server.retention.marking import (
    Marks,
    Policy,
    keep_audit,
    linked,
    mark,
    newer_references,
)
from onnx_audit_server.store.blobs import Blob, BlobStore
from onnx_audit_server.store.references import digests
from onnx_audit_server.store.tables import (
    audits,
    links,
    metadata,
    models,
    probe_sets,
    sections,
    uploads,
    uses,
)
from onnx_audit_server.store.uses import exclude

T = TypeVar("T")

BATCH = 50
"""Pieces per transaction: others wait for no more than their removal takes."""


@dataclass
class Figures:
    """What a collection has removed, or would.

    Attributes:
        counts: Number of removed things by kind, as in the metric's label.
        freed_bytes: Bytes of blobs and unfinished uploads.
        kept_blobs: Blobs that stay.
        kept_bytes: Their bytes.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(metrics.GC_KINDS, 0))
    freed_bytes: int = 0
    kept_blobs: int = 0
    kept_bytes: int = 0


class Collection:
    """One run of the garbage collection."""

    def __init__(
        self,
        engine: sa.Engine,
        blobs: BlobStore,
        queue: JobQueue,
        policy: Policy,
        *,
        dry_run: bool = False,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepares the run.

        Args:
            engine: The database.
            blobs: The blob store, with the staging folder of this process.
            queue: Where the jobs of expired audits are.
            policy: What expires.
            dry_run: Whether to count only.
            alive: Called between pieces; what it raises ends the run.
        """
        self._engine = engine
        self._blobs = blobs
        self._queue = queue
        self._policy = policy
        self._dry_run = dry_run
        self._alive = alive
        self._figures = Figures()

    def run(self) -> Figures:
        """Removes, or counts, all that has expired."""
        marks = mark(self._engine, self._blobs, self._policy)
        self._remove_audits(marks)
        for kind, table, expired in (
            ("model", models, marks.models),
            ("probe_set", probe_sets, marks.probe_sets),
        ):
            self._remove_inputs(kind, table, expired, marks)
        there = self._remove_blobs(marks)
        self._remove_sections(marks, there)
        self._forget(marks)
        before = datetime.fromtimestamp(marks.moment_us / 1e6 - self._policy.blobs, UTC)
        for digest, size in self._blobs.old_uploads(before, remove=not self._dry_run):
            self._count("upload", 1, size)
            if not self._dry_run:
                with self._engine.begin() as connection:
                    _uncount(connection, [digest])
        return self._figures

    def _count(self, kind: str, number: int, size: int = 0) -> None:
        self._figures.counts[kind] += number
        self._figures.freed_bytes += size
        if not self._dry_run:
            metrics.GC_REMOVED.labels(kind).inc(number)
            metrics.GC_FREED_BYTES.inc(size)

    def _remove_audits(self, marks: Marks) -> None:
        for batch in _batches(sorted(marks.audits)):
            self._alive()
            with self._engine.begin() as connection:
                exclude(connection)
                # A new audit may name an expired one as its baseline.
                spared = newer_references(connection, marks)[1].intersection(batch)
                query = sa.select(audits.c.message, audits.c.report).where(audits.c.id.in_(spared))
                stay = connection.execute(query).all()
                gone = [identifier for identifier in batch if identifier not in spared]
                if not self._dry_run:
                    for table in metadata.sorted_tables:
                        if "audit" in table.c:
                            connection.execute(sa.delete(table).where(table.c.audit.in_(gone)))
                    connection.execute(sa.delete(audits).where(audits.c.id.in_(gone)))
            for row in stay:
                keep_audit(marks, row.message, row.report)
                for report in sorted(marks.reports):
                    marks.digests |= linked(self._engine, self._blobs, report)
            if not self._dry_run:
                self._queue.forget(gone)
            self._count("audit", len(gone))

    def _remove_inputs(
        self, kind: str, table: sa.Table, expired: AbstractSet[str], marks: Marks
    ) -> None:
        oldest_us = marks.moment_us - round(self._policy.inputs * 1e6)
        for batch in _batches(sorted(expired)):
            self._alive()
            with self._engine.begin() as connection:
                exclude(connection)
                # A new audit may name an expired model, and somebody may have registered it again.
                wanted = newer_references(connection, marks)[0] | marks.digests
                spared = _used_since(connection, batch, oldest_us)
                spared |= {digest for digest in batch if bytes.fromhex(digest) in wanted}
                query = sa.select(table.c.message).where(table.c.sha256.in_(spared))
                for message in connection.execute(query).scalars():
                    marks.digests |= digests(message)
                gone = [digest for digest in batch if digest not in spared]
                if not self._dry_run:
                    connection.execute(sa.delete(table).where(table.c.sha256.in_(gone)))
            self._count(kind, len(gone))

    def _remove_blobs(self, marks: Marks) -> set[str]:
        """Removes the blobs that nothing refers to; returns the digests of those that stay."""
        before = datetime.fromtimestamp(marks.blobs_before_us / 1e6, UTC)
        there: set[str] = set()
        expired: list[Blob] = []
        for blob in self._blobs.listed():
            if blob.last_modified >= before or bytes.fromhex(blob.digest) in marks.digests:
                self._stays(blob, there)
            else:
                expired.append(blob)
        for batch in _batches(expired):
            self._alive()
            with self._engine.begin() as connection:
                exclude(connection)
                named = newer_references(connection, marks)[0]
                used = _used_since(connection, [b.digest for b in batch], marks.blobs_before_us)
                gone = []
                for blob in batch:
                    if blob.digest in used or bytes.fromhex(blob.digest) in named:
                        self._stays(blob, there)
                    else:
                        gone.append(blob)
                if not self._dry_run:
                    # Within the transaction: a use that is noted later finds them gone.
                    self._blobs.remove([blob.digest for blob in gone])
                    _uncount(connection, [blob.digest for blob in gone])
            self._count("blob", len(gone), sum(blob.size for blob in gone))
        return there

    def _stays(self, blob: Blob, there: set[str]) -> None:
        there.add(blob.digest)
        self._figures.kept_blobs += 1
        self._figures.kept_bytes += blob.size

    def _remove_sections(self, marks: Marks, there: set[str]) -> None:
        """Forgets sections that later audits could take over if their blobs had stayed."""
        query = sa.select(sections.c.key, sections.c.message).where(
            sections.c.created_us < marks.blobs_before_us
        )
        with self._engine.execution_options(read_only=True).begin() as connection:
            gone = [
                row.key
                for row in connection.execute(query)
                if v1.StoredSection.FromString(row.message).section_sha256 not in there
            ]
        if gone and not self._dry_run:
            with self._engine.begin() as connection:
                for batch in _batches(gone):
                    connection.execute(
                        sa.delete(sections).where(
                            sections.c.key.in_(batch),
                            sections.c.created_us < marks.blobs_before_us,
                        )
                    )
        self._count("section", len(gone))

    def _forget(self, marks: Marks) -> None:
        """Removes notes that say nothing any more."""
        if self._dry_run:
            return
        longest = round(max(self._policy.blobs, self._policy.inputs) * 1e6)
        oldest_us = min(marks.blobs_before_us, marks.moment_us - longest)
        with self._engine.begin() as connection:
            connection.execute(sa.delete(uses).where(uses.c.used_us < oldest_us))
            known = connection.execute(sa.select(links.c.report)).scalars().all()
            for batch in _batches([report for report in known if report not in marks.reports]):
                connection.execute(sa.delete(links).where(links.c.report.in_(batch)))


def _uncount(connection: sa.Connection, gone: Sequence[str]) -> None:
    """Counts removed blobs and unfinished uploads for nobody's quota any more."""
    connection.execute(sa.delete(uploads).where(uploads.c.sha256.in_(gone)))


def _used_since(connection: sa.Connection, batch: Sequence[str], since_us: int) -> set[str]:
    query = sa.select(uses.c.digest).where(uses.c.digest.in_(batch), uses.c.used_us >= since_us)
    return set(connection.execute(query).scalars())


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]
