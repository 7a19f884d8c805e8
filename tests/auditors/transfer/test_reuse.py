"""Smallest changes that `distortion` has found in the same audit are taken over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.auditors.transfer.planted import AUDITED, answers, images, network, weights
from tests.support import save_probes

from onnx_audit import v1
from onnx_auditors.audit import plan, run_shard
from onnx_auditors.context import open_context

COUNT = 12


@pytest.mark.parametrize(("budget", "taken"), [(40, True), (41, False)])
def test_found_changes_are_taken_over(tmp_path: Path, budget: int, *, taken: bool) -> None:
    """Changes half as long again in distortion's partial are in transfer's, if searched alike."""
    model = tmp_path / "model.onnx"
    model.write_bytes(network(weights()).SerializeToString())
    inputs = images(COUNT)
    probes = save_probes(tmp_path / "probes", inputs, answers(weights(), inputs))
    peer = "models/" + "1" * 64
    context = open_context(model, probes, AUDITED, peers={peer: model}, threads=1)
    configs = v1.AuditorConfigs(
        distortion=v1.DistortionConfig(budget=budget, norms=[v1.NORM_LINF, v1.NORM_L2]),
        transfer=v1.TransferConfig(
            budget=40, peers=[v1.PeerModel(model=peer)], attacks=[v1.TRANSFER_ATTACK_MINIMAL]
        ),
    )
    planned = plan(configs, context)

    found = v1.DistortionPartial.FromString(
        run_shard(planned.auditors, context, v1.AUDITOR_DISTORTION, 0, lambda *_: None)
    )
    part = found.norms[1]
    change = np.frombuffer(part.examples, np.float32).reshape(inputs.shape) - inputs
    part.examples = np.clip(inputs + 1.5 * change, 0, 1).astype(np.float32).tobytes()
    path = tmp_path / "partial"
    path.write_bytes(found.SerializeToString())
    made = v1.TransferPartial.FromString(
        run_shard(planned.auditors, context, v1.AUDITOR_TRANSFER, 0, lambda *_: None, [path])
    )
    l2 = np.frombuffer(made.attacks[0].l2)
    factor = l2 / [probe.distance for probe in part.probes]
    assert (np.frombuffer(made.attacks[0].exists, np.uint8) == 1).all()
    np.testing.assert_allclose(factor, 1.5 * 1.001 if taken else 1.001, rtol=0.02)
    errors = np.frombuffer(made.attacks[0].errors, np.uint8)
    assert (errors == 1).all()
