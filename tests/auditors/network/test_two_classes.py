"""Models with one score per sample, as classifiers of two classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from scipy.special import expit
from tests.auditors.whole import audit
from tests.support import graph_model, save_probes

from onnx_audit import v1
from onnx_auditors.audit import plan
from onnx_auditors.context import Context, open_context
from onnx_auditors.errors import InvalidModel, ProbesDoNotFit
from onnx_auditors.network import Session, load, parity, require
from onnx_auditors.network.outputs import Column, two_classes

Table = npt.NDArray[np.float32]
WIDTH, COUNT = 6, 40
RNG = np.random.default_rng(0)
W = RNG.standard_normal((WIDTH, 1)).astype(np.float32)
B = np.array([-0.5 * W.sum() + 0.1], np.float32)
X = RNG.uniform(0.3, 0.7, (COUNT, WIDTH)).astype(np.float32)
Z = X.astype(np.float64) @ W.astype(np.float64) + B
SQUEEZE = helper.make_node("Squeeze", ["p", "axes"], ["y"])


def logistic(*tail: onnx.NodeProto, check: bool = True, **weights: Any) -> onnx.ModelProto:
    """Returns w.x + b as the value `z`, and the nodes that follow it."""
    stored = {"w": W, "b": B, "axes": np.array([1])} | weights
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["z"]), *tail]
    return graph_model(nodes, {"x": ["n", WIDTH]}, stored, check=check)


LOGISTIC: dict[str, tuple[onnx.ModelProto, Column]] = {
    "probability": (logistic(helper.make_node("Sigmoid", ["z"], ["y"])), Column.PROBABILITY),
    "probabilities without an axis of classes": (
        logistic(helper.make_node("Sigmoid", ["z"], ["p"]), SQUEEZE),
        Column.PROBABILITY,
    ),
    "logit": (logistic(helper.make_node("Identity", ["z"], ["y"])), Column.LOGIT),
    "logits without an axis of classes": (
        logistic(helper.make_node("Identity", ["z"], ["p"]), SQUEEZE),
        Column.LOGIT,
    ),
    "clipped probability": (
        logistic(
            helper.make_node("Sigmoid", ["z"], ["p"]),
            helper.make_node("Clip", ["p", "low", "high"], ["y"]),
            low=np.float32(1e-6),
            high=np.float32(1 - 1e-6),
        ),
        Column.PROBABILITY,
    ),
    "class 1 of a softmax": (
        logistic(
            helper.make_node("Neg", ["z"], ["m"]),
            helper.make_node("Concat", ["m", "z"], ["s"], axis=1),
            helper.make_node("Softmax", ["s"], ["p"], axis=1),
            helper.make_node("Gather", ["p", "one"], ["y"], axis=1),
            one=np.array([1]),
        ),
        Column.PROBABILITY,
    ),
}


@pytest.mark.parametrize("name", LOGISTIC)
def test_one_score_is_two_classes(name: str) -> None:
    """Network, session and parity agree on two classes and on the true answer, z > 0."""
    model, column = LOGISTIC[name]
    network = load(model)
    assert (network.classes, network.column) == (2, column)
    session = Session(model.SerializeToString(), column=network.column)
    scores = session.run(X)
    assert scores.shape == (COUNT, 2)
    truth = (Z[:, 0] > 0).astype(np.int64)
    assert 5 < truth.sum() < COUNT - 5
    assert scores.argmax(1).tolist() == truth.tolist()
    logits = network(torch.from_numpy(X))
    assert logits.shape == (COUNT, 2)
    assert logits.argmax(1).tolist() == truth.tolist()
    result = parity(network, session, X)
    require(result)
    assert result.label_agreement == COUNT


def test_a_quantised_probability_is_a_probability() -> None:
    """Behind a quantisation the boundary is where the output itself passes 0.5."""
    nodes = [
        helper.make_node("Sigmoid", ["z"], ["p"]),
        helper.make_node("QuantizeLinear", ["p", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    model = logistic(*nodes, scale=np.float32(1 / 16), zero=np.uint8(0))
    network = load(model)
    assert (network.column, network.logits) == (Column.PROBABILITY, "y")
    session = Session(model.SerializeToString(), column=network.column)
    answers = session.run(X).argmax(1)
    assert answers.tolist() == (np.rint(expit(Z[:, 0]) * 16) > 8).astype(int).tolist()
    assert answers.tolist() != (Z[:, 0] > 0).astype(int).tolist()
    assert network(torch.from_numpy(X)).argmax(1).tolist() == answers.tolist()


@pytest.mark.parametrize("name", ["probability", "logit", "clipped probability"])
def test_logits_are_zero_and_z(name: str) -> None:
    """Behind a sigmoid stands the logit, so gradients do not vanish where the model is sure."""
    network = load(LOGISTIC[name][0])
    far = torch.from_numpy(100 * X).requires_grad_()
    logits = network(far)
    np.testing.assert_allclose(logits[:, 1].detach(), (100 * X @ W + B)[:, 0], rtol=1e-4)
    assert (logits[:, 0] == 0).all()
    (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), far)
    np.testing.assert_allclose(gradient, np.tile(W[:, 0], (COUNT, 1)), rtol=1e-5)
    behind = network.from_value(
        network.logits, network.values(far, [network.logits])[network.logits]
    )
    torch.testing.assert_close(behind, logits)


def test_the_answer_is_one_exactly_above_the_threshold() -> None:
    """Next to the threshold, on it, and where 1 - p is rounded, class 1 wins only from above."""
    half, zero = np.float32(0.5), np.float32(0)
    up, down = np.nextafter(half, np.float32(1)), np.nextafter(half, zero)
    tiny = np.nextafter(zero, np.float32(1))
    for column, above, below in (
        (Column.PROBABILITY, [up, np.float32(1)], [half, down, np.float32(0.49999994), zero, tiny]),
        (Column.LOGIT, [tiny, np.float32(np.inf)], [zero, np.float32(-0.0), -tiny]),
    ):
        for values, answer in ((above, 1), (below, 0)):
            table = np.array(values, np.float32)[:, None]
            assert (two_classes(table, column).argmax(1) == answer).all()
            assert two_classes(table, column).dtype == np.float32
    table = np.sort(RNG.random((10_000, 1), dtype=np.float32), axis=0)
    answers = two_classes(table, Column.PROBABILITY).argmax(1)
    assert (answers == (table[:, 0] > 0.5)).all()


def test_a_probability_of_one_half_is_class_0() -> None:
    """ONNX Runtime's own p = 0.5 is class 0, as the rule p > 0.5 has it."""
    model = LOGISTIC["probability"][0]
    model = onnx.ModelProto.FromString(model.SerializeToString())
    weights = {t.name: t for t in model.graph.initializer}
    weights["b"].CopyFrom(numpy_helper.from_array(np.zeros(1, np.float32), "b"))
    x = np.zeros((1, WIDTH), np.float32)
    (p,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    assert float(np.asarray(p)[0, 0]) == 0.5
    assert Session(model.SerializeToString(), column=Column.PROBABILITY).run(x).argmax() == 0
    assert load(model)(torch.from_numpy(x)).argmax() == 0


def opened(model: onnx.ModelProto, folder: Path, labels: npt.NDArray[Any] | None) -> Context:
    """Opens a model on the probes, in the box [0, 1]."""
    onnx.save_model(model, folder / "m.onnx")
    spec = v1.InputSpec(lower=[0.0], upper=[1.0])
    return open_context(folder / "m.onnx", save_probes(folder / "p", X, labels), spec, seed=1)


@pytest.mark.parametrize("name", ["probability", "logits without an axis of classes"])
def test_distances_of_a_logistic_model(name: str, tmp_path: Path) -> None:
    """The audit finds the exact distance |w.x + b| / |w| of probes that are answered rightly."""
    labels = (Z[:, 0] > 0).astype(np.int64)
    labels[:4] = 1 - labels[:4]
    context = opened(LOGISTIC[name][0], tmp_path, labels)
    configs = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=60))
    planned, result = audit(configs, context, tmp_path)
    section = result.distortion
    assert planned.parity.passed
    assert (section.probe_count, section.misclassified) == (COUNT, 4)
    exact = np.abs(Z[:, 0]) / np.linalg.norm(W.astype(np.float64))
    nearest = X - Z / np.linalg.norm(W) ** 2 * W[:, 0]
    assert nearest.min() > 0  # so the box does not bind
    assert nearest.max() < 1
    rows = section.norms[0].probes
    assert all(row.outcome == v1.PROBE_OUTCOME_MISCLASSIFIED for row in rows[:4])
    for row in rows[4:]:
        assert row.outcome == v1.PROBE_OUTCOME_CONFIRMED
        assert {row.label, row.adversarial_prediction} == {0, 1}
        assert abs(row.distance - exact[row.probe]) < 1e-4 * exact[row.probe] + 1e-5


