"""Two real servers on one PostgreSQL database, whose URL holds a password."""

from __future__ import annotations

import contextlib
import os
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests import models
from tests.server.postgres import postgres
from tests.service import ServiceProcess

from onnx_audit import Client, RetryPolicy, v1
from onnx_audit.errors import ResourceExhausted
from onnx_audit_server.access.identity import Scope
from onnx_audit_server.access.tokens import Tokens
from onnx_audit_server.store.database import connect

PASSWORD = "hunter2-of-the-database"  # noqa: S105 - no real one
LIMIT = 5


def outside_of(processes: tuple[ServiceProcess, ...], token: str) -> dict[str, str]:
    """Logs, metrics and arguments, which others may look at, and what runners are given."""
    places = {}
    for process in processes:
        places[f"log of {process.data.name}"] = process.log
        request = urllib.request.Request(f"http://{process.addresses['http']}/metrics")
        request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request) as response:  # noqa: S310 - of our own server
            places[f"metrics of {process.data.name}"] = response.read().decode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (folder / "cmdline").read_bytes().decode("latin-1")
            places[f"arguments {folder.name}"] = arguments
            if "onnx_audit_server.jobs.runner" in arguments:
                environment = (folder / "environ").read_bytes()
                places[f"runner {folder.name}"] = environment.decode("latin-1")
    return places


@pytest.mark.slow
def test_two_servers_share_tokens_and_quotas_and_leak_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token opens both; of many audits at once through both, as many as allowed get in."""
    with postgres() as plain:
        url = plain.replace("audit@", f"audit:{PASSWORD}@")
        (tmp_path / "blobs").mkdir()
        monkeypatch.setenv("ONNX_AUDIT_DATABASE_URL", url)
        monkeypatch.setenv("ONNX_AUDIT_QUOTA_AUDITS", str(LIMIT))
        shared = ("--blob-url", (tmp_path / "blobs").as_uri(), "--no-worker", "--auth")
        first, second = (ServiceProcess(tmp_path / name, *shared) for name in ("one", "two"))
        with first, second:
            engine = connect(url)
            token = Tokens(engine).create("ci", (Scope.SUBMIT,), None)
            engine.dispose()
            once = RetryPolicy(attempts=1)
            clients = [
                Client(process.target, token=token, timeout=120, retries=once)
                for process in (first, second)
            ]
            model = clients[0].upload_model(models.save(models.mlp(), tmp_path / "m.onnx"))
            probe_set = clients[1].upload_probes(models.probes(8, 16))

            def submit(number: int) -> v1.Audit | None:
                with contextlib.suppress(ResourceExhausted):
                    return clients[number % 2].audit(model, probe_set, seed=number)
                return None

            with ThreadPoolExecutor(16) as pool:
                accepted = [audit for audit in pool.map(submit, range(16)) if audit is not None]
            assert len(accepted) == LIMIT
            assert {audit.principal for audit in accepted} == {"token:ci"}
            clients[1].cancel(accepted[0])
            assert submit(16) is not None
            places = outside_of((first, second), token)
            for client in clients:
                client.close()
        assert any(name.startswith("runner") for name in places)
        # This process itself holds both in its environment, which nobody else can read.
        assert PASSWORD in os.environ["ONNX_AUDIT_DATABASE_URL"]
        secrets = (PASSWORD, token.split("_", 2)[2])
        assert not {name for name, text in places.items() for secret in secrets if secret in text}
