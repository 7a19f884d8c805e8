"""Safetensors files: mapped into memory, and written in pieces. Needs numpy only."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MEDIA_TYPE = "application/vnd.safetensors"
_CODES = {"<f4": "F32", "<f8": "F64", "<i8": "I64", "|u1": "U8"}
_ALIGNMENT = 8
_DTYPES: dict[str, str] = {
    "BOOL": "?", "F16": "<f2", "F32": "<f4", "F64": "<f8", "U8": "u1",
    "I8": "i1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8",
}  # fmt: skip
_LARGEST_HEADER = 1_000_000
_LARGEST_RANK = 16

Array = npt.NDArray[Any]


class UnreadableTensorsError(Exception):
    """A file is not safetensors, or not whole."""


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of its tensors.

    Attributes:
        path: The file.
        entries: What it says of each, by name; whatever JSON held.
        start: Where their bytes begin.
    """

    path: Path
    entries: dict[str, Any]
    start: int

    @classmethod
    def of(cls, path: Path) -> Header:
        """Reads the header of a file.

        Raises:
            UnreadableTensorsError: It cannot be read, or is no header.
        """
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if not 0 < length <= min(_LARGEST_HEADER, size - 8):
                    raise UnreadableTensorsError(f"{size:,} bytes that are not safetensors")
                entries = json.loads(file.read(length))
        except OSError as error:
            raise UnreadableTensorsError(f"it cannot be read: {error.strerror}") from error
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise UnreadableTensorsError("the safetensors header is not JSON") from error
        if not isinstance(entries, dict):
            raise UnreadableTensorsError("the safetensors header is not a JSON object")
        entries.pop("__metadata__", None)
        return cls(path, entries, 8 + length)

    def mapped(self, name: str) -> Array:
        """Maps a tensor into memory.

        Raises:
            UnreadableTensorsError: It is not well described, of an unknown type, or cut short.
        """
        try:
            entry = self.entries[name]
            code, shape, (begin, end) = (entry[key] for key in ("dtype", "shape", "data_offsets"))
            numbers = [*shape, begin, end]
        except (KeyError, TypeError, ValueError) as error:
            raise UnreadableTensorsError(
                f"the safetensors header does not describe '{name}'"
            ) from error
        if not all(type(i) is int and i >= 0 for i in numbers) or len(shape) > _LARGEST_RANK:
            raise UnreadableTensorsError(
                f"the safetensors header has no valid shape or offsets for '{name}'"
            )
        if code not in _DTYPES:
            raise UnreadableTensorsError(f"'{name}' has the element type {code}, which is not read")
        dtype, size = np.dtype(_DTYPES[code]), self.path.stat().st_size
        needed = math.prod(shape) * dtype.itemsize
        if end - begin != needed or self.start + end > size:
            raise UnreadableTensorsError(
                f"'{name}' of shape {shape} needs {needed:,} bytes, the file has "
                f"{max(0, min(end, size - self.start) - begin):,}: it is cut short or damaged"
            )
        if not needed:
            return np.zeros(shape, dtype)
        return np.memmap(
            self.path, dtype=dtype, mode="r", offset=self.start + begin, shape=tuple(shape)
        )


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
