"""Operators that act on every entry alone, and softmax."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from onnx_auditors.network.node import Node
from onnx_auditors.network.registry import Function, operator, plain

plain({"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul}, since=7)
plain(
    {"Less": torch.lt, "Greater": torch.gt, "Equal": torch.eq, "LessOrEqual": torch.le,
     "GreaterOrEqual": torch.ge, "And": torch.logical_and, "Or": torch.logical_or,
     "Xor": torch.logical_xor},
    since=7,
)  # fmt: skip
plain(
    {"Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Exp": torch.exp,
     "Log": torch.log, "Sqrt": torch.sqrt, "Abs": torch.abs, "Neg": torch.neg,
     "Reciprocal": torch.reciprocal, "Floor": torch.floor, "Ceil": torch.ceil, "Not":
     torch.logical_not, "Softsign": functional.softsign},
    since=1,
)  # fmt: skip
plain(
    {"Erf": torch.erf, "Sign": torch.sign, "Round": torch.round, "Where": torch.where,
     "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan, "Asin": torch.asin,
     "Acos": torch.acos, "Atan": torch.atan, "Sinh": torch.sinh, "Cosh": torch.cosh,
     "Mish": functional.mish, "IsNaN": torch.isnan, "HardSwish": functional.hardswish},
)  # fmt: skip


@operator("Div", since=7)
def div(node: Node) -> Function:
    """Divides; integers are truncated towards zero, as in C."""
    first = node.inputs[0]
    if first is not None and not first.meta.is_floating_point():
        return lambda a, b: torch.div(a, b, rounding_mode="trunc")
    return torch.div


@operator("Pow", since=7)
def power(_: Node) -> Function:
    """Raises to a power; the result has the type of the base."""
    return lambda a, b: torch.pow(a, b).to(a.dtype)


_COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Sum": torch.add,
    "Mean": torch.add,
    "Max": torch.maximum,
    "Min": torch.minimum,
}


@operator(*_COMBINE, since=8)
def combine(node: Node) -> Function:
    """Combines any number of tensors entry by entry, with broadcasting."""
    step = _COMBINE[node.op_type]
    if node.op_type == "Mean":
        return lambda *tensors: reduce(step, tensors) / len(tensors)
    return lambda *tensors: reduce(step, tensors)


@operator("Clip", since=11)
def clip(_: Node) -> Function:
    """Limits to a range; where the ends cross, the upper one wins, as in torch."""

    def function(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        return x if low is None and high is None else torch.clamp(x, low, high)

    return function


@operator("LeakyRelu", since=6)
def leaky_relu(node: Node) -> Function:
    """Rectifies with a slope for negative entries."""
    slope = node.number("alpha", 0.01)
    return lambda x: functional.leaky_relu(x, slope)


@operator("PRelu", since=9)
def prelu(_: Node) -> Function:
    """Rectifies with slopes from a tensor that broadcasts to the input."""
    return lambda x, slope: torch.where(x < 0, slope * x, x)


@operator("ThresholdedRelu", since=10)
def thresholded_relu(node: Node) -> Function:
    """Passes what is above a threshold, else 0."""
    threshold = node.number("alpha", 1.0)
    return lambda x: torch.where(x > threshold, x, torch.zeros_like(x))


@operator("Elu", since=6)
def elu(node: Node) -> Function:
    """Exponential linear unit."""
    alpha = node.number("alpha", 1.0)
    return lambda x: functional.elu(x, alpha)


@operator("Celu", since=12)
def celu(node: Node) -> Function:
    """Continuously differentiable exponential linear unit."""
    alpha = node.number("alpha", 1.0)
    return lambda x: functional.celu(x, alpha)


@operator("Selu", since=6)
def selu(node: Node) -> Function:
    """Scaled exponential linear unit."""
    alpha = node.number("alpha", 1.67326319217681884765625)
    gamma = node.number("gamma", 1.05070102214813232421875)
    return lambda x: gamma * functional.elu(x, alpha)


@operator("Gelu", since=20)
def gelu(node: Node) -> Function:
    """Gaussian error linear unit, exact or by tanh."""
    approximate = node.text("approximate", "none")
    return lambda x: functional.gelu(x, approximate=approximate)


@operator("HardSigmoid", since=6)
def hard_sigmoid(node: Node) -> Function:
    """Piecewise linear sigmoid."""
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    return lambda x: torch.clamp(alpha * x + beta, 0, 1)


@operator("Softplus")
def softplus(_: Node) -> Function:
    """log(1 + exp(x)), without torch's switch to the identity at 20."""
    return lambda x: torch.logaddexp(x, torch.zeros_like(x))


@operator("Softmax", "LogSoftmax", since=13)
def softmax(node: Node) -> Function:
    """Softmax along one axis."""
    axis = node.integer("axis", -1)
    function = torch.softmax if node.op_type == "Softmax" else torch.log_softmax
    return lambda x: function(x, axis)


@operator("Cast", since=9)
def cast(node: Node) -> Function:
    """Changes the element type; half precision is computed in the network's floating type."""
    node.ignore("saturate", "round_mode")  # for 8-bit floats alone
    dtype = node.dtype(node.integer("to"))
    return lambda x: x.to(dtype)


@operator("CastLike", since=15)
def cast_like(node: Node) -> Function:
    """Changes the element type to that of another tensor."""
    node.ignore("saturate", "round_mode")
    return lambda x, like: x.to(like.dtype)


@operator("Identity")
def identity(_: Node) -> Function:
    """Passes its input on."""
    return lambda x: x


@operator("Dropout", since=12)
def dropout(node: Node) -> Function:
    """Passes its input on, as dropout does outside training."""
    node.ignore("seed")
    if node.present(2) and bool(node.constant(2)):
        node.refuse("training_mode is on; export the model for inference")
    if node.present(1):
        node.constant(1)
    return lambda x, *_: x
