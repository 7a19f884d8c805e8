"""Operators that pick entries."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from onnx_auditors.network.node import Node
from onnx_auditors.network.registry import Function, operator
from onnx_auditors.network.repeatable import on_the_cpu


@operator("Gather", carries=True)
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


@operator("GatherElements", since=11, carries=True)
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


@operator("Slice", carries=True)
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
    return lambda x: keep(x, diagonal) if x.numel() else x


@operator("GatherND", since=12)
def gather_nd(node: Node) -> Function:
    """Picks slices by tuples of indices into the axes after the batch axes."""
    batch = node.integer("batch_dims", 0)
    shape, index_shape = node.shape(), node.shape(1)
    result = (*index_shape[:-1], *shape[batch + index_shape[-1] :])
    lead = math.prod(shape[:batch])
    strides = _strides(shape[batch : batch + index_shape[-1]])

    def function(x: Tensor, index: Tensor) -> Tensor:
        flat = x.reshape(lead, math.prod(strides[:1]) * _first(shape, batch), -1)
        places = _flat_places(index, shape[batch:], strides).reshape(lead, -1)
        rows = torch.arange(lead, device=x.device)[:, None]
        return flat[rows, places].reshape(result)

    return function


def _first(shape: tuple[int, ...], batch: int) -> int:
    return shape[batch] if batch < len(shape) else 1


def _strides(sizes: tuple[int, ...]) -> list[int]:
    return [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]


def _flat_places(index: Tensor, sizes: tuple[int, ...], strides: list[int]) -> Tensor:
    """Positions, in the flattened axes, of tuples of indices that may be negative."""
    limits = torch.tensor(sizes[: len(strides)], device=index.device)
    steps = torch.tensor(strides, device=index.device, dtype=torch.int64)
    return (torch.where(index < 0, index + limits, index) * steps).sum(-1)


_multiplied = on_the_cpu(torch.scatter_reduce)
_REDUCE: dict[str, str] = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("Scatter", "ScatterElements", since=9)
def scatter_elements(node: Node) -> Function:
    """Puts an entry for every index along an axis; can add, multiply, or take the extreme."""
    axis = node.integer("axis", 0)
    size = node.shape()[axis]
    reduction = node.text("reduction", "none")
    reduce = _multiplied if reduction == "mul" else torch.scatter_reduce

    def function(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        places = torch.where(index < 0, index + size, index).long()
        if reduction == "none":
            return torch.scatter(x, axis, places, updates)
        return reduce(x, axis, places, updates, _REDUCE[reduction])

    return function


@operator("ScatterND", since=11)
def scatter_nd(node: Node) -> Function:
    """Puts slices to tuples of indices; can add, multiply, or take the extreme."""
    reduction = node.text("reduction", "none")
    reduce = _multiplied if reduction == "mul" else torch.scatter_reduce
    shape, index_shape = node.shape(), node.shape(1)
    depth = index_shape[-1]
    strides = _strides(shape[:depth])
    block = math.prod(shape[depth:])

    def function(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        flat = x.reshape(-1, block)
        places = _flat_places(index, shape, strides).reshape(-1, 1).expand(-1, block)
        blocks = updates.reshape(-1, block)
        if reduction == "none":
            return torch.scatter(flat, 0, places, blocks).reshape(shape)
        reduced = reduce(flat, 0, places, blocks, _REDUCE[reduction])
        return reduced.reshape(shape)

    return function


@operator("TensorScatter", since=24)
def tensor_scatter(node: Node) -> Function:
    """Writes a stretch into a cache, from a position of each sample on; circular if asked."""
    rank = len(node.shape())
    axis = node.integer("axis", -2) % rank
    circular = node.text("mode", "linear") == "circular"
    size, length = node.shape()[axis], node.shape(1)[axis]

    def function(cache: Tensor, update: Tensor, start: Tensor | None = None) -> Tensor:
        places = torch.arange(length, device=cache.device).expand(cache.shape[0], length)
        if start is not None:
            places = places + start.reshape(-1, 1)
        places = places % size if circular else places
        shape = [cache.shape[0] if i == 0 else length if i == axis else 1 for i in range(rank)]
        return torch.scatter(cache, axis, places.reshape(shape).expand(update.shape), update)

    return function


@operator("OneHot", since=9)
def one_hot(node: Node) -> Function:
    """One value at the index, another elsewhere; an index out of range gives none."""
    axis = node.integer("axis", -1)
    (depth,) = (int(i) for i in node.constant(1).reshape(-1).tolist())

    def function(indices: Tensor, values: Tensor) -> Tensor:
        index = indices.to(torch.int64)
        index = torch.where(index < 0, index + depth, index).unsqueeze(-1)
        hot = index == torch.arange(depth, device=index.device)
        return torch.where(hot, values[1], values[0]).movedim(-1, axis)

    return function


@operator("NonZero", since=9)
def non_zero(node: Node) -> Function:
    """Positions of the entries that are not 0, one row per axis."""
    x = node.constant(0)
    return lambda: (x.reshape(1) if x.dim() == 0 else x).nonzero().T


@operator("Compress", since=9)
def compress(node: Node) -> Function:
    """Picks the slices along an axis, or entries, for which a condition holds."""
    chosen = node.constant(1).nonzero().reshape(-1)
    if not node.has("axis"):
        return lambda x: x.reshape(-1).index_select(0, chosen.to(x.device))
    axis = node.integer("axis")
    return lambda x: x.index_select(axis, chosen.to(x.device))


@operator("ReverseSequence", since=10)
def reverse_sequence(node: Node) -> Function:
    """Turns around the first entries of each sample, as many as its length says."""
    batch, time = node.integer("batch_axis", 1), node.integer("time_axis", 0)
    if {batch, time} != {0, 1}:
        node.refuse(f"batch_axis {batch} and time_axis {time} are not covered")
    steps = node.shape()[time]

    def function(x: Tensor, lengths: Tensor) -> Tensor:
        places = torch.arange(steps, device=x.device)
        ends = lengths.reshape(-1, 1)
        index = torch.where(places < ends, ends - 1 - places, places)
        index = index.T if time == 0 else index
        shape = (*index.shape, *[1] * (x.dim() - 2))
        return torch.gather(x, time, index.reshape(shape).expand(x.shape))

    return function


@operator("Unique", since=11)
def unique(node: Node) -> Function:
    """Distinct entries or slices, where each came first, which each one is, and their number."""
    x = node.constant(0)
    in_order = not node.integer("sorted", 1)
    axis = node.integer("axis") if node.has("axis") else None
    flat = x.cpu().numpy()
    values, first, inverse, counts = np.unique(
        flat, return_index=True, return_inverse=True, return_counts=True, axis=axis
    )
    inverse = inverse.reshape(-1)
    if in_order:
        order = np.argsort(first)
        values = np.take(values, order, axis or 0)
        first, counts = first[order], counts[order]
        inverse = np.argsort(order)[inverse]
    results = tuple(
        torch.from_numpy(np.ascontiguousarray(a)) for a in (values, first, inverse, counts)
    )
    return lambda: results
