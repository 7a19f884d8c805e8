"""Gated activations that a file spells out as several operators: x sigmoid(x) and the like.

A product of two values has no constant. Where both are functions of one entry of the same value,
and together a known activation, the product is taken as that one function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx
import torch
from torch import Tensor

from onnx_auditors.lipschitz.activations import Activation, Function, bounded, smooth
from onnx_auditors.lipschitz.elementwise import GELU_SLOPES, SILU_SLOPES, gelu_slope, silu_slope
from onnx_auditors.network.plan import Plan, Step

_ROOT_2 = math.sqrt(2)
_SILU_TURN, _GELU_TURN = 2.39935728, _ROOT_2
"""Where the slopes of x sigmoid(x), within 1e-8, and of x Phi(x) have their extremes."""
_SILU_CURVATURE, _GELU_CURVATURE = 0.5001, 0.798
"""At 0 the second derivatives are 1/2 and 2 / sqrt(2 pi), and nowhere larger."""
_DEPTH = 8
"""Operators between a product and the value that its factors share, at most."""
_STANDARD = 1e-6
"""Relative distance from the constants of GELU's tanh form within which its slopes hold."""
_TANH_GELU = (math.sqrt(2 / math.pi), 0.044715 * math.sqrt(2 / math.pi))
_TANH_SLOPES = (-1.257998, 1.257998)
"""Of x tanh(k x + c x^3): twice the range of GELU's tanh form less 1, and 1e-5 for other digits."""
_MISH_SLOPES = (-0.113, 1.0885)
_CUBIC, _ENDS = 4, 2

Poly = tuple[float, ...]
"""Coefficients of 1, p, p^2, p^3."""
Ends = tuple[float, float]


@dataclass(frozen=True)
class Gate:
    """factor g(inner(p)) + offset, for a function g of one entry.

    Attributes:
        kind: The function: "Sigmoid", "Erf", "Tanh", "Softplus", "Mish" for tanh of it, "Clip".
        inner: Polynomial.
        factor: Number.
        offset: Number.
        ends: Of "Clip".
    """

    kind: str
    inner: Poly
    factor: float = 1.0
    offset: float = 0.0
    ends: Ends = (0.0, 0.0)


Expression = Poly | Gate


@dataclass(frozen=True)
class Folded:
    """A product as a function of one entry.

    Attributes:
        root: Name of the value that it is a function of.
        rule: The function.
    """

    root: str
    rule: Activation


def folded(plan: Plan, steps: Sequence[Step], wanted: str) -> tuple[dict[str, Folded], set[int]]:
    """Finds the products that are gated activations.

    Args:
        plan: The plan, in float64.
        steps: Steps of it in order.
        wanted: Name of a value that has to stay.

    Returns:
        The functions by the name of the product, and the places in `steps` of what only served
        them.
    """
    reader = _Reader(plan, steps)
    found: dict[str, Folded] = {}
    for step in steps:
        if step.node.op_type == "Mul" and len(reader.varying(step)) > 1:
            function = reader.fold(step)
            if function is not None:
                found[step.outputs[0]] = function
    read = {wanted} | {function.root for function in found.values()}
    idle: set[int] = set()
    for i in range(len(steps) - 1, -1, -1):
        outputs = steps[i].outputs
        if outputs[0] in found and read & set(outputs):
            continue
        if read & set(outputs):
            read.update(reader.varying(steps[i]))
        else:
            idle.add(i)
    return found, idle


class _Reader:
    """Reads values as expressions of one entry of another value."""

    def __init__(self, plan: Plan, steps: Sequence[Step]) -> None:
        self.plan = plan
        self.makers = {name: step for step in steps for name in step.outputs if name}
        self.order = {name: i for i, step in enumerate(steps) for name in step.outputs}

    def varying(self, step: Step) -> list[str]:
        """Returns the names of the inputs that are not constant."""
        return [n for n in step.inputs if n and self.plan.values[n].constant is None]

    def fold(self, step: Step) -> Folded | None:
        """Returns the function that a product of two values is; None if it is none."""
        first, second = self.varying(step)[:2]
        roots = self._near(first) & self._near(second)
        shape = self.plan.shape(step.outputs[0])
        for root in sorted(roots, key=lambda name: -self.order.get(name, -1)):
            factors = self.read(first, root), self.read(second, root)
            rule = next((r for pair in (factors, factors[::-1]) if (r := _gated(*pair))), None)
            if rule is not None and self.plan.shape(root) == shape:
                return Folded(root, rule)
        return None

    def _near(self, name: str) -> set[str]:
        found, edge = {name}, {name}
        for _ in range(_DEPTH):
            edge = {n for e in edge if e in self.makers for n in self.varying(self.makers[e])}
            found |= edge
        return found

    def read(self, name: str, root: str, depth: int = _DEPTH) -> Expression | None:
        """Returns a value as an expression of another one's entry."""
        if name == root:
            return (0.0, 1.0)
        step = self.makers.get(name)
        if step is None or depth == 0:
            return None
        given: list[Expression | None] = []
        for n in step.inputs:
            constant = self.plan.values[n].constant if n else None
            if constant is None:
                given.append(self.read(n, root, depth - 1) if n else None)
            else:
                given.append((float(constant),) if constant.numel() == 1 else None)
        return _apply(step, given)


