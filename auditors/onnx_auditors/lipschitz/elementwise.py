"""The elementwise operators of ONNX as activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx
import torch
from torch import Tensor

from onnx_auditors.lipschitz.activations import Activation, Function, bounded, piecewise, smooth
from onnx_auditors.network.plan import Plan, Step

_ROOT_2, _ROOT_PI = math.sqrt(2), math.sqrt(math.pi)
_ERF = (2 / _ROOT_PI) * (1 + 1e-15)
GELU_SLOPES = (-0.128905, 1.128905)
"""Phi(x) + x phi(x) has its extremes at x = -sqrt 2 and sqrt 2."""
_GELU_TANH = (-0.128994, 1.128994)
SILU_SLOPES = (-0.09984, 1.09984)
_MISH = (-0.113, 1.0885)
_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875
"""Defaults of ONNX's Selu."""


def silu_slope(x: Tensor) -> Tensor:
    """Derivative of x sigmoid(x)."""
    gate = torch.sigmoid(x)
    return gate * (1 + x * torch.sigmoid(-x))


def gelu_slope(x: Tensor) -> Tensor:
    """Derivative of x Phi(x)."""
    return (1 + torch.erf(x / _ROOT_2)) / 2 + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _relu(f: Function, _: dict[str, Any]) -> Activation:
    return piecewise("Relu", f, [0.0], [0.0, 1.0])


def _leaky(f: Function, attributes: dict[str, Any]) -> Activation:
    return piecewise("LeakyRelu", f, [0.0], [attributes.get("alpha", 0.01), 1.0])


def _hard_sigmoid(f: Function, attributes: dict[str, Any]) -> Activation:
    alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    if alpha <= 0:
        return bounded("HardSigmoid", f, (min(alpha, 0.0), 0.0))
    return piecewise("HardSigmoid", f, [-beta / alpha, (1 - beta) / alpha], [0.0, alpha, 0.0])


def _sigmoid(f: Function, _: dict[str, Any]) -> Activation:
    def derivative(x: Tensor) -> Tensor:
        return torch.sigmoid(x) * torch.sigmoid(-x)

    return smooth("Sigmoid", f, derivative, [0.0], (0.0, 0.25), 0.0963)


def _tanh(f: Function, _: dict[str, Any]) -> Activation:
    return smooth("Tanh", f, lambda x: torch.cosh(x).pow(-2), [0.0], (0.0, 1.0), 0.77)


def _erf(f: Function, _: dict[str, Any]) -> Activation:
    return smooth("Erf", f, lambda x: 2 / _ROOT_PI * torch.exp(-x * x), [0.0], (0.0, _ERF), 0.968)


def _softplus(f: Function, _: dict[str, Any]) -> Activation:
    return smooth("Softplus", f, torch.sigmoid, [], (0.0, 1.0), 0.25)


def _softsign(f: Function, _: dict[str, Any]) -> Activation:
    return smooth("Softsign", f, lambda x: (1 + x.abs()).pow(-2), [0.0], (0.0, 1.0), 2.0)


def _atan(f: Function, _: dict[str, Any]) -> Activation:
    return smooth("Atan", f, lambda x: 1 / (1 + x * x), [0.0], (0.0, 1.0), 0.65)


def _gelu(f: Function, attributes: dict[str, Any]) -> Activation:
    if attributes.get("approximate", b"none") == b"tanh":
        return bounded("Gelu", f, _GELU_TANH)
    return smooth("Gelu", f, gelu_slope, [-_ROOT_2, _ROOT_2], GELU_SLOPES, 0.798)


def _elu(f: Function, attributes: dict[str, Any]) -> Activation:
    alpha = attributes.get("alpha", 1.0)
    return _exponential("Elu", f, alpha, 1.0, 1.0)


def _celu(f: Function, attributes: dict[str, Any]) -> Activation:
    return _exponential("Celu", f, 1.0, 1.0, attributes.get("alpha", 1.0))


