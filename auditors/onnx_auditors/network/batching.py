"""Runs a graph that was exported for one batch size at another, where that is provably the same.

A plan of a graph with batch k is rewritten for n rows by induction over its steps: if every value
that a step reads has one row per sample along axis 0, and the operator computes each row of its
result from the same row alone, its result has one row per sample too. Reshape and Expand get their
first axis rewritten, since they name it; constants stay those of batch k. A step that no rule covers
ends the attempt, and the graph is mapped over its own batch instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import onnx
import torch

from onnx_auditors.network.node import Refused, Value
from onnx_auditors.network.plan import Binder, Plan, Step, Walker

_BROADCASTING = frozenset(
    "Add Sub Mul Div Pow Mod Min Max Sum Mean Where Equal Greater GreaterOrEqual Less LessOrEqual "
    "And Or Xor PRelu Clip".split()
)
_ALONE = frozenset(
    "Abs Neg Sqrt Exp Log Erf Reciprocal Floor Ceil Round Sign Sin Cos Tan Not IsNaN IsInf Relu "
    "LeakyRelu Elu Selu Celu Gelu Sigmoid Tanh HardSigmoid HardSwish Mish Swish Softplus Softsign "
    "ThresholdedRelu Shrink Identity Cast Dropout FastGelu QuickGelu".split()
)
_CHANNELS = frozenset(
    "Conv ConvTranspose BatchNormalization InstanceNormalization GroupNormalization LRN MaxPool "
    "AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool DepthToSpace "
    "SpaceToDepth".split()
)
_REDUCTIONS = frozenset(
    "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare "
    "ReduceLogSum ReduceLogSumExp".split()
)
_ONE_AXIS = {
    "Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "LayerNormalization": -1,
    "RMSNormalization": -1, "LpNormalization": -1, "ArgMax": 0, "ArgMin": 0, "Split": 0, "TopK": -1,
}  # fmt: skip
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
    walker = Walker(binder, device, values)
    for step in plan.steps:
        inputs = [plan.values[name] if name else None for name in step.reads]
        view = _View(
            step, inputs, [v.shape if v else () for v in inputs], plan.shape(_first(step)), batch
        )
        if any(v and v.constant is None and v.shape[:1] != (batch,) for v in inputs):
            raise NotBatchwise
        given = [values[name] if name else None for name in step.reads]
        for index, constant in _rule(view)(view, rows).items():
            name = f"{_first(step)}/rows{index}"
            kind = inputs[index].element_type  # type: ignore[union-attr] # a rule changes what is there
            values[name] = Value(name, constant.to("meta"), constant.to(device), kind)
            given[index] = values[name]
        try:
            for value in walker.call(step.node, given, step.outputs):
                if value.name and value.shape != (rows, *plan.shape(value.name)[1:]):
                    raise NotBatchwise
                values[value.name] = value
        except Refused as reason:
            raise NotBatchwise from reason
    return Plan(walker.steps, values)


_Changes = dict[int, torch.Tensor]
_Rule = Callable[[_View, int], _Changes]


def _first(step: Step) -> str:
    return next(name for name in step.outputs if name)


def _with_rows(value: Value, batch: int, rows: int) -> Value:
    if value.shape[:1] != (batch,):
        raise NotBatchwise
    meta = torch.empty((rows, *value.shape[1:]), dtype=value.meta.dtype, device="meta")
    return dataclasses.replace(value, meta=meta)


def _require(condition: bool) -> _Changes:
    if not condition:
        raise NotBatchwise
    return {}


def _rule(view: _View) -> _Rule:
    op = view.step.node.op_type
    if op in _BROADCASTING:
        return _broadcasting
    if op in _ALONE:
        return lambda v, _: _require(v.only_first_varies())
    if op in _CHANNELS:
        return lambda v, _: _require(v.only_first_varies() and len(v.shapes[0]) >= _MATRIX)
    if op in _REDUCTIONS:
        return _reduction
    if op in _ONE_AXIS:
        return _one_axis
    if op in _RULES:
        return _RULES[op]
    raise NotBatchwise


def _broadcasting(view: _View, _: int) -> _Changes:
    """Entries meet entries of the same row: what varies has full rank, what does not has no row."""
    rank = len(view.out)
    for value in view.inputs:
        if value is None:
            continue
        own = len(value.shape) == rank and (value.constant is None or value.shape[0] == 1)
        _require(own or (value.constant is not None and len(value.shape) < rank))
    return {}


def _reduction(view: _View, _: int) -> _Changes:
    axes = view.constant(1) if len(view.inputs) > 1 else view.attribute("axes", None)
    rank = len(view.shapes[0])
    return _require(view.varies(0) and bool(axes) and all(a % rank for a in axes or []))


def _one_axis(view: _View, _: int) -> _Changes:
    axis = view.attribute("axis", _ONE_AXIS[view.step.node.op_type])
    return _require(view.only_first_varies() and axis % len(view.shapes[0]) != 0)


def _matmul(view: _View, _: int) -> _Changes:
    a, b = view.shapes
    if view.varies(0) and view.varies(1):
        return _require(len(a) == len(b) > _MATRIX)
    if view.varies(0):
        return _require(len(a) >= _MATRIX and (len(b) <= _MATRIX or (len(a) >= len(b) and b[0] == 1)
                        or len(a) > len(b)))  # fmt: skip
    return _require(len(b) > _MATRIX and (len(a) < len(b) or (len(a) == len(b) and a[0] == 1)))


def _gemm(view: _View, _: int) -> _Changes:
    bias = view.shapes[2] if len(view.shapes) > _MATRIX else ()
    rowless = len(bias) < _MATRIX or bias[0] == 1
    return _require(view.only_first_varies() and not view.attribute("transA", 0) and rowless)


def _transpose(view: _View, _: int) -> _Changes:
    return _require(view.attribute("perm", [1])[0] == 0)


def _flatten(view: _View, _: int) -> _Changes:
    return _require(view.attribute("axis", 1) == 1)


def _reshape(view: _View, rows: int) -> _Changes:
    """Entries keep their order, so a first axis of size k on both sides is the same axis."""
    _require(view.only_first_varies() and view.out[:1] == (view.batch,))
    return {1: torch.tensor([rows, *view.out[1:]])}


def _expand(view: _View, rows: int) -> _Changes:
    _require(view.only_first_varies() and len(view.out) == len(view.shapes[0]))
    return {1: torch.tensor([rows, *view.out[1:]])}


def _squeeze(view: _View, _: int) -> _Changes:
    axes = view.constant(1) if len(view.inputs) > 1 else view.attribute("axes", None)
    unsqueezes = view.step.node.op_type == "Unsqueeze"
    rank = len(view.out) if unsqueezes else len(view.shapes[0])
    return _require(bool(axes) and all(a % rank for a in axes or []))


def _concat(view: _View, rows: int) -> _Changes:
    """Joins along another axis; a constant of one row is repeated for every row."""
    _require(view.attribute("axis", 0) % len(view.out) != 0)
    changes = {}
    for i, value in enumerate(view.inputs):
        if value is not None and value.constant is not None:
            _require(value.shape[0] == 1)
            changes[i] = value.constant.expand(rows, *value.shape[1:])
    return changes


def _slice(view: _View, _: int) -> _Changes:
    axes = view.constant(3)
    rank = len(view.shapes[0])
    return _require(view.only_first_varies() and bool(axes) and all(a % rank for a in axes or []))


def _gather(view: _View, _: int) -> _Changes:
    axis = view.attribute("axis", 0) % len(view.shapes[0])
    if view.varies(0):
        return _require(view.only_first_varies() and axis != 0)
    return _require(axis == 0 and len(view.shapes[1]) > 0)


def _pad(view: _View, _: int) -> _Changes:
    pads, axes = view.constant(1), view.constant(3)
    rank = len(view.shapes[0])
    listed = [a % rank for a in axes] if axes is not None else list(range(rank))
    amounts = zip(listed * 2, pads or [], strict=True)
    return _require(view.only_first_varies() and not any(p for a, p in amounts if a == 0))


def _resize(view: _View, _: int) -> _Changes:
    scales = view.inputs[2] if len(view.inputs) > _MATRIX else None
    only_scales = len(view.inputs) <= 3 or view.inputs[3] is None  # noqa: PLR2004 - input 3: sizes
    known = scales is not None and scales.constant is not None and len(scales.shape) == 1
    if not (known and only_scales and view.only_first_varies()) or view.attribute("axes", None):
        raise NotBatchwise
    factors = scales.constant.tolist() if scales and scales.constant is not None else []
    return _require(bool(factors) and factors[0] == 1)


def _quantize(view: _View, _: int) -> _Changes:
    axis = view.attribute("axis", 1) % max(len(view.shapes[0]), 1)
    scalar = all(v is None or v.meta.numel() == 1 for v in view.inputs[1:])
    blocks = view.attribute("block_size", 0)
    return _require(view.only_first_varies() and (scalar or axis != 0) and not blocks)


def _attention(view: _View, _: int) -> _Changes:
    present = [i for i, v in enumerate(view.inputs) if v is not None]
    return _require(present == [0, 1, 2] and all(view.varies(i) for i in present))


_RULES: dict[str, _Rule] = {
    "MatMul": _matmul, "Gemm": _gemm, "Transpose": _transpose, "Flatten": _flatten,
    "Reshape": _reshape, "Expand": _expand, "Squeeze": _squeeze, "Unsqueeze": _squeeze,
    "Concat": _concat, "Slice": _slice, "Gather": _gather, "Pad": _pad, "Resize": _resize,
    "QuantizeLinear": _quantize, "DequantizeLinear": _quantize, "Attention": _attention,
}  # fmt: skip
