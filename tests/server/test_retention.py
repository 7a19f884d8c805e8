"""What expires is removed, and nothing that anybody relies on, whoever races whom."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest
import sqlalchemy as sa
from google.protobuf import timestamp_pb2
from tests.stores import BUCKET, servers

from onnx_audit import v1
from onnx_audit_server.jobs import queue
from onnx_audit_server.retention.collecting import Collection, Figures
from onnx_audit_server.retention.marking import Policy
from onnx_audit_server.store import references
from onnx_audit_server.store.blobs import BlobStore, UploadBusyError
from onnx_audit_server.store.chores import Chore, LostError
from onnx_audit_server.store.clock import now_us
from onnx_audit_server.store.database import connect, migrate
from onnx_audit_server.store.records import Records, now, state_changed
from onnx_audit_server.store.sections import SectionRecords
from onnx_audit_server.store.tables import audits, chores, models, probe_sets, sections, uses
from onnx_audit_server.store.uses import Uses

DAY = 86400.0
POLICY = Policy(audits=10 * DAY, inputs=10 * DAY, blobs=30 * DAY)
LONG_AGO = 90 * DAY


class House:
    """Records and blobs as a server has them, with a way to let time pass."""

    def __init__(
        self,
        folder: Path,
        *,
        url: str = "",
        notes: bool = True,
        database: str = "",
        policy: Policy = POLICY,
    ) -> None:
        self.folder = folder
        self.policy = policy
        database = database or f"sqlite:///{folder / 'records.sqlite'}"
        self.engine = connect(database)
        migrate(self.engine)
        queue.migrate(database)
        self.records = Records(self.engine)
        self.blobs = BlobStore(folder, url, Uses(self.engine, policy.blobs) if notes else None)
        self.queue = queue.JobQueue(self.engine)
        self.pause: Callable[[], object] = threading.Event
        self.removed: dict[str, int] = {}

    def collect(self, policy: Policy | None = None, *, dry_run: bool = False) -> Figures:
        """Runs the garbage collection."""
        policy = policy or self.policy
        return Collection(self.engine, self.blobs, self.queue, policy, dry_run=dry_run).run()

    def blob(self, content: bytes) -> str:
        """Uploads content, unless it is there."""
        digest = hashlib.sha256(content).hexdigest()
        while self.blobs.hold(digest) is None:
            try:
                with self.blobs.upload(digest) as upload:
                    upload.append(content[upload.size :])
                    self.blobs.commit(upload)
            except UploadBusyError:
                time.sleep(0.001)
        return digest

    def model(self, content: bytes) -> str:
        """Uploads and registers a model; returns its name."""
        digest = self.blob(content)
        self.pause()
        model = v1.Model(name=f"models/{digest}", onnx_file=v1.ModelFile(sha256=digest))
        return self.records.put_model(digest, model).name

    def probe_set(self, content: bytes) -> str:
        """Uploads and registers a probe set; returns its name."""
        digest = self.blob(content)
        self.pause()
        probes = v1.ProbeSet(name=f"probes/{digest}", sha256=digest)
        return self.records.put_probe_set(digest, probes).name

    def audit(self, identifier: str, model: str, probes: str, baseline: str = "") -> v1.Audit:
        """Accepts an audit, as the API does."""
        audit = v1.Audit(
            name=f"audits/{identifier}",
            model=model,
            probe_set=probes,
            baseline=baseline,
            state=v1.AUDIT_STATE_QUEUED,
        )

        def begin(connection: sa.Connection) -> None:
            references.require_present(connection, audit)
            self.queue.enqueue(connection, identifier)

        return self.records.create_audit(audit, "", identifier, begin)

    def succeed(self, audit: v1.Audit, artefact: bytes) -> None:
        """Ends an audit with a report that refers to an artefact."""
        identifier = audit.name.partition("/")[2]
        stored = self.blobs.put(artefact, "application/octet-stream")
        self.pause()
        report = json.dumps({"audit": identifier, "artefact": stored.sha256}).encode()
        kept = self.blobs.put(report, "application/json").sha256

        def change(audit: v1.Audit) -> list[v1.AuditEvent]:
            audit.state = v1.AUDIT_STATE_SUCCEEDED
            audit.end_time.CopyFrom(now())
            return [state_changed(audit)]

        self.records.end_audit(identifier, change, kept)

    def age(self, *, audits_too: bool = True) -> None:
        """Lets three months pass."""
        then = time.time() - LONG_AGO
        for path in self.folder.rglob("*"):
            if path.is_file() and "sqlite" not in path.name:
                os.utime(path, (then, then))
        past = round(LONG_AGO * 1e6)
        with self.engine.begin() as connection:
            for table in (models, probe_sets, sections):
                connection.execute(sa.update(table).values(created_us=table.c.created_us - past))
            connection.execute(sa.update(uses).values(used_us=uses.c.used_us - past))
            if not audits_too:
                return
            for row in connection.execute(sa.select(audits)).all():
                message = v1.Audit.FromString(row.message)
                if message.HasField("end_time"):
                    micros = message.end_time.ToMicroseconds() - past
                    message.end_time.CopyFrom(timestamp_pb2.Timestamp())
                    message.end_time.FromMicroseconds(micros)
                connection.execute(
                    sa.update(audits)
                    .where(audits.c.id == row.id)
                    .values(message=message.SerializeToString(), created_us=row.created_us - past)
                )

    def digests(self) -> set[str]:
        """The blobs that are there."""
        return {blob.digest for blob in self.blobs.listed()}

    def missing(self) -> list[str]:
        """What the recorded audits refer to and is not there."""
        found = []
        there = self.digests()
        listed, _ = self.records.list_audits(10_000, None, [], "")
        for audit in listed:
            identifier = audit.name.partition("/")[2]
            wanted = {audit.model.partition("/")[2], audit.probe_set.partition("/")[2]}
            if self.records.get_model(audit.model.partition("/")[2]) is None:
                found.append(f"{identifier}: {audit.model} is not registered")
            if self.records.get_probe_set(audit.probe_set.partition("/")[2]) is None:
                found.append(f"{identifier}: {audit.probe_set} is not registered")
            report = self.records.report_blob(identifier)
            if report in there:
                wanted.add(json.loads(self.blobs.get(report))["artefact"])
            if report is not None:
                wanted.add(report)
            found += [f"{identifier}: blob {digest}" for digest in wanted - there]
        return found


class PatientHouse(House):
    """One on stores whose clock cannot be turned back: what is there gets old in seconds."""

    def age(self, *, audits_too: bool = True) -> None:
        """Waits until everything that is there has expired."""
        assert audits_too
        time.sleep(max(self.policy.audits, self.policy.inputs, self.policy.blobs) + 1)


@pytest.fixture(params=["folder", "memory"])
def house(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[House]:
    """A house on a folder, and one on a store that is no folder."""
    made = House(tmp_path, url="memory:///" if request.param == "memory" else "")
    yield made
    made.engine.dispose()


AT_ONCE = Policy(audits=1e-6, inputs=1e-6, blobs=1e-6)
"""Everything expires at once: for stores whose clock cannot be turned back."""


def test_everything_expires_in_its_turn(house: House) -> None:
    """An expired audit goes with its report; then what it alone referred to, and nothing else."""
    kept_probes = house.probe_set(b"probes")
    old = house.audit("old", house.model(b"old model"), kept_probes)
    house.succeed(old, b"old artefact")
    loose = house.blob(b"belongs to nothing")
    expected = {kept_probes.partition("/")[2]}
    live = house.audit("live", house.model(b"live model"), kept_probes)
    expected.add(live.model.partition("/")[2])
    # While the second audit runs, what came after it counts as its own.
    only_audits = Policy(audits=1e-6, inputs=0, blobs=POLICY.blobs)
    time.sleep(0.01)
    assert house.collect(only_audits).counts["audit"] == 1
    assert house.records.get_audit("old") is None
    assert house.records.events_after("old", 0, 10) == []
    house.succeed(live, b"live artefact")
    expected |= {hashlib.sha256(b"live artefact").hexdigest()}
    expected.add(str(house.records.report_blob("live")))
    time.sleep(0.01)
    before = house.digests()
    planned = house.collect(Policy(0, 1e-6, 1e-6), dry_run=True)
    assert house.digests() == before
    done = house.collect(Policy(0, 1e-6, 1e-6))
    assert done == planned
    assert done.counts["model"] == 1
    assert done.counts["probe_set"] == 0
    # The old model, its artefact and report, and the loose blob.
    assert done.counts["blob"] == 4
    assert loose not in house.digests()
    assert house.digests() == expected
    assert house.missing() == []


def test_nothing_expires_without_a_policy(house: House) -> None:
    """By default audits, models and probe sets are kept for ever."""
    audit = house.audit("a", house.model(b"model"), house.probe_set(b"probes"))
    house.succeed(audit, b"artefact")
    house.model(b"never audited")
    before = house.digests()
    time.sleep(0.01)
    done = house.collect(Policy(0, 0, 1e-6))
    assert set(done.counts.values()) == {0}
    assert (done.kept_blobs, house.digests()) == (len(before), before)


def test_a_baseline_stays_with_those_that_refer_to_it(house: House) -> None:
    """A report that a kept audit was compared with is kept, and its baseline too."""
    model, probes = house.model(b"model"), house.probe_set(b"probes")
    house.succeed(house.audit("first", model, probes), b"1")
    house.succeed(house.audit("second", model, probes, "audits/first/report"), b"2")
    third = house.audit("third", model, probes, "audits/second/report")
    time.sleep(0.01)
    assert house.collect(AT_ONCE).counts["audit"] == 0
    house.succeed(third, b"3")
    time.sleep(0.01)
    assert house.collect(AT_ONCE).counts["audit"] == 3
    assert house.digests() == set()


def test_an_audit_that_names_what_was_removed_is_not_accepted(house: House) -> None:
    """Between its check and its record, a model may go; then there is no audit either."""
    model, probes = house.model(b"model"), house.probe_set(b"probes")
    time.sleep(0.01)
    house.collect(AT_ONCE)
    with pytest.raises(references.MissingError, match="models/"):
        house.audit("late", model, probes)
    assert house.records.get_audit("late") is None


def test_unfinished_uploads_expire(tmp_path: Path) -> None:
    """A staged upload goes when nobody has touched it for long, unless somebody holds it."""
    house = House(tmp_path)
    digests = [hashlib.sha256(bytes([n])).hexdigest() for n in range(3)]
    for digest in digests:
        with house.blobs.upload(digest) as upload:
            upload.append(b"part")
    house.age()
    with house.blobs.upload(digests[0]):
        with house.blobs.upload(digests[1]) as upload:
            upload.append(b"more")
        done = house.collect()
    assert (done.counts["upload"], done.freed_bytes) == (1, 4)
    assert [house.blobs.staged_size(digest) for digest in digests] == [4, 8, 0]
    house.engine.dispose()


def test_stored_sections_go_with_their_blobs(tmp_path: Path) -> None:
    """A section that nobody took over for long is forgotten; one that was taken over stays."""
    house = House(tmp_path)
    records = SectionRecords(house.engine)
    for name in (b"unused", b"used"):
        blob = house.blobs.put(name, "application/x-protobuf").sha256
        records.put(name.decode(), v1.StoredSection(section_sha256=blob))
    house.age()
    assert house.blobs.hold(hashlib.sha256(b"used").hexdigest()) == 4
    assert house.collect().counts["section"] == 1
    assert records.get("unused") is None
    assert records.get("used") is not None
    house.engine.dispose()


def test_one_process_collects_at_a_time(tmp_path: Path) -> None:
    """A chore is one holder's until it is done, given back or left for too long."""
    house = House(tmp_path)
    first, second = Chore(house.engine, "gc", "a"), Chore(house.engine, "gc", "b")
    assert first.begin()
    assert not second.begin()
    first.renew()
    first.end(done=True)
    assert not second.begin(interval=60)
    assert second.begin()
    with house.engine.begin() as connection:
        connection.execute(sa.update(chores).values(until_us=now_us() - 1))
    assert first.begin()
    with pytest.raises(LostError):
        second.renew()
    second.end(done=True)
    first.renew()
    house.engine.dispose()


