"""Weights that a model stores in files of their own, beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import onnx

from onnx_auditors.errors import InvalidModel
from onnx_auditors.network.limits import Limits, tensor_bytes, too_large

_SHOWN = 100
"""Characters of an impossible location that an error shows."""


def load_external_data(
    tensors: Iterable[onnx.TensorProto], folder: Path | None, limits: Limits
) -> dict[str, str]:
    """Fills external tensors in; returns the digests of the files that hold them.

    Args:
        tensors: All stored tensors of a model.
        folder: The model's folder; None if it came without one.
        limits: What the model may cost.

    Raises:
        InvalidModel: A file is missing, too short, or outside the folder.
        LimitExceeded: More bytes than the limits allow.
    """
    digests: dict[str, str] = {}
    loaded = 0
    for tensor in tensors:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        info = {entry.key: entry.value for entry in tensor.external_data}
        location = info.get("location", "")
        path = _external_path(tensor.name, location, folder)
        content = _external_content(tensor, info, path)
        loaded += len(content)
        if loaded > limits.max_initializer_bytes:
            raise too_large(
                "max_initializer_bytes",
                "bytes of external data",
                loaded,
                limits.max_initializer_bytes,
            )
        tensor.raw_data = content
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
        if location not in digests:
            with path.open("rb") as file:
                digests[location] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _external_path(name: str, location: str, folder: Path | None) -> Path:
    """Returns where external data lies; never outside the model's folder."""
    if folder is None:
        raise InvalidModel(
            f"tensor '{name}' is stored in the external file '{location}', which did not come "
            "with the model; upload it too, or save the model with its data inside"
        )
    parts = location.split("/")
    if not location or "\\" in location or any(part in {"", ".", ".."} for part in parts):
        raise InvalidModel(
            f"tensor '{name}' names the external file '{location}'; expected a path inside the "
            "model's folder, relative, without '..'"
        )
    path = folder
    try:
        for part in parts:
            path = path / part
            if path.is_symlink():
                raise InvalidModel(
                    f"the external file '{location}' is a symbolic link; copy the file"
                )
        found = path.is_file()
    except OSError as error:
        raise InvalidModel(
            f"the external file '{location[:_SHOWN]}' of tensor '{name}' cannot be looked for: "
            f"{error.strerror}"
        ) from error
    if not found:
        raise InvalidModel(
            f"tensor '{name}' is stored in the external file '{location}', which is missing; "
            "upload it too"
        )
    return path


def _external_content(tensor: onnx.TensorProto, info: dict[str, str], path: Path) -> bytes:
    expected = tensor_bytes(tensor)
    try:
        offset = int(info.get("offset") or 0)
        length = int(info.get("length") or expected)
    except ValueError as error:
        raise InvalidModel(f"tensor '{tensor.name}' has an offset that is no number") from error
    size = path.stat().st_size
    if length != expected or offset < 0 or offset + length > size:
        raise InvalidModel(
            f"tensor '{tensor.name}' needs {expected:,} bytes; the model asks for {length:,} bytes "
            f"at offset {offset:,} of '{info['location']}', which has {size:,}"
        )
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)
