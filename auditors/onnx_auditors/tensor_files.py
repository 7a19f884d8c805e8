"""Safetensors files that are written in pieces, so that no more than a piece is in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MEDIA_TYPE = "application/vnd.safetensors"
_CODES = {"<f4": "F32", "<f8": "F64", "<i8": "I64", "|u1": "U8"}
_ALIGNMENT = 8

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Tensor:
    """A tensor that is made block by block.

    Attributes:
        dtype: Element type, as numpy writes it.
        shape: Its shape.
        blocks: Makes the rows in order, however many at a time.
    """

    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Array]]


def written(tensors: dict[str, Tensor]) -> Iterator[bytes]:
    """Yields a safetensors file in pieces: the length of its header, the header, the tensors.

    Those with the longest elements come first, so that all are aligned.
    """
    names = sorted(tensors, key=lambda name: (-np.dtype(tensors[name].dtype).itemsize, name))
    header, end = {}, 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        for block in tensors[name].blocks():
            yield np.ascontiguousarray(block, dtype=tensors[name].dtype).tobytes()


def whole(values: Array) -> Tensor:
    """Returns a tensor that is in memory already."""
    return Tensor(values.dtype.str, values.shape, lambda: [values])
