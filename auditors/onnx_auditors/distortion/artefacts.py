"""The files beside the section: all examples, and those to train on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save as to_safetensors

from onnx_auditors.distortion.table import Table

MEDIA_TYPE = "application/vnd.safetensors"
_INTEGERS = ("probe", "label", "clean_prediction", "adversarial_prediction", "outcome")
_FLOATS = ("distance", "rms", "clean_confidence", "adversarial_confidence")


def examples(table: Table, originals: npt.NDArray[np.float32]) -> bytes:
    """Returns a safetensors blob with a row for every audited probe.

    Args:
        table: The results of n probes.
        originals: The probes in probe space, float32 [n, ...].
    """
    found = table.examples(originals.shape[1:])
    tensors: dict[str, npt.NDArray[np.generic]] = {
        **{name: table.integers(name) for name in _INTEGERS},
        **{name: table.floats(name) for name in _FLOATS},
        "target": table.target,
        "original": originals,
        "example": found,
        "perturbation": found - originals,
    }
    if table.class_distance is not None:
        tensors["class_distance"] = table.class_distance
    return to_safetensors(tensors)


def training_set(table: Table, probe_shape: Sequence[int]) -> bytes | None:
    """Returns the confirmed examples with their right labels as a probe set; None without any."""
    chosen = table.confirmed
    if not chosen.any():
        return None
    inputs = np.ascontiguousarray(table.examples(probe_shape)[chosen])
    return to_safetensors({"inputs": inputs, "labels": table.label[chosen]})
