"""Probe sets: reads them without loading them whole, and checks them. Needs numpy only."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_audit import v1
from onnx_auditors.errors import InvalidProbes

_DTYPES: dict[str, str] = {
    "F16": "<f2", "F32": "<f4", "F64": "<f8", "U8": "u1",
    "I8": "i1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8",
}  # fmt: skip
_INPUT_DTYPES = ("U8", "F16", "F32", "F64")
_LARGEST_HEADER = 1_000_000
_BLOCK_BYTES = 2**24
_LARGEST_RANK = 16


@dataclass(frozen=True)
class Probes:
    """An open probe set.

    Attributes:
        inputs: Stored values [n, *probe shape], mapped from the file.
        labels: Labels [n], mapped from the file; None where there are none.
    """

    inputs: npt.NDArray[Any]
    labels: npt.NDArray[Any] | None


def open_probes(path: str | Path) -> Probes:
    """Maps a safetensors file into memory.

    Raises:
        InvalidProbes: Not safetensors, or not the tensors that a probe set has.
    """
    path = Path(path)
    header, start = _read_header(path)
    unknown = sorted(header.keys() - {"inputs", "labels"})
    if unknown:
        raise InvalidProbes(
            f"the file holds {', '.join(unknown)}; expected 'inputs' and, if known, 'labels'"
        )
    if "inputs" not in header:
        raise InvalidProbes("the file holds no tensor 'inputs'")
    inputs = _map(path, "inputs", header["inputs"], start)
    labels = _map(path, "labels", header["labels"], start) if "labels" in header else None
    _check_form(header, inputs, labels)
    return Probes(inputs, labels)


def summarize(path: str | Path, sha256: str) -> v1.ProbeSummary:
    """Checks a probe set from end to end and says what it holds, in bounded memory.

    Args:
        path: The safetensors file.
        sha256: Digest that names the probe set.

    Raises:
        InvalidProbes: It cannot be read, or holds what no audit can use.
    """
    probes = open_probes(path)
    low, high = _range(probes.inputs)
    summary = v1.ProbeSummary(
        sha256=sha256,
        count=len(probes.inputs),
        shape=probes.inputs.shape[1:],
        dtype=probes.inputs.dtype.name,
        min=low,
        max=high,
    )
    if probes.labels is not None:
        summary.has_labels = True
        summary.min_label = int(probes.labels.min())
        summary.max_label = int(probes.labels.max())
        if summary.min_label < 0:
            first = int(np.argmax(probes.labels < 0))
            raise InvalidProbes(
                f"probe {first} has the label {summary.min_label}; labels count from 0"
            )
    return summary


def _read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Returns the tensors that a safetensors file lists, and where their bytes begin."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(_LARGEST_HEADER, size - 8):
                raise InvalidProbes(
                    f"{size:,} bytes that are not safetensors; save the probes with "
                    "safetensors.numpy.save_file({'inputs': ..., 'labels': ...})"
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise InvalidProbes(f"the probe set cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InvalidProbes("the safetensors header is not JSON") from error
    if not isinstance(header, dict):
        raise InvalidProbes("the safetensors header is not a JSON object")
    header.pop("__metadata__", None)
    return header, 8 + length


def _map(path: Path, name: str, entry: object, start: int) -> npt.NDArray[Any]:
    try:
        code, shape, (begin, end) = (entry[key] for key in ("dtype", "shape", "data_offsets"))  # type: ignore[index] # whatever JSON held
        numbers = [*shape, begin, end]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidProbes(f"the safetensors header does not describe '{name}'") from error
    if not all(type(i) is int and i >= 0 for i in numbers) or len(shape) > _LARGEST_RANK:
        raise InvalidProbes(f"the safetensors header has no valid shape or offsets for '{name}'")
    if code not in _DTYPES:
        raise InvalidProbes(f"'{name}' has the element type {code}, which probe sets do not use")
    dtype = np.dtype(_DTYPES[code])
    needed = math.prod(shape) * dtype.itemsize
    if end - begin != needed or start + end > path.stat().st_size:
        raise InvalidProbes(
            f"'{name}' of shape {shape} needs {needed:,} bytes, the file has "
            f"{max(0, min(end, path.stat().st_size - start) - begin):,}: it is cut short or damaged"
        )
    if not needed:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=start + begin, shape=tuple(shape))


def _check_form(
    header: dict[str, dict[str, Any]], inputs: npt.NDArray[Any], labels: npt.NDArray[Any] | None
) -> None:
    if header["inputs"]["dtype"] not in _INPUT_DTYPES:
        raise InvalidProbes(
            f"'inputs' is {inputs.dtype.name}; expected uint8, float16, float32 or float64"
        )
    if inputs.ndim < 2 or inputs.size == 0:  # noqa: PLR2004 - probes and at least one axis of theirs
        raise InvalidProbes(
            f"'inputs' has the shape {list(inputs.shape)}; expected [n, ...] with at least one "
            "probe and one value in each"
        )
    if labels is None:
        return
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or len(labels) != len(inputs):
        raise InvalidProbes(
            f"'labels' is {labels.dtype.name} of shape {list(labels.shape)}; expected integers of "
            f"shape [{len(inputs)}], one for each probe"
        )


def _range(inputs: npt.NDArray[Any]) -> tuple[float, float]:
    """Returns the smallest and largest value, block by block."""
    rows = max(1, _BLOCK_BYTES // max(1, inputs[0].nbytes))
    low, high = math.inf, -math.inf
    for begin in range(0, len(inputs), rows):
        block = np.asarray(inputs[begin : begin + rows])
        finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
        if not finite.all():
            first = begin + int(np.argmin(finite))
            raise InvalidProbes(f"probe {first} holds NaN or infinite values; remove or repair it")
        low, high = min(low, float(block.min())), max(high, float(block.max()))
    return low, high
