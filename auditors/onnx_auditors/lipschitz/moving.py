"""Bounds in a ball for functions that have no constant, or a far larger one, on the whole space.

Products, quotients, dot-product attention, powers, roots, exponentials; normalisation away from
constant inputs. What is known of a value v on the ball around a probe is its value there, that
|v - v_0| <= reach, and that it changes by at most `change` per unit of change of the probe.

    |a b - a' b'| <= |a - a'| |b| + |a'| |b - b'|

with max norms for products of entries, and for matrices ||A B||_F <= ||A||_F ||B||_2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor

from onnx_auditors.network.plan import Plan, Step

_UP = 1 + 1e-9
"""Over the float64 rounding of values at the probes and of their norms."""
_MATRIX, _HEADS = 2, 4

Known = tuple[Tensor, Tensor]
"""Reach and change of a value, float64 [n] both."""
Local = Callable[[Sequence[Known]], Tensor]
"""From what is known of the varying values to the change of the result, float64 [n]."""
Moving = Callable[[Sequence[Tensor], str], Local]
"""From the varying values at the probes, [n, *shape], and the norm to the bound in balls."""


@dataclass(frozen=True)
class _Factor:
    """One of the values that a product reads: a constant, or a varying one by its place.

    Attributes:
        place: Place among the varying values; None for a constant.
        constant: The constant.
        times: How often each of its entries is read, at most.
    """

    place: int | None
    constant: Tensor | None
    times: int

    def value(self, values: Sequence[Tensor]) -> Tensor:
        """Returns the value at the probes, or the constant as one of one probe."""
        if self.place is None:
            assert self.constant is not None  # noqa: S101 - it is one of both
            return self.constant[None]
        return values[self.place]

    def known(self, given: Sequence[Known]) -> Known:
        """Returns reach and change; those of a constant are 0."""
        if self.place is None:
            nothing = torch.zeros_like(given[0][0])
            return nothing, nothing
        return given[self.place]


def moving(step: Step, plan: Plan) -> Moving | None:
    """Returns what bounds a step in balls; None where nothing does."""
    make = _RULES.get(step.node.op_type)
    if make is None or step.node.domain not in {"", "ai.onnx"} or not step.outputs[0]:
        return None
    return make(step, plan)


def _factors(step: Step, plan: Plan, count: int) -> list[_Factor]:
    size = math.prod(plan.shape(step.outputs[0]))
    found, place = [], 0
    for name in step.reads[:count]:
        value = plan.values[name]
        times = max(1, size // max(1, math.prod(plan.shape(name))))
        found.append(_Factor(place if value.constant is None else None, value.constant, times))
        place += value.constant is None
    return found


def _largest(value: Tensor) -> Tensor:
    return value.reshape(len(value), -1).abs().amax(1) * _UP


def _spread(factor: _Factor, norm: str) -> float:
    return math.sqrt(factor.times) * _UP if norm == "l2" else 1.0


def _multiply(step: Step, plan: Plan) -> Moving:
    a, b = _factors(step, plan, 2)

    def at(values: Sequence[Tensor], norm: str) -> Local:
        tops = _largest(a.value(values)), _largest(b.value(values))

        def bound(given: Sequence[Known]) -> Tensor:
            (ra, ca), (rb, cb) = a.known(given), b.known(given)
            by_a, by_b = _spread(a, norm) * ca, _spread(b, norm) * cb
            return _sum_of_products(((tops[1] + rb), by_a), ((tops[0] + ra), by_b))

        return bound

    return at


def _divide(step: Step, plan: Plan) -> Moving:
    a, b = _factors(step, plan, 2)

    def at(values: Sequence[Tensor], norm: str) -> Local:
        top = _largest(a.value(values))
        bottom = b.value(values)
        bottom = bottom.reshape(len(bottom), -1).abs().amin(1) / _UP

        def bound(given: Sequence[Known]) -> Tensor:
            (ra, ca), (rb, cb) = a.known(given), b.known(given)
            least = (bottom - rb).clamp(min=0)
            return _sum_of_products(
                (1 / least, _spread(a, norm) * ca),
                ((top + ra) / least.square(), _spread(b, norm) * cb),
            )

        return bound

    return at


def _matrices(step: Step, plan: Plan) -> Moving | None:
    if any(len(plan.shape(name)) < _MATRIX for name in step.reads[:2]):
        return None
    a, b = _factors(step, plan, 2)
    shapes = [plan.shape(name) for name in step.reads[:2]]
    inner = shapes[0][-1]
    batch = math.prod(plan.shape(step.outputs[0])[:-_MATRIX])
    repeats = [batch // max(1, math.prod(shape[:-_MATRIX])) for shape in shapes]

    def at(values: Sequence[Tensor], norm: str) -> Local:
        left, right = a.value(values), b.value(values)
        spreads = [math.sqrt(r) * _UP if norm == "l2" else 1.0 for r in repeats]
        sizes = (_spectral(left), _spectral(right)) if norm == "l2" else (
            _lines(left, -1), _lines(right, -2)
        )  # fmt: skip
        wide = 1 if norm == "l2" else inner

        def bound(given: Sequence[Known]) -> Tensor:
            (ra, ca), (rb, cb) = a.known(given), b.known(given)
            return _sum_of_products(
                (sizes[1] + wide * rb, spreads[0] * ca), (sizes[0] + wide * ra, spreads[1] * cb)
            )

        return bound

    return at


def _spectral(value: Tensor) -> Tensor:
    """Largest spectral norm of the matrices of each probe, [n]; within 1e-9 of LAPACK's."""
    norms: Tensor = torch.linalg.matrix_norm(value, 2)
    return norms.reshape(len(value), -1).amax(1) * _UP


