"""Random small graphs beside onnx.reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from tests.auditors.network.ops.compare import Array, draw
from tests.support import graph_model

from onnx_auditors.network import load

UNARY = ["Relu", "Tanh", "Sigmoid", "Abs", "Neg", "Softplus", "Erf", "Identity", "Elu", "Softsign"]
BINARY = ["Add", "Sub", "Mul", "Max", "Min"]
WEIGHTS: dict[str, Array] = {
    "w": draw(6, 6, seed=1) / 3,
    "b": draw(6, seed=2),
    "axes": np.array([1]),
    "ends": np.array([-1, 6]),
    "halves": np.array([3, 3]),
    "order": np.array([5, 3, 1, 0, 2, 4]),
}


@st.composite
def graphs(draw_from: st.DrawFn) -> onnx.ModelProto:
    """A graph whose values are all [n, 6], each node reading values before it."""
    nodes: list[onnx.NodeProto] = []
    values = ["x", "x2"]
    for i in range(draw_from(st.integers(1, 8))):
        kind = draw_from(st.sampled_from(["unary", "binary", "dense", "mean", "split", "gather",
                                          "softmax", "where"]))  # fmt: skip
        a, b = draw_from(st.sampled_from(values)), draw_from(st.sampled_from(values))
        y = f"v{i}"
        make = helper.make_node
        if kind == "unary":
            nodes.append(make(draw_from(st.sampled_from(UNARY)), [a], [y]))
        elif kind == "binary":
            nodes.append(make(draw_from(st.sampled_from(BINARY)), [a, b], [y]))
        elif kind == "dense":
            nodes.append(make("Gemm", [a, "w", "b"], [y], transB=draw_from(st.integers(0, 1))))
        elif kind == "mean":
            nodes.append(make("ReduceMean", [a, "axes"], [f"m{i}"]))
            nodes.append(make("Sub", [b, f"m{i}"], [y]))
        elif kind == "split":
            nodes.append(make("Split", [a, "halves"], [f"l{i}", f"r{i}"], axis=1))
            nodes.append(make("Concat", [f"r{i}", f"l{i}"], [y], axis=1))
        elif kind == "gather":
            nodes.append(make("Gather", [a, "order"], [f"g{i}"], axis=1))
            nodes.append(make("Reshape", [f"g{i}", "ends"], [y]))
        elif kind == "softmax":
            nodes.append(make("Softmax", [a], [y], axis=draw_from(st.sampled_from([1, -1]))))
        else:
            nodes.append(make("Less", [a, b], [f"c{i}"]))
            nodes.append(make("Where", [f"c{i}", a, b], [y]))
        values.append(y)
    nodes.append(helper.make_node("Identity", [values[-1]], ["y"]))
    return graph_model(nodes, {"x": ["n", 6], "x2": ["n", 6]}, WEIGHTS)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(model=graphs(), batch=st.integers(1, 3))
def test_random_graphs(model: onnx.ModelProto, batch: int) -> None:
    """A random graph gives what the standard's reference gives."""
    inputs = {"x": draw(batch, 6, seed=3), "x2": draw(batch, 6, seed=4)}
    (expected,) = onnx.reference.ReferenceEvaluator(model).run(None, inputs)
    ours = load(model).evaluate({n: torch.from_numpy(x) for n, x in inputs.items()})["y"]
    np.testing.assert_allclose(ours.numpy(), np.asarray(expected), rtol=1e-4, atol=1e-5)
