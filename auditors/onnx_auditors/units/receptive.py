"""Receptive fields: the part of the input that a position of a map sees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnx_auditors.network import Layer, Network
from onnx_auditors.units.setup import Job
from onnx_auditors.units.source import Bools, Indices, Source
from onnx_auditors.units.values import RECTIFIERS, layers_of

_WINDOWED = frozenset({"Conv", "MaxPool", "AveragePool", "LpPool"})
_POINTWISE = RECTIFIERS | frozenset(
    {
        "Sigmoid", "HardSigmoid", "Tanh", "Softsign", "Clip", "Abs", "Neg", "Identity", "Cast",
        "Dropout", "BatchNormalization", "LRN", "Add", "Sub", "Mul", "Div", "Sum", "Concat", "Min",
        "Max", "Pow", "Sqrt", "Exp", "Erf", "Slice", "Split", "QuantizeLinear", "DequantizeLinear",
    }
)  # fmt: skip
_MAP_AXES = 4
_BLOCK = 2**24


@dataclass(frozen=True)
class Field:
    """Receptive fields along the two axes of space, in pixels of the model's input.

    Attributes:
        start: First pixel that position 0 sees; may lie in the padding.
        size: Number of pixels that a position sees.
        jump: Pixels from one position to the next.
    """

    start: tuple[float, float]
    size: tuple[float, float]
    jump: tuple[float, float]

    def boxes(self, positions: Indices, grid: tuple[int, int], image: tuple[int, int]) -> Indices:
        """Returns top, left, bottom, right of positions, cut to the image, [p, 4]."""
        sides = []
        for axis, place in enumerate(np.divmod(positions, grid[1])):
            first = self.start[axis] + place * self.jump[axis]
            sides.append(np.clip(np.floor(first), 0, image[axis] - 1))
            sides.append(np.clip(np.ceil(first + self.size[axis]), 1, image[axis]))
        top, bottom, left, right = sides
        return np.stack([top, left, bottom, right], 1).astype(np.int64)


def field_of(network: Network, value: str) -> Field | None:
    """Returns the receptive field of a map; None where it is the whole input, or not known.

    Sizes and jumps add up along the layers (Dumoulin & Visin 2016, "A guide to convolution
    arithmetic"); where branches meet the union counts.
    """
    fields: dict[str, Field | None] = {network.input.name: Field((0, 0), (1, 1), (1, 1))}
    for layer in layers_of(network):
        before = [fields.get(name) for name in layer.inputs]
        found = None
        if before and all(field is not None for field in before):
            found = _after(layer, [field for field in before if field is not None])
        fields.update(dict.fromkeys(layer.outputs, found))
        if value in layer.outputs:
            break
    return fields.get(value)


def grown(source: Source, job: Job, rows: Indices) -> Tensor:
    """Returns which places of a map see a concept anywhere in their receptive field.

    Args:
        source: With masks.
        job: The layer.
        rows: Indices of probes, [m].

    Returns:
        Bool [m * positions, c]; where the field is not known the whole image counts.
    """
    if source.masks is None:
        raise ValueError("there are no masks")
    positions = job.value.positions
    grid = job.value.grid
    field = field_of(job.network, job.value.measured)
    count, height, width = source.masks.shape[1:]
    image = (height, width)
    if field is None or len(grid) != 2:  # noqa: PLR2004 - two axes of space
        boxes = np.tile([0, 0, *image], (len(positions), 1))
    else:
        boxes = field.boxes(positions, (grid[0], grid[1]), image)
    step = max(1, _BLOCK // (count * height * width))
    blocks = [
        _seen(source.masks[rows[begin : begin + step]], boxes)
        for begin in range(0, len(rows), step)
    ]
    return torch.from_numpy(np.concatenate(blocks)).to(job.network.device)


def _seen(masks: Bools, boxes: Indices) -> Bools:
    """Returns whether there is a concept in boxes, [m * boxes, c], for masks [m, c, h, w]."""
    # Sums over boxes by differences of cumulated sums.
    rows, count, height, width = masks.shape
    sums = np.zeros((rows, count, height + 1, width + 1), dtype=np.int32)
    sums[:, :, 1:, 1:] = masks.cumsum(2, dtype=np.int32).cumsum(3, dtype=np.int32)
    top, left, bottom, right = boxes.T
    inside = (
        sums[:, :, bottom, right] - sums[:, :, top, right]
        - sums[:, :, bottom, left] + sums[:, :, top, left]
    )  # fmt: skip
    return np.moveaxis(inside > 0, 1, 2).reshape(-1, count)


def _after(layer: Layer, before: list[Field]) -> Field | None:
    field = _union(before)
    if layer.op_type in _WINDOWED and len(layer.output_shape) == _MAP_AXES:
        kernel = list(layer.attributes.get("kernel_shape") or layer.weights[1].shape[2:])
        strides = list(layer.attributes.get("strides") or [1, 1])
        dilations = list(layer.attributes.get("dilations") or [1, 1])
        pads = list(layer.attributes.get("pads") or [0, 0, 0, 0])
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        if _text(layer.attributes.get("auto_pad")).startswith("SAME"):
            sizes = zip(layer.output_shape[2:], layer.input_shapes[0][2:], strict=True)
            for axis, (out, size) in enumerate(sizes):
                pads[axis] = max((out - 1) * strides[axis] + extent[axis] - size, 0) // 2
        return Field(
            start=_pair(field.start[a] - pads[a] * field.jump[a] for a in (0, 1)),
            size=_pair(field.size[a] + (extent[a] - 1) * field.jump[a] for a in (0, 1)),
            jump=_pair(field.jump[a] * strides[a] for a in (0, 1)),
        )
    shapes = {shape[2:] for shape in layer.input_shapes if len(shape) == _MAP_AXES}
    if layer.op_type == "Pad":
        return None if len(layer.output_shape) != _MAP_AXES else _shifted(layer, field)
    same = len(layer.output_shape) == _MAP_AXES and layer.output_shape[2:] in shapes
    return field if layer.op_type in _POINTWISE and same else None


def _shifted(layer: Layer, field: Field) -> Field | None:
    pads = layer.weights.get(1)
    if pads is None or len(pads) != 2 * _MAP_AXES:
        return None
    return Field(
        start=_pair(field.start[a] - float(pads[2 + a]) * field.jump[a] for a in (0, 1)),
        size=field.size,
        jump=field.jump,
    )


def _union(fields: list[Field]) -> Field:
    start = _pair(min(f.start[a] for f in fields) for a in (0, 1))
    end = _pair(max(f.start[a] + f.size[a] for f in fields) for a in (0, 1))
    return Field(start, _pair(end[a] - start[a] for a in (0, 1)), fields[0].jump)


def _pair(values: Iterable[float]) -> tuple[float, float]:
    first, second = values
    return float(first), float(second)


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
