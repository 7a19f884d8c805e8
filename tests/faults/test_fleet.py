"""Several servers and workers on PostgreSQL and S3, each with a data folder of its own."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests import models
from tests.faults import invariants
from tests.faults.fleet import TAKEOVER, Fleet, Member, running
from tests.faults.stub_runner import BARE
from tests.stores import servers

from onnx_audit import Client, v1
from onnx_audit.errors import ServiceError, Unavailable
from onnx_audit.retries import RetryPolicy
from onnx_audit.v1 import blob_pb2_grpc

CONFIG = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=10))
CHUNK = 1 << 20


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two servers and two workers."""
    with servers(tmp_path_factory.mktemp("fleet")) as stores, running(stores) as fleet:
        yield fleet


@pytest.fixture
def client(fleet: Fleet) -> Iterator[Client]:
    """A client of the fleet's one address, when everything is up."""
    fleet.start()
    with fleet.client() as client:
        yield client


@pytest.fixture(scope="module")
def inputs(fleet: Fleet) -> tuple[v1.Model, v1.ProbeSet]:
    """A model and probes."""
    with fleet.client() as client:
        path = models.save(models.mlp(), fleet.stores.folder / "model.onnx")
        return client.upload_model(path), client.upload_probes(models.probes(8, 16))


def submit(client: Client, inputs: tuple[v1.Model, v1.ProbeSet], name: str = "") -> v1.Audit:
    """Starts an audit of four shards, unless its name says otherwise."""
    return client.audit(*inputs, auditors=CONFIG, fresh=True, display_name=name)


def lines(member: Member, event: str) -> list[dict[str, object]]:
    """A process's log lines of one kind."""
    found = [json.loads(line) for line in member.log.read_text().splitlines() if line[:1] == "{"]
    return [line for line in found if line["event"] == event]


def shards_done(member: Member, audit: v1.Audit) -> int:
    """Shards of an audit that a worker did."""
    identifier = audit.name.partition("/")[2]
    done = lines(member, "task done")
    return sum(line["audit"] == identifier and line["task"] == "shard" for line in done)


def submit_until_progress(client: Client, inputs: tuple[v1.Model, v1.ProbeSet]) -> v1.Audit:
    """Submits an audit, and returns it once a worker is in the middle of a shard."""
    audit = submit(client, inputs)
    for event in client.watch(audit):
        if event.HasField("shard_progress"):
            break
    return audit


def test_the_shards_of_an_audit_spread_over_the_workers(
    fleet: Fleet, client: Client, inputs: tuple[v1.Model, v1.ProbeSet]
) -> None:
    """Both workers did shards of one audit, with the blobs that a server took."""
    for _ in range(50):
        # A worker that has just come up begins to look for work a second later.
        if all(lines(worker, "task done") for worker in fleet.workers):
            break
        client.wait(submit(client, inputs, f"{BARE}4"))
    audit = client.wait(submit(client, inputs))
    assert all(shards_done(worker, audit) for worker in fleet.workers)
    invariants.check_course(client, audit)


def test_a_lost_worker_is_replaced_within_30_seconds(
    fleet: Fleet, client: Client, inputs: tuple[v1.Model, v1.ProbeSet]
) -> None:
    """After kill -9 in the middle of a shard the other worker does everything, with defaults."""
    for worker in fleet.workers:
        worker.stop()
        worker.takeover_after = 12.0
        worker.start()
    lost, other = fleet.workers
    try:
        other.signal(signal.SIGSTOP)
        audit = submit_until_progress(client, inputs)
        lost.signal(signal.SIGKILL)
        other.signal(signal.SIGCONT)
        killed = time.monotonic()
        client.wait(audit)
        assert time.monotonic() - killed < 30
        assert lines(other, "took over from a dead worker")
        invariants.check_course(client, audit)
    finally:
        other.signal(signal.SIGKILL)
        other.wait()
        for worker in fleet.workers:
            worker.takeover_after = TAKEOVER


def test_a_worker_that_wakes_up_too_late_changes_nothing(
    fleet: Fleet, client: Client, inputs: tuple[v1.Model, v1.ProbeSet]
) -> None:
    """One that stood still in the middle of a shard ends when it finds its work taken over."""
    paused, other = fleet.workers
    other.signal(signal.SIGSTOP)
    audit = submit_until_progress(client, inputs)
    paused.signal(signal.SIGSTOP)
    other.signal(signal.SIGCONT)
    client.wait(audit)
    before = client.get_audit(audit).last_sequence
    paused.signal(signal.SIGCONT)
    paused.wait()
    assert lines(paused, "taken for dead")
    assert client.get_audit(audit).last_sequence == before
    invariants.check_course(client, audit)


@pytest.mark.usefixtures("client")
def test_a_name_belongs_to_one_worker(fleet: Fleet, tmp_path: Path) -> None:
    """A second worker of a name, on another machine, is told whose name it is, and ends."""
    first = fleet.workers[0]
    folder = tmp_path / "elsewhere"
    second = Member(first.name, "worker", fleet.stores, fleet.nursery, "--data", str(folder))
    with pytest.raises(AssertionError, match=f"already runs on host .*{first.pid}"):
        second.start()
    assert first.alive


