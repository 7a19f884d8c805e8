"""Arrays that auditors are given beside the probes, read from .npz, .npy or .safetensors files.

On the service they are safetensors files that are named by their digest: `blobs/{sha256}`.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from onnx_audit import v1
from onnx_audit.errors import ConfigError

Array = npt.NDArray[Any]

SUFFIXES: Final = (".npz", ".npy", ".safetensors")
"""Kinds of files that are read."""


def unit_arrays(config: v1.UnitsConfig) -> dict[str, str]:
    """What the fields of `units` name that take arrays, where they name anything."""
    found = {
        "concepts": config.concepts,
        "masks": config.masks,
        "embedding.features": config.embedding.features,
        "given_directions": config.given_directions,
    }
    return {field: name for field, name in found.items() if name}


def put_unit_array(config: v1.UnitsConfig, field: str, name: str) -> None:
    """Sets one of these fields."""
    *parents, last = field.split(".")
    target: Any = config
    for parent in parents:
        target = getattr(target, parent)
    setattr(target, last, name)


def load_unit_array(field: str, path: Path) -> dict[str, Array]:
    """Reads the file of one of these fields, in the form that the service takes.

    A file with a single array is taken whatever the array's name is, but for directions, whose
    names are values of the network.

    Raises:
        ConfigError: It cannot be read, or has no array of the field's name.
    """
    arrays = _read(path)
    if field == "given_directions":
        if path.suffix.lower() == ".npy":
            raise ConfigError(
                f"{path}: a single array; expected .npz or .safetensors with a matrix "
                "[any, units] under the name of each value of the network"
            )
        return arrays
    wanted = field.rpartition(".")[2]
    if wanted in arrays:
        return {wanted: arrays[wanted]}
    if len(arrays) != 1:
        found = ", ".join(arrays) or "none"
        raise ConfigError(f"{path}: found the arrays {found}; expected '{wanted}'")
    return {wanted: next(iter(arrays.values()))}


def require_array_file(path: Path) -> None:
    """Says at once whether a file may hold arrays, before much is read or sent.

    Raises:
        ConfigError: There is no such file, or it has another suffix.
    """
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return
    what = f"found {path.suffix or 'no suffix'}" if path.is_file() else "no such file"
    raise ConfigError(f"{path}: {what}; expected {', '.join(SUFFIXES)}, or blobs/{{sha256}}")


def save_arrays(arrays: Mapping[str, Array], path: Path) -> None:
    """Writes a safetensors file: the same arrays give the same bytes."""
    little = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors.numpy.save_file(
        {n: a.astype(a.dtype.newbyteorder("<"), copy=False) for n, a in little.items()}, path
    )


def _read(path: Path) -> dict[str, Array]:
    require_array_file(path)
    suffix = path.suffix.lower()
    try:
        if suffix == ".safetensors":
            arrays = dict(safetensors.numpy.load_file(path))
        else:
            loaded = np.load(path, allow_pickle=False)
            arrays = (
                {name: loaded[name] for name in loaded.files}
                if isinstance(loaded, np.lib.npyio.NpzFile)
                else {"array": loaded}
            )
    except (
        safetensors.SafetensorError, zipfile.BadZipFile, pickle.UnpicklingError,
        OSError, EOFError, ValueError, KeyError, TypeError, AttributeError,
    ) as error:  # fmt: skip
        raise ConfigError(f"{path}: not readable as {suffix}: {error}") from error
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise ConfigError(f"{path}: {name!r} is {array.dtype}; expected numbers")
    return arrays
