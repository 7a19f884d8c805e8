"""Pooling over windows and over whole maps."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional

from onnx_auditors.network.node import Node
from onnx_auditors.network.registry import Function, operator
from onnx_auditors.network.windows import Window, pad_amounts, read_window


@operator("MaxPool", since=8)
def max_pool(node: Node) -> Function:
    """Largest entry of each window; padding never wins."""
    node.ignore("storage_order")  # orders the Indices alone
    window, axes = _pool_window(node)
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[axes - 1]
    amounts = pad_amounts(window.begin, window.end)
    native = window.begin == window.end and all(
        2 * pad <= size for pad, size in zip(window.begin, window.kernel, strict=True)
    )
    padding = window.begin if native else [0] * axes

    def function(x: Tensor) -> Tensor:
        if not native:
            x = functional.pad(x, amounts, value=-torch.inf)
        return pool(x, window.kernel, window.strides, padding, window.dilations)

    return function


@operator("AveragePool", since=7)
def average_pool(node: Node) -> Function:
    """Mean of each window, over its entries inside the map or, if asked, inside the padding too."""
    include = bool(node.integer("count_include_pad", 0))
    declared, _ = _declared_window(node)
    window, axes = _pool_window(node)
    if any(d != 1 for d in window.dilations):
        node.refuse("dilations are not covered")
    pool = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[axes - 1]
    amounts = pad_amounts(window.begin, window.end)
    if not any(amounts):
        return lambda x: pool(x, window.kernel, window.strides)
    counted = torch.ones(1, 1, *node.shape()[2:])
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
