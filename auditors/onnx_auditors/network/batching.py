"""Runs a graph that was exported for one batch size at another, where that is provably the same.

A plan of a graph with batch k is rewritten for n rows by induction over its steps: if every value
that a step reads has one row per sample along some axis, and the operator computes each row of its
result from the same row alone, its result has one row per sample too, along an axis that the rule
knows. A sample may have several entries along that axis, next to each other, as where heads of an
attention are joined to the batch. Reshape and Expand get that axis rewritten, since they name it;
constants stay those of batch k. A step that no rule covers ends the attempt, and the graph is
mapped over its own batch instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import onnx
import torch

from onnx_auditors.network.node import Refused, Value
from onnx_auditors.network.plan import Binder, Plan, Step, Walker
from onnx_auditors.network.reading import names_in

_BROADCASTING = names_in(
    "Add Sub Mul Div Pow Mod Min Max Sum Mean Where Equal Greater GreaterOrEqual Less LessOrEqual "
    "And Or Xor PRelu Clip"
)
_ALONE = names_in(
    "Abs Neg Sqrt Exp Log Erf Reciprocal Floor Ceil Round Sign Sin Cos Tan Not IsNaN IsInf Relu "
    "LeakyRelu Elu Selu Celu Gelu Sigmoid Tanh HardSigmoid HardSwish Mish Swish Softplus Softsign "
    "ThresholdedRelu Shrink Identity Cast Dropout FastGelu QuickGelu"
)
_CHANNELS = names_in(
    "Conv ConvTranspose BatchNormalization InstanceNormalization GroupNormalization LRN MaxPool "
    "AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool DepthToSpace "
    "SpaceToDepth"
)
_REDUCTIONS = names_in(
    "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare "
    "ReduceLogSum ReduceLogSumExp"
)
_ONE_AXIS = {
    "Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "LayerNormalization": -1,
    "RMSNormalization": -1, "LpNormalization": -1, "ArgMax": 0, "ArgMin": 0, "Split": 0, "TopK": -1,
}  # fmt: skip
_TAKES_ALL_AFTER = frozenset({"LayerNormalization", "RMSNormalization"})
_LEAST_OPSET = 13
"""Before it Softmax flattens, and axes are attributes here and inputs there."""
_MATRIX = 2


class NotBatchwise(Exception):  # noqa: N818 - control flow inside the package
    """No rule says that a step computes each row from its own row alone."""


@dataclasses.dataclass(frozen=True)
class _View:
    """A step at batch k, as a rule looks at it."""

    step: Step
    inputs: list[Value | None]
    shapes: list[tuple[int, ...]]
    out: tuple[int, ...]
    batch: int
    axis: int
    entries: int

    def attribute(self, name: str, default: Any) -> Any:  # noqa: ANN401 - the attribute's type
        for a in self.step.node.attribute:
            if a.name == name:
                return onnx.helper.get_attribute_value(a)
        return default

    def varies(self, index: int) -> bool:
        value = self.inputs[index] if index < len(self.inputs) else None
        return value is not None and value.constant is None

    def constant(self, index: int) -> list[int] | None:
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            return None
        if value.constant is None:
            raise NotBatchwise
        return [int(i) for i in value.constant.reshape(-1).tolist()]

    def only_first_varies(self) -> bool:
        return self.varies(0) and not any(self.varies(i) for i in range(1, len(self.inputs)))


def rewrite(binder: Binder, plan: Plan, batch: int, rows: int, device: torch.device) -> Plan:
    """Returns a plan for n rows that computes on each what the given one computes.

    Args:
        binder: The binder of the graph.
        plan: Its plan at its own batch.
        batch: That batch.
        rows: The batch of the result.
        device: Where constants go.

    Raises:
        NotBatchwise: It cannot be shown that rows do not mix.
    """
    if binder.opset < _LEAST_OPSET:
        raise NotBatchwise
    made = {name for step in plan.steps for name in step.outputs}
    values: dict[str, Value] = {}
    for name, value in plan.values.items():
        if value.constant is not None:
            values[name] = value
        elif name not in made:
            values[name] = _with_rows(value, batch, rows)
    axes = {name: (0, 1) for name, value in values.items() if value.constant is None}
    walker = Walker(binder, device, values)
    for step in plan.steps:
        inputs = [plan.values[name] if name else None for name in step.reads]
        along = {axes[v.name] for v in inputs if v and v.constant is None}
        if len(along) != 1:
            raise NotBatchwise
        shapes = [v.shape if v else () for v in inputs]
        view = _View(step, inputs, shapes, plan.shape(_first(step)), batch, *along.pop())
        given = [values[name] if name else None for name in step.reads]
        changes, axis = _rule(view)(view, rows)
        for index, constant in changes.items():
            name = f"{_first(step)}/rows{index}"
            kind = inputs[index].element_type  # type: ignore[union-attr] # rules change what is there
            values[name] = Value(name, constant.to("meta"), constant.to(device), kind)
            given[index] = values[name]
        for value in _call(walker, step, given):
            before = plan.shape(value.name)
            entries = before[axis] // batch
            _require(value.shape == (*before[:axis], entries * rows, *before[axis + 1 :]))
            values[value.name], axes[value.name] = value, (axis, entries)
    moved = frozenset(name for name, place in axes.items() if place != (0, 1))
    return Plan(walker.steps, values, moved)


_Changes = dict[int, torch.Tensor]
_Verdict = tuple[_Changes, int]
"""Inputs to change, by position, and the axis of the rows in the result."""
_Rule = Callable[[_View, int], _Verdict]


def _call(walker: Walker, step: Step, given: list[Value | None]) -> list[Value]:
    try:
        return [v for v in walker.call(step.node, given, step.outputs) if v.name]
    except Refused as reason:
        raise NotBatchwise from reason


def _first(step: Step) -> str:
    return next(name for name in step.outputs if name)


def _with_rows(value: Value, batch: int, rows: int) -> Value:
    if value.shape[:1] != (batch,):
        raise NotBatchwise
    meta = torch.empty((rows, *value.shape[1:]), dtype=value.meta.dtype, device="meta")
    return dataclasses.replace(value, meta=meta)


def _require(condition: bool, axis: int = 0) -> _Verdict:
    if not condition:
        raise NotBatchwise
    return {}, axis


def _rule(view: _View) -> _Rule:
    op = view.step.node.op_type
    if op in _BROADCASTING:
        return _broadcasting
    if op in _ALONE:
        return lambda v, _: _require(v.only_first_varies(), v.axis)
    if op in _CHANNELS:
        return _channels
    if op in _REDUCTIONS:
        return _reduction
    if op in _ONE_AXIS:
        return _one_axis
    if op in _RULES:
        return _RULES[op]
    raise NotBatchwise


def _broadcasting(view: _View, _: int) -> _Verdict:
    """Entries meet entries of the same row: what varies has full rank, what does not has no row."""
    rank, axis = len(view.out), view.axis
    for value in view.inputs:
        if value is None:
            continue
        if value.constant is None:
            _require(len(value.shape) == rank)
        else:
            place = axis - (rank - len(value.shape))
            _require(place < 0 or value.shape[place] == 1)
    return {}, axis


def _channels(view: _View, _: int) -> _Verdict:
    deep = len(view.shapes[0]) >= _MATRIX
    return _require(view.only_first_varies() and deep and view.axis == 0)


def _reduction(view: _View, _: int) -> _Verdict:
    axes = view.constant(1) if len(view.inputs) > 1 else view.attribute("axes", None)
    rank = len(view.shapes[0])
    away = bool(axes) and all(a % rank for a in axes or [])
    return _require(view.varies(0) and away and view.axis == 0)


def _one_axis(view: _View, _: int) -> _Verdict:
    axis = view.attribute("axis", _ONE_AXIS[view.step.node.op_type]) % len(view.shapes[0])
    if view.step.node.op_type in _TAKES_ALL_AFTER:
        return _require(view.only_first_varies() and axis > view.axis, view.axis)
    keeps = view.step.node.op_type not in {"ArgMax", "ArgMin"} or view.axis == 0
    return _require(view.only_first_varies() and axis != view.axis and keeps, view.axis)


def _matmul(view: _View, _: int) -> _Verdict:
    a, b = view.shapes
    _require(view.axis == 0)
    if view.varies(0) and view.varies(1):
        return _require(len(a) == len(b) > _MATRIX)
    if view.varies(0):
        rowless = len(b) <= _MATRIX or len(a) > len(b) or (len(a) == len(b) and b[0] == 1)
        return _require(len(a) >= _MATRIX and rowless)
    return _require(len(b) > _MATRIX and (len(a) < len(b) or (len(a) == len(b) and a[0] == 1)))


def _gemm(view: _View, _: int) -> _Verdict:
    bias = view.shapes[2] if len(view.shapes) > _MATRIX else ()
    rowless = (len(bias) < _MATRIX or bias[0] == 1) and view.axis == 0
    return _require(view.only_first_varies() and not view.attribute("transA", 0) and rowless)


def _transpose(view: _View, _: int) -> _Verdict:
    rank = len(view.shapes[0])
    return {}, list(view.attribute("perm", range(rank)[::-1])).index(view.axis)


def _flatten(view: _View, _: int) -> _Verdict:
    return _require(view.attribute("axis", 1) == 1 and view.axis == 0)


def _reshape(view: _View, rows: int) -> _Verdict:
    """Entries keep their order, so a sample's stay together along an axis of multiples of k."""
    whole = bool(view.out) and view.out[0] % view.batch == 0
    _require(view.only_first_varies() and whole and view.axis == 0)
    return {1: torch.tensor([view.out[0] // view.batch * rows, *view.out[1:]])}, 0


def _expand(view: _View, rows: int) -> _Verdict:
    same = len(view.out) == len(view.shapes[0]) and view.out[0] == view.shapes[0][0]
    _require(view.only_first_varies() and same and view.axis == 0)
    return {1: torch.tensor([view.entries * rows, *view.out[1:]])}, 0


def _squeeze(view: _View, _: int) -> _Verdict:
    """Axes that come or go move the axis of the rows, but are not it."""
    listed = view.constant(1) if len(view.inputs) > 1 else view.attribute("axes", None)
    _require(bool(listed))
    unsqueezes = view.step.node.op_type == "Unsqueeze"
    rank = len(view.out) if unsqueezes else len(view.shapes[0])
    axes = {a % rank for a in listed or []}
    if unsqueezes:
        rest = [axis for axis in range(rank) if axis not in axes]
        return {}, rest[view.axis]
    _require(view.axis not in axes)
    return {}, view.axis - sum(a < view.axis for a in axes)


def _concat(view: _View, rows: int) -> _Verdict:
    """Joins along another axis; a constant of one row is repeated for every row."""
    _require(view.entries == 1)
    _require(view.attribute("axis", 0) % len(view.out) != view.axis)
    changes = {}
    for i, value in enumerate(view.inputs):
        if value is not None and value.constant is not None:
            _require(value.shape[view.axis] == 1)
            shape = (*value.shape[: view.axis], rows, *value.shape[view.axis + 1 :])
            changes[i] = value.constant.expand(shape)
    return changes, view.axis


def _slice(view: _View, _: int) -> _Verdict:
    axes = view.constant(3)
    rank = len(view.shapes[0])
    away = bool(axes) and all(a % rank != view.axis for a in axes or [])
    return _require(view.only_first_varies() and away, view.axis)


def _gather(view: _View, _: int) -> _Verdict:
    axis = view.attribute("axis", 0) % len(view.shapes[0])
    if view.varies(0):
        _require(view.only_first_varies() and axis != view.axis)
        return {}, view.axis + (len(view.shapes[1]) - 1 if axis < view.axis else 0)
    return _require(axis == 0 and len(view.shapes[1]) > 0 and view.axis == 0)


def _pad(view: _View, _: int) -> _Verdict:
    pads, axes = view.constant(1), view.constant(3)
    rank = len(view.shapes[0])
    listed = [a % rank for a in axes] if axes is not None else list(range(rank))
    amounts = zip(listed * 2, pads or [], strict=True)
    away = not any(p for a, p in amounts if a == view.axis)
    return _require(view.only_first_varies() and away, view.axis)


def _resize(view: _View, _: int) -> _Verdict:
    scales = view.inputs[2] if len(view.inputs) > _MATRIX else None
    only_scales = len(view.inputs) <= 3 or view.inputs[3] is None  # noqa: PLR2004 - input 3: sizes
    if scales is None or scales.constant is None or not only_scales or view.axis:
        raise NotBatchwise
    factors = scales.constant.tolist()
    plain = bool(factors) and factors[0] == 1 and not view.attribute("axes", None)
    return _require(view.only_first_varies() and plain)


def _quantize(view: _View, _: int) -> _Verdict:
    axis = view.attribute("axis", 1) % max(len(view.shapes[0]), 1)
    scalar = all(v is None or v.meta.numel() == 1 for v in view.inputs[1:])
    whole = not view.attribute("block_size", 0)
    return _require(view.only_first_varies() and (scalar or axis != view.axis) and whole, view.axis)


def _attention(view: _View, _: int) -> _Verdict:
    present = [i for i, v in enumerate(view.inputs) if v is not None]
    return _require(present == [0, 1, 2] and all(map(view.varies, present)) and view.axis == 0)


def _einsum(view: _View, _: int) -> _Verdict:
    """The rows have a letter of their own, which stands first in the result too."""
    equation = view.attribute("equation", b"").decode().replace(" ", "")
    operands, arrow, result = equation.partition("->")
    terms = operands.split(",")
    if not arrow or "." in equation or view.axis or len(terms) != len(view.inputs):
        raise NotBatchwise
    varying = [term for i, term in enumerate(terms) if view.varies(i)]
    others = [term for i, term in enumerate(terms) if not view.varies(i)]
    row = varying[0][0]
    once = all(term[0] == row and term.count(row) == 1 for term in [*varying, result])
    return _require(once and not any(row in term for term in others))


_RULES: dict[str, _Rule] = {
    "MatMul": _matmul, "Gemm": _gemm, "Transpose": _transpose, "Flatten": _flatten,
    "Reshape": _reshape, "Expand": _expand, "Squeeze": _squeeze, "Unsqueeze": _squeeze,
    "Concat": _concat, "Slice": _slice, "Gather": _gather, "Pad": _pad, "Resize": _resize,
    "QuantizeLinear": _quantize, "DequantizeLinear": _quantize, "Attention": _attention,
    "Einsum": _einsum,
}  # fmt: skip
