"""Windows that slide over spatial axes: kernels, strides and ONNX's ways to pad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_auditors.network.node import Node

SPATIAL_AXES = (1, 2, 3)


@dataclass(frozen=True)
class Window:
    """A sliding window; every list has one entry per spatial axis.

    Attributes:
        kernel: Size.
        strides: Step.
        dilations: Distance of neighbouring taps.
        begin: Padding before the first entry.
        end: Padding after the last entry.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]

    @property
    def extents(self) -> list[int]:
        """Distance from a window's first tap to one past its last."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    def counts(self, sizes: Sequence[int]) -> list[int]:
        """Number of windows along each axis of a padded map."""
        pairs = zip(sizes, self.extents, self.strides, strict=True)
        return [(size - extent) // stride + 1 for size, extent, stride in pairs]

    def places(self, sizes: Sequence[int]) -> npt.NDArray[np.int64]:
        """Positions of every window's entries in the flattened padded map.

        Args:
            sizes: Sizes of the padded map.

        Returns:
            [entries of a window, windows].
        """
        table = np.zeros((1, 1), np.int64)
        axes = zip(
            sizes, self.kernel, self.strides, self.dilations, self.counts(sizes), strict=True
        )
        for size, kernel, stride, dilation, count in axes:
            along = np.arange(kernel)[:, None] * dilation + np.arange(count) * stride
            joined = table[:, None, :, None] * size + along[None, :, None, :]
            table = joined.reshape(len(table) * kernel, -1)
        return table


def read_window(node: Node, kernel: Sequence[int], sizes: Sequence[int] | None = None) -> Window:
    """Reads strides, dilations and padding; `kernel` is the size that the attribute must have.

    The map has the given sizes, or else those of the first input.

    With auto_pad SAME the output has ceil(size / stride) entries; what cannot be halved goes to
    the end (SAME_UPPER) or the beginning (SAME_LOWER).
    """
    axes = len(kernel)
    if axes not in SPATIAL_AXES:
        node.refuse(f"{axes} spatial axes; 1 to 3 are covered")
    sizes = node.shape(0)[2:] if sizes is None else sizes
    if len(sizes) != axes or node.integers("kernel_shape", kernel) != list(kernel):
        node.refuse(f"kernel {list(kernel)} does not fit the input {list(node.shape(0))}")
    strides = node.integers("strides", [1] * axes)
    dilations = node.integers("dilations", [1] * axes)
    pads = node.integers("pads", [0] * 2 * axes)
    auto_pad = node.text("auto_pad", "NOTSET")
    if auto_pad == "VALID":
        pads = [0] * 2 * axes
    elif auto_pad in {"SAME_UPPER", "SAME_LOWER"}:
        pads = _same(node, sizes, Window(list(kernel), strides, dilations, [], []), auto_pad)
    elif auto_pad != "NOTSET":
        node.refuse(f"auto_pad {auto_pad} is not covered")
    if min(pads, default=0) < 0:
        node.refuse(f"negative pads {pads} are not covered")
    return Window(list(kernel), strides, dilations, pads[:axes], pads[axes:])


def read_transposed_window(node: Node) -> Window:
    """Reads the window of a transposed convolution; its padding is what is cut off the output.

    Where an output shape is asked for, or auto_pad SAME, what cannot be halved is cut off the end
    (SAME_UPPER) or the beginning (otherwise).
    """
    kernel = list(node.shape(1)[2:])
    axes = len(kernel)
    if axes not in SPATIAL_AXES or node.integers("kernel_shape", kernel) != kernel:
        node.refuse(f"kernel {kernel} does not fit the attribute or has more than 3 axes")
    strides = node.integers("strides", [1] * axes)
    window = Window(kernel, strides, node.integers("dilations", [1] * axes), [], [])
    extra = node.integers("output_padding", [0] * axes)
    pads = node.integers("pads", [0] * 2 * axes)
    auto_pad = node.text("auto_pad", "NOTSET")
    shape = node.integers("output_shape", [])[-axes:]
    sizes = node.shape()[2:]
    if auto_pad in {"SAME_UPPER", "SAME_LOWER"} and not shape:
        shape = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    elif auto_pad == "VALID":
        pads = [0] * 2 * axes
    elif auto_pad not in {"NOTSET", "SAME_UPPER", "SAME_LOWER"}:
        node.refuse(f"auto_pad {auto_pad} is not covered")
    if shape:
        full = [
            (size - 1) * stride + extent + more
            for size, stride, extent, more in zip(
                sizes, strides, window.extents, extra, strict=True
            )
        ]
        totals = [f - asked for f, asked in zip(full, shape, strict=True)]
        smaller = [total // 2 for total in totals]
        larger = [total - half for total, half in zip(totals, smaller, strict=True)]
        pads = smaller + larger if auto_pad == "SAME_UPPER" else larger + smaller
    end = [pad - more for pad, more in zip(pads[axes:], extra, strict=True)]
    return Window(kernel, strides, window.dilations, pads[:axes], end)


def _same(node: Node, sizes: Sequence[int], window: Window, auto_pad: str) -> list[int]:
    if any(d != 1 for d in window.dilations) and "Conv" not in node.op_type:
        node.refuse(f"auto_pad {auto_pad} with dilations is not covered")
    totals = [
        max((-(-size // stride) - 1) * stride + extent - size, 0)
        for size, stride, extent in zip(sizes, window.strides, window.extents, strict=True)
    ]
    smaller = [total // 2 for total in totals]
    larger = [total - half for total, half in zip(totals, smaller, strict=True)]
    return smaller + larger if auto_pad == "SAME_UPPER" else larger + smaller


def pad_amounts(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """Returns padding in the order of torch's `pad`: last axis first, (begin, end) each."""
    pairs = reversed(list(zip(begin, end, strict=True)))
    return [amount for pair in pairs for amount in pair]
