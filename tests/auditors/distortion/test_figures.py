"""Figures and files of a section, worked out again from its rows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from safetensors.numpy import save
from tests.auditors.distortion.audits import CLASSES, COUNT, WIDTH, audit
from tests.support import graph_model, save_probes, shared_data

from onnx_audit import v1
from onnx_auditors.context import open_context
from onnx_auditors.distortion import groups, memory
from onnx_auditors.distortion.batch import confidence
from onnx_auditors.distortion.table import Table

CONFIRMED, NOT_FOUND = v1.PROBE_OUTCOME_CONFIRMED, v1.PROBE_OUTCOME_NOT_FOUND
Files = tuple[Path, Path]


def test_by_class_and_class_by_class(files: Files) -> None:
    """Counts, accuracies and medians are those of the rows of each label and pair."""
    norm = audit(open_context(*files, seed=3))[0].norms[0]
    rows = list(norm.probes)
    assert [c.label for c in norm.by_class] == sorted({p.label for p in rows})
    for entry in norm.by_class:
        own = [p for p in rows if p.label == entry.label]
        right = sorted(p.distance for p in own if p.clean_prediction == p.label)
        assert (entry.count, entry.accuracy.value) == (len(own), len(right) / len(own))
        assert entry.accuracy.interval.method == "wilson"
        assert entry.median.count == len(right)
        if right:
            assert entry.median.value == right[(len(right) + 1) // 2 - 1]
    pairs = {(p.label, p.adversarial_prediction) for p in rows if p.outcome == CONFIRMED}
    assert [(c.label, c.adversarial_class) for c in norm.class_pairs] == sorted(pairs)
    assert sum(c.confirmed for c in norm.class_pairs) == norm.confirmed
    assert not any(c.aimed for c in norm.class_pairs)
    for cell in norm.class_pairs:
        own = [p for p in rows if p.outcome == CONFIRMED and p.label == cell.label]
        to = sorted(p.distance for p in own if p.adversarial_prediction == cell.adversarial_class)
        assert cell.median.value == to[(len(to) + 1) // 2 - 1]


def test_confidence_is_the_softmax_of_the_scores(files: Files) -> None:
    """Rows and artefact hold ONNX Runtime's probability of the label, before and after."""
    context = open_context(*files, seed=3)
    result, blobs = audit(context)
    norm = result.norms[0]
    tensors = blobs[norm.artefact.sha256]
    labels = tensors["label"][:, None]
    for name, points in (("clean", "original"), ("adversarial", "example")):
        scores = context.scores(tensors[points])  # the model ends in a softmax
        expected = np.take_along_axis(scores, labels, 1)[:, 0]
        np.testing.assert_allclose(tensors[f"{name}_confidence"], expected, rtol=1e-6)
    for probe in norm.probes:
        if probe.outcome == CONFIRMED:
            assert probe.adversarial_confidence < probe.clean_confidence
            assert probe.adversarial_confidence <= 0.5


def test_confidence_of_scores_of_every_kind() -> None:
    """Logits and log-probabilities go through a softmax, probabilities stay as they are."""
    logits = np.array([[3.0, -1.0, 0.5]], np.float32)
    chances = torch.softmax(torch.from_numpy(logits).double(), 1).numpy()
    label = np.array([2])
    kinds = ((logits, False), (logits + 50, False), (np.log(chances), True), (chances, True))
    for scores, squashed in kinds:
        found = confidence(scores.astype(np.float32), label, squashed=squashed)
        assert found == pytest.approx(chances[:, 2])
    assert np.isnan(confidence(np.array([[np.inf, 0, 1]], np.float32), label, squashed=False)).all()
    likely = np.array([[1.0, 0, 0]], np.float32)  # logits that might be probabilities
    assert confidence(likely, np.array([0]), squashed=False) == pytest.approx(np.e / (np.e + 2))


def test_artefact_has_original_example_and_difference(files: Files) -> None:
    """The difference of example and probe is stored; probes without an example have none."""
    context = open_context(*files, seed=3)
    result, blobs = audit(context)
    tensors = blobs[result.norms[0].artefact.sha256]
    np.testing.assert_array_equal(tensors["original"], context.probes.inputs)
    difference = tensors["example"] - tensors["original"]
    np.testing.assert_array_equal(tensors["perturbation"], difference)
    without = tensors["outcome"] != CONFIRMED
    assert without.sum() >= 10
    assert not tensors["perturbation"][without].any()
    assert (tensors["target"] == -1).all()


def test_training_set_is_a_probe_set(files: Files, tmp_path: Path) -> None:
    """Fed back as probes, the model gets every one of the confirmed examples wrong."""
    result, blobs = audit(open_context(*files, seed=3))
    norm = result.norms[0]
    path = tmp_path / "training.safetensors"
    path.write_bytes(save(blobs[norm.training_set.sha256]))
    again = open_context(files[0], path, seed=3)
    assert (again.summary.count, list(again.summary.shape)) == (norm.confirmed, [WIDTH])
    second, _ = audit(again)
    assert second.misclassified == second.probe_count == norm.confirmed
    rows = [p for p in norm.probes if p.outcome == CONFIRMED]
    assert [p.label for p in second.norms[0].probes] == [p.label for p in rows]
    answers = [p.clean_prediction for p in second.norms[0].probes]
    assert answers == [p.adversarial_prediction for p in rows]


