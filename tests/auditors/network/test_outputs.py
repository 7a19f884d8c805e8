"""Which output counts, where logits are, and classifiers fitted on networks without classes."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from sklearn.linear_model import LogisticRegression, Ridge
from tests.auditors.network.exports import exported
from tests.support import graph_model

from onnx_auditors.errors import InvalidModel, ProbesDoNotFit
from onnx_auditors.network import Session, fit_linear_head, load, parity, require
from onnx_auditors.network.heads import OUTPUT, RECORD

RNG = np.random.default_rng(0)
W = RNG.standard_normal((6, 4)).astype(np.float32)
X = RNG.standard_normal((5, 6)).astype(np.float32)


def scored(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """Returns a model of a product `h` and some nodes after it."""
    first = helper.make_node("MatMul", ["x", "w"], ["h"])
    weights = {"w": W, "first": np.array([1]), "two": np.array([2])}
    return graph_model([first, *nodes], {"x": ["n", 6]}, weights, outputs=outputs)


@pytest.mark.parametrize("squash", ["Softmax", "LogSoftmax", "Sigmoid"])
def test_a_squash_at_the_end_is_left_out(squash: str) -> None:
    """Logits are what goes into a softmax, log-softmax or sigmoid at the end."""
    network = load(
        scored(helper.make_node(squash, ["h"], ["p"]), helper.make_node("Identity", ["p"], ["y"]))
    )
    assert (network.output, network.logits, network.classes) == ("y", "h", 4)
    np.testing.assert_allclose(network(torch.from_numpy(X)), X @ W, rtol=1e-5)


def test_a_softmax_over_the_batch_stays() -> None:
    """A softmax that is not over the classes is part of the function."""
    network = load(scored(helper.make_node("Softmax", ["h"], ["y"], axis=0)))
    assert network.logits == "y"


def test_labels_lead_back_to_scores() -> None:
    """From integer labels it goes back to the scores; predictions are ONNX Runtime's labels."""
    nodes = [
        helper.make_node("Softmax", ["h"], ["p"]),
        helper.make_node("ArgMax", ["p"], ["a"], axis=1, keepdims=0),
        helper.make_node("Cast", ["a"], ["y"], to=TensorProto.INT32),
    ]
    model = scored(*nodes)
    network = load(model)
    assert (network.output, network.logits, network.classes) == ("y", "h", 4)
    session = Session(model.SerializeToString(), output="y", classes=4)
    assert session.run(X).argmax(1).tolist() == (X @ W).argmax(1).tolist()
    result = parity(network, session, X)
    require(result)
    assert result.label_agreement == 5


def test_best_scores_lead_back_to_all() -> None:
    """Of the best scores and their places the scores of all classes are taken."""
    nodes = [helper.make_node("TopK", ["h", "two"], ["y", "places"], axis=1)]
    network = load(scored(*nodes, outputs=("y", "places")))
    assert (network.output, network.logits, network.classes) == ("y", "h", 4)


def test_of_several_outputs_the_scores_are_taken() -> None:
    """A map beside one row of scores per sample is not the answer."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "first"], ["u"]),
        helper.make_node("Concat", ["u", "u"], ["map"], axis=1),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    network = load(scored(*nodes, outputs=("map", "y")))
    assert network.output == "y"
    assert set(network.evaluate({"x": torch.from_numpy(X)})) == {"map", "y"}


def test_outputs_that_look_the_same_are_named() -> None:
    """Where several may be the scores the error has all of them, and one can be named."""
    nodes = [helper.make_node("Relu", ["h"], ["a"]), helper.make_node("Neg", ["h"], ["b"])]
    model = scored(*nodes, outputs=("a", "b"))
    network = load(model)
    with pytest.raises(InvalidModel, match=r"'a' .*'b' .*name one as `output`"):
        network(torch.from_numpy(X))
    assert load(model, output="b").output == "b"
    with pytest.raises(InvalidModel, match="no output 'c'"):
        load(model, output="c")


def test_a_ridge_head_is_scikit_learns() -> None:
    """The closed form gives the reference's scores, in both of its forms."""
    network = load(scored(helper.make_node("Tanh", ["h"], ["y"])))
    x = torch.from_numpy(RNG.standard_normal((40, 6)).astype(np.float32))
    labels = torch.from_numpy(RNG.integers(0, 3, 40))
    features = network.values(x, ["h"])["h"].double().numpy()
    scaled = (features - features.mean(0)) / features.std(ddof=1)
    targets = np.eye(3)[labels.numpy()]
    for rows in (40, 3):
        if rows == 3:
            labels[:3] = torch.arange(3)
            part = network.values(x[:3], ["h"])["h"].double().numpy()
            scaled, targets = (part - part.mean(0)) / part.std(ddof=1), np.eye(3)
        headed = fit_linear_head(network, "h", x[:rows], labels[:rows], l2=0.1)
        expected = Ridge(alpha=0.1 * rows).fit(scaled, targets).predict(scaled)
        np.testing.assert_allclose(headed(x[:rows]), expected, atol=1e-5)


def test_a_softmax_head_is_scikit_learns() -> None:
    """L-BFGS reaches the same minimum of the cross-entropy as the reference."""
    network = load(scored(helper.make_node("Tanh", ["h"], ["y"])))
    x = torch.from_numpy(RNG.standard_normal((60, 6)).astype(np.float32))
    labels = torch.from_numpy(RNG.integers(0, 3, 60))
    headed = fit_linear_head(network, "h", x, labels, l2=0.05, method="softmax")
    features = network.values(x, ["h"])["h"].double().numpy()
    scaled = (features - features.mean(0)) / features.std(ddof=1)
    reference = LogisticRegression(C=1 / (0.05 * 60), tol=1e-10, max_iter=1000)
    reference.fit(scaled, labels.numpy())
    np.testing.assert_allclose(headed(x).softmax(1), reference.predict_proba(scaled), atol=1e-4)


def test_an_autoencoder_becomes_a_classifier() -> None:
    """With a head on a hidden value it has classes, gradients, parity and a record of the fit."""
    network = load(exported("autoencoder", dynamo=False, fixed=1))
    hidden = next(layer.output for layer in network.layers if layer.op_type == "Softplus")
    x = torch.from_numpy(RNG.random((12, 3, 16, 16), dtype=np.float32))
    labels = torch.arange(12) % 4
    headed = fit_linear_head(network, hidden, x, labels)
    assert (headed.classes, headed.output) == (4, OUTPUT)
    session = Session(headed.original.SerializeToString())
    require(parity(headed, session, x.numpy()))
    assert (headed(x).argmax(1) == labels).all()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(headed(leaf).sum(), leaf)
    assert gradient.abs().sum() > 0
    (entry,) = [p.value for p in headed.original.metadata_props if p.key == RECORD]
    assert json.loads(entry) == {
        "value": hidden, "method": "ridge", "l2": 1e-3, "seed": 0, "samples": 12, "classes": 4,
        "features": 12 * 4 * 4, "training_accuracy": 1.0,
    }  # fmt: skip


def test_a_head_needs_labels_and_a_value() -> None:
    """Labels that do not fit, and values that are not there, are refused."""
    network, x = load(scored(helper.make_node("Tanh", ["h"], ["y"]))), torch.from_numpy(X)
    with pytest.raises(ProbesDoNotFit, match="at least two classes"):
        fit_linear_head(network, "h", x, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(InvalidModel, match="no value 'g'"):
        fit_linear_head(network, "g", x, torch.arange(5))
    with pytest.raises(ValueError, match="l2"):
        fit_linear_head(network, "h", x, torch.arange(5), l2=0)