def test_a_bare_score_is_said_to_be_read_as_a_logit(tmp_path: Path) -> None:
    """The plan says so, and whether the score looks like a probability; a sigmoid needs no word."""
    configs = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=5))
    assert not plan(configs, opened(LOGISTIC["probability"][0], tmp_path, None)).warnings
    (warning,) = plan(configs, opened(LOGISTIC["logit"][0], tmp_path, None)).warnings
    assert warning.code == "SINGLE_SCORE_READ_AS_LOGIT"
    assert f"between {Z.min():.3g} and {Z.max():.3g}" in warning.message
    assert "looks like a probability" not in warning.message
    nodes = [  # a sigmoid that an exporter wrote out
        helper.make_node("Neg", ["z"], ["m"]),
        helper.make_node("Exp", ["m"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["d"]),
        helper.make_node("Reciprocal", ["d"], ["y"]),
    ]
    context = opened(logistic(*nodes, one=np.float32(1)), tmp_path, None)
    (warning,) = plan(configs, context).warnings
    assert "looks like a probability" in warning.message
    low, high = context.output_range()
    assert (low, high) == pytest.approx((expit(Z).min(), expit(Z).max()), rel=1e-5)


def test_labels_of_two_classes(tmp_path: Path) -> None:
    """Labels are 0 and 1; a 2 stops the audit."""
    with pytest.raises(ProbesDoNotFit, match=r"labels reach 2.*2 classes"):
        opened(LOGISTIC["probability"][0], tmp_path, np.full(COUNT, 2))


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    """A softmax over one score, and the place of the largest of one, leave nothing to decide."""
    softmax = logistic(helper.make_node("Softmax", ["z"], ["y"], axis=1))
    label = logistic(helper.make_node("ArgMax", ["z"], ["y"], axis=1), check=False)
    label.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.INT64, ["n", 1]))
    for model in (softmax, label):
        assert load(model).classes == 1
        with pytest.raises(InvalidModel, match="a single class"):
            opened(model, tmp_path, None)
    logarithm = logistic(
        helper.make_node("Concat", ["z", "z"], ["s"], axis=1),
        helper.make_node("LogSoftmax", ["s"], ["p"], axis=1),
        helper.make_node("Gather", ["p", "one"], ["y"], axis=1),
        one=np.array([1]),
    )
    with pytest.raises(InvalidModel, match="logarithm of one class's probability"):
        opened(logarithm, tmp_path, None)


def test_a_column_beside_other_outputs() -> None:
    """A score per sample goes before a row of features if its name says so, and not else."""
    nodes = [helper.make_node("Sigmoid", ["z"], ["p"]), helper.make_node("Relu", ["x"], ["r"])]
    for column, row, chosen in (
        ("probability", "embedding", "probability"),
        ("value", "logits", "logits"),
        ("value", "embedding", "embedding"),
    ):
        tail = [
            helper.make_node("Identity", ["p"], [column]),
            helper.make_node("Identity", ["r"], [row]),
        ]
        stored = {"w": W, "b": B}
        first = helper.make_node("Gemm", ["x", "w", "b"], ["z"])
        outputs = (column, row)
        model = graph_model([first, *nodes, *tail], {"x": ["n", WIDTH]}, stored, outputs=outputs)
        assert load(model).output == chosen
