"""Records of models, probe sets and audits, and each audit's numbered events."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from google.protobuf import timestamp_pb2
from google.rpc import status_pb2

from onnx_audit import v1
from onnx_audit_server.store import uses
from onnx_audit_server.store.clock import now_us
from onnx_audit_server.store.database import insert, reader
from onnx_audit_server.store.tables import audits, chores, events, models, probe_sets, settled

ENDED = frozenset({v1.AUDIT_STATE_SUCCEEDED, v1.AUDIT_STATE_FAILED, v1.AUDIT_STATE_CANCELLED})
"""The states that an audit never leaves."""


@dataclass(frozen=True)
class Cursor:
    """The last row of a page of a list that runs from newest to oldest."""

    created_us: int
    key: str


class RequestIdReusedError(Exception):
    """A request id came again with another request."""


def now() -> timestamp_pb2.Timestamp:
    """The present moment."""
    return micros_to_timestamp(now_us())


def micros_to_timestamp(micros: int) -> timestamp_pb2.Timestamp:
    """A moment given in microseconds since 1970, as a message."""
    return timestamp_pb2.Timestamp(seconds=micros // 10**6, nanos=micros % 10**6 * 1000)


def state_changed(audit: v1.Audit) -> v1.AuditEvent:
    """The event that tells watchers of the audit's present state."""
    change = v1.AuditEvent.StateChanged(
        state=audit.state, report_digest=audit.report_digest, verdict=audit.verdict
    )
    if audit.HasField("error"):
        change.error.CopyFrom(audit.error)
    return v1.AuditEvent(state_changed=change)


