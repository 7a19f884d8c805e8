"""Distortion and lipschitz in one audit of a real service."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from onnx_audit import Client, v1


def test_what_was_found_lies_above_what_is_certified(
    client: Client, model: v1.Model, probe_set: v1.ProbeSet, tmp_path: Path
) -> None:
    """Each probe's distance is bracketed, in both sections alike; the artefact is there."""
    configs = v1.AuditorConfigs(
        distortion=v1.DistortionConfig(norms=[v1.NORM_L2], budget=100),
        lipschitz=v1.LipschitzConfig(norms=[v1.NORM_L2, v1.NORM_L1], max_probes=20),
    )
    report = client.report(client.wait(client.audit(model, probe_set, auditors=configs, seed=3)))
    (certificates,) = report.lipschitz.certificates
    rows = {row.probe: row for row in report.distortion.norms[0].probes}
    assert len(certificates.probes) == 20
    for certificate in certificates.probes:
        row = rows[certificate.probe]
        assert certificate.found == row.distance
        assert 0 < certificate.radius <= row.certified.lower <= row.distance
    widths = [row.found / row.radius for row in certificates.probes if math.isfinite(row.found)]
    assert certificates.sandwich.value in widths
    assert certificates.sandwich.count == len(widths)
    assert report.distortion.norms[0].certified.certified >= 20
    (times,) = (t for t in report.execution.auditor_seconds if t.auditor == v1.AUDITOR_LIPSCHITZ)
    assert len(times.shard_seconds) == times.shards
    stored = load_file(client.download(report.lipschitz.artefact, tmp_path / "l.safetensors"))
    pairs = stored["pairs_l1"]
    assert pairs.shape == (4, 4)
    assert np.array_equal(np.diag(pairs), np.zeros(4))