def race(house: House, seed: int, rounds: int) -> list[str]:
    """Lets writers and collections race; returns what is missing at the end of each round.

    Before each round three months pass, so that everything that is there is old. In it writers
    upload, register and audit contents of which some are there and some are not.
    """
    randoms = random.Random(seed)  # noqa: S311 - a test's
    house.pause = lambda: time.sleep(randoms.random() * 0.01)
    lost: list[str] = []
    with ThreadPoolExecutor(5) as threads:
        for number in range(rounds):
            for audit in house.records.list_audits(1000, None, [v1.AUDIT_STATE_QUEUED], "")[0]:
                house.succeed(audit, b"late artefact")
            house.age()
            start = threading.Barrier(5)
            running = [
                threads.submit(write, house, f"{number}-{n}", randoms.random(), start, lost)
                for n in range(4)
            ]
            start.wait()
            house.pause()
            for kind, count in house.collect().counts.items():
                house.removed[kind] = house.removed.get(kind, 0) + count
            for future in running:
                future.result()
            lost += [f"round {number}: {text}" for text in house.missing()]
            if lost:
                break
    return lost


def write(house: House, name: str, seed: float, start: threading.Barrier, lost: list[str]) -> None:
    """Registers and audits contents of which some are there."""
    own = random.Random(seed)  # noqa: S311 - a test's
    start.wait()
    for step in range(3):
        model, probes = (f"{kind}{own.randrange(8)}".encode() for kind in "mp")
        try:
            audit = house.audit(f"{name}-{step}", house.model(model), house.probe_set(probes))
        except references.MissingError as error:
            lost.append(f"{error} went between its registration and its audit")
            continue
        if own.random() < 0.7:
            house.succeed(audit, f"artefact {own.randrange(8)}".encode())


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads that take turns far more often than usual."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("hasty_threads")
def test_collections_race_uploads_and_audits(tmp_path: Path) -> None:
    """Nothing that a writer was told is there, or has recorded, is ever missing."""
    house = House(tmp_path)
    assert race(house, seed=1, rounds=6) == []
    removed = house.removed
    assert all(removed[kind] for kind in ("audit", "model", "probe_set", "blob")), removed
    house.engine.dispose()