class Records:
    """All reads and writes of the records; every method is one transaction."""

    def __init__(
        self, engine: sa.Engine, fence: Callable[[sa.Connection], None] | None = None
    ) -> None:
        """Opens the records.

        Args:
            engine: The database.
            fence: Called first in every transaction that changes an audit; what it raises keeps
                the change from happening. Workers have one.
        """
        self._engine = engine
        self._fence = fence
        self._reader = reader(engine)

    # Models and probe sets

    def put_model(self, sha256: str, model: v1.Model) -> v1.Model:
        """Registers a model, or gives a known one the new display name and tags."""
        return v1.Model.FromString(self._put(models, sha256, model))

    def get_model(self, sha256: str) -> v1.Model | None:
        """The model, None where it is not registered."""
        row = self._get(models, sha256)
        return None if row is None else v1.Model.FromString(row)

    def list_models(self, limit: int, after: Cursor | None) -> tuple[list[v1.Model], Cursor | None]:
        """A page of models, newest first, and where the next one starts."""
        rows, cursor = self._page(models, models.c.sha256, limit, after)
        return [v1.Model.FromString(row) for row in rows], cursor

    def put_probe_set(self, sha256: str, probe_set: v1.ProbeSet) -> v1.ProbeSet:
        """Registers a probe set, or gives a known one the new names."""
        return v1.ProbeSet.FromString(self._put(probe_sets, sha256, probe_set))

    def get_probe_set(self, sha256: str) -> v1.ProbeSet | None:
        """The probe set, None where it is not registered."""
        row = self._get(probe_sets, sha256)
        return None if row is None else v1.ProbeSet.FromString(row)

    def list_probe_sets(
        self, limit: int, after: Cursor | None
    ) -> tuple[list[v1.ProbeSet], Cursor | None]:
        """A page of probe sets, newest first, and where the next one starts."""
        rows, cursor = self._page(probe_sets, probe_sets.c.sha256, limit, after)
        return [v1.ProbeSet.FromString(row) for row in rows], cursor

    def _put(self, table: sa.Table, sha256: str, message: v1.Model | v1.ProbeSet) -> bytes:
        with self._engine.begin() as connection:
            known = connection.execute(
                sa.select(table.c.created_us).where(table.c.sha256 == sha256)
            ).scalar()
            created = now_us() if known is None else known
            message.create_time.CopyFrom(micros_to_timestamp(created))
            content = message.SerializeToString(deterministic=True)
            if known is None:
                values = {"sha256": sha256, "created_us": created, "message": content}
                connection.execute(sa.insert(table).values(values))
            else:
                connection.execute(
                    sa.update(table).where(table.c.sha256 == sha256).values(message=content)
                )
                uses.note(connection, [sha256])
        return content

    def _get(self, table: sa.Table, sha256: str) -> bytes | None:
        with self._reader.begin() as connection:
            return connection.execute(
                sa.select(table.c.message).where(table.c.sha256 == sha256)
            ).scalar()

    def _page(
        self, table: sa.Table, key: sa.Column[str], limit: int, after: Cursor | None
    ) -> tuple[list[bytes], Cursor | None]:
        rows, cursor = self._rows(table, key, limit, after)
        return [row.message for row in rows], cursor

    def _rows(
        self,
        table: sa.Table,
        key: sa.Column[str],
        limit: int,
        after: Cursor | None,
        *conditions: sa.ColumnElement[bool],
    ) -> tuple[Sequence[sa.Row[tuple[object, ...]]], Cursor | None]:
        query = sa.select(table).where(*conditions)
        if after is not None:
            position = sa.tuple_(table.c.created_us, key)
            query = query.where(position < sa.tuple_(after.created_us, after.key))
        query = query.order_by(table.c.created_us.desc(), key.desc()).limit(limit + 1)
        with self._reader.begin() as connection:
            rows = connection.execute(query).all()
        if len(rows) <= limit:
            return rows, None
        last = rows[limit - 1]
        return rows[:limit], Cursor(last.created_us, getattr(last, key.name))

    # Audits

    def create_audit(
        self,
        audit: v1.Audit,
        request_id: str,
        request_digest: str,
        enqueue: Callable[[sa.Connection], None],
    ) -> v1.Audit:
        """Accepts an audit and, in the same transaction, the job that runs it.

        Returns the audit that the request id stands for, which may be an earlier one.

        Raises:
            RequestIdReusedError: The request id stands for another request.
        """
        try:
            with self._engine.begin() as connection:
                known = self._requested(connection, request_id, request_digest)
                return known or self._insert(connection, audit, request_id, request_digest, enqueue)
        except sa.exc.IntegrityError:
            # The same request came twice at once, and the other one was first.
            with self._reader.begin() as connection:
                known = self._requested(connection, request_id, request_digest)
            if known is None:
                raise
            return known

    def _requested(
        self, connection: sa.Connection, request_id: str, request_digest: str
    ) -> v1.Audit | None:
        if not request_id:
            return None
        row = connection.execute(sa.select(audits).where(audits.c.request_id == request_id)).first()
        if row is not None and row.request_digest != request_digest:
            raise RequestIdReusedError(request_id)
        return None if row is None else _audit(row)

    def _insert(
        self,
        connection: sa.Connection,
        audit: v1.Audit,
        request_id: str,
        request_digest: str,
        enqueue: Callable[[sa.Connection], None],
    ) -> v1.Audit:
        identifier = audit.name.partition("/")[2]
        created = now_us()
        audit.create_time.CopyFrom(micros_to_timestamp(created))
        connection.execute(
            sa.insert(audits).values(
                id=identifier,
                created_us=created,
                model=audit.model.partition("/")[2],
                request_id=request_id or None,
                request_digest=request_digest,
                state=audit.state,
                verdict=audit.verdict,
                message=audit.SerializeToString(deterministic=True),
                last_sequence=0,
                principal=audit.principal,
            )
        )
        audit.last_sequence = self._append(connection, identifier, [state_changed(audit)])
        enqueue(connection)
        return audit

    def get_audit(self, identifier: str) -> v1.Audit | None:
        """The audit, None where there is none."""
        with self._reader.begin() as connection:
            row = connection.execute(sa.select(audits).where(audits.c.id == identifier)).first()
        return None if row is None else _audit(row)

    def list_audits(
        self,
        limit: int,
        after: Cursor | None,
        states: Sequence[int] = (),
        model: str = "",
    ) -> tuple[list[v1.Audit], Cursor | None]:
        """A page of audits, newest first, and where the next one starts."""
        conditions: list[sa.ColumnElement[bool]] = []
        if states:
            conditions.append(audits.c.state.in_(states))
        if model:
            conditions.append(audits.c.model == model)
        rows, cursor = self._rows(audits, audits.c.id, limit, after, *conditions)
        return [_audit(row) for row in rows], cursor

    def update_audit(
        self, identifier: str, change: Callable[[v1.Audit], Iterable[v1.AuditEvent]]
    ) -> v1.Audit:
        """Applies a change to an audit and appends the events that it returns, as one.

        Raises:
            KeyError: There is no such audit.
        """
        with self._changing() as connection:
            return self._change(
                connection, identifier, self._locked(connection, identifier), change
            )

    def end_audit(
        self,
        identifier: str,
        change: Callable[[v1.Audit], Iterable[v1.AuditEvent]],
        report: str | None = None,
    ) -> v1.Audit | None:
        """Ends an audit, unless it has ended; returns it, None where it had ended before.

        Args:
            identifier: The audit.
            change: As for `update_audit`; makes the state one of ENDED.
            report: The blob that holds its report, kept only if the audit succeeds.
        """
        with self._changing() as connection:
            audit = self._locked(connection, identifier)
            if audit.state in ENDED:
                return None
            self._change(connection, identifier, audit, change)
            if report is not None and audit.state == v1.AUDIT_STATE_SUCCEEDED:
                connection.execute(
                    sa.update(audits).where(audits.c.id == identifier).values(report=report)
                )
        return audit

    def settle(
        self,
        identifier: str,
        key: str,
        value: str,
        change: Callable[[v1.Audit], Iterable[v1.AuditEvent]],
    ) -> str:
        """Keeps a value under a key of an audit, and the change that goes with it, once.

        Returns the value that is kept: that of the first call.
        """
        with self._changing() as connection:
            audit = self._locked(connection, identifier)
            row = {"audit": identifier, "key": key, "value": value}
            added = insert(connection, settled).values(row).on_conflict_do_nothing()
            if connection.execute(added).rowcount == 0:
                known = self._settled(connection, identifier, key)
                assert known is not None  # noqa: S101 - it stood in the way
                return known
            self._change(connection, identifier, audit, change)
        return value

    def settled(self, identifier: str, key: str) -> str | None:
        """The value that is kept under a key of an audit, None where there is none."""
        with self._reader.begin() as connection:
            return self._settled(connection, identifier, key)

    def all_settled(self, identifier: str, keys: Sequence[str]) -> dict[str, str]:
        """The values that are kept under some keys of an audit, by those keys that have one."""
        query = sa.select(settled.c.key, settled.c.value).where(
            settled.c.audit == identifier, settled.c.key.in_(keys)
        )
        with self._reader.begin() as connection:
            return {row.key: row.value for row in connection.execute(query)}

    def _settled(self, connection: sa.Connection, identifier: str, key: str) -> str | None:
        query = sa.select(settled.c.value).where(
            settled.c.audit == identifier, settled.c.key == key
        )
        return connection.execute(query).scalar()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[sa.Connection]:
        """A transaction that may change audits, if this process may."""
        with self._engine.begin() as connection:
            if self._fence is not None:
                self._fence(connection)
            yield connection

    def _locked(self, connection: sa.Connection, identifier: str) -> v1.Audit:
        """Reads an audit that no other transaction changes until this one ends."""
        row = connection.execute(
            sa.select(audits).where(audits.c.id == identifier).with_for_update()
        ).first()
        if row is None:
            raise KeyError(identifier)
        return _audit(row)

    def _change(
        self,
        connection: sa.Connection,
        identifier: str,
        audit: v1.Audit,
        change: Callable[[v1.Audit], Iterable[v1.AuditEvent]],
    ) -> v1.Audit:
        """Applies a change to an audit, as it was read under its lock."""
        added = list(change(audit))
        audit.last_sequence += len(added)
        connection.execute(
            sa.update(audits)
            .where(audits.c.id == identifier)
            .values(
                state=audit.state,
                verdict=audit.verdict,
                last_sequence=audit.last_sequence,
                message=audit.SerializeToString(deterministic=True),
            )
        )
        _store(connection, identifier, added, audit.last_sequence)
        return audit

    def set_expiry(self, identifier: str, expire_us: int) -> None:
        """Sets the moment at which the audit runs out of time; the first one stays."""
        with self._changing() as connection:
            connection.execute(
                sa.update(audits)
                .where(audits.c.id == identifier, audits.c.expire_us.is_(None))
                .values(expire_us=expire_us)
            )

    def request_stop(self, identifier: str, reason: status_pb2.Status) -> None:
        """Makes the audit's running and waiting shards end; the first reason stays."""
        with self._changing() as connection:
            connection.execute(
                sa.update(audits)
                .where(audits.c.id == identifier, audits.c.stop.is_(None))
                .values(stop=reason.SerializeToString())
            )

    def stop_reason(self, identifier: str) -> status_pb2.Status | None:
        """Why the audit must end early, None while it may go on."""
        with self._reader.begin() as connection:
            row = connection.execute(
                sa.select(audits.c.stop, audits.c.expire_us).where(audits.c.id == identifier)
            ).one()
        if row.stop is not None:
            return status_pb2.Status.FromString(row.stop)
        if row.expire_us is not None and now_us() > row.expire_us:
            return status_pb2.Status(code=4, message="the audit ran out of time")
        return None

    def report_blob(self, identifier: str) -> str | None:
        """The blob that holds the report, None where there is none."""
        with self._reader.begin() as connection:
            return connection.execute(
                sa.select(audits.c.report).where(audits.c.id == identifier)
            ).scalar()

    def count_audits(self) -> dict[tuple[int, int], int]:
        """Number of audits by (state, verdict)."""
        query = sa.select(audits.c.state, audits.c.verdict, sa.func.count()).group_by(
            audits.c.state, audits.c.verdict
        )
        with self._reader.begin() as connection:
            return {(row[0], row[1]): row[2] for row in connection.execute(query)}

    def oldest_queued_us(self) -> int | None:
        """When the audit that waits longest was accepted, None where none waits."""
        query = sa.select(sa.func.min(audits.c.created_us)).where(
            audits.c.state == v1.AUDIT_STATE_QUEUED
        )
        with self._reader.begin() as connection:
            return connection.execute(query).scalar()

    def chore_done_us(self, name: str) -> int:
        """When work that one process does at a time was last done; 0 for never."""
        with self._reader.begin() as connection:
            query = sa.select(chores.c.done_us).where(chores.c.name == name)
            return connection.execute(query).scalar() or 0

    # Events

    def append_events(self, identifier: str, added: Sequence[v1.AuditEvent]) -> None:
        """Numbers and stores events of an audit."""
        with self._changing() as connection:
            self._append(connection, identifier, added)

    def events_after(self, identifier: str, sequence: int, limit: int) -> list[v1.AuditEvent]:
        """The next events of an audit, at most `limit`."""
        query = (
            sa.select(events.c.message)
            .where(events.c.audit == identifier, events.c.sequence > sequence)
            .order_by(events.c.sequence)
            .limit(limit)
        )
        with self._reader.begin() as connection:
            return [v1.AuditEvent.FromString(row.message) for row in connection.execute(query)]

    def last_sequences(self, identifiers: Sequence[str]) -> dict[str, int]:
        """Number of the latest event of each of some audits."""
        query = sa.select(audits.c.id, audits.c.last_sequence).where(audits.c.id.in_(identifiers))
        with self._reader.begin() as connection:
            return {row.id: row.last_sequence for row in connection.execute(query)}

    def _append(
        self, connection: sa.Connection, identifier: str, added: Sequence[v1.AuditEvent]
    ) -> int:
        last: int = connection.execute(
            sa.update(audits)
            .where(audits.c.id == identifier)
            .values(last_sequence=audits.c.last_sequence + len(added))
            .returning(audits.c.last_sequence)
        ).scalar_one()
        _store(connection, identifier, added, last)
        return last


def _store(
    connection: sa.Connection, identifier: str, added: Sequence[v1.AuditEvent], last: int
) -> None:
    """Stores events of an audit; the last one gets the given number."""
    moment, rows = now(), []
    for sequence, event in enumerate(added, start=last - len(added) + 1):
        event.audit = f"audits/{identifier}"
        event.sequence = sequence
        event.time.CopyFrom(moment)
        rows.append(
            {"audit": identifier, "sequence": sequence, "message": event.SerializeToString()}
        )
    if rows:
        connection.execute(sa.insert(events), rows)


def _audit(row: sa.Row[tuple[object, ...]]) -> v1.Audit:
    audit = v1.Audit.FromString(row.message)
    audit.last_sequence = row.last_sequence
    return audit
