"""Models and probes that an audit can say little or nothing about: each has its own message."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper
from tests.auditors.distortion.audits import CLASSES, WIDTH, audit
from tests.support import graph_model, save_probes

from onnx_audit import v1
from onnx_auditors.context import Context, open_context
from onnx_auditors.distortion.auditor import DistortionAuditor
from onnx_auditors.errors import InvalidModel, ModelFailed, ProbesDoNotFit

NONE = v1.EXAMPLE_SOURCE_UNSPECIFIED


def inputs() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).random((6, WIDTH), dtype=np.float32)


def opened(tmp_path: Path, nodes: list[onnx.NodeProto], **weights: npt.NDArray[Any]) -> Context:
    """Opens a model with unlabelled probes."""
    onnx.save_model(graph_model(nodes, {"x": ["n", WIDTH]}, weights), tmp_path / "m.onnx")
    return open_context(tmp_path / "m.onnx", save_probes(tmp_path / "p", inputs()))


def codes(section: v1.DistortionSection, context: Context) -> list[str]:
    """Returns the codes of the warnings."""
    return [warning.code for warning in DistortionAuditor().warnings(section, context)]


def test_a_model_that_errs_on_all_probes(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Distances are 0, means are undefined, everything else is there, and a warning says why."""
    context = open_context(files[0], save_probes(tmp_path / "p", inputs()))
    wrong = (context.scores(inputs()).argmax(1) + 1) % CLASSES
    context = open_context(files[0], save_probes(tmp_path / "q", inputs(), wrong))
    config = v1.DistortionConfig(budget=20, noise=[v1.NOISE_KIND_GAUSSIAN], noise_draws=8)
    result, blobs = audit(context, config)
    norm = result.norms[0]
    assert result.misclassified == 6
    assert [row.distance for row in norm.probes] == [0.0] * 6
    assert [row.found_by for row in norm.probes] == [NONE] * 6
    assert math.isnan(norm.mean.value)
    assert not norm.HasField("training_set")
    assert not norm.HasField("certified")
    assert (norm.evaluations, norm.black_box_runs) == (0, 0)
    assert math.isnan(result.noise[0].sizes[0].ratio.value)
    assert norm.artefact.sha256 in blobs
    assert codes(result, context) == ["NO_PROBE_ANSWERED_RIGHTLY"]


def test_scores_that_are_no_numbers(tmp_path: Path) -> None:
    """NaN on a probe stops the audit with what it means."""
    nodes = [
        helper.make_node("Sub", ["x", "half"], ["shifted"]),
        helper.make_node("Sqrt", ["shifted"], ["y"]),
    ]
    context = opened(tmp_path, nodes, half=np.array(0.5, np.float32))
    with pytest.raises(ModelFailed, match="NaN class scores"):
        audit(context, v1.DistortionConfig(budget=5))


def test_an_empty_box(files: tuple[Path, Path], tmp_path: Path) -> None:
    """A box without room is refused before anything runs."""
    probes = save_probes(tmp_path / "p", np.full((2, WIDTH), 0.5, np.float32))
    with pytest.raises(ProbesDoNotFit, match="not below upper"):
        open_context(files[0], probes, v1.InputSpec(lower=[0.5], upper=[0.5]))


def test_a_single_class(tmp_path: Path) -> None:
    """A softmax over one score cannot change its answer."""
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["z"]),
        helper.make_node("Softmax", ["z"], ["y"]),
    ]
    with pytest.raises(InvalidModel, match="a single class"):
        opened(tmp_path, nodes, w=np.ones((WIDTH, 1), np.float32))


def test_an_autoencoder_without_a_head(tmp_path: Path) -> None:
    """An output as wide as the input is taken for classes, and the report warns of it."""
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["code"]),
        helper.make_node("Sigmoid", ["code"], ["a"]),
        helper.make_node("Gemm", ["a", "v"], ["y"]),
    ]
    narrow = {"w": rng.standard_normal((WIDTH, 3)), "v": rng.standard_normal((3, WIDTH))}
    context = opened(tmp_path, nodes, **{k: v.astype(np.float32) for k, v in narrow.items()})
    result, _ = audit(context, v1.DistortionConfig(budget=20))
    assert "OUTPUT_LIKE_INPUT" in codes(result, context)


def test_answers_that_cannot_be_differentiated(tmp_path: Path) -> None:
    """A graph that ends in a comparison has no gradient anywhere, and is audited all the same."""
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["z"]),
        helper.make_node("ArgMax", ["z"], ["k"], axis=1, keepdims=0),
        helper.make_node("OneHot", ["k", "depth", "ends"], ["y"]),
    ]
    w = np.random.default_rng(1).standard_normal((WIDTH, CLASSES)).astype(np.float32)
    context = opened(
        tmp_path, nodes, w=w, depth=np.array([CLASSES]), ends=np.array([0, 1], np.float32)
    )
    result, _ = audit(context, v1.DistortionConfig(budget=20, black_box_runs=300))
    norm = result.norms[0]
    assert result.vanishing_gradients.value == 1
    assert norm.confirmed == 6
    z = inputs().astype(np.float64) @ w
    for row, x in zip(norm.probes, z, strict=True):
        gaps = [
            (x.max() - x[k]) / np.linalg.norm(w[:, x.argmax()] - w[:, k])
            for k in range(CLASSES)
            if k != x.argmax()
        ]
        assert min(gaps) * (1 - 1e-5) <= row.distance
        assert row.black_box_runs <= 300
