"""Reductions over axes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from onnx_auditors.network.node import Node
from onnx_auditors.network.registry import Function, operator

_Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


_REDUCTIONS: dict[str, _Reduce] = {
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
}


@operator(*_REDUCTIONS)
def reduction(node: Node) -> Function:
    """Reduces over axes given as attribute or input; none means all."""
    keep = bool(node.integer("keepdims", 1))
    empty_means_none = bool(node.integer("noop_with_empty_axes", 0))
    axes = node.constant_ints(1) if node.present(1) else node.integers("axes", [])
    rank = len(node.shape())
    if not axes and empty_means_none:
        if node.op_type in {"ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum"}:
            node.refuse("noop_with_empty_axes is not covered")
        return lambda x: x
    listed = sorted({axis % rank for axis in axes}) if axes else list(range(rank))
    reduce = _REDUCTIONS[node.op_type]
    value = node.inputs[0]
    if node.op_type in {"ReduceMax", "ReduceMin"} and value is not None:
        if math.prod(value.shape) == 0:
            return _extreme_of_nothing(node, value.meta.dtype, listed, keep)
        if value.meta.dtype == torch.bool:
            return lambda x: reduce(x.to(torch.uint8), listed, keep).to(torch.bool)
    if node.op_type == "ReduceMean" and value is not None and not value.meta.is_floating_point():
        node.refuse("the mean of integers is not covered")
    return lambda x: reduce(x, listed, keep).to(x.dtype)


def _extreme_of_nothing(node: Node, dtype: torch.dtype, axes: list[int], keep: bool) -> Function:
    """The largest of no entries is the smallest number there is, and the other way round."""
    if dtype == torch.bool:
        extremes: tuple[float, float] = (False, True)
    elif dtype.is_floating_point:
        extremes = (-torch.inf, torch.inf)
    else:
        extremes = (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    kept = [1 if axis in axes else size for axis, size in enumerate(node.shape())]
    shape = kept if keep else [n for axis, n in enumerate(kept) if axis not in axes]
    extreme = extremes[node.op_type == "ReduceMin"]
    return lambda x: x.new_full(shape, extreme)


@operator("ArgMax", "ArgMin", since=11)
def arg(node: Node) -> Function:
    """Position of the first, or last, largest or smallest entry along an axis."""
    last = bool(node.integer("select_last_index", 0))
    axis, keep = node.integer("axis", 0), bool(node.integer("keepdims", 1))
    function = torch.argmax if node.op_type == "ArgMax" else torch.argmin
    if last:
        size = node.shape()[axis]
        return lambda x: size - 1 - function(x.flip(axis), axis, keepdim=keep)
    return lambda x: function(x, axis, keepdim=keep)


@operator("CumSum", "CumProd", since=11)
def cumulate(node: Node) -> Function:
    """Sums or products of the entries up to each, or of those before it; from either end."""
    (axis,) = node.constant_ints(1)
    exclusive, reverse = node.integer("exclusive", 0), node.integer("reverse", 0)
    sums = node.op_type == "CumSum"

    def function(x: Tensor) -> Tensor:
        y = x.flip(axis) if reverse else x
        y = y.cumsum(axis, dtype=x.dtype) if sums else y.cumprod(axis, dtype=x.dtype)
        if exclusive:
            first = torch.full_like(y.narrow(axis, 0, 1), 0 if sums else 1)
            y = torch.cat([first, y.narrow(axis, 0, y.shape[axis] - 1)], axis)
        return y.flip(axis) if reverse else y

    return function


@operator("TopK", since=10)
def top_k(node: Node) -> Function:
    """Largest or smallest entries and where they are; of equal ones those that come first."""
    (k,) = node.constant_ints(1)
    axis = node.integer("axis", -1)
    largest, _ = bool(node.integer("largest", 1)), node.integer("sorted", 1)

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, k), places.narrow(axis, 0, k)

    return function