@pytest.mark.usefixtures("client")
def test_an_upload_that_breaks_begins_anew_on_another_server(fleet: Fleet) -> None:
    """What one server holds of an upload the other does not: it says so, and takes it from 0."""
    content = bytes(range(256)) * (3 * CHUNK // 256)
    digest = hashlib.sha256(content).hexdigest()

    def chunks(count: int) -> Iterator[v1.WriteRequest]:
        for offset in range(0, count * CHUNK, CHUNK):
            yield v1.WriteRequest(
                sha256=digest,
                write_offset=offset,
                data=content[offset : offset + CHUNK],
                finish_write=offset + CHUNK == len(content),
            )

    stubs = []
    for server in fleet.servers:
        channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
        stubs.append(blob_pb2_grpc.BlobServiceStub(channel))
    query = v1.QueryWriteStatusRequest(sha256=digest)
    assert not stubs[0].Write(chunks(2)).complete
    assert stubs[0].QueryWriteStatus(query).committed_size == 2 * CHUNK
    assert stubs[1].QueryWriteStatus(query).committed_size == 0
    late = v1.WriteRequest(sha256=digest, write_offset=2 * CHUNK, data=content[2 * CHUNK :])
    with pytest.raises(grpc.RpcError, match="write_offset"):
        stubs[1].Write(iter([late]))
    # The same server takes a new beginning, too.
    assert stubs[0].Write(chunks(1)).committed_size == CHUNK
    assert stubs[1].Write(chunks(3)).complete
    assert stubs[0].QueryWriteStatus(query).complete
    read = b"".join(part.data for part in stubs[0].Read(v1.ReadRequest(sha256=digest)))
    assert read == content


def test_a_watch_goes_on_at_the_other_server(
    fleet: Fleet, client: Client, inputs: tuple[v1.Model, v1.ProbeSet]
) -> None:
    """The server that is watched is killed, and the events go on without a gap."""
    audit = submit(client, inputs)
    seen = []
    for event in client.watch(audit):
        seen.append(event.sequence)
        if event.HasField("plan_ready"):
            # Whichever of the two it is.
            for server in fleet.servers:
                server.signal(signal.SIGKILL)
                server.wait()
                server.start()
                fleet.start()
    assert seen == list(range(1, len(seen) + 1))


@pytest.mark.parametrize("store", ["database", "blobs"])
def test_calls_say_when_to_come_back_while_a_store_is_away(
    fleet: Fleet, client: Client, inputs: tuple[v1.Model, v1.ProbeSet], store: str
) -> None:
    """UNAVAILABLE with RetryInfo; and everything goes on when the store is back."""
    line = getattr(fleet.stores, store)
    audit = client.wait(submit(client, inputs))
    target = f"127.0.0.1:{fleet.servers[0].port}"
    with Client(target, retries=RetryPolicy(attempts=1), timeout=20) as hasty:
        line.cut()
        try:
            with pytest.raises(Unavailable) as caught:
                hasty.report(audit)
        finally:
            line.mend()
    assert caught.value.reason == "STORE_UNAVAILABLE"
    assert caught.value.retry_delay
    invariants.check_course(client, client.wait(submit(client, inputs)))


def test_a_drain_loses_no_accepted_request(
    fleet: Fleet, client: Client, inputs: tuple[v1.Model, v1.ProbeSet]
) -> None:
    """SIGTERM of a server that many clients submit to: what was accepted is there, and ends."""
    accepted: list[str] = []
    refused: list[ServiceError] = []
    target = f"127.0.0.1:{fleet.servers[0].port}"

    def submit_until_refused() -> None:
        with Client(target, retries=RetryPolicy(attempts=1)) as hasty:
            try:
                while True:
                    accepted.append(submit(hasty, inputs, f"{BARE}1").name)
                    time.sleep(0.2)
            except ServiceError as error:
                refused.append(error)

    threads = [threading.Thread(target=submit_until_refused) for _ in range(5)]
    for thread in threads:
        thread.start()
    while len(accepted) < 6:
        time.sleep(0.01)
    fleet.servers[0].signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    fleet.servers[0].wait()
    assert all(isinstance(error, Unavailable) for error in refused), refused
    fleet.start()
    known = {audit.name for audit in client.audits()}
    assert set(accepted) <= known
    for name in accepted:
        client.wait(name)


def test_every_worker_has_slots_of_its_own(
    fleet: Fleet, client: Client, inputs: tuple[v1.Model, v1.ProbeSet]
) -> None:
    """A worker with three slots does more at once than one with a single slot that came later."""
    for worker in fleet.workers:
        worker.stop()
    wide = Member("wide", "worker", fleet.stores, fleet.nursery, "--slots", "3")
    narrow = Member("narrow", "worker", fleet.stores, fleet.nursery)
    try:
        for worker in (wide, narrow):
            worker.start()
        audits = [submit(client, inputs) for _ in range(3)]
        most = {wide.name: 0, narrow.name: 0}
        while any(client.get_audit(audit).state < v1.AUDIT_STATE_SUCCEEDED for audit in audits):
            for worker in (wide, narrow):
                most[worker.name] = max(most[worker.name], len(worker.runners()))
        assert most[wide.name] >= 3
        done = {w.name: sum(shards_done(w, audit) for audit in audits) for w in (wide, narrow)}
        assert done[wide.name] > done[narrow.name] > 0
    finally:
        for worker in (wide, narrow):
            worker.signal(signal.SIGKILL)
