"""Reductions over axes."""

from __future__ import annotations

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
    return lambda x: reduce(x, listed, keep)


@operator("ArgMax", "ArgMin", since=11)
def arg(node: Node) -> Function:
    """Position of the first largest or smallest entry along an axis."""
    if node.integer("select_last_index", 0):
        node.refuse("select_last_index is not covered")
    axis, keep = node.integer("axis", 0), bool(node.integer("keepdims", 1))
    function = torch.argmax if node.op_type == "ArgMax" else torch.argmin
    return lambda x: function(x, axis, keepdim=keep)
