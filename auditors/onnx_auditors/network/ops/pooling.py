"""Pooling over windows and over whole maps."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional

from onnx_auditors.network.node import Node
from onnx_auditors.network.registry import Function, operator
from onnx_auditors.network.repeatable import on_the_cpu
from onnx_auditors.network.windows import Window, pad_amounts, read_window


@operator("MaxPool", since=8, carries=True)
def max_pool(node: Node) -> Function:
    """Largest entry of each window; padding never wins."""
    columns_first = bool(node.integer("storage_order", 0))
    window, axes = _pool_window(node)
    pool = (functional.max_pool1d, functional.max_pool2d, _max_pool3d)[axes - 1]
    amounts = pad_amounts(window.begin, window.end)
    native = window.begin == window.end and all(
        2 * pad <= size for pad, size in zip(window.begin, window.kernel, strict=True)
    )
    padding = window.begin if native else [0] * axes
    value = node.inputs[0]
    integers = value is not None and not value.meta.is_floating_point()
    sizes = node.shape()

    def values(x: Tensor) -> Tensor:
        if not native:
            x = functional.pad(x, amounts, value=-torch.inf)
        return pool(x, window.kernel, window.strides, padding, window.dilations)

    def on_integers(x: Tensor) -> Tensor:
        return values(x.to(torch.float64)).to(x.dtype)

    def with_places(x: Tensor) -> tuple[Tensor, Tensor]:
        padded = functional.pad(x.to(torch.float64), amounts, value=-torch.inf)
        taps = torch.from_numpy(window.places(padded.shape[2:])).to(x.device)
        entries = padded.flatten(2)[:, :, taps]
        places = _places(sizes, amounts, columns_first=columns_first).to(x.device)[:, :, taps]
        largest = entries.argmax(2, keepdim=True)
        shape = (*sizes[:2], *window.counts(padded.shape[2:]))
        chosen = torch.gather(places, 2, largest).reshape(shape)
        return (on_integers(x) if integers else values(x)), chosen

    if node.wants(1):
        return with_places
    return on_integers if integers else values


def _places(sizes: tuple[int, ...], amounts: list[int], *, columns_first: bool) -> Tensor:
    """Numbers the entries of a map as MaxPool's Indices do, and pads them."""
    maps, plane = math.prod(sizes[:2]), sizes[2:]
    along = torch.arange(math.prod(plane))
    if columns_first:
        along = along.reshape(plane[::-1]).permute(*reversed(range(len(plane))))
    numbers = along.reshape(1, *plane) + (torch.arange(maps) * math.prod(plane)).reshape(
        maps, *[1] * len(plane)
    )
    return functional.pad(numbers, amounts).reshape(*sizes[:2], -1)


@operator("AveragePool", since=7)
def average_pool(node: Node) -> Function:
    """Mean of each window, over its entries inside the map or, if asked, inside the padding too."""
    include = bool(node.integer("count_include_pad", 0))
    declared, _ = _declared_window(node)
    window, axes = _pool_window(node)
    if any(d != 1 for d in window.dilations):
        return _dilated_average(node, window, declared, include=include)
    pool = (functional.avg_pool1d, functional.avg_pool2d, _avg_pool3d)[axes - 1]
    amounts = pad_amounts(window.begin, window.end)
    if not any(amounts):
        return lambda x: pool(x, window.kernel, window.strides)
    counted = _counted(node, window)
    if include:
        counted = functional.pad(counted, pad_amounts(declared.begin, declared.end), value=1.0)
    rest = dataclasses.replace(
        window,
        begin=[0 if include else b for b in window.begin],
        end=[w - d if include else w for w, d in zip(window.end, declared.end, strict=True)],
    )
    counted = functional.pad(counted, pad_amounts(rest.begin, rest.end))
    share = pool(counted, window.kernel, window.strides)

    def function(x: Tensor) -> Tensor:
        mean = pool(functional.pad(x, amounts), window.kernel, window.strides)
        return mean / share.to(x.device, x.dtype)

    return function


_max_pool3d = on_the_cpu(functional.max_pool3d)


def _avg_pool3d(x: Tensor, kernel: list[int], strides: list[int]) -> Tensor:
    """Mean over a volume's windows, in its planes and then across them.

    The backward pass of torch's own does not give the same bits twice on a GPU.
    """
    n, maps, depth, *plane = x.shape
    planes = functional.avg_pool2d(x.reshape(n, maps * depth, *plane), kernel[1:], strides[1:])
    plane = list(planes.shape[2:])
    columns = planes.reshape(n, maps, depth, -1)
    across = functional.avg_pool2d(columns, (kernel[0], 1), (strides[0], 1))
    return across.reshape(n, maps, -1, *plane)


