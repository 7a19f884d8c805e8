"""Finds the files that an ONNX model consists of, without the onnx package.

Tensors can lie in files beside the model, named in `TensorProto.external_data`. They are found by
walking the protobuf wire format over a memory map: embedded weights are stepped over, so a model of
many gigabytes costs no memory. Field numbers are those of onnx.proto (IR version 11):
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from onnx_audit.errors import ModelFileError

# Message type -> field number -> type of the message in that field, for every way that leads from
# a model to a tensor.
_CHILDREN: Final[dict[str, dict[int, str]]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
}
_MODEL_GRAPH: Final = 7
_TENSOR_EXTERNAL_DATA: Final = 13
_TENSOR_DATA_LOCATION: Final = 14
_EXTERNAL: Final = 1
_ENTRY_KEY: Final = 1
_ENTRY_VALUE: Final = 2

_VARINT: Final = 0
_FIXED64: Final = 1
_LENGTH_DELIMITED: Final = 2
_FIXED32: Final = 5
_MAX_VARINT_BYTES: Final = 10


class _MalformedError(Exception):
    """The bytes are not a protobuf message."""


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """Returns a variable-length integer and the position after it."""
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        if position + index >= len(data):
            raise _MalformedError
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:  # noqa: PLR2004 - the continuation bit
            return value, position + index + 1
    raise _MalformedError


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields the fields of a message: numbers for varints, views for the rest."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = _read_varint(data, position)
            yield number, value
            continue
        if wire_type == _LENGTH_DELIMITED:
            length, position = _read_varint(data, position)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:  # groups do not occur in ONNX
            raise _MalformedError
        if number == 0 or position + length > len(data):
            raise _MalformedError
        yield number, data[position : position + length]
        position += length


def _tensor_location(tensor: memoryview) -> str | None:
    """The file that holds a tensor's data, or None if the tensor holds it itself."""
    location, external = None, False
    for number, value in _fields(tensor):
        if number == _TENSOR_DATA_LOCATION:
            external = value == _EXTERNAL
        elif number == _TENSOR_EXTERNAL_DATA and isinstance(value, memoryview):
            entry = {
                key: bytes(text) for key, text in _fields(value) if isinstance(text, memoryview)
            }
            if entry.get(_ENTRY_KEY) == b"location":
                try:
                    location = entry.get(_ENTRY_VALUE, b"").decode()
                except UnicodeDecodeError:
                    raise _MalformedError from None
    return location if external else None


def _model_locations(model: memoryview) -> set[str]:
    """Locations of all external tensors of a serialised ModelProto."""
    locations: set[str] = set()
    has_graph = False
    pending = [("ModelProto", model)]
    while pending:  # a stack of our own: nesting depth is the file's choice
        kind, data = pending.pop()
        if kind == "TensorProto":
            if (location := _tensor_location(data)) is not None:
                locations.add(location)
            continue
        children = _CHILDREN[kind]
        for number, value in _fields(data):
            child = children.get(number)
            if child is not None and isinstance(value, memoryview):
                pending.append((child, value))
                has_graph |= kind == "ModelProto" and number == _MODEL_GRAPH
    if not has_graph:
        raise _MalformedError
    return locations


def external_locations(path: Path) -> list[str]:
    """Sorted locations, relative to the model's folder, of the files with its external tensors.

    Raises:
        ModelFileError: The file is missing, is not ONNX, or names a location outside its folder.
    """
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; expected an ONNX model")
    if path.stat().st_size == 0:
        raise ModelFileError(f"{path}: the file is empty; expected an ONNX model")
    with path.open("rb") as file:
        # Closed with its last view; an error's traceback may hold one for longer than this block.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        locations = sorted(_model_locations(memoryview(content)))
    except _MalformedError:
        raise ModelFileError(
            f"{path}: not an ONNX file (it is no protobuf ModelProto with a graph); "
            "export the model to ONNX first"
        ) from None
    for location in locations:
        relative = PurePosixPath(location.replace("\\", "/"))
        if not relative.parts or relative.is_absolute() or ".." in relative.parts:
            raise ModelFileError(
                f"{path}: names external data at {location!r}; only files in the model's own "
                "folder are uploaded, save the model again with external data beside it"
            )
    return locations
