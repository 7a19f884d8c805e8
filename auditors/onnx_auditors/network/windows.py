"""Windows that slide over spatial axes: kernels, strides and ONNX's ways to pad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def read_window(node: Node, kernel: Sequence[int]) -> Window:
    """Reads strides, dilations and padding; `kernel` is the size that the attribute must have.

    With auto_pad SAME the output has ceil(size / stride) entries; what cannot be halved goes to
    the end (SAME_UPPER) or the beginning (SAME_LOWER).
    """
    axes = len(kernel)
    if axes not in SPATIAL_AXES:
        node.refuse(f"{axes} spatial axes; 1 to 3 are covered")
    sizes = node.shape(0)[2:]
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


def _same(node: Node, sizes: Sequence[int], window: Window, auto_pad: str) -> list[int]:
    if any(d != 1 for d in window.dilations) and node.op_type != "Conv":
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