def _apply(step: Step, given: Sequence[Expression | None]) -> Expression | None:
    """Returns what an operator makes of expressions."""
    op, first = step.node.op_type, given[0]
    if first is None or any(e is None for e in given):
        return None
    if op in _BINARY:
        return _BINARY[op](first, given[1]) if len(given) > 1 else None
    if op == "Neg":
        return _times(first, (-1.0,))
    if isinstance(first, Gate):
        plain = first.kind == "Softplus" and (first.factor, first.offset) == (1.0, 0.0)
        return Gate("Mish", first.inner) if plain and op == "Tanh" else None
    if op in {"Clip", "HardSigmoid"}:
        return _clipped(step, first, given)
    return Gate(op, first) if op in {"Sigmoid", "Erf", "Tanh", "Softplus"} else None


def _clipped(step: Step, inner: Poly, given: Sequence[Expression | None]) -> Expression | None:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in step.node.attribute}
    if step.node.op_type == "HardSigmoid":
        scaled = _times(inner, (attributes.get("alpha", 0.2),))
        shifted = _plus(scaled, (attributes.get("beta", 0.5),))
        return Gate("Clip", shifted, ends=(0.0, 1.0)) if isinstance(shifted, tuple) else None
    ends = [e[0] for e in given[1:] if isinstance(e, tuple) and len(e) == 1]
    if len(given) == 1:
        ends = [attributes.get("min", -math.inf), attributes.get("max", math.inf)]
    return Gate("Clip", inner, ends=(ends[0], ends[1])) if len(ends) == _ENDS else None


def _plus(a: Expression | None, b: Expression | None, sign: float = 1.0) -> Expression | None:
    if isinstance(b, Gate):
        a, b, outer = b, a, sign
    else:
        outer = 1.0
    if a is None or b is None or isinstance(b, Gate):
        return None
    if isinstance(a, Gate):
        if len(b) > 1:
            return None
        other = b[0] if outer != 1.0 else sign * b[0]
        return Gate(a.kind, a.inner, a.factor * outer, a.offset * outer + other, a.ends)
    width = max(len(a), len(b))
    left, right = (e + (0.0,) * (width - len(e)) for e in (a, b))
    return tuple(x + sign * y for x, y in zip(left, right, strict=True))


