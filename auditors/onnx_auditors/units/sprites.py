"""Probes as small pictures, laid out in rows: one file per gallery."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from onnx_auditors.units.source import Floats, Indices, Single, Source

PNG, JPEG = "image/png", "image/jpeg"
TILE = 40
_GAP, _GUTTER = 2, 64
_WHITE, _INK, _BOX = (255, 255, 255), (40, 40, 40), (255, 80, 0)
BLUE = (70, 110, 190)
"""A background that is no value of a grey picture."""
_LEAST_BOX = 9
"""Sides of the smallest box that is still seen."""
_GREY, _COLOUR = 1, 3
_QUALITY = 60
_FEW_LEVELS, _MOSTLY_GREY = 16, 0.9

Bytes = npt.NDArray[np.uint8]


def tiles(source: Source, probes: Indices) -> Bytes:
    """Returns probes by index as pictures, [n, 40, 40, 3].

    Values between the limits of probe space become 0 to 255. Grey pictures have three equal
    channels; of more than three channels the first is shown.
    """
    images = source.as_images(source.images(probes))
    low, high = source.limits
    return np.stack([_tile(image, low, high) for image in images])


def filters(weights: Floats) -> Bytes:
    """Returns kernels [m, 1 or 3, height, width] as pictures, [m, 40, 40, 3]; grey is 0.

    Each is scaled by its own largest weight.
    """
    size = np.maximum(np.abs(weights).max((1, 2, 3), keepdims=True), 1e-30)
    return np.stack([_tile(kernel, -1.0, 1.0) for kernel in weights / size])


def boxed(pictures: Bytes, boxes: Indices, image: tuple[int, int]) -> Bytes:
    """Draws boxes (top, left, bottom, right in pixels of the image, [n, 4]) around their parts."""
    scale = np.array([TILE / image[0], TILE / image[1]] * 2)
    drawn = []
    for picture, (top, left, bottom, right) in zip(pictures, boxes * scale, strict=True):
        canvas = Image.fromarray(picture)
        x, y = _side(left, right), _side(top, bottom)
        ImageDraw.Draw(canvas).rectangle((x[0], y[0], x[1], y[1]), outline=_BOX)
        drawn.append(np.asarray(canvas))
    return np.stack(drawn)


def _side(begin: float, end: float) -> tuple[int, int]:
    """Returns first and last pixel of a frame around a part of a tile, inside the tile."""
    more = max(0.0, (_LEAST_BOX - 2 - (end - begin)) / 2)
    return max(0, math.floor(begin - more) - 1), min(TILE - 1, math.ceil(end + more))


def grid(
    pictures: Bytes,
    columns: int,
    names: Sequence[str] = (),
    background: tuple[int, int, int] = _WHITE,
) -> Bytes:
    """Lays pictures out row by row.

    Args:
        pictures: [rows * columns, height, width, 3].
        columns: Pictures in a row.
        names: Texts of two lines at most, each on the left of as many pictures; none for no text.
        background: Colour between pictures.
    """
    rows, step = -(-len(pictures) // columns), TILE + _GAP
    gutter = _GUTTER if names else 0
    group = len(pictures) // len(names) if names else columns
    blocks = columns // group
    width = columns * step + _GAP + blocks * gutter
    canvas = np.full((rows * step + _GAP, width, 3), background, dtype=np.uint8)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        left = _GAP + column * step + (column // group + 1) * gutter
        top = _GAP + row * step
        canvas[top : top + TILE, left : left + TILE] = picture
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for i, name in enumerate(names):
        row, block = divmod(i, blocks)
        place = (block * (group * step + gutter) + 2 * _GAP, row * step + 4 * _GAP)
        draw.multiline_text(place, name, fill=_INK)
    return np.asarray(image)


def encoded(canvas: Bytes) -> tuple[bytes, str]:
    """Returns a picture as a file with its media type: PNG for few levels, JPEG for photos."""
    file, image = io.BytesIO(), Image.fromarray(canvas)
    if len(np.unique(canvas)) <= _FEW_LEVELS or (canvas[..., :1] == canvas).mean() > _MOSTLY_GREY:
        image.save(file, "PNG")
        return file.getvalue(), PNG
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue(), JPEG


def _tile(image: Single | Floats, low: float, high: float) -> Bytes:
    levels = (image - low) * (255 / max(high - low, 1e-30))
    whole = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
    if len(whole) not in {_GREY, _COLOUR}:
        whole = whole[:1]
    picture = Image.fromarray(np.moveaxis(np.repeat(whole, 3 // len(whole), 0), 0, 2))
    larger = max(picture.size) > TILE
    method = Image.Resampling.BOX if larger else Image.Resampling.NEAREST
    return np.asarray(picture.resize((TILE, TILE), method))