def _counted(node: Node, window: Window) -> Tensor:
    """One for every entry of a map, which is about to be padded."""
    plane = node.shape()[2:]
    padded = [sum(sizes) for sizes in zip(window.begin, plane, window.end, strict=True)]
    node.check_size(padded, torch.float32)
    return torch.ones(1, 1, *plane)


def _dilated_average(node: Node, window: Window, declared: Window, *, include: bool) -> Function:
    amounts = pad_amounts(window.begin, window.end)
    counted = _counted(node, window)
    if include:
        counted = functional.pad(counted, pad_amounts(declared.begin, declared.end), value=1.0)
        over = [w - d for w, d in zip(window.end, declared.end, strict=True)]
        counted = functional.pad(counted, pad_amounts([0] * len(over), over))
    else:
        counted = functional.pad(counted, amounts)
    taps = torch.from_numpy(window.places(counted.shape[2:]))
    share = counted.flatten(2)[:, :, taps].sum(2)
    shape = (*node.shape()[:2], *window.counts(counted.shape[2:]))

    def function(x: Tensor) -> Tensor:
        total = functional.pad(x, amounts).flatten(2)[:, :, taps.to(x.device)].sum(2)
        return (total / share.to(x.device, x.dtype)).reshape(shape)

    return function


@operator("LpPool", since=11)
def lp_pool(node: Node) -> Function:
    """p-norm of each window; its gradient at 0 is taken as 0."""
    power = node.integer("p", 2)
    window, _ = _pool_window(node)
    amounts = pad_amounts(window.begin, window.end)
    sizes = [b + n + e for b, n, e in zip(window.begin, node.shape()[2:], window.end, strict=True)]
    taps = torch.from_numpy(window.places(sizes))
    shape = (*node.shape()[:2], *window.counts(sizes))

    def function(x: Tensor) -> Tensor:
        raised = functional.pad(x, amounts).abs().pow(power).flatten(2)
        return _root(raised[:, :, taps.to(x.device)].sum(2), power).reshape(shape)

    return function


def _root(x: Tensor, power: int) -> Tensor:
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).pow(1 / power), 0 * x)


@operator("GlobalLpPool", since=2)
def global_lp_pool(node: Node) -> Function:
    """p-norm over all spatial axes."""
    power = node.integer("p", 2)
    axes = list(range(2, len(node.shape())))
    return lambda x: _root(x.abs().pow(power).sum(axes, keepdim=True), power)


@operator("MaxUnpool", since=9)
def max_unpool(node: Node) -> Function:
    """Puts entries back to where MaxPool found them, and 0 elsewhere."""
    kernel = node.integers("kernel_shape")
    axes = len(kernel)
    strides = node.integers("strides", [1] * axes)
    pads = node.integers("pads", [0] * 2 * axes)
    if node.present(2):
        node.refuse("output_shape is not covered")
    rows = zip(node.shape()[2:], kernel, strides, pads[:axes], pads[axes:], strict=True)
    shape = (*node.shape()[:2], *((n - 1) * s + k - b - e for n, k, s, b, e in rows))

    def function(x: Tensor, places: Tensor) -> Tensor:
        flat = x.new_zeros(math.prod(shape))
        return flat.index_put((places.reshape(-1),), x.reshape(-1)).reshape(shape)

    return function


@operator("GlobalAveragePool")
def global_average_pool(node: Node) -> Function:
    """Mean over all spatial axes."""
    axes = list(range(2, len(node.shape())))
    return lambda x: x.mean(axes, keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(node: Node) -> Function:
    """Largest entry over all spatial axes."""
    axes = list(range(2, len(node.shape())))
    return lambda x: x.amax(axes, keepdim=True)


def _declared_window(node: Node) -> tuple[Window, int]:
    kernel = node.integers("kernel_shape")
    return read_window(node, kernel), len(kernel)


def _pool_window(node: Node) -> tuple[Window, int]:
    """Returns the window with its end padding set so that the windows fit exactly.

    With ceil_mode a last window may hang over the end; one that would start in the end padding is
    left out, as ONNX Runtime and torch do.
    """
    window, axes = _declared_window(node)
    ceil_mode = node.integer("ceil_mode", 0)
    sizes = node.shape()[2:]
    if any(max(p) >= e for *p, e in zip(window.begin, window.end, window.extents, strict=True)):
        node.refuse("padding as large as the window is not covered")
    end = []
    for axis, size in enumerate(sizes):
        stride, extent = window.strides[axis], window.extents[axis]
        begin, declared = window.begin[axis], window.end[axis]
        span = size + begin + declared - extent
        count = (-(-span // stride) if ceil_mode else span // stride) + 1
        if ceil_mode and (count - 1) * stride >= size + begin:
            count -= 1
        end.append((count - 1) * stride + extent - size - begin)
    return dataclasses.replace(window, end=end), axes
