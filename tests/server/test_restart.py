"""Kills, drains and takeovers of real processes: no audit is lost, and none is different."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from tests import models
from tests.service import ServiceProcess

from onnx_audit import Client, v1
from onnx_audit.errors import Unavailable
from onnx_audit.retries import RetryPolicy

CONFIG = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=1000))


def submit(client: Client, folder: Path) -> v1.Audit:
    """Starts an audit of several shards that takes some seconds."""
    path = models.save(models.mlp((64, 96, 96, 10), seed=5), folder / "model.onnx")
    return client.audit(
        client.upload_model(path), client.upload_probes(models.probes(128, 64)), auditors=CONFIG
    )


def wait_for_shards(client: Client, audit: v1.Audit, count: int) -> None:
    """Returns when so many shards have finished and another one runs."""
    finished = 0
    for event in client.watch(audit):
        kind = event.WhichOneof("event")
        finished += kind == "shard_finished"
        if finished >= count and kind == "shard_progress":
            return
    raise AssertionError("the audit ended before it could be disturbed")


@pytest.fixture(scope="module")
def undisturbed_digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report's digest of an audit that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with ServiceProcess(folder / "data") as process, process.client() as client:
        return client.wait(submit(client, folder)).report_digest


def test_a_killed_server_goes_on_where_it_was(tmp_path: Path, undisturbed_digest: str) -> None:
    """After kill -9 in the middle of a shard, only that shard is done again; same digest."""
    with ServiceProcess(tmp_path / "data") as process:
        with process.client() as client:
            audit = submit(client, tmp_path)
            wait_for_shards(client, audit, 1)
        process.kill()
        process.start()
        with process.client() as client:
            ended = client.wait(audit)
            events = list(client.watch(audit))
    assert ended.report_digest == undisturbed_digest
    finished = [
        event.shard_finished.shard
        for event in events
        if event.WhichOneof("event") == "shard_finished"
    ]
    assert len(finished) == len(set(finished)), "a finished shard was done again"
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


def test_no_runner_outlives_a_killed_server(tmp_path: Path) -> None:
    """The isolated processes end by themselves when their parent is gone."""
    with ServiceProcess(tmp_path / "data") as process:
        with process.client() as client:
            wait_for_shards(client, submit(client, tmp_path), 0)
        assert runners_of(tmp_path)
        process.kill()
        deadline = time.monotonic() + 10
        while runners_of(tmp_path):
            assert time.monotonic() < deadline, "a runner lives on"
            time.sleep(0.05)


def runners_of(folder: Path) -> list[str]:
    """Ids of the runner processes whose working folder lies below a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink().is_relative_to(folder):
                found.append(entry.name)
        except OSError:
            continue
    return found


def test_a_killed_runner_is_replaced(tmp_path: Path, undisturbed_digest: str) -> None:
    """A shard whose process is killed is done again by another one, and the report is the same."""
    with ServiceProcess(tmp_path / "data") as process, process.client() as client:
        audit = submit(client, tmp_path)
        wait_for_shards(client, audit, 1)
        for runner in runners_of(tmp_path / "data"):
            os.kill(int(runner), signal.SIGKILL)
        assert client.wait(audit).report_digest == undisturbed_digest
        attempts = [event.shard_started.attempt for event in client.watch(audit)]
    assert max(attempts) == 2


def test_sigterm_waits_for_running_shards(tmp_path: Path, undisturbed_digest: str) -> None:
    """A draining server takes no new audit, ends with status 0, and the audit goes on later."""
    with ServiceProcess(tmp_path / "data") as process:
        with process.client() as client:
            audit = submit(client, tmp_path)
            wait_for_shards(client, audit, 1)
            process.signal(signal.SIGTERM)
            wait_for_log(process, "draining")
            model, probes = audit.model, audit.probe_set
            with (
                pytest.raises(Unavailable),
                Client(process.target, retries=RetryPolicy(attempts=1)) as hasty,
            ):
                hasty.audit(model, probes, auditors=CONFIG, seed=3)
        assert process.wait() == 0
        assert not runners_of(tmp_path / "data")
        process.start()
        with process.client() as client:
            assert client.wait(audit).report_digest == undisturbed_digest


def test_sigterm_hands_long_shards_back(tmp_path: Path, undisturbed_digest: str) -> None:
    """With no time to finish, a shard is handed back and begun anew after the restart."""
    with ServiceProcess(tmp_path / "data", "--drain-timeout", "0") as process:
        with process.client() as client:
            audit = submit(client, tmp_path)
            wait_for_shards(client, audit, 1)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert any(line.get("handed_back") for line in process.log_lines())
        process.start()
        with process.client() as client:
            assert client.wait(audit).report_digest == undisturbed_digest


def test_a_worker_of_its_own_does_the_work(tmp_path: Path) -> None:
    """A server without a worker queues audits; a worker that comes later does them."""
    data = tmp_path / "data"
    with ServiceProcess(data, "--no-worker") as server, server.client() as client:
        audit = submit(client, tmp_path)
        time.sleep(1)
        assert client.get_audit(audit).state == v1.AUDIT_STATE_QUEUED
        with ServiceProcess(data, "--worker-name", "other", command="worker"):
            assert client.wait(audit).state == v1.AUDIT_STATE_SUCCEEDED


def test_a_second_worker_of_the_same_name_is_refused(tmp_path: Path) -> None:
    """Two processes would resume each other's work; the second says so and ends."""
    second = ServiceProcess(tmp_path / "data")
    with ServiceProcess(second.data), pytest.raises(AssertionError, match="already runs"):
        second.start()


def wait_for_log(process: ServiceProcess, event: str) -> None:
    deadline = time.monotonic() + 20
    while not any(line.get("event") == event for line in process.log_lines()):
        assert time.monotonic() < deadline, process.log
        time.sleep(0.02)