def _selu(f: Function, attributes: dict[str, Any]) -> Activation:
    gamma = attributes.get("gamma", _SELU_GAMMA)
    return _exponential("Selu", f, attributes.get("alpha", _SELU_ALPHA) * gamma, gamma, 1.0)


def _exponential(name: str, f: Function, below: float, above: float, scale: float) -> Activation:
    """Derivative below * exp(x / scale) for x < 0, and above for x > 0."""
    bounds = (min(0.0, below, above), max(0.0, below, above))
    if below < 0 or above < 0 or scale <= 0 or below != above:
        # The derivative jumps at 0: its range there is that of both sides.
        return bounded(name, f, bounds)

    def derivative(x: Tensor) -> Tensor:
        return above * torch.exp(x.clamp(max=0) / scale)

    return smooth(name, f, derivative, [], bounds, above / scale)


_SIMPLE: dict[str, Callable[[Function, dict[str, Any]], Activation]] = {
    "Relu": _relu,
    "LeakyRelu": _leaky,
    "HardSigmoid": _hard_sigmoid,
    "Sigmoid": _sigmoid,
    "Tanh": _tanh,
    "Erf": _erf,
    "Softplus": _softplus,
    "Softsign": _softsign,
    "Atan": _atan,
    "Gelu": _gelu,
    "Elu": _elu,
    "Celu": _celu,
    "Selu": _selu,
    "Abs": lambda f, _: piecewise("Abs", f, [0.0], [-1.0, 1.0]),
    "HardSwish": lambda f, _: bounded("HardSwish", f, (-0.5, 1.5)),
    "Mish": lambda f, _: bounded("Mish", f, _MISH),
    "Swish": lambda f, _: bounded("Swish", f, SILU_SLOPES),
    "Sin": lambda f, _: bounded("Sin", f, (-1.0, 1.0)),
    "Cos": lambda f, _: bounded("Cos", f, (-1.0, 1.0)),
}


def activation(step: Step, plan: Plan) -> Activation | None:
    """Returns the activation that a step of a plan in float64 is; None if it is none."""
    op = step.node.op_type
    if op == "Clip":
        return _clip(step, plan)
    if op == "PRelu":
        return _parametric(step, plan)
    if op not in _SIMPLE or len([name for name in step.inputs if name]) != 1:
        return None
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in step.node.attribute}
    if op == "Swish" and attributes.get("alpha", 1.0) <= 0:
        return None
    return _SIMPLE[op](step.function, attributes)


def _parametric(step: Step, plan: Plan) -> Activation | None:
    slope = plan.values[step.inputs[1]].constant
    if slope is None or plan.values[step.inputs[0]].constant is not None:
        return None
    shape = plan.shape(step.inputs[0])
    full = slope.reshape((1,) * (len(shape) - slope.dim()) + tuple(slope.shape))
    if any(s not in {1, n} for s, n in zip(full.shape, shape, strict=True)):
        return None
    return piecewise("PRelu", lambda x: torch.where(x < 0, full * x, x), [0.0], [full, 1.0])


def _clip(step: Step, plan: Plan) -> Activation | None:
    """Clip with constant ends: they are attributes until opset 10, then inputs."""
    if any(plan.values[name].constant is None for name in step.inputs[1:] if name):
        return None
    constants = [plan.values[name].constant if name else None for name in step.inputs[1:]]

    def function(x: Tensor) -> Tensor:
        result: Tensor = step.function(x, *constants)
        return result

    far = torch.tensor([-1e300, 1e300], dtype=torch.float64)
    least, most = function(far).tolist()
    if least >= most:
        return piecewise("Clip", function, [], [0.0])
    breaks, slopes = [], [1.0]
    if least > far[0]:
        breaks, slopes = [least], [0.0, 1.0]
    if most < far[1]:
        breaks, slopes = [*breaks, most], [*slopes, 0.0]
    return piecewise("Clip", function, breaks, slopes)
