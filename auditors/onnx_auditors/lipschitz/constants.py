"""Lipschitz constants of nonlinear layers that mix entries, and why some layers have none.

Functions of each entry alone are not treated here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from onnx_auditors.lipschitz.bound import Norm
from onnx_auditors.lipschitz.normalising import centred, response, scaled_by_rms
from onnx_auditors.network.layers import Layer

_UP = 1 + 1e-12


@dataclass(frozen=True)
class Constant:
    """How much a layer can amplify a change of all its varying inputs together.

    Attributes:
        value: The constant, rounded up; infinite where there is none.
        reason: Why it is what it is.
    """

    value: float
    reason: str


def constant(layer: Layer, norm: Norm) -> Constant:
    """Returns an upper bound on the Lipschitz constant of a nonlinear layer that mixes entries.

    Args:
        layer: A layer of a network; shapes with the batch axis first.
        norm: "l1", "l2" or "linf", of inputs and outputs alike.
    """
    if layer.linear:
        return Constant(math.inf, f"{layer.op_type} is linear: its norm is operator_bounds'")
    rule = _RULES.get(layer.op_type)
    if rule is not None:
        return rule(layer, norm)
    return Constant(math.inf, _reason(layer))


def joined(values: Iterable[float], norm: Norm) -> float:
    """Returns the constant of branches of one input, concatenated, from those of the branches."""
    found = list(values)
    if norm == "l2":
        return math.sqrt(math.fsum(v * v for v in found)) * _UP
    return max(found) if norm == "linf" else math.fsum(found) * _UP


def _reason(layer: Layer) -> str:
    if layer.op_type in _PRODUCTS and len(layer.inputs) > 1:
        return f"{layer.op_type} of two values that depend on the input has no global constant"
    return _WITHOUT.get(layer.op_type, f"no constant is known for {layer.op_type}")


def _by_norm(norm: Norm, l1: float, l2: float, linf: float, reason: str) -> Constant:
    return Constant({"l1": l1, "l2": l2, "linf": linf}[norm], reason)


def _max_pool(layer: Layer, norm: Norm) -> Constant:
    if len(layer.outputs) > 1:
        return Constant(math.inf, "the places of the largest entries jump")
    times, _ = _overlap(layer)
    return _by_norm(norm, times, math.sqrt(times) * _UP, 1.0, f"an entry is in {times} windows")


def _overlap(layer: Layer) -> tuple[int, int]:
    """In how many windows an entry can be, and how many entries a window has.

    Windows start every s entries and look at every d-th: of the taps of an entry's windows
    those are s / gcd(s, d) apart.
    """
    kernel = layer.attributes["kernel_shape"]
    strides = layer.attributes.get("strides") or [1] * len(kernel)
    dilations = layer.attributes.get("dilations") or [1] * len(kernel)
    times = 1
    for k, s, d, windows in zip(kernel, strides, dilations, layer.output_shape[2:], strict=True):
        times *= min(-(-k * math.gcd(s, d) // s), windows)
    return times, math.prod(kernel)


def _lp_pool(layer: Layer, norm: Norm) -> Constant:
    times, entries = _overlap(layer)
    power = int(layer.attributes.get("p", 2))
    widening = math.sqrt(entries) if power == 1 else 1.0
    linf = entries ** (1 / power) * _UP
    l2 = math.sqrt(times) * widening * _UP
    return _by_norm(norm, times, l2, linf, f"{power}-norm of windows; an entry is in {times}")


def _largest(_: Layer, __: Norm) -> Constant:
    return Constant(1.0, "picks entries")


def _extreme(layer: Layer, norm: Norm) -> Constant:
    """Max and Min of several values: an entry is read as often as its value is broadcast."""
    size = math.prod(layer.output_shape)
    times = max(size // max(math.prod(shape), 1) for shape in layer.input_shapes)
    return _by_norm(norm, times, math.sqrt(times) * _UP, 1.0, f"an entry is read {times} times")


def _softmax(layer: Layer, _: Norm) -> Constant:
    single = layer.output_shape[layer.attributes.get("axis", -1)] == 1
    return Constant(0.0 if single else 0.5, "diag(p) - p p' has row sums 2 p (1 - p)")


def _log_softmax(layer: Layer, norm: Norm) -> Constant:
    n = layer.output_shape[layer.attributes.get("axis", -1)]
    if n == 1:
        return Constant(0.0, "constant for one entry")
    return _by_norm(norm, n - 1, math.sqrt(n) * _UP, 2.0, f"I - 1 p' over {n} entries")


def _response(layer: Layer, norm: Norm) -> Constant:
    a = layer.attributes
    bias, beta = float(a.get("bias", 1.0)), float(a.get("beta", 0.75))
    if bias <= 0 or beta < 0 or float(a.get("alpha", 1e-4)) < 0:
        return Constant(math.inf, "LRN has no constant for bias <= 0, beta < 0 or alpha < 0")
    size = min(int(a["size"]), layer.output_shape[1])
    reason = f"LRN over {size} channels, beta {beta:g}, bias {bias:g}"
    value = response(size, beta, bias, norm, symmetric=bool(int(a["size"]) % 2))
    return Constant(value, reason)


def _normalising(layer: Layer, norm: Norm) -> Constant:
    scale = layer.weights.get(1)
    if scale is None:
        return Constant(math.inf, f"{layer.op_type} with a scale that depends on the input")
    shape, epsilon = layer.output_shape, float(layer.attributes.get("epsilon", 1e-5))
    if layer.op_type in {"LayerNormalization", "RMSNormalization"}:
        size = math.prod(shape[layer.attributes.get("axis", -1) % len(shape) :])
    elif layer.op_type == "InstanceNormalization":
        size = math.prod(shape[2:])
    else:
        size = math.prod(shape[1:]) // int(layer.attributes["num_groups"])
    rule = scaled_by_rms if layer.op_type == "RMSNormalization" else centred
    whole = layer.op_type == "LayerNormalization" and scale.numel() == size
    factors = scale if whole else scale.abs().max().reshape(1)
    if len(layer.outputs) > 1:
        return Constant(math.inf, "its inverse deviation, a further output, has no constant here")
    value = rule(factors, size, epsilon, norm)
    return Constant(value, f"largest at constant inputs, epsilon {epsilon:g}, {size} entries")


def _reduced(layer: Layer) -> int:
    taken, given = layer.input_shapes[0], layer.output_shape
    return math.prod(taken) // max(math.prod(given), 1)


def _reduce_l2(layer: Layer, norm: Norm) -> Constant:
    n = _reduced(layer)
    return _by_norm(norm, 1.0, 1.0, math.sqrt(n) * _UP, f"2-norm of {n} entries")


def _reduce_l1(layer: Layer, norm: Norm) -> Constant:
    n = _reduced(layer)
    return _by_norm(norm, 1.0, math.sqrt(n) * _UP, float(n), f"1-norm of {n} entries")


_RULES: dict[str, Callable[[Layer, Norm], Constant]] = {
    "MaxPool": _max_pool, "LpPool": _lp_pool, "GlobalMaxPool": _largest, "ReduceMax": _largest,
    "ReduceMin": _largest, "Max": _extreme, "Min": _extreme, "Softmax": _softmax,
    "LogSoftmax": _log_softmax, "LRN": _response, "LayerNormalization": _normalising,
    "RMSNormalization": _normalising, "InstanceNormalization": _normalising,
    "GroupNormalization": _normalising, "ReduceL2": _reduce_l2, "ReduceL1": _reduce_l1,
    "ReduceLogSumExp": lambda _layer, _norm: Constant(1.0, "its gradient sums to 1"),
}  # fmt: skip

_PRODUCTS = frozenset({"Mul", "MatMul", "Gemm", "Einsum", "Conv", "SwiGLU", "Pow"})
_JUMPS = "jumps, so that no constant exists"
_WITHOUT = {
    **dict.fromkeys(("QuantizeLinear", "DynamicQuantizeLinear", "Floor", "Ceil", "Round", "Sign",
                     "Hardmax", "ArgMax", "ArgMin", "OneHot", "NonZero", "ThresholdedRelu",
                     "Shrink", "Mod", "Greater", "Less", "Equal", "Where", "TopK"), _JUMPS),
    "DequantizeLinear": "reads integers, which jump",
    **dict.fromkeys(("Div", "Reciprocal"), "divides by what may come arbitrarily close to 0"),
    **dict.fromkeys(("Exp", "Pow", "Sinh", "Cosh", "ReduceSumSquare", "ReduceProd", "Tan"),
                    "its slope has no bound"),
    **dict.fromkeys(("Sqrt", "Log", "Acosh", "Asin", "Acos", "Atanh"),
                    "its slope has no bound at the edge of its domain"),
    "LpNormalization": "divides by a norm that may come arbitrarily close to 0",
    "Attention": "dot-product attention is Lipschitz in a ball only",
}  # fmt: skip
