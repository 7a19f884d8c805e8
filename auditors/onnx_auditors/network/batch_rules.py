"""The rules by which an operator computes each row of its result from the same row alone.

A rule looks at one step of a plan at batch k. It says along which axis the rows of the result lie
and which constants have to be changed for another batch, or that it cannot tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import onnx
import torch

from onnx_auditors.network.node import Value
from onnx_auditors.network.plan import Step
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
_MATRIX = 2


class NotBatchwise(Exception):  # noqa: N818 - control flow inside the package
    """No rule says that a step computes each row from its own row alone."""


@dataclasses.dataclass(frozen=True)
class View:
    """A step at batch k, as a rule looks at it.

    Attributes:
        step: The step.
        inputs: What the node reads; None for an input left out.
        shapes: Their shapes.
        out: Shape of the first result.
        batch: The batch k.
        axis: Axis of the rows in what varies.
        entries: How many entries a sample has along it.
    """

    step: Step
    inputs: list[Value | None]
    shapes: list[tuple[int, ...]]
    out: tuple[int, ...]
    batch: int
    axis: int
    entries: int

    def attribute(self, name: str, default: Any) -> Any:  # noqa: ANN401 - the attribute's type
        """Returns an attribute of the node, or the default."""
        for a in self.step.node.attribute:
            if a.name == name:
                return onnx.helper.get_attribute_value(a)
        return default

    def varies(self, index: int) -> bool:
        """Says whether an input depends on the model's input."""
        value = self.inputs[index] if index < len(self.inputs) else None
        return value is not None and value.constant is None

    def constant(self, index: int) -> list[int] | None:
        """Returns the entries of a constant input; None where it is left out.

        Raises:
            NotBatchwise: It is not constant.
        """
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            return None
        if value.constant is None:
            raise NotBatchwise
        return [int(i) for i in value.constant.reshape(-1).tolist()]

    def only_first_varies(self) -> bool:
        """Says whether the first input alone depends on the model's input."""
        return self.varies(0) and not any(self.varies(i) for i in range(1, len(self.inputs)))


Changes = dict[int, torch.Tensor]
Verdict = tuple[Changes, int]
"""Inputs to change, by position, and the axis of the rows in the result."""
Rule = Callable[[View, int], Verdict]


def require(condition: bool, axis: int = 0) -> Verdict:
    """Returns the verdict that nothing has to change where the condition holds.

    Raises:
        NotBatchwise: It does not.
    """
    if not condition:
        raise NotBatchwise
    return {}, axis


def rule(view: View) -> Rule:
    """Returns the rule of a step's operator.

    Raises:
        NotBatchwise: It has none.
    """
    op = view.step.node.op_type
    if op in _BROADCASTING:
        return _broadcasting
    if op in _ALONE:
        return lambda v, _: require(v.only_first_varies(), v.axis)
    if op in _CHANNELS:
        return _channels
    if op in _REDUCTIONS:
        return _reduction
    if op in _ONE_AXIS:
        return _one_axis
    if op in _RULES:
        return _RULES[op]
    raise NotBatchwise


def _broadcasting(view: View, _: int) -> Verdict:
    """Entries meet entries of the same row: what varies has full rank, what does not has no row."""
    rank, axis = len(view.out), view.axis
    for value in view.inputs:
        if value is None:
            continue
        if value.constant is None:
            require(len(value.shape) == rank)
        else:
            place = axis - (rank - len(value.shape))
            require(place < 0 or value.shape[place] == 1)
    return {}, axis


def _channels(view: View, _: int) -> Verdict:
    deep = len(view.shapes[0]) >= _MATRIX
    return require(view.only_first_varies() and deep and view.axis == 0)


def _reduction(view: View, _: int) -> Verdict:
    axes = view.constant(1) if len(view.inputs) > 1 else view.attribute("axes", None)
    rank = len(view.shapes[0])
    away = bool(axes) and all(a % rank for a in axes or [])
    return require(view.varies(0) and away and view.axis == 0)


def _one_axis(view: View, _: int) -> Verdict:
    axis = view.attribute("axis", _ONE_AXIS[view.step.node.op_type]) % len(view.shapes[0])
    if view.step.node.op_type in _TAKES_ALL_AFTER:
        return require(view.only_first_varies() and axis > view.axis, view.axis)
    keeps = view.step.node.op_type not in {"ArgMax", "ArgMin"} or view.axis == 0
    return require(view.only_first_varies() and axis != view.axis and keeps, view.axis)


def _matmul(view: View, _: int) -> Verdict:
    a, b = view.shapes
    require(view.axis == 0)
    if view.varies(0) and view.varies(1):
        return require(len(a) == len(b) > _MATRIX)
    if view.varies(0):
        rowless = len(b) <= _MATRIX or len(a) > len(b) or (len(a) == len(b) and b[0] == 1)
        return require(len(a) >= _MATRIX and rowless)
    return require(len(b) > _MATRIX and (len(a) < len(b) or (len(a) == len(b) and a[0] == 1)))


def _gemm(view: View, _: int) -> Verdict:
    bias = view.shapes[2] if len(view.shapes) > _MATRIX else ()
    rowless = (len(bias) < _MATRIX or bias[0] == 1) and view.axis == 0
    return require(view.only_first_varies() and not view.attribute("transA", 0) and rowless)


