"""Models made to harm, sent to one real server: each is told what is wrong, the server lives on."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import grpc
import numpy as np
import psutil
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tests import models
from tests.hostile import corpus
from tests.hostile.residue import look, settled
from tests.service import ServiceProcess

from onnx_audit import AuditFailed, Client, v1
from onnx_audit.v1 import blob_pb2_grpc, model_pb2_grpc
from onnx_audit_server.jobs.devices import visible_gpus

DEADLINE = 60.0
"""Seconds in which every model has to be answered: the setting inspect_timeout."""
SHARD_TIMEOUT = 30
"""Seconds that a step of an audit may take."""
PART = 1 << 20
"""Bytes per message."""
QUICK = ("truncated", "8 GiB ConstantOfShape")
CONFIG = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=40))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """One server for the whole corpus, on a GPU where there is one."""
    limits = {
        "ONNX_AUDIT_SHARD_TIMEOUT": str(SHARD_TIMEOUT),
        "ONNX_AUDIT_RUNNER_MEMORY_BYTES": str(3 << 30),
    }
    device = "cuda" if visible_gpus() else "cpu"
    folder = tmp_path_factory.mktemp("hostile")
    with ServiceProcess(folder / "data", "--device", device, environment=limits) as process:
        yield process


@pytest.fixture(scope="module")
def channel(service: ServiceProcess) -> Iterator[grpc.Channel]:
    """A bare channel: the client library would find most of this itself."""
    with grpc.insecure_channel(service.target) as channel:
        yield channel


@pytest.fixture(scope="module")
def client(service: ServiceProcess) -> Iterator[Client]:
    """Somebody else, who means no harm."""
    with service.client(timeout=120) as client:
        yield client


def send(channel: grpc.Channel, content: bytes, files: Mapping[str, bytes]) -> v1.Model:
    """Uploads and registers a model."""
    named = [v1.ModelFile(path=path, sha256=upload(channel, data)) for path, data in files.items()]
    model = v1.Model(onnx_file=v1.ModelFile(sha256=upload(channel, content)), external_files=named)
    request = v1.CreateModelRequest(model=model)
    return model_pb2_grpc.ModelServiceStub(channel).CreateModel(request, timeout=DEADLINE)


def upload(channel: grpc.Channel, content: bytes) -> str:
    """Stores a blob."""
    digest = hashlib.sha256(content).hexdigest()
    requests = [
        v1.WriteRequest(sha256=digest, write_offset=at, data=content[at : at + PART])
        for at in range(0, len(content), PART)
    ]
    requests[-1].finish_write = True
    blob_pb2_grpc.BlobServiceStub(channel).Write(iter(requests))
    return digest


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    """Reason and message of a call that is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return told(caught.value)


def told(error: grpc.RpcError) -> tuple[str, str]:
    """Reason and message of an error."""
    # Errors of the synchronous API are calls too, which their type does not say.
    status = rpc_status.from_call(cast("grpc.Call", error))
    assert status is not None, error
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return str(info.reason), str(status.message)


def check_refused(service: ServiceProcess, channel: grpc.Channel, name: str) -> None:
    """Sends a model of the corpus; sees what comes back and what is left of it."""
    case = corpus.REFUSED[name]
    content, before = case.build(), look(service)
    reason, message = refusal(lambda: send(channel, content, case.files))
    assert reason == case.reason, message
    for word in case.words:
        assert word in message, message
    assert "root:" not in message
    assert len(message) < 8_000
    left = settled(service)
    assert left.is_clean, left
    # The uploads themselves are counted for whoever brought them until they are collected.
    assert left.unaccounted == before.unaccounted


@pytest.mark.parametrize("name", QUICK)
def test_a_few_hostile_models(service: ServiceProcess, channel: grpc.Channel, name: str) -> None:
    """Some of the corpus at each change."""
    check_refused(service, channel, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in corpus.REFUSED if name not in QUICK])
def test_a_hostile_model_is_refused(
    service: ServiceProcess, channel: grpc.Channel, name: str
) -> None:
    """The answer says what is wrong and what is allowed, and nothing is left."""
    check_refused(service, channel, name)


@pytest.mark.slow
def test_flipped_bits(service: ServiceProcess, channel: grpc.Channel) -> None:
    """A model with a few bits turned is read, or refused as a model, and is never a fault."""
    found = set()
    for seed in range(12):
        try:
            send(channel, corpus.flipped(seed), {})
        except grpc.RpcError as error:
            reason, message = told(error)
            assert reason in {"INVALID_MODEL", "UNSUPPORTED_OPERATOR", "LIMIT_EXCEEDED"}, message
            found.add(reason)
    assert "INVALID_MODEL" in found
    assert settled(service).is_clean


class Neighbour(threading.Thread):
    """Calls the service all the time, and notes how long each call took."""

    def __init__(self, service: ServiceProcess) -> None:
        super().__init__()
        self._service = service
        self._stop_asked = threading.Event()
        self.seconds: list[float] = []
        self.error: Exception | None = None

    def run(self) -> None:
        """Calls until told to stop."""
        with self._service.client() as client:
            while not self._stop_asked.wait(0.05):
                begin = time.monotonic()
                try:
                    list(client.audits())
                except Exception as error:  # noqa: BLE001 - whatever it is fails the test
                    self.error = error
                    return
                self.seconds.append(time.monotonic() - begin)

    def stop(self) -> None:
        """Stops and waits."""
        self._stop_asked.set()
        self.join()


