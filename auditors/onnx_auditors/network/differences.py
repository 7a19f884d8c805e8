"""How far two values of a graph are apart, and how far float32 and quantisation let them be."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_TINY = float(np.finfo(np.float32).tiny)
SINGLE = 2e-5
"""Relative difference that sums in another order explain in float32: 340 roundings."""
HALF = 2.0**-10
"""The same where values are stored in half precision: two roundings."""
FACTOR = 4.0
"""How many of ONNX Runtime's own differences the network may be away."""
_QUANTISED_BYTES = 2
"""Integers of that many bytes at most are taken for quantised values."""


def quantisation_step(x: npt.NDArray[Any], stored: npt.NDArray[Any] | None = None) -> float:
    """Returns what one quantisation step of a value is of its largest entry; 0 if it has none.

    Args:
        x: The value.
        stored: The integers that it was made of, if it was made by DequantizeLinear.
    """
    if stored is not None and stored.size and stored.min() < stored.max():
        width = float(stored.max()) - float(stored.min())
        return (float(x.max()) - float(x.min())) / width / size_of(x)
    small = x.dtype.itemsize <= _QUANTISED_BYTES and np.issubdtype(x.dtype, np.integer)
    return 1.0 / size_of(x) if small and np.any(x) else 0.0


def size_of(x: npt.NDArray[Any]) -> float:
    """Returns the largest finite entry, or the smallest normal number of the type if that is more.

    Below it numbers are equally far apart, so that no share of them can be asked for.
    """
    finite = np.abs(x[np.isfinite(x)].astype(np.float64)) if x.dtype.kind in "fiu" else x[:0]
    normal = float(np.finfo(x.dtype).tiny) if x.dtype.kind == "f" else _TINY
    return max(float(finite.max(initial=0.0)), normal, _TINY)


def relative_difference(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Returns the largest difference over the largest entry of b."""
    return float(np.abs(difference(a, b)).max(initial=0.0)) / max(float(np.abs(b).max()), _TINY)


def difference(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Returns a - b; infinite where only one of them is not a number, 0 where both agree."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        away = np.where(same, 0.0, a - b)
    return np.where(np.isnan(away), np.inf, away)