def _transpose(view: View, _: int) -> Verdict:
    rank = len(view.shapes[0])
    return {}, list(view.attribute("perm", range(rank)[::-1])).index(view.axis)


def _flatten(view: View, _: int) -> Verdict:
    return require(view.attribute("axis", 1) == 1 and view.axis == 0)


def _reshape(view: View, rows: int) -> Verdict:
    """Entries keep their order, so a sample's stay together along an axis of multiples of k."""
    whole = bool(view.out) and view.out[0] % view.batch == 0
    require(view.only_first_varies() and whole and view.axis == 0)
    return {1: torch.tensor([view.out[0] // view.batch * rows, *view.out[1:]])}, 0


def _expand(view: View, rows: int) -> Verdict:
    same = len(view.out) == len(view.shapes[0]) and view.out[0] == view.shapes[0][0]
    require(view.only_first_varies() and same and view.axis == 0)
    return {1: torch.tensor([view.entries * rows, *view.out[1:]])}, 0


def _squeeze(view: View, _: int) -> Verdict:
    """Axes that come or go move the axis of the rows, but are not it."""
    listed = view.constant(1) if len(view.inputs) > 1 else view.attribute("axes", None)
    require(bool(listed))
    unsqueezes = view.step.node.op_type == "Unsqueeze"
    rank = len(view.out) if unsqueezes else len(view.shapes[0])
    axes = {a % rank for a in listed or []}
    if unsqueezes:
        rest = [axis for axis in range(rank) if axis not in axes]
        return {}, rest[view.axis]
    require(view.axis not in axes)
    return {}, view.axis - sum(a < view.axis for a in axes)


def _concat(view: View, rows: int) -> Verdict:
    """Joins along another axis; a constant of one row is repeated for every row."""
    require(view.entries == 1)
    require(view.attribute("axis", 0) % len(view.out) != view.axis)
    changes = {}
    for i, value in enumerate(view.inputs):
        if value is not None and value.constant is not None:
            require(value.shape[view.axis] == 1)
            shape = (*value.shape[: view.axis], rows, *value.shape[view.axis + 1 :])
            changes[i] = value.constant.expand(shape)
    return changes, view.axis


def _slice(view: View, _: int) -> Verdict:
    axes = view.constant(3)
    rank = len(view.shapes[0])
    away = bool(axes) and all(a % rank != view.axis for a in axes or [])
    return require(view.only_first_varies() and away, view.axis)


def _gather(view: View, rows: int) -> Verdict:
    """Picks along another axis; or, at a batch of one, along the rows' own, then for each row."""
    axis = view.attribute("axis", 0) % len(view.shapes[0])
    if view.varies(0) and axis == view.axis == 0:
        require(view.only_first_varies() and view.batch == 1 and len(view.shapes[1]) > 0)
        picked = torch.tensor(view.constant(1)).reshape(view.shapes[1]) % view.entries
        return {1: torch.cat([picked + row * view.entries for row in range(rows)])}, 0
    if view.varies(0):
        require(view.only_first_varies() and axis != view.axis)
        return {}, view.axis + (len(view.shapes[1]) - 1 if axis < view.axis else 0)
    return require(axis == 0 and len(view.shapes[1]) > 0 and view.axis == 0)


def _pad(view: View, _: int) -> Verdict:
    pads, axes = view.constant(1), view.constant(3)
    rank = len(view.shapes[0])
    listed = [a % rank for a in axes] if axes is not None else list(range(rank))
    amounts = zip(listed * 2, pads or [], strict=True)
    away = not any(p for a, p in amounts if a == view.axis)
    return require(view.only_first_varies() and away, view.axis)


def _resize(view: View, _: int) -> Verdict:
    scales = view.inputs[2] if len(view.inputs) > _MATRIX else None
    only_scales = len(view.inputs) <= 3 or view.inputs[3] is None  # noqa: PLR2004 - input 3: sizes
    if scales is None or scales.constant is None or not only_scales or view.axis:
        raise NotBatchwise
    factors = scales.constant.tolist()
    plain = bool(factors) and factors[0] == 1 and not view.attribute("axes", None)
    return require(view.only_first_varies() and plain)


def _quantize(view: View, _: int) -> Verdict:
    axis = view.attribute("axis", 1) % max(len(view.shapes[0]), 1)
    scalar = all(v is None or v.meta.numel() == 1 for v in view.inputs[1:])
    whole = not view.attribute("block_size", 0)
    return require(view.only_first_varies() and (scalar or axis != view.axis) and whole, view.axis)


def _attention(view: View, _: int) -> Verdict:
    present = [i for i, v in enumerate(view.inputs) if v is not None]
    return require(present == [0, 1, 2] and all(map(view.varies, present)) and view.axis == 0)


def _einsum(view: View, _: int) -> Verdict:
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
    return require(once and not any(row in term for term in others))


_RULES: dict[str, Rule] = {
    "MatMul": _matmul, "Gemm": _gemm, "Transpose": _transpose, "Flatten": _flatten,
    "Reshape": _reshape, "Expand": _expand, "Squeeze": _squeeze, "Unsqueeze": _squeeze,
    "Concat": _concat, "Slice": _slice, "Gather": _gather, "Pad": _pad, "Resize": _resize,
    "QuantizeLinear": _quantize, "DequantizeLinear": _quantize, "Attention": _attention,
    "Einsum": _einsum,
}  # fmt: skip
