"""Inputs as pictures inside the page, and adversarial examples out of a section's file."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors import SafetensorError, safe_open

from onnx_audit import v1
from onnx_audit_server.reports.document import Artefacts

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

MOST_BYTES: Final = 6_000_000
"""Bytes of pictures in a page, as base64: with its drawings it stays below 10 MB."""
_GREY, _COLOUR = 1, 3
_MOST_SIDE, _SMALLEST_SIDE = 160, 8
_PIXELS_AS_PNG = 64 * 64
_QUALITY = 88
_PICTURES: Final = frozenset({"image/png", "image/jpeg"})
_FLAT, _PLANE, _IMAGE = 1, 2, 3


class Allowance:
    """Counts the bytes of pictures that a page may still hold."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self.left = most

    def data_uri(self, content: bytes, media_type: str) -> str:
        """The picture as a data URI; empty if it is none, or too large for what is left."""
        if media_type not in _PICTURES:
            return ""
        text = base64.b64encode(content).decode()
        if len(text) > self.left:
            return ""
        self.left -= len(text)
        return f"data:{media_type};base64,{text}"


@dataclass(frozen=True)
class Frame:
    """How inputs of probe space become pictures.

    Attributes:
        shape: Shape of a probe with three axes.
        axes: Their permutation to height, width, channels.
        lower: Lower ends of the box, in a form that fits [height, width, channels].
        upper: Upper ends, likewise.
        square: Side of the square as which a flat probe is drawn; 0 for images.
    """

    shape: tuple[int, ...]
    axes: tuple[int, int, int]
    lower: Floats
    upper: Floats
    square: int = 0

    def draw(self, probe: Floats) -> Bytes:
        """A probe as levels, [height, width, 1 or 3]; the box's ends are 0 and 255."""
        image = self._image(probe)
        width = np.maximum(self.upper - self.lower, 1e-30)
        return _levels((image - self.lower) / width)

    def draw_change(self, change: Floats, factor: float) -> Bytes:
        """A change, `factor` times as large, as levels around a middle grey."""
        return _levels(0.5 + 0.5 * factor * self._image(change))

    def _image(self, probe: Floats) -> Floats:
        image = probe.reshape(self.shape).transpose(self.axes)
        return image if image.shape[2] in {_GREY, _COLOUR} else image[..., :1]


def frame(probes: v1.ProbeSummary, spec: v1.InputSpec) -> Frame | None:
    """How the probes of a report are drawn; None where they are no images.

    Flat probes are drawn as a square where their length is one of at least 8 x 8.
    """
    shape = tuple(probes.shape)
    square = 0
    if len(shape) == _IMAGE and sorted(shape)[1] >= _SMALLEST_SIDE:
        first = spec.probe_layout == v1.LAYOUT_CHW or shape[2] not in {_GREY, _COLOUR}
        axes = (1, 2, 0) if first and spec.probe_layout != v1.LAYOUT_HWC else (0, 1, 2)
    elif len(shape) == _PLANE and min(shape) >= _SMALLEST_SIDE:
        shape, axes = (*shape, 1), (0, 1, 2)
    else:
        square = math.isqrt(math.prod(shape))
        if max(shape, default=0) != square * square or square < _SMALLEST_SIDE:
            return None
        shape, axes = (square, square, 1), (0, 1, 2)
    lower, upper = (
        _ends(np.array(list(ends) or [default]), shape, axes)
        for ends, default in ((spec.lower, 0.0), (spec.upper, 1.0))
    )
    return Frame(shape, axes, lower, upper, square)


def _ends(values: Floats, shape: tuple[int, ...], axes: tuple[int, int, int]) -> Floats:
    """Ends of the box as the shown channels of a picture take them."""
    if values.size == math.prod(shape):
        values = values.reshape(shape).transpose(axes)
    return values if shape[axes[2]] in {_GREY, _COLOUR} else values[..., :1]


def encoded(levels: Bytes) -> tuple[bytes, str]:
    """A picture as a file with its media type; large ones are made smaller, and are JPEG."""
    plain = levels[..., 0] if levels.shape[2] == _GREY else levels
    image = Image.fromarray(plain)
    file = io.BytesIO()
    if levels.shape[0] * levels.shape[1] <= _PIXELS_AS_PNG:
        image.save(file, "PNG", optimize=True)
        return file.getvalue(), "image/png"
    image.thumbnail((_MOST_SIDE, _MOST_SIDE))
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue(), "image/jpeg"


def rows(artefacts: Artefacts, blob: v1.BlobRef, wanted: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of a section's safetensors file by their places, without reading the rest.

    Raises:
        FileNotFoundError: The blob is not there.
        ValueError: It is no safetensors file.
    """
    with _opened(artefacts, blob) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return [{name: part[row : row + 1][0] for name, part in slices.items()} for row in wanted]


def column(artefacts: Artefacts, blob: v1.BlobRef, name: str) -> npt.NDArray[Any]:
    """A whole column of a section's safetensors file.

    Raises:
        FileNotFoundError: The blob is not there.
        ValueError: It is no safetensors file, or has no such column.
    """
    with _opened(artefacts, blob) as file:
        return np.asarray(file.get_tensor(name))


@contextmanager
def _opened(artefacts: Artefacts, blob: v1.BlobRef) -> Iterator[Any]:
    with artefacts.as_file(blob.sha256) as path:
        try:
            with safe_open(path, framework="numpy") as file:
                yield file
        except SafetensorError as error:
            raise ValueError(f"blob {blob.sha256} is not what the report says: {error}") from error


def _levels(shares: Floats) -> Bytes:
    return np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)