@pytest.mark.slow
def test_others_are_served_meanwhile(
    service: ServiceProcess, client: Client, tmp_path: Path
) -> None:
    """While several clients send hostile models, calls are quick and an audit comes to its end."""
    names = ["a million nodes", "endless Loop", "8 GiB Expand", "truncated", "large weight"] * 2
    done: list[str] = []

    def attack(mine: list[str]) -> None:
        with grpc.insecure_channel(service.target) as channel:
            for name in mine:
                case = corpus.REFUSED[name]
                assert refusal(lambda case=case: send(channel, case.build(), case.files))[0] == (  # type: ignore[misc] # mypy knows no defaults of lambdas
                    case.reason
                )
                done.append(name)

    neighbour = Neighbour(service)
    attackers = [threading.Thread(target=attack, args=(names[i::2],)) for i in range(2)]
    for thread in (neighbour, *attackers):
        thread.start()
    try:
        report = good_audit(client, tmp_path, seed=1)
    finally:
        for thread in attackers:
            thread.join()
        neighbour.stop()
    assert report.distortion.probe_count == 8
    assert sorted(done) == sorted(names)
    assert neighbour.error is None
    assert len(neighbour.seconds) > 50
    assert max(neighbour.seconds) < 5
    assert settled(service).is_clean


def good_audit(client: Client, folder: Path, seed: int) -> v1.Report:
    """Audits a model that means no harm."""
    model = client.upload_model(models.save(models.mlp(seed=seed), folder / f"{seed}.onnx"))
    probe_set = client.upload_probes(models.probes(8, 16))
    return client.report(client.wait(client.audit(model, probe_set, auditors=CONFIG)))


AUDITED: Mapping[str, tuple[Callable[[], bytes], str]] = {
    "NaN": (lambda: corpus.weighted(np.full((4, 4), np.nan)), "nan"),
    "infinity": (lambda: corpus.weighted(np.full((4, 4), np.inf)), "nan"),
    "Loop without end for any input": (lambda: corpus.endless_loop(above=-1), "10,000 turns"),
    "Loop without end for these": (
        lambda: corpus.endless_loop(above=3.9),
        f"at most {SHARD_TIMEOUT}",
    ),
}
"""Models that are taken, and what an audit of them fails with."""


@pytest.mark.slow
@pytest.mark.parametrize("name", AUDITED)
def test_an_audit_of_a_hostile_model_fails(
    service: ServiceProcess, channel: grpc.Channel, client: Client, name: str
) -> None:
    """It ends within the time of one step, with an error that says why."""
    build, word = AUDITED[name]
    model = send(channel, build(), {})
    probe_set = client.upload_probes(models.probes(6, 4, low=0.99, high=1.0))
    begin = time.monotonic()
    with pytest.raises(AuditFailed) as caught:
        client.wait(client.audit(model, probe_set, auditors=CONFIG))
    assert time.monotonic() - begin < 3 * SHARD_TIMEOUT
    assert word in str(caught.value).lower(), caught.value
    assert "INTERNAL" not in str(caught.value)
    assert settled(service).is_clean


@contextmanager
def killing(service: ServiceProcess, pause: float, times: int) -> Iterator[None]:
    """Kills all runners again and again, as crashes in native code would."""
    stop = threading.Event()

    def kill() -> None:
        server = psutil.Process(service.pid)
        for _ in range(times):
            if stop.wait(pause):
                return
            for runner in server.children():
                with suppress(psutil.NoSuchProcess):
                    runner.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        stop.set()
        killer.join()


@pytest.mark.slow
def test_a_runner_that_is_killed(service: ServiceProcess, channel: grpc.Channel) -> None:
    """Where a runner dies, at whatever moment, the model is read by another one."""
    with killing(service, pause=1.0, times=2):
        for seed in range(100, 103):
            assert send(channel, models.mlp(seed=seed).SerializeToString(), {}).name
    assert settled(service).is_clean


@pytest.mark.slow
def test_a_model_that_kills_every_runner(service: ServiceProcess, channel: grpc.Channel) -> None:
    """After a few attempts the answer says how they ended; the next model is taken."""
    content = models.mlp(seed=103).SerializeToString()
    with killing(service, pause=0.1, times=10_000):
        reason, message = refusal(lambda: send(channel, content, {}))
    assert reason == "RUNNER_DIED"
    assert "SIGKILL" in message
    assert "3 attempts" in message
    assert send(channel, content, {}).name
    assert settled(service).is_clean


@pytest.mark.slow
def test_nothing_is_left_after_many(
    service: ServiceProcess, channel: grpc.Channel, client: Client, tmp_path: Path
) -> None:
    """File descriptors, threads and a GPU's memory are what they were, and audits still run."""
    good_audit(client, tmp_path, seed=2)
    before = settled(service)
    for _ in range(4):
        for name in ("truncated", "cyclic", "offset beyond the file"):
            check_refused(service, channel, name)
    after = look(service)
    assert after.is_clean
    assert after.files <= before.files + 2
    assert after.threads <= before.threads + 2
    assert after.gpu_bytes <= before.gpu_bytes
    good_audit(client, tmp_path, seed=3)
