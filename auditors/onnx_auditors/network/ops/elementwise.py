"""Operators that act on every entry alone, and softmax."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from onnx_auditors.network.node import Node
from onnx_auditors.network.ops.integers import on_unsigned
from onnx_auditors.network.registry import Function, operator, plain
from onnx_auditors.network.surrogate import straight_through

plain({"And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor}, since=7)
plain(
    {"Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Exp": torch.exp,
     "Log": torch.log, "Sqrt": torch.sqrt, "Abs": torch.abs, "Neg": torch.neg,
     "Reciprocal": torch.reciprocal, "Not": torch.logical_not, "Softsign": functional.softsign,
     "Erf": torch.erf, "Where": torch.where, "Sin": torch.sin, "Cos": torch.cos,
     "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan,
     "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh,
     "Atanh": torch.atanh, "Mish": functional.mish, "IsNaN": torch.isnan,
     "HardSwish": functional.hardswish},
)  # fmt: skip

_STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign
}  # fmt: skip


@operator(*_STEPS, surrogate=True)
def step(node: Node) -> Function:
    """A function in steps; its gradient is a straight-through estimator's."""
    function = _STEPS[node.op_type]
    first = node.inputs[0]
    if first is None or not first.meta.is_floating_point():
        return function
    if node.op_type == "Sign":
        return lambda x: straight_through(torch.clamp(x, -1, 1), torch.sign(x))
    return lambda x: straight_through(x, function(x))


_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Less": torch.lt, "Greater": torch.gt,
    "Equal": torch.eq, "LessOrEqual": torch.le, "GreaterOrEqual": torch.ge,
}  # fmt: skip


@operator(*_BINARY, since=7)
def binary(node: Node) -> Function:
    """Arithmetic and comparison, with broadcasting."""
    return on_unsigned(node, _BINARY[node.op_type], ordered=node.op_type not in _RING)


_RING = frozenset({"Add", "Sub", "Mul"})  # the same bits for either reading of the sign


@operator("Div", since=7)
def div(node: Node) -> Function:
    """Divides; integers are truncated towards zero, as in C."""
    first = node.inputs[0]
    if first is not None and not first.meta.is_floating_point():
        return on_unsigned(node, lambda a, b: torch.div(a, b, rounding_mode="trunc"))
    return torch.div


@operator("Mod", since=10)
def mod(node: Node) -> Function:
    """Remainder: with the divisor's sign as in Python, or with fmod the dividend's as in C."""
    if node.integer("fmod", 0):
        return on_unsigned(node, torch.fmod)
    return on_unsigned(node, torch.remainder)


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
    two = on_unsigned(node, _COMBINE[node.op_type], ordered=True)
    if node.op_type == "Mean":
        return lambda *tensors: reduce(two, tensors) / len(tensors)
    return lambda *tensors: reduce(two, tensors)


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


@operator("PRelu", since=6)
def prelu(node: Node) -> Function:
    """Rectifies with slopes from a tensor that broadcasts to the input.

    Before opset 7 a list of slopes is one for each channel, whatever the last axis.
    """
    if node.opset < 7 and len(node.shape(1)) == 1:  # noqa: PLR2004 - the opset's number
        shape = [-1] + [1] * (len(node.shape()) - 2)
        return lambda x, slope: torch.where(x < 0, slope.reshape(shape) * x, x)
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
    axis, rank = node.integer("axis", -1), max(1, len(node.shape()))
    if not -rank <= axis < rank:
        node.refuse(f"axis {axis} is outside its input of rank {rank}")  # torch checks data only
    function = torch.softmax if node.op_type == "Softmax" else torch.log_softmax
    return lambda x: function(x, axis)


@operator("Swish", since=24)
def swish(node: Node) -> Function:
    """The input times the sigmoid of alpha times the input."""
    alpha = node.number("alpha", 1.0)
    return lambda x: x * torch.sigmoid(alpha * x)


@operator("SwiGLU", since=28)
def swiglu(node: Node) -> Function:
    """Swish of the first tensor times the second."""
    alpha = node.number("alpha", 1.0)
    return lambda a, b: a * torch.sigmoid(alpha * a) * b


@operator("Shrink", since=9)
def shrink(node: Node) -> Function:
    """Moves entries towards 0 by a bias, and those in the middle onto it."""
    bias, limit = node.number("bias", 0.0), node.number("lambd", 0.5)

    def function(x: Tensor) -> Tensor:
        outer = torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, 0 * x))
        return outer.to(x.dtype)

    return function


@operator("Hardmax", since=13)
def hardmax(node: Node) -> Function:
    """1 at the first largest entry along an axis, else 0."""
    axis = node.integer("axis", -1)

    def function(x: Tensor) -> Tensor:
        places = torch.arange(x.shape[axis], device=x.device)
        largest = x.argmax(axis, keepdim=True).movedim(axis, -1)
        return (largest == places).to(x.dtype).movedim(-1, axis)

    return function


@operator("IsInf", since=10)
def is_infinite(node: Node) -> Function:
    """Says which entries are infinite, of either sign or one."""
    negative, positive = node.integer("detect_negative", 1), node.integer("detect_positive", 1)
    if negative and positive:
        return torch.isinf
    if negative:
        return torch.isneginf
    return torch.isposinf if positive else lambda x: torch.zeros_like(x, dtype=torch.bool)


@operator("Identity", carries=True)
def identity(_: Node) -> Function:
    """Passes its input on."""
    return lambda x: x


@operator("Dropout", since=12)
def dropout(node: Node) -> Function:
    """Passes its input on, as dropout does outside training; its mask keeps everything."""
    node.ignore("seed")
    ratio = float(node.constant(1)) if node.present(1) else 0.5
    if node.present(2) and bool(node.constant(2)) and ratio > 0:
        node.refuse("training_mode is on; export the model for inference")
    if node.wants(1):
        return lambda x: (x, torch.ones_like(x, dtype=torch.bool))
    return lambda x: x
