"""Models without useful gradients: the search by answers alone finds what is there."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime import quantization
from tests.auditors.distortion.audits import audit
from tests.support import graph_model, save_probes, shared_data

from onnx_audit import v1
from onnx_auditors.context import Context, open_context
from onnx_auditors.distortion import section
from onnx_auditors.distortion.batch import look

WIDTH, CLASSES, COUNT, RUNS = 8, 3, 12, 600
ANSWERS, GRADIENTS = v1.EXAMPLE_SOURCE_BLACK_BOX, v1.EXAMPLE_SOURCE_GRADIENTS
CONFIRMED, NOT_FOUND = v1.PROBE_OUTCOME_CONFIRMED, v1.PROBE_OUTCOME_NOT_FOUND


def opened(
    tmp_path: Path, nodes: list[onnx.NodeProto], weights: dict[str, npt.NDArray[Any]]
) -> Context:
    """Opens a model on WIDTH inputs with random probes that count as answered rightly."""
    proto = graph_model(nodes, {"x": ["n", WIDTH]}, weights)
    onnx.save_model(proto, tmp_path / "m.onnx")
    inputs = np.random.default_rng(1).random((COUNT, WIDTH), dtype=np.float32)
    return open_context(tmp_path / "m.onnx", save_probes(tmp_path / "p", inputs), seed=2)


def check(context: Context, norm: v1.NormDistortion, tensors: dict[str, Any]) -> None:
    """Checks what the report says of the search by answers against the model and the rows."""
    rows = list(norm.probes)
    assert norm.black_box_searches == sum(row.black_box_runs > 0 for row in rows)
    assert norm.black_box_runs == sum(row.black_box_runs for row in rows)
    assert norm.found_by_black_box == sum(row.found_by == ANSWERS for row in rows)
    for row in rows:
        assert (row.found_by != v1.EXAMPLE_SOURCE_UNSPECIFIED) == (row.outcome == CONFIRMED)
    answers = context.scores(tensors["example"]).argmax(1)
    np.testing.assert_array_equal(answers, tensors["adversarial_prediction"])
    np.testing.assert_array_equal(tensors["found_by"], [row.found_by for row in rows])


def test_thresholds_leave_no_gradient(tmp_path: Path) -> None:
    """Inputs cut to bits: the smallest change is that of the cheapest pattern, by brute force."""
    weights = np.random.default_rng(0).standard_normal((CLASSES, WIDTH))
    nodes = [
        helper.make_node("Greater", ["x", "half"], ["above"]),
        helper.make_node("Cast", ["above"], ["bits"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["bits", "w"], ["y"], transB=1),
    ]
    half = np.full(WIDTH, 0.5, np.float32)
    context = opened(tmp_path, nodes, {"half": half, "w": weights.astype(np.float32)})
    config = v1.DistortionConfig(budget=40, black_box_runs=RUNS, norms=[v1.NORM_L2, v1.NORM_LINF])
    result, blobs = audit(context, config)
    assert result.vanishing_gradients.value == 1
    inputs = context.inputs(np.arange(COUNT)).astype(np.float64)
    patterns = np.array(list(itertools.product((0, 1), repeat=WIDTH)))
    classes = (patterns @ weights.T).argmax(1)
    apart = patterns[None] != (inputs > 0.5)[:, None]
    labels = ((inputs > 0.5) @ weights.T).argmax(1)
    for norm, order in zip(result.norms, (2, math.inf), strict=True):
        assert norm.confirmed == COUNT
        assert norm.found_by_black_box >= COUNT // 2
        assert all(0 < row.black_box_runs <= RUNS for row in norm.probes)
        check(context, norm, blobs[norm.artefact.sha256])
        size = np.linalg.norm(apart * np.abs(inputs - 0.5)[:, None], order, axis=2)
        truth = np.where(classes == labels[:, None], np.inf, size).min(1)
        ratio = np.array([row.distance for row in norm.probes]) / truth
        assert ratio.min() >= 1 - 1e-5
        assert np.median(ratio) <= 1.1


def test_steps_before_a_linear_model(tmp_path: Path) -> None:
    """A model of steps has surrogate gradients; all its probes are searched by answers, too."""
    weights = np.random.default_rng(0).standard_normal((CLASSES, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Mul", ["x", "levels"], ["scaled"]),
        helper.make_node("Floor", ["scaled"], ["stepped"]),
        helper.make_node("Gemm", ["stepped", "w"], ["y"], transB=1),
    ]
    context = opened(tmp_path, nodes, {"levels": np.array(16, np.float32), "w": weights})
    result, blobs = audit(context, v1.DistortionConfig(budget=100, black_box_runs=RUNS))
    norm = result.norms[0]
    assert norm.confirmed == norm.black_box_searches == COUNT
    check(context, norm, blobs[norm.artefact.sha256])
    # Without steps the boundary is a half-space; a step moves an entry by at most its width.
    inputs = context.inputs(np.arange(COUNT)).astype(np.float64)
    z = np.floor(16 * inputs) / 16 @ weights.T
    labels = z.argmax(1)
    for row, x, y, own in zip(norm.probes, inputs, z, labels, strict=True):
        others = [k for k in range(CLASSES) if k != own]
        reach = [(y[own] - y[k]) / np.linalg.norm(weights[own] - weights[k]) for k in others]
        assert row.label == own
        assert row.distance >= max(0, min(reach) - math.sqrt(WIDTH) / 16)
        assert len(x) == WIDTH


def test_a_constant_model_is_not_called_robust(tmp_path: Path) -> None:
    """Where the answer never changes nothing is found, and the report says that proves nothing."""
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "zeros"], ["nothing"]),
        helper.make_node("Add", ["nothing", "bias"], ["y"]),
    ]
    weights = {"axes": np.array([1]), "zeros": np.zeros(CLASSES, np.float32),
               "bias": np.array([1, 0, 0], np.float32)}  # fmt: skip
    context = opened(tmp_path, nodes, weights)
    result, _ = audit(context, v1.DistortionConfig(budget=20, black_box_runs=100))
    norm = result.norms[0]
    assert [row.outcome for row in norm.probes] == [NOT_FOUND] * COUNT
    assert all(0 < row.black_box_runs <= 100 for row in norm.probes)
    assert norm.mean.count == 0
    assert math.isnan(norm.mean.value)
    found = section.warnings(result, CLASSES)
    assert [warning.code for warning in found] == ["NOT_FOUND_WITHOUT_GRADIENTS"]
    assert "12 in L2" in found[0].message


def test_saturated_softmax_needs_no_answers(tmp_path: Path) -> None:
    """A softmax that underflows is left out: logits still have gradients."""
    weights = 300 * np.random.default_rng(0).standard_normal((CLASSES, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["z"], transB=1),
        helper.make_node("Softmax", ["z"], ["y"]),
    ]
    context = opened(tmp_path, nodes, {"w": weights})
    config = v1.DistortionConfig(budget=40)
    assert not look(context, config, np.arange(COUNT)).vanishes.any()
    norm = audit(context, config)[0].norms[0]
    assert norm.confirmed == COUNT
    assert norm.black_box_runs == 0
    assert all(row.found_by == GRADIENTS for row in norm.probes)


@pytest.mark.timeout(300)
def test_a_real_network_quantised_to_eight_bits(tmp_path: Path) -> None:
    """Every digit of an int8 network in QDQ form has an example, and one that a file can hold."""
    folder = shared_data()
    data = np.load(folder / "mnist_test_1000.npz")
    images, labels = data["images"][::80].reshape(-1, 784, 1), data["labels"][::80]
    source = folder / "models" / "mnist-net_256x2.onnx"
    target = tmp_path / "int8.onnx"
    quantization.quantize_static(
        onnx.version_converter.convert_version(onnx.load(source), 13),
        target,
        Reader(images[:8].astype(np.float32) / 255),
        quant_format=quantization.QuantFormat.QDQ,
    )
    kinds = {node.op_type for node in onnx.load(target).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    context = open_context(target, save_probes(tmp_path / "p", images, labels), seed=2)
    assert context.network.surrogate
    result, blobs = audit(context, v1.DistortionConfig(budget=60, black_box_runs=200))
    norm = result.norms[0]
    searched = result.probe_count - result.misclassified
    assert searched >= 10
    assert norm.confirmed == norm.black_box_searches == norm.rounded.confirmed == searched
    check(context, norm, blobs[norm.artefact.sha256])


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc] # has no types
    """Hands images to the calibration, one at a time."""

    def __init__(self, images: npt.NDArray[np.float32]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        """Returns the next image as the model's input; None after the last."""
        image = next(self._images, None)
        return None if image is None else {"0": image[None]}
