"""Audits of models that take pixels as bytes, height by width by channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import load_file
from tests.auditors.whole import audit
from tests.support import graph_model, save_probes

from onnx_audit import v1
from onnx_auditors.context import open_context

COUNT, SIDE, CLASSES = 30, 6, 4
ENTRIES = 3 * SIDE * SIDE


def classifier(rows: int | str) -> tuple[onnx.ModelProto, np.ndarray]:
    """Returns a linear classifier of bytes, and its weights for pixels in [0, 1] as stored."""
    w = np.random.default_rng(0).standard_normal((ENTRIES, CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["t", "scale"], ["u"]),
        helper.make_node("Flatten", ["u"], ["v"]),
        helper.make_node("MatMul", ["v", "w"], ["y"]),
    ]
    weights = {"w": w, "scale": np.array(1 / 255, np.float32)}
    model = graph_model(nodes, {"x": [rows, SIDE, SIDE, 3]}, weights, check=False)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    info = helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, CLASSES])
    model.graph.output[0].CopyFrom(info)
    stored = w.reshape(3, SIDE, SIDE, CLASSES).transpose(1, 2, 0, 3).reshape(ENTRIES, CLASSES)
    return model, stored.astype(np.float64)


@pytest.mark.parametrize(("rows", "divisor"), [("n", 0), (1, 255), (1, 1)])
def test_distances_of_a_linear_classifier_of_bytes(
    rows: int | str, divisor: float, tmp_path: Path
) -> None:
    """Distances are near the exact ones without rounding, and the rounded examples fool."""
    model, w = classifier(rows)
    onnx.save(model, tmp_path / "m.onnx")
    # Far from the ends of the box, which then does not bind.
    x = np.random.default_rng(1).integers(60, 200, (COUNT, SIDE, SIDE, 3)).astype(np.uint8)
    spec = v1.InputSpec(divisor=divisor)
    context = open_context(tmp_path / "m.onnx", save_probes(tmp_path / "p", x), spec)
    configs = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=200))
    planned, result = audit(configs, context, tmp_path)
    section = result.distortion
    assert planned.parity.passed
    norm = section.norms[0]
    assert norm.confirmed == COUNT

    units = context.spec.divisor
    pixels = x.reshape(COUNT, -1) / 255
    labels = (pixels @ w).argmax(1)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    table = load_file(tmp_path / norm.artefact.sha256)
    for row, example in zip(norm.probes, table["example"], strict=True):
        label = labels[row.probe]
        margins = (pixels[row.probe] @ w)[label] - pixels[row.probe] @ w
        slopes = np.maximum(np.linalg.norm(w[:, [label]] - w, axis=0), 1e-12)
        exact = np.delete(margins / slopes, label).min() * 255 / units
        # Half a level for each entry is what rounding may add.
        assert exact * (1 - 1e-4) <= row.distance <= exact + 0.5 * np.sqrt(ENTRIES) / units
        rounded = np.rint(example.astype(np.float64) * units).astype(np.uint8)
        scores = session.run(None, {"x": rounded[None]})[0]
        assert scores.argmax() != label