@pytest.mark.usefixtures("hasty_threads")
def test_the_race_is_one(tmp_path: Path) -> None:
    """Without notes of uses the same race loses blobs: the test above can fail."""
    house = House(tmp_path, notes=False)
    assert race(house, seed=1, rounds=30)
    house.engine.dispose()


@pytest.mark.slow
@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("seed", range(10))
def test_collections_race_for_long(tmp_path: Path, seed: int) -> None:
    """The same over many rounds and seeds."""
    house = House(tmp_path)
    assert race(house, seed, rounds=60) == []
    house.engine.dispose()


@pytest.mark.slow
def test_collections_race_on_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on PostgreSQL and S3."""
    brief = Policy(audits=10, inputs=10, blobs=10)
    with servers(tmp_path) as stores:
        assert stores.postgres is not None
        for name, value in stores.environment.items():
            monkeypatch.setenv(name, value)
        house = PatientHouse(
            tmp_path, url=f"s3://{BUCKET}/blobs", database=stores.postgres.url, policy=brief
        )
        assert race(house, seed=1, rounds=12) == []
        removed = house.removed
        assert all(removed[kind] for kind in ("audit", "model", "probe_set", "blob")), removed
        house.engine.dispose()


def test_memory_store_is_not_a_folder(tmp_path: Path) -> None:
    """Listing and bulk removal work where blobs are objects."""
    blobs = BlobStore(tmp_path, "memory:///")
    digests = [blobs.put(bytes([n]), "text/plain").sha256 for n in range(3)]
    blobs.remove(digests[:2])
    assert [blob.digest for blob in blobs.listed()] == digests[2:]
    blobs.remove(digests[:1])
    assert obstore.head(blobs._store, f"{digests[2][:2]}/{digests[2]}")["size"] == 1
