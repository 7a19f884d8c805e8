"""The service on a real PostgreSQL server: processes that share it and the blobs alone."""

from __future__ import annotations

from pathlib import Path

from tests import models
from tests.server.postgres import postgres
from tests.service import ServiceProcess

from onnx_audit import v1

CONFIG = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=300))


def test_a_killed_worker_goes_on_where_it_was(tmp_path: Path) -> None:
    """A worker of its own is killed and restarted, and the audit goes on to its end."""
    with postgres() as url:
        shared = ("--database-url", url, "--blob-url", (tmp_path / "blobs").as_uri())
        (tmp_path / "blobs").mkdir()
        server = ServiceProcess(tmp_path / "server", *shared, "--no-worker")
        worker = ServiceProcess(tmp_path / "worker", *shared, command="worker")
        with server, worker, server.client() as client:
            model = client.upload_model(models.save(models.mlp(), tmp_path / "model.onnx"))
            audit = client.audit(
                model, client.upload_probes(models.probes(64, 16)), auditors=CONFIG
            )
            for event in client.watch(audit):
                if event.WhichOneof("event") == "shard_finished":
                    break
            worker.kill()
            worker.start()
            ended = client.wait(audit)
            assert ended.state == v1.AUDIT_STATE_SUCCEEDED
            assert client.report(audit).digest == ended.report_digest