def _times(a: Expression | None, b: Expression | None) -> Expression | None:
    if isinstance(b, Gate):
        a, b = b, a
    if a is None or b is None or isinstance(b, Gate):
        return None
    if isinstance(a, Gate):
        if len(b) > 1:
            return None
        return Gate(a.kind, a.inner, a.factor * b[0], a.offset * b[0], a.ends)
    product = [0.0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for k, y in enumerate(b):
            product[i + k] += x * y
    return tuple(product) if len(product) <= _CUBIC else None


def _over(a: Expression | None, b: Expression | None) -> Expression | None:
    constant = isinstance(b, tuple) and len(b) == 1 and b[0] != 0
    return _times(a, (1 / b[0],)) if constant and isinstance(b, tuple) else None


def _power(a: Expression | None, b: Expression | None) -> Expression | None:
    if isinstance(b, tuple) and len(b) == 1 and b[0] in {2.0, 3.0}:
        square = _times(a, a)
        return square if b[0] < _CUBIC - 1 else _times(square, a)
    return None


_BINARY: dict[str, Callable[[Expression | None, Expression | None], Expression | None]] = {
    "Add": _plus, "Sub": lambda a, b: _plus(a, b, -1.0), "Mul": _times, "Div": _over,
    "Pow": _power,
}  # fmt: skip


def _gated(linear: Expression | None, gate: Expression | None) -> Activation | None:
    """Returns a p (factor g(inner(p)) + offset) as an activation; None if it is none that is known.

    Its slope is a (factor s + offset), s the slope of p g(inner(p)).
    """
    if not isinstance(linear, tuple) or not isinstance(gate, Gate) or gate.kind not in _GATES:
        return None
    line = (*linear, 0.0, 0.0)
    if line[0] != 0 or any(line[2:]):
        return None
    inner = gate.inner + (0.0,) * (_CUBIC - len(gate.inner))
    return _GATES[gate.kind](inner, gate.ends, line[1] * gate.factor, line[1] * gate.offset)


def _proportional(inner: Poly) -> bool:
    """Whether a cubic polynomial is k p with k other than 0."""
    return inner[1] != 0 and inner == (0.0, inner[1], 0.0, 0.0)


def _sigmoid(inner: Poly, _: Ends, factor: float, offset: float) -> Activation | None:
    return _smoothly("Swish", (factor, offset), inner[1]) if _proportional(inner) else None


def _erf(inner: Poly, _: Ends, factor: float, offset: float) -> Activation | None:
    """With erf(k p) = 2 Phi(sqrt(2) k p) - 1."""
    parts = 2 * factor, offset - factor
    return _smoothly("Gelu", parts, _ROOT_2 * inner[1]) if _proportional(inner) else None


def _tanh(inner: Poly, _: Ends, factor: float, offset: float) -> Activation | None:
    """With tanh(k p) = 2 sigmoid(2 k p) - 1, or GELU's tanh form."""
    if _proportional(inner):
        return _smoothly("Swish", (2 * factor, offset - factor), 2 * inner[1])
    k, c = inner[1], inner[3]
    near = all(abs(x / s - 1) < _STANDARD for x, s in zip((k, c), _TANH_GELU, strict=True))
    if not near or inner[0] != 0 or inner[2] != 0:
        return None
    return _ranged("Gelu", lambda x: torch.tanh(k * x + c * x**3), _TANH_SLOPES, factor, offset)


def _mish(inner: Poly, _: Ends, factor: float, offset: float) -> Activation | None:
    if inner != (0.0, 1.0, 0.0, 0.0):
        return None

    def gate(x: Tensor) -> Tensor:
        return torch.tanh(torch.nn.functional.softplus(x))

    return _ranged("Mish", gate, _MISH_SLOPES, factor, offset)


def _smoothly(name: str, parts: tuple[float, float], k: float) -> Activation:
    """Returns p (factor G(k p) + offset), G sigmoid or Phi: both have G(-x) = 1 - G(x)."""
    factor, offset = parts
    if k < 0:
        factor, offset, k = -factor, factor + offset, -k
    gelu = name == "Gelu"
    slope = gelu_slope if gelu else silu_slope
    turn = (_GELU_TURN if gelu else _SILU_TURN) / k
    curvature = (_GELU_CURVATURE if gelu else _SILU_CURVATURE) * k * abs(factor)

    def function(x: Tensor) -> Tensor:
        gate = (1 + torch.erf(k * x / _ROOT_2)) / 2 if gelu else torch.sigmoid(k * x)
        return x * (factor * gate + offset)

    return _scaled(
        smooth(
            name, function, lambda x: factor * slope(k * x) + offset, [-turn, turn],
            _range(GELU_SLOPES if gelu else SILU_SLOPES, factor, offset), curvature,
        ), factor, offset,
    )  # fmt: skip


def _clip(inner: Poly, ends: Ends, factor: float, offset: float) -> Activation | None:
    """Returns p (factor clip(alpha p + beta) + offset).

    Where nothing is clipped the slope is factor (2 alpha p + beta) + offset, which is linear.
    """
    beta, alpha = inner[0], inner[1]
    low, high = ends
    if any(inner[2:]) or alpha == 0 or not -math.inf < low < high < math.inf:
        return None
    slopes = (low, high, 2 * low - beta, 2 * high - beta)
    return _ranged("HardSwish", lambda x: torch.clamp(alpha * x + beta, low, high),
                   (min(slopes), max(slopes)), factor, offset)  # fmt: skip


def _ranged(
    name: str, gate: Function, slopes: tuple[float, float], factor: float, offset: float
) -> Activation:
    """Returns p (factor gate(p) + offset), of whose slopes the range is known."""

    def function(x: Tensor) -> Tensor:
        return x * (factor * gate(x) + offset)

    return _scaled(bounded(name, function, _range(slopes, factor, offset)), factor, offset)


def _range(slopes: tuple[float, float], factor: float, offset: float) -> tuple[float, float]:
    first, last = sorted(factor * slope + offset for slope in slopes)
    margin = 1e-12 * (abs(factor) + abs(offset))
    return first - margin, last + margin


def _scaled(rule: Activation, factor: float, offset: float) -> Activation:
    return replace(rule, gain=max(1.0, abs(factor) + abs(offset)))


_GATES: dict[str, Callable[[Poly, Ends, float, float], Activation | None]] = {
    "Sigmoid": _sigmoid, "Erf": _erf, "Tanh": _tanh, "Mish": _mish, "Clip": _clip,
}  # fmt: skip
