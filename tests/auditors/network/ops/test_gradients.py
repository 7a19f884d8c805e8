"""Gradients of operators beside finite differences, and operators mapped and compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from onnx import helper
from tests.auditors.network.ops.compare import Array, draw, model_of
from tests.support import graph_model

from onnx_auditors.network import load

UNARY = ["Abs", "Neg", "Exp", "Erf", "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh", "Tanh",
         "Sigmoid", "Softplus", "Softsign", "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Mish",
         "HardSigmoid", "HardSwish", "ThresholdedRelu", "Softmax", "LogSoftmax",
         "Gelu"]  # fmt: skip
CASES: list[tuple[str, list[npt.NDArray[np.float32]], dict[str, Any]]] = [
    *((op_type, [], {}) for op_type in UNARY),
    ("GlobalLpPool", [], {}), ("GlobalAveragePool", [], {}), ("GlobalMaxPool", [], {}),
    ("LpPool", [], {"kernel_shape": [2, 2], "strides": [2, 1], "pads": [1, 0, 0, 1]}),
    ("MaxPool", [], {"kernel_shape": [2, 2], "dilations": [2, 1]}),
    ("AveragePool", [], {"kernel_shape": [2, 2], "dilations": [2, 1], "pads": [1, 1, 0, 0]}),
    ("LpNormalization", [], {"axis": 1, "p": 2}), ("LRN", [], {"size": 3, "alpha": 0.5}),
    ("MeanVarianceNormalization", [], {}), ("DepthToSpace", [], {"blocksize": 2}),
    ("SpaceToDepth", [], {"blocksize": 2}), ("Shrink", [], {"lambd": 0.3, "bias": 0.1}),
    ("ReduceL2", [], {}), ("ReduceLogSumExp", [], {}), ("ReduceSumSquare", [], {}),
    ("InstanceNormalization", [draw(4, seed=1), draw(4, seed=2)], {}),
    ("GroupNormalization", [draw(4, seed=1), draw(4, seed=2)], {"num_groups": 2}),
    ("LayerNormalization", [draw(4, seed=1)], {}),
    ("Conv", [draw(2, 2, 2, 3, seed=1)], {"group": 2, "pads": [1, 0, 0, 2]}),
    ("ConvTranspose", [draw(4, 2, 3, 2, seed=1)], {"strides": [2, 1], "pads": [1, 0, 0, 1]}),
    ("MatMul", [draw(4, 3, seed=1)], {}), ("PRelu", [draw(4, 1, 1, seed=1)], {}),
]  # fmt: skip


@pytest.mark.parametrize(("op_type", "constants", "attributes"), CASES)
def test_gradient(
    op_type: str, constants: list[npt.NDArray[np.float32]], attributes: dict[str, Any]
) -> None:
    """The gradient is that of finite differences in double precision."""
    x = draw(1, 4, 4, 4)
    inputs = [x, *constants]
    model = model_of(op_type, inputs, constant=range(1, len(inputs)), **attributes)
    network = load(model, floating=torch.float64)
    leaf = torch.from_numpy(x).double().requires_grad_()
    assert torch.autograd.gradcheck(network, (leaf,), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
def test_gradient_of_resize(mode: str) -> None:
    """The gradient of interpolation is that of finite differences."""
    x = draw(1, 2, 4, 5)
    sizes = np.array([1, 2, 7, 3])
    network = load(
        model_of("Resize", [x, None, None, sizes], constant=[3], mode=mode), floating=torch.float64
    )
    leaf = torch.from_numpy(x).double().requires_grad_()
    assert torch.autograd.gradcheck(network, (leaf,))


@pytest.mark.parametrize(("op_type", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_gradient_of_recurrent(op_type: str, gates: int) -> None:
    """The gradient through the steps of a recurrent layer is that of finite differences."""
    x = draw(3, 1, 2)
    inputs = [x, draw(2, 2 * gates, 2, seed=1), draw(2, 2 * gates, 2, seed=2)]
    model = model_of(op_type, inputs, constant=[1, 2], hidden_size=2, direction="bidirectional")
    network = load(model, floating=torch.float64)
    leaf = torch.from_numpy(x).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: network.evaluate({"x0": v})["y"], (leaf,))


@pytest.mark.parametrize("op_type", ["Round", "Floor", "Ceil", "Sign"])
def test_surrogate_gradients(op_type: str) -> None:
    """Steps pass finite gradients on as they are; Sign between -1 and 1 alone."""
    x = torch.tensor([[-3.0, -0.4, 0.6, 2.5, float("inf")]])
    network = load(model_of(op_type, [x.numpy()]))
    leaf = x.clone().requires_grad_()
    network(leaf).sum().backward()
    inside = (x.abs() <= 1).float() if op_type == "Sign" else x.isfinite().float()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, inside)


def test_quantised_steps_map_and_compile() -> None:
    """A quantised graph with a fixed batch runs in any batch, and compiles as one graph."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Round", ["d"], ["r"]),
        helper.make_node("Gemm", ["r", "w"], ["y"]),
    ]
    weights: dict[str, Array] = {
        "s": np.array(0.3, np.float32),
        "z": np.array(3, np.int8),
        "w": draw(4, 3),
    }
    fixed = load(graph_model(nodes, {"x": [1, 4]}, weights))
    free = load(graph_model(nodes, {"x": ["n", 4]}, weights))
    x = torch.from_numpy(draw(5, 4, seed=3))
    leaf = x.clone().requires_grad_()
    fixed(leaf).square().sum().backward()
    assert leaf.grad is not None
    other = x.clone().requires_grad_()
    free(x)  # binds
    compiled = torch.compile(free, fullgraph=True, backend="aot_eager")
    compiled(other).square().sum().backward()
    assert other.grad is not None
    torch.testing.assert_close(fixed(x), free(x))
    torch.testing.assert_close(leaf.grad, other.grad)
    assert float(leaf.grad.abs().max()) > 0
