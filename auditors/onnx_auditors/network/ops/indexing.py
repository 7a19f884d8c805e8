"""Operators that pick entries."""

from __future__ import annotations

import torch
from torch import Tensor

from onnx_auditors.network.node import Node
from onnx_auditors.network.registry import Function, operator


@operator("Gather")
def gather(node: Node) -> Function:
    """Picks slices along an axis; negative indices count from the end."""
    rank = len(node.shape())
    axis = node.integer("axis", 0) % rank
    size = node.shape()[axis]

    def function(x: Tensor, indices: Tensor) -> Tensor:
        flat = indices.reshape(-1).long()
        picked = x.index_select(axis, torch.where(flat < 0, flat + size, flat))
        return picked.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])

    return function


@operator("GatherElements", since=11)
def gather_elements(node: Node) -> Function:
    """Picks an entry for every index along an axis; negative indices count from the end."""
    axis = node.integer("axis", 0)
    size = node.shape()[axis]
    return lambda x, index: torch.gather(x, axis, torch.where(index < 0, index + size, index))


_NO_END = 2**62


def _range(start: int, end: int, step: int, size: int) -> range:
    """Returns the positions that a slice picks; unlike Python's, the start is never below 0."""
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if step > 0:
        return range(max(0, min(start, size)), max(0, min(end, size)), step)
    return range(max(0, min(start, size - 1)), max(-1, min(end, size - 1)), step)


@operator("Slice")
def cut(node: Node) -> Function:
    """Cuts a range out of each axis, in steps of either sign."""
    shape = node.shape()
    if node.present(1):
        starts, ends = node.constant_ints(1), node.constant_ints(2)
        axes = node.constant_ints(3) if node.present(3) else list(range(len(starts)))
        steps = node.constant_ints(4) if node.present(4) else [1] * len(starts)
    else:
        starts, ends = node.integers("starts"), node.integers("ends")
        axes, steps = node.integers("axes", list(range(len(starts)))), [1] * len(starts)
    if any(step < 0 and end > _NO_END for step, end in zip(steps, ends, strict=True)):
        node.refuse("a step backwards to the largest integer, which ONNX Runtime reads its own way")
    ranges = {
        axis % len(shape): _range(start, end, step, shape[axis])
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True)
    }
    forward = [slice(None)] * len(shape)
    backward: list[int] = []
    for axis, picked in ranges.items():
        if picked.step > 0:
            forward[axis] = slice(picked.start, picked.stop, picked.step)
        else:
            # Torch slices forwards only: the same entries forwards, then turned around.
            first = picked[-1] if picked else 0
            forward[axis] = slice(first, picked.start + 1 if picked else 0, -picked.step)
            backward.append(axis)
    index = tuple(forward)
    if not backward:
        return lambda x: x[index]
    return lambda x: x[index].flip(backward)


@operator("Trilu", since=14)
def trilu(node: Node) -> Function:
    """Keeps the upper or lower triangle."""
    keep = torch.triu if node.integer("upper", 1) else torch.tril
    diagonal = node.constant_ints(1)[0] if node.present(1) else 0
    return lambda x: keep(x, diagonal)
