"""Operators that rearrange entries and leave them as they are."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from onnx_auditors.network.node import Node
from onnx_auditors.network.registry import Function, operator


@operator("Constant")
def constant(node: Node) -> Function:
    """A stored tensor or number."""
    if node.has("value"):
        tensor = node.tensor("value")
        node.declare(node.value("value").data_type)
    elif node.has("value_float") or node.has("value_floats"):
        name = "value_float" if node.has("value_float") else "value_floats"
        tensor = torch.tensor(node.value(name), dtype=node.dtype(1))
    elif node.has("value_int") or node.has("value_ints"):
        name = "value_int" if node.has("value_int") else "value_ints"
        tensor = torch.tensor(node.value(name), dtype=torch.int64)
    else:
        node.refuse("only tensors and numbers are covered")
    return lambda: tensor


@operator("ConstantOfShape", since=9)
def constant_of_shape(node: Node) -> Function:
    """A tensor of a given shape with one value throughout."""
    shape = node.constant_ints(0)
    value = node.tensor("value") if node.has("value") else torch.zeros(1, dtype=node.dtype(1))
    if node.has("value"):
        node.declare(node.value("value").data_type)
    return lambda: value.reshape(()).expand(shape)


@operator("Shape")
def shape_of(node: Node) -> Function:
    """Sizes of the axes, or of a range of them."""
    sizes = node.shape()[node.integer("start", 0) :]
    if node.has("end"):
        rank = len(node.shape())
        start, end = _clamp(node.integer("start", 0), rank), _clamp(node.integer("end"), rank)
        sizes = node.shape()[start:end]
    return lambda _: torch.tensor(sizes, dtype=torch.int64)


def _clamp(axis: int, rank: int) -> int:
    return max(0, min(axis + rank if axis < 0 else axis, rank))


@operator("Size")
def size(node: Node) -> Function:
    """Number of entries."""
    count = math.prod(node.shape())
    return lambda _: torch.tensor(count, dtype=torch.int64)


@operator("Reshape", since=5, carries=True)
def reshape(node: Node) -> Function:
    """Gives another shape; 0 copies an axis unless allowzero is set, -1 takes the rest."""
    sizes, old = node.constant_ints(1), node.shape()
    if not node.integer("allowzero", 0):
        if any(size == 0 and axis >= len(old) for axis, size in enumerate(sizes)):
            node.refuse(f"shape {sizes} copies an axis that the input {list(old)} lacks")
        sizes = [old[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return lambda x: x.reshape(sizes)


@operator("Flatten", since=9, carries=True)
def flatten(node: Node) -> Function:
    """Makes a matrix of the axes before and from `axis` on."""
    old = node.shape()
    axis = node.integer("axis", 1)
    axis = axis + len(old) if axis < 0 else axis
    sizes = (math.prod(old[:axis]), math.prod(old[axis:]))
    return lambda x: x.reshape(sizes)


@operator("Transpose", carries=True)
def transpose(node: Node) -> Function:
    """Permutes the axes; reverses them by default."""
    order = node.integers("perm", list(reversed(range(len(node.shape())))))
    return lambda x: x.permute(order)


@operator("Squeeze", carries=True)
def squeeze(node: Node) -> Function:
    """Drops axes of size 1: those named, or all."""
    old = node.shape()
    axes = _axes(node) or [axis for axis, size in enumerate(old) if size == 1]
    dropped = {axis % len(old) for axis in axes}
    if any(old[axis] != 1 for axis in dropped):
        node.refuse(f"axes {axes} of {list(old)} are not all of size 1")
    sizes = [size for axis, size in enumerate(old) if axis not in dropped]
    return lambda x: x.reshape(sizes)


@operator("Unsqueeze", carries=True)
def unsqueeze(node: Node) -> Function:
    """Adds axes of size 1 at the given places of the result."""
    axes = _axes(node)
    rank = len(node.shape()) + len(axes)
    added = {axis % rank for axis in axes}
    if len(added) < len(axes) or not all(-rank <= axis < rank for axis in axes):
        node.refuse(f"axes {axes} are not different axes of a result with {rank}")
    rest = iter(node.shape())
    sizes = [1 if axis in added else next(rest) for axis in range(rank)]
    return lambda x: x.reshape(sizes)


def _axes(node: Node) -> list[int]:
    return node.constant_ints(1) if node.present(1) else node.integers("axes", [])


@operator("Concat", since=4, carries=True)
def concat(node: Node) -> Function:
    """Joins tensors along an axis."""
    axis = node.integer("axis")
    return lambda *tensors: torch.cat(tensors, axis)


@operator("Split", since=2, carries=True)
def split(node: Node) -> Function:
    """Cuts a tensor along an axis; the last part may be smaller when only a number is given."""
    axis = node.integer("axis", 0)
    size = node.shape()[axis]
    parts = node.integer("num_outputs", node.output_count)
    chunk = -(-size // parts)
    even = [min(chunk, size - i * chunk) for i in range(parts)]
    sizes = node.constant_ints(1) if node.present(1) else node.integers("split", even)
    return lambda x: tuple(torch.split(x, sizes, axis))


@operator("Expand", since=8, carries=True)
def expand(node: Node) -> Function:
    """Broadcasts to a shape, which itself may have axes of size 1."""
    shape = np.broadcast_shapes(tuple(node.constant_ints(1)), node.shape())
    return lambda x: x.expand(shape)


@operator("Tile", since=6, carries=True)
def tile(node: Node) -> Function:
    """Repeats along each axis."""
    repeats = node.constant_ints(1)
    return lambda x: x.repeat(repeats)


@operator("DepthToSpace", carries=True)
def depth_to_space(node: Node) -> Function:
    """Moves channels into blocks of pixels."""
    block = node.integer("blocksize")
    n, c, h, w = node.shape()
    mode = node.text("mode", "DCR")
    if mode == "DCR":
        split_shape, order = (n, block, block, c // block**2, h, w), (0, 3, 4, 1, 5, 2)
    elif mode == "CRD":
        split_shape, order = (n, c // block**2, block, block, h, w), (0, 1, 4, 2, 5, 3)
    else:
        node.refuse(f"mode {mode} is not covered")
    result = (n, c // block**2, h * block, w * block)
    return lambda x: x.reshape(split_shape).permute(order).reshape(result)


@operator("SpaceToDepth", carries=True)
def space_to_depth(node: Node) -> Function:
    """Moves blocks of pixels into channels."""
    block = node.integer("blocksize")
    mode = node.text("mode", "DCR")
    n, c, h, w = node.shape()
    split_shape = (n, c, h // block, block, w // block, block)
    if mode == "DCR":
        order = (0, 3, 5, 1, 2, 4)
    elif mode == "CRD":
        order = (0, 1, 3, 5, 2, 4)
    else:
        node.refuse(f"mode {mode} is not covered")
    result = (n, c * block**2, h // block, w // block)
    return lambda x: x.reshape(split_shape).permute(order).reshape(result)


@operator("CenterCropPad", since=18, carries=True)
def center_crop_pad(node: Node) -> Function:
    """Crops or pads with zeros around the centre; what cannot be halved goes to the end."""
    old = node.shape()
    sizes = node.constant_ints(1)
    axes = node.integers("axes", list(range(len(old))))
    begin, end = [0] * len(old), [0] * len(old)
    for axis, size in zip(axes, sizes, strict=True):
        more = size - old[axis]
        half = abs(more) // 2
        begin[axis], end[axis] = (half, more - half) if more >= 0 else (-half, more + half)
    amounts = [a for pair in reversed(list(zip(begin, end, strict=True))) for a in pair]
    return lambda x: functional.pad(x, amounts)


@operator("Range", since=11)
def arithmetic_range(node: Node) -> Function:
    """Numbers from a start, below a limit, in equal steps."""
    value = node.inputs[0]
    start, limit, delta = (node.constant(i).reshape(()) for i in range(3))
    count = max(math.ceil((limit.double() - start.double()) / delta.double()), 0)
    dtype = start.dtype
    if value is None or dtype in {torch.uint16, torch.uint32, torch.uint64}:
        node.refuse("unsigned integers are not covered")
    node.check_size([count], dtype)
    return lambda: start + torch.arange(count, device=start.device).to(dtype) * delta


@operator("EyeLike", since=9)
def eye_like(node: Node) -> Function:
    """A matrix with ones on one diagonal."""
    offset = node.integer("k", 0)
    dtype = node.dtype(node.integer("dtype", node.element_type(0)))
    rows, columns = node.shape()

    def function(x: Tensor) -> Tensor:
        places = (
            torch.arange(columns, device=x.device) - torch.arange(rows, device=x.device)[:, None]
        )
        return (places == offset).to(dtype)

    return function


_PAD_MODES: dict[str, Literal["reflect", "edge", "wrap"]] = {
    "reflect": "reflect",
    "edge": "edge",
    "wrap": "wrap",
}


@operator("Pad", since=2, carries=True)
def pad(node: Node) -> Function:
    """Pads, or with negative amounts crops, with a constant or with what is at the edge."""
    mode = node.text("mode", "constant")
    old = node.shape()
    pads = node.constant_ints(1) if node.present(1) else node.integers("pads")
    axes = node.constant_ints(3) if node.present(3) else list(range(len(old)))
    begin, end = [0] * len(old), [0] * len(old)
    for position, axis in enumerate(axes):
        begin[axis], end[axis] = pads[position], pads[position + len(axes)]
    if mode == "constant":
        value = node.constant(2).item() if node.present(2) else node.number("value", 0.0)
        amounts = [a for pair in reversed(list(zip(begin, end, strict=True))) for a in pair]
        return lambda x: functional.pad(x, amounts, value=value)
    numpy_mode = _PAD_MODES.get(mode)
    if numpy_mode is None or min(begin + end) < 0:
        node.refuse(f"mode {mode} with pads {pads} is not covered")
    if node.present(2):
        node.constant(2)
    node.check_size([sum(sizes) for sizes in zip(begin, old, end, strict=True)], node.floating)
    indices = [
        torch.from_numpy(np.pad(np.arange(size), (begin[axis], end[axis]), mode=numpy_mode))
        for axis, size in enumerate(old)
    ]

    def function(x: Tensor) -> Tensor:
        for axis, index in enumerate(indices):
            if len(index) != old[axis]:
                x = x.index_select(axis, index.to(x.device))
        return x

    return function
