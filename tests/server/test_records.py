"""The records on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.rpc import status_pb2
from tests.server.postgres import postgres

from onnx_audit import v1
from onnx_audit_server.store.clock import now_us
from onnx_audit_server.store.database import connect, migrate
from onnx_audit_server.store.records import Records, RequestIdReusedError, state_changed
from onnx_audit_server.store.sections import SectionRecords


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('records') / 'records.sqlite'}"
    else:
        with postgres() as found:
            yield found


@pytest.fixture
def records(url: str) -> Iterator[Records]:
    """Records on the database, migrated a second time without harm."""
    engine = connect(url)
    migrate(engine)
    migrate(engine)
    yield Records(engine)
    engine.dispose()


def create(records: Records, name: str, request_id: str = "", digest: str = "d") -> v1.Audit:
    audit = v1.Audit(name=f"audits/{name}", model="models/" + "a" * 64, state=v1.AUDIT_STATE_QUEUED)
    return records.create_audit(audit, request_id, digest, lambda _: None)


def test_events_are_numbered_without_gaps_by_many_writers(records: Records) -> None:
    """Four writers at once give each event one number, and all numbers are used."""
    create(records, "busy")

    def write() -> None:
        for _ in range(25):
            records.append_events("busy", [v1.AuditEvent(notice=v1.AuditEvent.Notice())])

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = [event.sequence for event in records.events_after("busy", 0, 1000)]
    assert numbers == list(range(1, 102))
    assert records.last_sequences(["busy", "unknown"]) == {"busy": 101}
    assert [event.sequence for event in records.events_after("busy", 99, 1000)] == [100, 101]


def test_a_failed_enqueue_leaves_no_audit(records: Records) -> None:
    """Record and job begin together or not at all."""

    def fail(_connection: object) -> None:
        raise ConnectionError("the queue is away")

    audit = v1.Audit(name="audits/half", state=v1.AUDIT_STATE_QUEUED)
    with pytest.raises(ConnectionError):
        records.create_audit(audit, "", "d", fail)
    assert records.get_audit("half") is None
    assert records.events_after("half", 0, 10) == []


def test_a_request_id_stands_for_one_request(records: Records) -> None:
    """The same request gives the first audit again, another request an error."""
    first = create(records, "first", "id-1", "digest-1")
    assert create(records, "second", "id-1", "digest-1").name == first.name
    assert records.get_audit("second") is None
    with pytest.raises(RequestIdReusedError):
        create(records, "third", "id-1", "digest-2")


def test_a_request_that_comes_twice_at_once_is_one_audit(records: Records) -> None:
    """Eight simultaneous calls with one request id all get the same audit."""
    names: list[str] = []

    def ask(number: int) -> None:
        names.append(create(records, f"twin-{number}", "id-twin", "same").name)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 8
    assert len(set(names)) == 1


def test_changes_and_their_events_are_one(records: Records) -> None:
    """A change that fails leaves the audit and its events as they were."""
    create(records, "whole")

    def fail(audit: v1.Audit) -> list[v1.AuditEvent]:
        audit.state = v1.AUDIT_STATE_RUNNING
        raise ConnectionError

    with pytest.raises(ConnectionError):
        records.update_audit("whole", fail)

    def run(audit: v1.Audit) -> list[v1.AuditEvent]:
        assert audit.state == v1.AUDIT_STATE_QUEUED
        audit.state = v1.AUDIT_STATE_RUNNING
        return [state_changed(audit)]

    assert records.update_audit("whole", run).last_sequence == 2
    counts = records.count_audits()
    assert counts[v1.AUDIT_STATE_RUNNING, 0] >= 1
    with pytest.raises(KeyError):
        records.update_audit("unknown", run)


def test_audits_are_told_to_stop(records: Records) -> None:
    """The first reason stays; a moment that has passed is a reason too."""
    create(records, "stopped")
    assert records.stop_reason("stopped") is None
    records.request_stop("stopped", status_pb2.Status(code=1, message="first"))
    records.request_stop("stopped", status_pb2.Status(code=2, message="second"))
    reason = records.stop_reason("stopped")
    assert reason is not None
    assert reason.message == "first"
    create(records, "early")
    records.set_expiry("early", now_us() + 10**9)
    assert records.stop_reason("early") is None
    records.set_expiry("early", now_us() - 1)
    assert records.stop_reason("early") is None, "whoever goes on with it has no more time"
    create(records, "late")
    records.set_expiry("late", now_us() - 1)
    late = records.stop_reason("late")
    assert late is not None
    assert late.code == 4


def test_pages_join_to_the_whole_list(records: Records) -> None:
    """Whatever the page size, every model is listed once, newest first."""
    digests = [f"{n:064x}" for n in range(7)]
    for digest in digests:
        records.put_model(digest, v1.Model(name=f"models/{digest}"))
    for size in (1, 2, 3, 7, 50):
        found, cursor = [], None
        while True:
            page, cursor = records.list_models(size, cursor)
            found += [model.name for model in page]
            if cursor is None:
                break
        assert found == [f"models/{digest}" for digest in reversed(digests)]


def test_two_processes_may_migrate_at_once(tmp_path: Path) -> None:
    """Whoever comes second finds the work done."""
    url = f"sqlite:///{tmp_path / 'fresh.sqlite'}"
    failures: list[BaseException] = []

    def prepare() -> None:
        try:
            migrate(connect(url))
        except BaseException as error:  # noqa: BLE001 - whatever it is fails the test
            failures.append(error)

    threads = [threading.Thread(target=prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_many_write_one_section(url: str) -> None:
    """Writers of one key at the same time leave one of their sections, and none of them fails."""
    engine = connect(url)
    migrate(engine)
    records = SectionRecords(engine)
    failures: list[BaseException] = []
    gate = threading.Barrier(6)

    def write(name: str) -> None:
        gate.wait()
        try:
            for key in range(10):
                records.put(f"key{key}", v1.StoredSection(audit=name))
        except BaseException as error:  # noqa: BLE001 - seen below
            failures.append(error)

    threads = [threading.Thread(target=write, args=(f"audits/{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for key in range(10):
        found = records.get(f"key{key}")
        assert found is not None
        assert found.audit.startswith("audits/")
    assert records.get("nothing") is None
    engine.dispose()
