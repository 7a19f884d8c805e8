"""Probe sets: reads them without loading them whole, and checks them. Needs numpy only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_audit import v1
from onnx_auditors.errors import InvalidProbes
from onnx_auditors.tensor_files import Header, UnreadableTensorsError

_INPUT_DTYPES = ("uint8", "float16", "float32", "float64")
_BLOCK_BYTES = 2**24


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
    try:
        header = Header.of(Path(path))
        unknown = sorted(header.entries.keys() - {"inputs", "labels"})
        if unknown:
            raise InvalidProbes(
                f"the file holds {', '.join(unknown)}; expected 'inputs' and, if known, 'labels'"
            )
        if "inputs" not in header.entries:
            raise InvalidProbes("the file holds no tensor 'inputs'")
        inputs = header.mapped("inputs")
        labels = header.mapped("labels") if "labels" in header.entries else None
    except UnreadableTensorsError as error:
        raise InvalidProbes(
            f"{error}; save the probes with "
            "safetensors.numpy.save_file({'inputs': ..., 'labels': ...})"
        ) from error
    _check_form(inputs, labels)
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


def _check_form(inputs: npt.NDArray[Any], labels: npt.NDArray[Any] | None) -> None:
    if inputs.dtype.name not in _INPUT_DTYPES:
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