def _lines(value: Tensor, axis: int) -> Tensor:
    """Largest sum of absolute values along an axis, [n]."""
    return value.abs().sum(axis).reshape(len(value), -1).amax(1) * _UP


def _attention(step: Step, plan: Plan) -> Moving | None:
    """softmax(scale Q K') V, head by head; masks and caps amplify nothing.

    Of the weights the rows sum to 1, so that their L2 norm is at most the root of their number.
    """
    if any(plan.values[n].constant is None for n in step.reads[3:] if n) or len(step.reads) < 3:  # noqa: PLR2004
        return None
    if any(step.reads[4:]) or any(step.outputs[1:]):
        return None
    shapes = [plan.shape(name) for name in step.reads[:3]]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in step.node.attribute}
    split = len(shapes[0]) == _HEADS
    heads = shapes[0][1] if split else attributes["q_num_heads"]
    shared = shapes[1][1] if split else attributes["kv_num_heads"]
    width = shapes[0][-1] if split else shapes[0][-1] // heads
    scale = abs(attributes.get("scale", 0.0)) or 1 / math.sqrt(width)
    queries = shapes[0][-2]
    query, key, value = _factors(step, plan, 3)
    shares = math.sqrt(heads / shared) * _UP

    def at(values: Sequence[Tensor], norm: str) -> Local:
        q, k, v = (factor.value(values) for factor in (query, key, value))
        two = norm == "l2"
        if two:
            sizes = [_spectral(x) for x in (q, k, v)]
        else:
            sizes = [_lines(q, -1), _lines(k, -1), _largest(v)]
        wide = 1 if two else width
        rows = math.sqrt(queries) * _UP if two else 1.0
        repeat, slope = (shares, 0.5) if two else (1.0, 1.0)

        def bound(given: Sequence[Known]) -> Tensor:
            (rq, cq), (rk, ck), (rv, cv) = (f.known(given) for f in (query, key, value))
            scores = (
                _UP
                * scale
                * _sum_of_products((sizes[1] + wide * rk, cq), (sizes[0] + wide * rq, repeat * ck))
            )
            return _sum_of_products((slope * scores, sizes[2] + rv), (cv * repeat, rv * 0 + rows))

        return bound

    return at


def _normalise(step: Step, plan: Plan) -> Moving | None:
    """Layer and RMS normalisation: the Jacobian's norm is at most max |scale| / deviation.

    A deviation changes by at most 1 / sqrt(n) of the input's change in L2.
    """
    scale = plan.values[step.reads[1]].constant
    if scale is None or plan.values[step.reads[0]].constant is not None or any(step.outputs[1:]):
        return None
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in step.node.attribute}
    shape, epsilon = plan.shape(step.reads[0]), float(attributes.get("epsilon", 1e-5))
    axis = attributes.get("axis", -1) % len(shape)
    count = math.prod(shape[axis:])
    steep = float(scale.abs().max()) * _UP
    centred = step.node.op_type == "LayerNormalization"

    def at(values: Sequence[Tensor], norm: str) -> Local:
        rows = values[0].flatten(1 + axis)
        rows = rows - rows.mean(-1, keepdim=True) if centred else rows
        deviation = rows.square().mean(-1).sqrt().reshape(len(rows), -1).amin(1) / _UP
        share, size = (1 / math.sqrt(count), 1.0) if norm == "l2" else (1.0, math.sqrt(count) * _UP)

        def bound(given: Sequence[Known]) -> Tensor:
            reach, change = given[0]
            least = (deviation - reach * share * _UP).clamp(min=0).square() + epsilon
            return steep * size * change / least.sqrt() * _UP

        return bound

    return at


def _entrywise(steepest: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Step, Plan], Moving]:
    """Functions of an entry whose largest slope on an interval is known from its ends."""

    def make(_: Step, __: Plan) -> Moving:
        def at(values: Sequence[Tensor], _: str) -> Local:
            value = values[0].flatten(1)

            def bound(given: Sequence[Known]) -> Tensor:
                reach, change = given[0]
                slack = reach[:, None] * _UP + 1e-9 * value.abs()
                slopes = steepest(value - slack, value + slack)
                return _sum_of_products((slopes.amax(1) * _UP, change))

            return bound

        return at

    return make


def _power(step: Step, plan: Plan) -> Moving | None:
    exponent = plan.values[step.reads[1]].constant
    if exponent is None or exponent.numel() != 1 or plan.values[step.reads[0]].constant is not None:
        return None
    p = float(exponent)
    if p < 1 or p != int(p):
        return None
    slope = _entrywise(lambda low, high: p * torch.maximum(low.abs(), high.abs()).pow(p - 1))
    return slope(step, plan)


def _sum_of_products(*pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Returns the sum of products of numbers >= 0, rounded up; 0 times infinity is 0."""
    products = [torch.where((a == 0) | (b == 0), 0.0, a * b) for a, b in pairs]
    return torch.stack(products).sum(0) * _UP


_RULES: dict[str, Callable[[Step, Plan], Moving | None]] = {
    "Mul": _multiply, "Div": _divide, "MatMul": _matrices, "Attention": _attention,
    "LayerNormalization": _normalise, "RMSNormalization": _normalise, "Pow": _power,
    "Exp": _entrywise(lambda _, high: high.exp()),
    "Sqrt": _entrywise(lambda low, _: 0.5 / low.clamp(min=0).sqrt()),
    "Log": _entrywise(lambda low, _: 1 / low.clamp(min=0)),
    "Reciprocal": _entrywise(
        lambda low, high: 1 / torch.maximum(low, -high).clamp(min=0).square()
    ),
}  # fmt: skip
