"""Linear classifiers on values of networks that have no classes of their own."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from onnx import helper
from sklearn.linear_model import LogisticRegression, Ridge
from tests.auditors.network.exports import exported, half
from tests.support import graph_model

from onnx_audit import v1
from onnx_auditors.errors import InvalidModel, ProbesDoNotFit
from onnx_auditors.network import (
    Head,
    Network,
    Session,
    find_value,
    fit_head,
    load,
    parity,
    require,
    with_head,
)  # fmt: skip
from onnx_auditors.network.attaching import OUTPUT
from onnx_auditors.network.session import with_outputs

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 6)).astype(np.float32)
LABELS = RNG.integers(0, 3, 60)


def scaled(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    x = features.astype(np.float64)
    return np.asarray((x - x.mean(0)) / x.std(ddof=1))


@pytest.mark.parametrize("rows", [40, 4])
def test_a_ridge_head_is_scikit_learns(rows: int) -> None:
    """The closed form gives the reference's scores, in both of its forms."""
    labels = np.arange(rows) % 3
    head = fit_head("h", X[:rows], labels, 3, l2=0.1)
    reference = Ridge(alpha=0.1 * rows).fit(scaled(X[:rows]), np.eye(3)[labels])
    np.testing.assert_allclose(head(X[:rows]), reference.predict(scaled(X[:rows])), atol=1e-5)


def test_a_softmax_head_is_scikit_learns() -> None:
    """L-BFGS reaches the same minimum of the cross-entropy as the reference."""
    head = fit_head("h", X, LABELS, 3, l2=0.05, method=v1.HEAD_METHOD_SOFTMAX)
    reference = LogisticRegression(C=1 / (0.05 * 60), tol=1e-10, max_iter=1000)
    reference.fit(scaled(X), LABELS)
    found = torch.from_numpy(head(X)).softmax(1)
    np.testing.assert_allclose(found, reference.predict_proba(scaled(X)), atol=1e-4)


def test_a_head_has_the_digest_that_the_schema_says() -> None:
    """It is that of the weights and then the bias, as little-endian float32."""
    head = fit_head("h", X, LABELS, 3)
    content = head.weight.astype("<f4").tobytes() + head.bias.astype("<f4").tobytes()
    assert head.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("labels", [np.zeros(60, int), LABELS[:59], LABELS - 1, LABELS + 1])
def test_labels_that_no_head_can_be_fitted_on(labels: npt.NDArray[np.int64]) -> None:
    """A single class, too few labels, and labels out of range are refused."""
    with pytest.raises(ProbesDoNotFit, match="at least two different"):
        fit_head("h", X, labels, 3)


def attached(content: bytes, value: str, x: npt.NDArray[np.float32]) -> tuple[Network, Session]:
    """Returns network and session with a head that was fitted on a value."""
    network = load(content)
    value = find_value(network, torch.from_numpy(x[:2]), value)
    session = Session(with_outputs(network.original, [value]), output=value)
    head = fit_head(value, session.table(x), np.arange(len(x)) % 4, 4)
    return with_head(network, head, torch.from_numpy(x)), session.with_head(head)


@pytest.mark.parametrize("precision", ["single", "half"])
@pytest.mark.parametrize(("dynamo", "fixed"), [(True, 0), (True, 1), (False, 0), (False, 1)])
def test_an_autoencoder_becomes_a_classifier(dynamo: bool, fixed: int, precision: str) -> None:
    """With a head on its code it has classes, gradients and parity, at any batch."""
    content = exported("autoencoder", dynamo=dynamo, fixed=fixed)
    content = half(content) if precision == "half" else content
    x = RNG.random((12, 3, 16, 16), dtype=np.float32).astype(np.float16).astype(np.float32)
    assert not load(content).scores_in_a_row
    network, session = attached(content, "", x)
    assert (network.classes, network.output, network.scores_in_a_row) == (4, OUTPUT, True)
    require(parity(network, session, x))
    leaf = torch.from_numpy(x).requires_grad_()
    scores = network(leaf)
    assert scores.argmax(1).tolist() == session.run(x).argmax(1).tolist() == [0, 1, 2, 3] * 3
    (gradient,) = torch.autograd.grad(scores.sum(), leaf)
    assert gradient.abs().sum() > 0
    # An independent reading of the same: ONNX Runtime's code times the recorded weights.
    assert isinstance(session.head, Head)
    judge = onnxruntime.InferenceSession(with_outputs(load(content).original, [session.output]))
    feed = x.astype(np.float16) if precision == "half" else x
    rows = [judge.run([session.output], {judge.get_inputs()[0].name: row[None]})[0] for row in feed]
    code = np.stack(rows).reshape(12, -1).astype(np.float64)
    expected = code @ session.head.weight.astype(np.float64) + session.head.bias
    np.testing.assert_allclose(session.run(x), expected, rtol=1e-5, atol=1e-5)


def test_the_code_of_an_autoencoder_is_chosen() -> None:
    """It is the smallest value that everything goes through, after its activation."""
    network = load(exported("autoencoder", dynamo=False, fixed=0))
    code = find_value(network, torch.rand(2, 3, 16, 16))
    (chosen,) = [layer for layer in network.layers if layer.output == code]
    assert (chosen.op_type, chosen.output_shape[1:]) == ("Softplus", (12, 4, 4))


def test_a_value_that_a_path_leads_around_is_not_chosen() -> None:
    """Neither a gate nor one side of a residual block is what the model knows of its input."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["wide"]),
        helper.make_node("ReduceMean", ["wide", "axes"], ["gate"], keepdims=1),
        helper.make_node("Mul", ["wide", "gate"], ["gated"]),
        helper.make_node("MatMul", ["gated", "v"], ["y"]),
        helper.make_node("Reshape", ["y", "map"], ["z"]),
    ]
    constants = {
        "w": RNG.standard_normal((6, 8)).astype(np.float32), "axes": np.array([1]),
        "v": RNG.standard_normal((8, 12)).astype(np.float32), "map": np.array([0, 3, 4]),
    }  # fmt: skip
    network = load(graph_model(nodes, {"x": ["n", 6]}, constants, outputs=("z",)))
    assert find_value(network, torch.from_numpy(X[:2])) == "gated"
    assert find_value(network, torch.from_numpy(X[:2]), "gate") == "gate"


def test_of_an_embedding_the_output_is_taken() -> None:
    """A vector for each input is what a head of an embedding stands on."""
    network = load(graph_model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 6]}))
    assert find_value(network, torch.from_numpy(X)) == "y"


def test_a_value_that_is_not_there() -> None:
    """The error names values that are near."""
    network = load(exported("autoencoder", dynamo=True))
    wanted = find_value(network, torch.rand(2, 3, 16, 16))
    with pytest.raises(InvalidModel, match=f"no value '{wanted}s'; near are .*{wanted}"):
        find_value(network, torch.rand(2, 3, 16, 16), f"{wanted}s")