def test_vanishing_gradients(tmp_path: Path) -> None:
    """Where a ReLU is shut the gradient is all zero; exactly those probes are counted."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "v", "c"], ["y"], transB=1),
    ]
    weights = {
        "w": np.array([[1.0, 1.0]], np.float32), "b": np.array([-1.0], np.float32),
        "v": np.array([[0.0], [1.0]], np.float32), "c": np.array([0.3, 0.0], np.float32),
    }  # fmt: skip
    onnx.save_model(graph_model(nodes, {"x": [1, 2]}, weights), tmp_path / "m.onnx")
    inputs = np.random.default_rng(0).random((30, 2), dtype=np.float32)
    context = open_context(tmp_path / "m.onnx", save_probes(tmp_path / "q", inputs))
    result, _ = audit(context, v1.DistortionConfig(budget=20))
    shut = inputs.sum(axis=1) < 1
    assert [p.gradient_vanishes for p in result.norms[0].probes] == shut.tolist()
    assert result.vanishing_gradients.value == shut.mean()
    assert result.vanishing_gradients.interval.method == "wilson"


def test_stability_of_a_real_search(files: Files) -> None:
    """A quarter of the probes is searched twice, where they are answered rightly."""
    norm = audit(open_context(*files, seed=3), v1.DistortionConfig(budget=100))[0].norms[0]
    assert 1 <= norm.stability.repeated <= COUNT // 4
    assert norm.stability.found_once == 0
    estimate = norm.stability.mean_relative_difference
    assert estimate.count <= norm.stability.repeated
    assert 0 <= estimate.value < 0.01  # a linear model leaves nothing to chance


def test_stability_by_hand() -> None:
    """The mean is over probes found twice; those found once are counted."""
    pairs = [(1.0, 1.5), (2.0, 1.0), (math.inf, 3.0), (4.0, 4.0), (math.inf, math.inf)]
    part = v1.DistortionPartial.NormPartial(
        probes=[v1.ProbeDistortion(distance=9)]
        + [v1.ProbeDistortion(distance=first) for first, _ in pairs],
        repeated_positions=range(1, 6),
        repeated_distances=[second for _, second in pairs],
    )
    found = groups.stability(Table.of([part]), seed=0)
    assert (found.repeated, found.found_once) == (5, 1)
    assert found.mean_relative_difference.value == pytest.approx((0.5 + 1 + 0) / 3)
    assert found.mean_relative_difference.count == 3


def test_batches_follow_the_memory(files: Files, tmp_path: Path) -> None:
    """Small models fill the largest batch, larger ones get fewer rows, none gets no row."""
    assert memory.batch_rows(open_context(*files, device="cpu")) == memory.LARGEST_BATCH["cpu"]
    sizes = []
    for width in (20_000, 2_000_000, 20_000_000):
        weights = np.ones((CLASSES, 1), np.float32)
        nodes = [
            helper.make_node("Expand", ["x", "shape"], ["wide"]),
            helper.make_node("ReduceMean", ["wide", "axis"], ["mean"]),
            helper.make_node("Gemm", ["mean", "w"], ["y"], transB=1),
        ]
        constants = {"shape": np.array([1, width]), "axis": np.array([1]), "w": weights}
        model = graph_model(nodes, {"x": ["n", 1]}, constants)
        onnx.save_model(model, tmp_path / "m.onnx")
        probes = save_probes(tmp_path / "q", np.zeros((3, 1), np.float32))
        context = open_context(tmp_path / "m.onnx", probes, device="cpu")
        assert memory.activation_bytes(context) == pytest.approx(4 * width, rel=0.01)
        sizes.append(memory.batch_rows(context))
    assert sizes[0] == memory.LARGEST_BATCH["cpu"]
    assert sizes[0] > sizes[1] > sizes[2] == 8


def test_a_real_network_in_every_norm(tmp_path: Path) -> None:
    """In all norms, on digits as bytes: examples in the box, and norms that order as they must."""
    data = np.load(shared_data() / "mnist_test_1000.npz")
    norms = [v1.NORM_L2, v1.NORM_LINF, v1.NORM_L1, v1.NORM_L0]
    inputs, labels = data["images"][:8].reshape(8, 784, 1), data["labels"][:8].astype(np.int64)
    context = open_context(
        shared_data() / "models" / "mnist-net_256x2.onnx",
        save_probes(tmp_path / "q", inputs, labels),
        v1.InputSpec(lower=[0], upper=[1]),
    )
    result, blobs = audit(context, v1.DistortionConfig(norms=norms, budget=100))
    size = {}
    for norm in result.norms:
        assert norm.confirmed == 8 - result.misclassified
        tensors = blobs[norm.artefact.sha256]
        assert tensors["example"].min() >= 0
        assert tensors["example"].max() <= 1
        np.testing.assert_allclose(tensors["original"], inputs / np.float32(255))
        size[norm.norm] = norm.mean.value
        assert norm.mean_rms.value > 0
    assert size[v1.NORM_LINF] < size[v1.NORM_L2] < size[v1.NORM_L1] < size[v1.NORM_L0]
    best = {norm.norm: norm.mean_rms.value for norm in result.norms}
    assert best[v1.NORM_L2] == min(best.values())
