"""Which output counts, and where its logits are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tests.support import graph_model

from onnx_auditors.errors import InvalidModel
from onnx_auditors.network import Session, load, parity, require

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
