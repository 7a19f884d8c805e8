"""Constants of nonlinear layers against the largest Jacobians that a search finds."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tests.support import graph_model, node_model

from onnx_auditors.lipschitz.constants import constant, joined
from onnx_auditors.lipschitz.normalising import response
from onnx_auditors.network import load

Norm = Literal["l1", "l2", "linf"]
NORMS: tuple[Norm, ...] = ("l1", "l2", "linf")


@dataclass
class Case:
    """One operator, and which share of its constants the search must reach, per norm."""

    op: str
    shape: tuple[int, ...]
    constants: tuple[npt.NDArray[Any], ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    reached: dict[Norm, float] = field(default_factory=dict)
    opset: int = 21


def _normal(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


_ALL: dict[Norm, float] = {"l1": 0.999, "l2": 0.999, "linf": 0.999}
_TOP: dict[Norm, float] = {"l1": 0.98, "l2": 0.98, "linf": 0.98}
CASES = {
    "pool 3 stride 2": Case(
        "MaxPool", (1, 1, 7, 7), (), {"kernel_shape": [3, 3], "strides": [2, 2]}, _ALL
    ),
    "pool 3 stride 1": Case("MaxPool", (1, 1, 6, 6), (), {"kernel_shape": [3, 3]}, _ALL),
    "pool without overlap": Case(
        "MaxPool", (1, 2, 4, 4), (), {"kernel_shape": [2, 2], "strides": [2, 2]}, _ALL
    ),
    "pool dilation 2": Case(
        "MaxPool", (1, 1, 16), (), {"kernel_shape": [3], "dilations": [2]}, _ALL
    ),
    "pool dilation 2 stride 2": Case(
        "MaxPool", (1, 1, 20), (), {"kernel_shape": [4], "dilations": [2], "strides": [2]}, _ALL
    ),
    "pool dilation 3 stride 2": Case(
        "MaxPool", (1, 1, 30), (), {"kernel_shape": [5], "dilations": [3], "strides": [2]}, _ALL
    ),
    "pool dilation 2 stride 3": Case(
        "MaxPool", (1, 1, 24), (), {"kernel_shape": [4], "dilations": [2], "strides": [3]}, _ALL
    ),
    "pool padded": Case(
        "MaxPool",
        (1, 1, 4, 4),
        (),
        {"kernel_shape": [5, 5], "pads": [2, 2, 2, 2]},
        {"linf": 0.999, "l2": 0.7},
    ),
    "pool of 1-norms": Case(
        "LpPool",
        (1, 1, 9),
        (),
        {"kernel_shape": [3], "strides": [2], "p": 1},
        {"l1": 0.999, "linf": 0.999, "l2": 0.75},
    ),
    "pool of 2-norms": Case(
        "LpPool",
        (1, 1, 9),
        (),
        {"kernel_shape": [3], "strides": [2], "p": 2},
        {"linf": 0.99, "l1": 0.5, "l2": 0.7},
    ),
    "pool of 3-norms": Case(
        "LpPool",
        (1, 1, 9),
        (),
        {"kernel_shape": [3], "strides": [3], "p": 3},
        {"linf": 0.99, "l1": 0.99, "l2": 0.99},
    ),
    "global pool": Case("GlobalMaxPool", (1, 2, 3, 3), (), {}, _ALL),
    "largest": Case("ReduceMax", (1, 3, 4), (np.array([2]),), {"keepdims": 0}, _ALL),
    "smallest": Case("ReduceMin", (1, 3, 4), (np.array([2]),), {"keepdims": 0}, _ALL),
    "max with a broadcast": Case("Max", (1, 3, 1), (_normal(1, 3, 4) - 2,), {}, _ALL),
    "softmax": Case("Softmax", (1, 6), (), {"axis": -1}, _TOP),
    "softmax of old": Case("Softmax", (1, 3, 2), (), {}, {"linf": 0.98}, 11),
    "log softmax": Case("LogSoftmax", (1, 6), (), {"axis": -1}, _TOP),
    "response 5": Case(
        "LRN",
        (1, 9, 1, 1),
        (),
        {"size": 5, "alpha": 0.5, "beta": 0.75, "bias": 2.0},
        {"linf": 0.999, "l1": 0.85, "l2": 0.9},
    ),
    "response 5 of 3": Case(
        "LRN",
        (1, 3, 1, 2),
        (),
        {"size": 5, "alpha": 0.3, "beta": 0.75, "bias": 1.0},
        {"linf": 0.99, "l2": 0.9},
    ),
    "response 4": Case(
        "LRN",
        (1, 8, 1, 1),
        (),
        {"size": 4, "alpha": 0.5, "beta": 0.75, "bias": 1.0},
        {"linf": 0.999},
    ),
    "response, steep": Case(
        "LRN", (1, 7, 1, 1), (), {"size": 3, "alpha": 0.5, "beta": 3.0, "bias": 0.5}, {"linf": 0.99}
    ),
    "layer norm": Case(
        "LayerNormalization",
        (1, 6),
        (_normal(6), _normal(6)),
        {"epsilon": 0.1},
        {"l2": 0.999, "linf": 0.7},
    ),
    "layer norm of rows": Case(
        "LayerNormalization", (1, 2, 4), (_normal(4),), {"epsilon": 0.01}, {"l2": 0.999}
    ),
    "instance norm": Case(
        "InstanceNormalization",
        (1, 2, 5),
        (_normal(2), _normal(2)),
        {"epsilon": 0.1},
        {"l2": 0.999, "linf": 0.8, "l1": 0.8},
    ),
    "group norm": Case(
        "GroupNormalization",
        (1, 4, 3),
        (_normal(4), _normal(4)),
        {"epsilon": 0.1, "num_groups": 2},
        {"l2": 0.6},
    ),
    "rms norm": Case(
        "RMSNormalization",
        (1, 6),
        (_normal(6),),
        {"epsilon": 0.1},
        {"l2": 0.99, "linf": 0.8, "l1": 0.6},
        23,
    ),
    "2-norm": Case("ReduceL2", (1, 5), (np.array([1]),), {}, _TOP),
    "1-norm": Case("ReduceL1", (1, 5), (np.array([1]),), {}, _ALL),
    "log of sums": Case("ReduceLogSumExp", (1, 5), (np.array([1]),), {}, _TOP),
}


def _model(case: Case) -> onnx.ModelProto:
    if case.op != "GroupNormalization":
        x = np.zeros(case.shape, np.float32)
        return node_model(case.op, x, *case.constants, opset=case.opset, **case.attributes)
    # ONNX infers no output shape for it.
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, case.shape) for n in "xy"]
    weights = [numpy_helper.from_array(c, f"c{i}") for i, c in enumerate(case.constants)]
    node = helper.make_node(case.op, ["x", *(w.name for w in weights)], ["y"], **case.attributes)
    graph = helper.make_graph([node], "test", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _jacobians(network: Any, x: torch.Tensor, name: str) -> torch.Tensor:
    x = x.clone().requires_grad_()
    y = network.values(x, [name])[name].flatten(1)
    rows = [
        torch.autograd.grad(y[:, k].sum(), x, retain_graph=True)[0].flatten(1)
        for k in range(y.shape[1])
    ]
    return torch.stack(rows, 1).detach()


def _norms(jacobians: torch.Tensor, norm: Norm) -> torch.Tensor:
    if norm == "l2":
        found: torch.Tensor = torch.linalg.matrix_norm(jacobians, 2)
        return found
    return jacobians.abs().sum(1 if norm == "l1" else 2).amax(1)


def _searched(network: Any, shape: tuple[int, ...], name: str, norm: Norm) -> float:
    """Largest norm of the Jacobian by steps of falling size from random and sparse points."""
    g = torch.Generator().manual_seed(0)
    n = math.prod(shape)
    size = 10.0 ** (torch.rand(200, 1, dtype=torch.float64, generator=g) * 6 - 3)
    x = torch.randn(200, n, dtype=torch.float64, generator=g) * size
    pairs = torch.eye(n, dtype=torch.float64)
    pairs = torch.cat([pairs, (pairs + pairs.roll(1, 0))]) * 5
    x = torch.cat([x, pairs, pairs * 20 - 20, 1e-3 * pairs])
    best = 0.0
    for step in range(15):
        found = _norms(_jacobians(network, x.reshape(-1, *shape), name), norm)
        best = max(best, float(found.max()))
        top = x[found.topk(10).indices].repeat(20, 1)
        noise = torch.randn(top.shape, dtype=torch.float64, generator=g)
        fewer = torch.rand(top.shape, generator=g) < 0.5
        scale = top.abs().amax(1, keepdim=True) * 0.6**step
        x = torch.cat([x[found.topk(10).indices], top + noise * fewer * scale])
    return best


@pytest.mark.parametrize("name", CASES)
def test_constants_hold_and_are_reached(name: str) -> None:
    case = CASES[name]
    network = load(_model(case), floating=torch.float64)
    # Older softmax comes as one over a matrix, with reshapes around it.
    layer = next(found for found in network.layers if found.op_type == case.op)
    for norm in NORMS:
        found = constant(layer, norm)
        searched = _searched(network, case.shape[1:], layer.output, norm)
        assert searched <= found.value * (1 + 1e-9), (norm, found)
        assert searched >= found.value * case.reached.get(norm, 0.2), (norm, found, searched)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 7),
    beta=st.floats(0.1, 3),
    scale=st.floats(-2, 2),
)
def test_response_normalisation_never_exceeds_its_constants(
    seed: int, size: int, beta: float, scale: float
) -> None:
    channels = 8
    before = (size - 1) // 2
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(64, channels, dtype=torch.float64, generator=g) * 10**scale
    place = torch.arange(channels)
    inside = (
        (place >= place[:, None] - before) & (place < place[:, None] - before + size)
    ).double()
    energy = 1 + x.square() @ inside.T
    outer = x[:, :, None] * x[:, None] * inside
    jacobians = torch.diag_embed(energy**-beta) - 2 * beta * outer * energy[..., None] ** (
        -beta - 1
    )
    for norm in NORMS:
        limit = response(size, beta, 1.0, norm, symmetric=bool(size % 2))
        assert float(_norms(jacobians, norm).max()) <= limit * (1 + 1e-12)


def test_response_normalisation_as_of_alexnet() -> None:
    # Linf has a closed form: the maximum of (1 - r)^b (1 + b r (sqrt 5 - 1)), b = 3/4.
    b = 0.75
    c = b * (math.sqrt(5) - 1)
    r = (c - b) / (c * (1 + b))
    exact = (1 - r) ** b * (1 + c * r)
    assert exact == pytest.approx(1.00975, abs=1e-5)
    assert response(5, b, 1.0, "linf") == pytest.approx(exact, rel=1e-9)
    assert exact <= response(5, b, 1.0, "l1") <= 1.2096
    assert 1 <= response(5, b, 1.0, "l2") <= 1.1052
    assert response(5, b, 2.0, "linf") == pytest.approx(exact * 2**-b, rel=1e-9)


def _layer(op: str, *inputs: str, opset: int = 21, **attributes: Any) -> Any:
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node(op, inputs, ["y"], **attributes),
    ]
    weights: dict[str, npt.NDArray[Any]] = {
        "one": np.ones(3, np.float32),
        "scale": np.array(0.1, np.float32),
        "zero": np.array(0, np.int8),
    }
    used = {name: w for name, w in weights.items() if name in inputs}
    model = graph_model(nodes, {"x": [1, 3]}, used, opset=opset)
    return load(model, floating=torch.float64).layers[-1]


@pytest.mark.parametrize(
    ("op", "inputs", "reason"),
    [
        ("Div", ("one", "x"), "arbitrarily close to 0"),
        ("Div", ("x", "a"), "arbitrarily close to 0"),
        ("Reciprocal", ("x",), "arbitrarily close to 0"),
        ("Mul", ("x", "a"), "Mul of two values that depend on the input"),
        ("Exp", ("x",), "slope has no bound"),
        ("Sqrt", ("a",), "edge of its domain"),
        ("QuantizeLinear", ("x", "scale", "zero"), "jumps"),
        ("ArgMax", ("x",), "jumps"),
        ("Round", ("x",), "jumps"),
    ],
)
def test_what_has_no_constant_says_why(op: str, inputs: tuple[str, ...], reason: str) -> None:
    for norm in NORMS:
        found = constant(_layer(op, *inputs), norm)
        assert found.value == math.inf
        assert reason in found.reason


def test_linear_layers_are_left_to_their_bounds() -> None:
    found = constant(_layer("Add", "x", "one"), "l2")
    assert found.value == math.inf
    assert "linear" in found.reason


def test_branches_join_by_their_norm() -> None:
    assert joined([3, 4], "l1") == pytest.approx(7)
    assert joined([3, 4], "l2") == pytest.approx(5)
    assert joined([3, 4], "linf") == 4
