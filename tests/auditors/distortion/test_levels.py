"""Examples of whole levels in an audit: they survive being saved as images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from tests.auditors.distortion.audits import audit
from tests.support import graph_model, save_probes

from onnx_audit import v1
from onnx_auditors.context import open_context

WIDTH, COUNT, CLASSES = 12, 20, 3
NORMS = [v1.NORM_L2, v1.NORM_LINF, v1.NORM_L1, v1.NORM_L0]


def weights() -> dict[str, np.ndarray]:
    return {"w": np.random.default_rng(0).standard_normal((CLASSES, WIDTH)).astype(np.float32)}


def stored() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (COUNT, WIDTH), dtype=np.uint8)


@pytest.mark.parametrize("divisor", [255.0, 127.5])
def test_rounded_examples_of_uint8_probes(divisor: float, tmp_path: Path) -> None:
    """The bytes of the training set fool the model as they are, at the distances reported."""
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    onnx.save_model(graph_model([node], {"x": ["n", WIDTH]}, weights()), tmp_path / "m.onnx")
    spec = v1.InputSpec(divisor=divisor)
    context = open_context(tmp_path / "m.onnx", save_probes(tmp_path / "p", stored()), spec)
    result, blobs = audit(context, v1.DistortionConfig(norms=NORMS, budget=40))
    assert result.levels == divisor
    for norm, order in zip(result.norms, (2, math.inf, 1, 0), strict=True):
        assert norm.rounded.confirmed == norm.confirmed == COUNT
        training = blobs[norm.rounded.training_set.sha256]
        assert training["inputs"].dtype == np.uint8
        save_file(training, tmp_path / "t")
        again = open_context(tmp_path / "m.onnx", tmp_path / "t", spec)
        points = again.inputs(np.arange(COUNT))
        assert (again.scores(points).argmax(1) != training["labels"]).all()
        tensors = blobs[norm.artefact.sha256]
        np.testing.assert_array_equal(points, tensors["rounded_example"])
        change = points.astype(np.float64) - tensors["original"]
        size = np.linalg.norm(change, order, axis=1)
        np.testing.assert_allclose(tensors["rounded_distance"], size, rtol=1e-12)
        rows = list(norm.probes)
        np.testing.assert_array_equal([row.rounded_distance for row in rows], size)
        nearest = np.array([row.distance for row in rows])
        assert (size >= nearest).all()
        assert norm.rounded.mean.value == pytest.approx(size.mean())
        assert norm.rounded.mean_ratio.value == pytest.approx((size / nearest).mean())
        assert norm.rounded.median.value == np.sort(size)[COUNT // 2 - 1]


def test_probes_and_labels_that_were_not_searched(tmp_path: Path) -> None:
    """Wrong answers have rounded distance 0 and no place in the training set."""
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    onnx.save_model(graph_model([node], {"x": ["n", WIDTH]}, weights()), tmp_path / "m.onnx")
    labels = (stored() / 255 @ weights()["w"].T).argmax(1)
    labels[:5] = (labels[:5] + 1) % CLASSES
    context = open_context(tmp_path / "m.onnx", save_probes(tmp_path / "p", stored(), labels))
    result, blobs = audit(context)
    norm = result.norms[0]
    assert [row.rounded_distance for row in norm.probes][:5] == [0.0] * 5
    assert norm.rounded.confirmed == norm.rounded.median.count == COUNT - 5
    training = blobs[norm.rounded.training_set.sha256]
    np.testing.assert_array_equal(training["labels"], labels[5:])


def test_a_model_that_takes_integers(tmp_path: Path) -> None:
    """Float probes of a model with integer inputs have levels too; the examples are whole."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Gemm", ["f", "w"], ["y"], transB=1),
        ],
        "whole",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(weights()["w"], "w")],
    )
    opsets = [helper.make_opsetid("", 21)]
    onnx.save_model(
        helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx"
    )
    probes = save_probes(tmp_path / "p", stored().astype(np.float32))
    spec = v1.InputSpec(lower=[0.0], upper=[255.0])
    context = open_context(tmp_path / "m.onnx", probes, spec)
    result, blobs = audit(context, v1.DistortionConfig(budget=60))
    assert result.levels == 1
    norm = result.norms[0]
    assert norm.rounded.confirmed >= COUNT - 1
    whole = blobs[norm.artefact.sha256]["rounded_example"]
    np.testing.assert_array_equal(whole, np.rint(whole))
    training = blobs[norm.rounded.training_set.sha256]
    assert training["inputs"].dtype == np.float32
    answers = context.session.run(training["inputs"]).argmax(1)
    assert (answers != training["labels"]).all()


def test_float_probes_have_no_levels(files: tuple[Path, Path]) -> None:
    """Then nothing is said of whole levels."""
    result, blobs = audit(open_context(*files, seed=3))
    norm = result.norms[0]
    assert result.levels == 0
    assert not norm.HasField("rounded")
    assert not any(row.HasField("rounded_distance") for row in norm.probes)
    assert "rounded_example" not in blobs[norm.artefact.sha256]
