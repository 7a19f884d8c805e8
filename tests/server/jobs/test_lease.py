"""Who is taken for dead, and what can no longer be written then."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from tests.server.postgres import postgres

from onnx_audit import v1
from onnx_audit_server.jobs.lease import BEATS, LONGEST_GAP, Silences
from onnx_audit_server.jobs.patience import HandedBack
from onnx_audit_server.store.database import IDLE_SECONDS, connect, migrate
from onnx_audit_server.store.faults import is_transient
from onnx_audit_server.store.records import Records
from onnx_audit_server.store.uses import Uses, exclude
from onnx_audit_server.store.workers import NameTakenError, WorkerRecords, WorkerRow, holds

AFTER = 12.0
STEP = AFTER / BEATS


def row(identifier: str, beat: int = 0, name: str | None = None) -> WorkerRow:
    """A worker's row."""
    return WorkerRow(identifier, name or identifier, "host", 1, "place", "cpu", 1, 0, beat)


@given(st.lists(st.tuples(st.floats(0.1, LONGEST_GAP * STEP), st.booleans()), max_size=60))
def test_only_long_silence_in_steady_sight_is_death(looks: list[tuple[float, bool]]) -> None:
    """Against the definition: dead once nothing was heard for so long, by looks without a gap."""
    silences = Silences(AFTER)
    now, beat, heard = 100.0, 0, None
    for pause, beats in looks:
        now += pause
        beat += beats
        if beats or heard is None:
            heard = now
        assert bool(silences.dead([row("a", beat)], now)) == (now - heard >= AFTER)


@given(st.floats(LONGEST_GAP * STEP + 0.01, 1e6))
def test_what_was_not_watched_is_no_silence(gap: float) -> None:
    """One that could not look, because it stood still or the database was away, starts anew."""
    silences = Silences(AFTER)
    now = 100.0
    for _ in range(BEATS):
        assert not silences.dead([row("a")], now)
        now += STEP
    assert not silences.dead([row("a")], now - STEP + gap)


def test_a_name_is_free_once_its_holder_is_taken_for_dead(tmp_path: Path) -> None:
    """The dead one's row stays, without the name; its beats come to nothing."""
    engine = connect(f"sqlite:///{tmp_path / 'db'}")
    migrate(engine)
    workers = WorkerRecords(engine)
    workers.add(row("a.1", name="a"))
    with pytest.raises(NameTakenError):
        workers.add(row("a.2", name="a"))
    assert workers.beat("a.1")
    assert not workers.fence("a.1", 0, "b.1"), "it has been heard of since"
    assert workers.fence("a.1", 1, "b.1")
    assert not workers.beat("a.1")
    workers.add(row("a.2", name="a"))
    assert workers.adopt("a.1", "b.1", "c.1")
    assert not workers.adopt("a.1", "b.1", "d.1")
    assert {found.id: found.reaper for found in workers.all()} == {"a.1": "c.1", "a.2": None}
    engine.dispose()


def test_a_write_under_way_ends_before_its_worker_is_taken_for_dead() -> None:
    """On PostgreSQL: the fence waits for it, and none begins after it; heartbeats wait for none."""
    with postgres() as url:
        engine = connect(url)
        migrate(engine)
        workers = WorkerRecords(engine)
        workers.add(row("a"))
        order = []
        with engine.begin() as connection:
            assert holds(connection, "a")
            assert workers.beat("a")

            def fence() -> None:
                assert workers.fence("a", 1, "b")
                order.append("fenced")

            thread = threading.Thread(target=fence)
            thread.start()
            thread.join(0.5)
            assert thread.is_alive()
            order.append("written")
        thread.join()
        assert order == ["written", "fenced"]
        with engine.begin() as connection:
            assert not holds(connection, "a")
        engine.dispose()


def test_a_write_that_stands_still_holds_nobody_up() -> None:
    """On PostgreSQL: its locks are free in time; it cannot go on, and may begin anew.

    A removal that stands still goes on, and whoever would rely on what it removes waits for it.
    """
    with postgres() as url:
        engine = connect(url)
        migrate(engine)
        workers, uses = WorkerRecords(engine), Uses(engine, 0.0)
        workers.add(row("a"))
        removal = engine.connect()
        with removal.begin(), engine.connect() as paused:
            exclude(removal)
            noting = threading.Thread(target=uses.note, args=(["0" * 64],))
            noting.start()
            transaction = paused.begin()
            assert holds(paused, "a")
            start = time.monotonic()
            assert workers.fence("a", 0, "b")
            assert IDLE_SECONDS - 1 < time.monotonic() - start < AFTER
            with pytest.raises(sa.exc.DBAPIError) as failure:
                holds(paused, "a")
            assert is_transient(failure.value)
            transaction.rollback()
            with paused.begin():
                assert not holds(paused, "a")
            assert noting.is_alive()
        noting.join()
        removal.close()
        engine.dispose()


def audit_in(records: Records) -> None:
    """Puts an audit called "x" into the records."""
    audit = v1.Audit(name="audits/x", model="models/m", state=v1.AUDIT_STATE_RUNNING)
    records.create_audit(audit, "", "d", lambda _: None)


def test_what_is_settled_stays(tmp_path: Path) -> None:
    """Of many who settle the same at once, one is heard, and all are told what it said."""
    engine = connect(f"sqlite:///{tmp_path / 'db'}")
    migrate(engine)
    records = Records(engine)
    audit_in(records)
    answers: list[str] = []

    def settle(n: int) -> None:
        def change(audit: v1.Audit) -> list[v1.AuditEvent]:
            audit.progress.shards_done += 1
            return [v1.AuditEvent(shard_finished=v1.AuditEvent.ShardFinished(shard=n))]

        answers.append(records.settle("x", "key", str(n), change))

    threads = [threading.Thread(target=settle, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(answers)) == 1
    assert records.settled("x", "key") == answers[0]
    audit = records.get_audit("x")
    assert audit is not None
    assert audit.progress.shards_done == 1
    kinds = [event.WhichOneof("event") for event in records.events_after("x", 0, 100)]
    assert kinds.count("shard_finished") == 1
    engine.dispose()


def test_a_fenced_worker_changes_no_audit(tmp_path: Path) -> None:
    """Every change that a worker makes asks the fence first."""
    engine = connect(f"sqlite:///{tmp_path / 'db'}")
    migrate(engine)
    audit_in(Records(engine))

    def refuse(_: object) -> None:
        raise HandedBack

    records = Records(engine, fence=refuse)
    before = records.get_audit("x")
    for change in (
        lambda: records.update_audit("x", lambda _: []),
        lambda: records.end_audit("x", lambda _: [], "0" * 64),
        lambda: records.settle("x", "k", "v", lambda _: []),
        lambda: records.append_events("x", [v1.AuditEvent()]),
        lambda: records.set_expiry("x", 1),
    ):
        with pytest.raises(HandedBack):
            change()
    assert records.get_audit("x") == before
    engine.dispose()


def test_a_report_is_kept_once(tmp_path: Path) -> None:
    """An audit that has ended is not ended again, and keeps its report."""
    engine = connect(f"sqlite:///{tmp_path / 'db'}")
    migrate(engine)
    records = Records(engine)
    audit_in(records)

    def succeed(audit: v1.Audit) -> list[v1.AuditEvent]:
        audit.state = v1.AUDIT_STATE_SUCCEEDED
        return []

    assert records.end_audit("x", succeed, "1" * 64) is not None
    assert records.end_audit("x", succeed, "2" * 64) is None
    assert records.report_blob("x") == "1" * 64
    engine.dispose()
