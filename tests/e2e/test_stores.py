"""One course of events, on SQLite with a folder and on PostgreSQL with S3: all is the same."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import onnx
import pytest
from tests import models
from tests.stores import Stores, servers

from onnx_audit import v1
from onnx_audit_server.reports import assemble

CONFIG = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=50))


@pytest.mark.timeout(600)
def test_an_audit_from_upload_to_report(tmp_path: Path) -> None:
    """The same job has the same report, whatever it was kept in and whatever befell it."""
    digests = [course(kind, tmp_path / kind) for kind in ("folder", "servers")]
    assert digests[0] == digests[1]


def course(kind: str, folder: Path) -> str:
    """External data, a kill -9 in the middle, a watch that goes on, the report, its artefact.

    Returns:
        The report's digest.
    """
    folder.mkdir()
    path = folder / "split.onnx"
    proto = models.mlp((16, 24, 24, 4))
    onnx.save_model(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    with contextlib.ExitStack() as stack:
        stores = stack.enter_context(servers(folder)) if kind == "servers" else Stores(folder)
        service = stack.enter_context(stores.process("one", "--threads", "1"))
        with service.client(timeout=120) as client:
            model = client.upload_model(path)
            assert [file.path for file in model.external_files] == ["w.bin"]
            probes = client.upload_probes(models.probes(40, 16))
            audit = client.audit(model, probes, auditors=CONFIG)
            seen = []
            for event in client.watch(audit):
                seen.append(event.sequence)
                if event.HasField("shard_started"):
                    break
        service.kill()
        service.start()
        with service.client(timeout=120) as client:
            seen += [event.sequence for event in client.watch(audit, after_sequence=seen[-1])]
            ended = client.wait(audit)
            assert seen == list(range(1, ended.last_sequence + 1))
            report = client.report(audit)
            assert report.digest == ended.report_digest == assemble.digest(report)
            artefact = report.distortion.norms[0].artefact
            content = client.download(artefact, folder / "examples").read_bytes()
            assert hashlib.sha256(content).hexdigest() == artefact.sha256
    return report.digest
