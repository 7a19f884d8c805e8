"""Random faults while audits run: nothing accepted is lost, nothing happens twice.

Every run has a seed, from which everything that is drawn follows; a failure names it, and
ONNX_AUDIT_FAULT_SEED=seed ONNX_AUDIT_FAULT_RUNS=1 runs it again.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import models
from tests.faults import faults, invariants
from tests.faults.fleet import Fleet, running
from tests.stores import Stores, servers

from onnx_audit import v1

CONFIG = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=10))
AUDITS = 3
"""Audits of a run."""
LONGEST = 90.0
"""Seconds that the audits of a run may take."""


class Trial:
    """A fleet with a model and probes, and everything that was ever asked of it."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet = fleet
        self.reports: dict[str, v1.Report] = {}
        self._digests: dict[int, str] = {}
        with fleet.client() as client:
            path = models.save(models.mlp(), folder / "model.onnx")
            self._model = client.upload_model(path)
            self._probes = client.upload_probes(models.probes(8, 16))

    def run(self, seed: int, kinds: tuple[faults.Fault, ...]) -> None:
        """Starts audits, lets one to three faults happen, and checks what has become of them."""
        draw = random.Random(seed)  # noqa: S311 - no secret
        asked = [draw.randrange(3) for _ in range(AUDITS)]
        chosen = [draw.choice(kinds) for _ in range(draw.randint(1, 3))]
        what = f"seed {seed}: " + ", ".join(fault.__name__ for fault in chosen)
        found: list[tuple[int, v1.Audit]] = []
        threads = [
            threading.Thread(target=self._watch, args=(seed, n, number, found), daemon=True)
            for number, n in enumerate(asked)
        ]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        for fault in chosen:
            time.sleep(draw.uniform(0, 0.8))
            fault(self.fleet, draw)
        for thread in threads:
            thread.join(max(0.1, LONGEST - (time.monotonic() - start)))
        assert len(found) == AUDITS, f"{what}: an audit did not end"
        print(f"{what}: {time.monotonic() - start:.1f} s")  # noqa: T201 - pytest -s shows it
        try:
            with self.fleet.client() as client:
                for n, audit in found:
                    report = invariants.check_course(client, audit)
                    self.reports[audit.name] = report
                    digest = self._digests.setdefault(n, report.digest)
                    assert digest == report.digest, "the same job gave another report"
        except AssertionError as error:
            raise AssertionError(f"{what}: {error}") from error

    def _watch(self, seed: int, n: int, number: int, found: list[tuple[int, v1.Audit]]) -> None:
        with self.fleet.client() as client:
            name = f"{seed}-{number}-{time.time_ns()}"
            audit = client.audit(
                self._model, self._probes, auditors=CONFIG, seed=n, fresh=True, request_id=name
            )
            client.wait(audit)
            found.append((n, audit))

    def check_all(self, url: str) -> None:
        """Checks what must hold of everything together, at the end."""
        with self.fleet.client() as client:
            names = {audit.name for audit in client.audits()}
            assert names == set(self.reports), "an audit was lost, or started twice"
            for name, report in self.reports.items():
                assert client.report(name) == report, "a finished report has changed"
            invariants.check_queue(url)
            addresses = [member.addresses["http"] for member in self.fleet.members]
            invariants.check_metrics(addresses, client)


def run_trials(stores: Stores, url: str, kinds: tuple[faults.Fault, ...], runs: int) -> None:
    """Runs seeds one after another on one fleet."""
    first = int(os.environ.get("ONNX_AUDIT_FAULT_SEED", "0"))
    runs = int(os.environ.get("ONNX_AUDIT_FAULT_RUNS", str(runs)))
    with running(stores) as fleet:
        trial = Trial(fleet, stores.folder)
        for seed in range(first, first + runs):
            trial.run(seed, kinds)
            fleet.start()
        trial.check_all(url)


@pytest.fixture
def folder_stores(tmp_path: Path) -> Iterator[tuple[Stores, str]]:
    """SQLite and a folder, with the database's URL."""
    yield Stores(tmp_path), f"sqlite:///{tmp_path / 'data' / 'onnx-audit.sqlite'}"
    assert invariants.check_folder(tmp_path / "data" / "blobs")


@pytest.fixture
def server_stores(tmp_path: Path) -> Iterator[tuple[Stores, str]]:
    """PostgreSQL and an S3 server, with the database's URL."""
    with servers(tmp_path) as stores:
        assert stores.postgres is not None
        yield stores, stores.postgres.url


def test_faults_of_processes(folder_stores: tuple[Stores, str]) -> None:
    """A run on SQLite and a folder."""
    run_trials(*folder_stores, faults.OF_PROCESSES, 1)


def test_faults_of_processes_and_stores(server_stores: tuple[Stores, str]) -> None:
    """Some runs on PostgreSQL and S3."""
    run_trials(*server_stores, faults.OF_PROCESSES + faults.OF_STORES, 2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_faults_of_processes(folder_stores: tuple[Stores, str]) -> None:
    """Many runs on SQLite and a folder."""
    run_trials(*folder_stores, faults.OF_PROCESSES, 150)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_faults_of_processes_and_stores(server_stores: tuple[Stores, str]) -> None:
    """Many runs on PostgreSQL and S3."""
    run_trials(*server_stores, faults.OF_PROCESSES + faults.OF_STORES, 200)
