"""Finds probes that are almost the same: they would make the top inputs of any direction alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

Indices = npt.NDArray[np.int64]
Single = npt.NDArray[np.float32]

_SKETCH = 16
_NEAR = 0.01
"""Distance over that of two probes at random, below which two probes count as the same."""
_FEWEST_VALUES = 16
"""Probes of fewer values lie close together by themselves: there only equal ones are the same."""
_EQUAL = 1e-6
_BLOCK_BYTES = 2**26
_SEED = 22


def near_duplicates(
    images: Callable[[Indices], Single], rows: Indices, seed: int
) -> npt.NDArray[np.bool_]:
    """Says which probes are near-duplicates of one before them.

    Distances are those of 16 seeded random projections, each scaled to unit variance over the
    probes; distances in them are those of the probes up to a factor (Johnson & Lindenstrauss 1984).

    Args:
        images: From indices to probes, float32 [m, ...].
        rows: Indices of probes, rising, [n].
        seed: Seed of the projections.

    Returns:
        Bool [n].
    """
    width = images(rows[:1]).size
    rng = np.random.default_rng([seed, _SEED])
    projection = rng.standard_normal((width, _SKETCH)).astype(np.float32)
    step = max(1, _BLOCK_BYTES // (4 * width))
    blocks = [
        images(rows[i : i + step]).reshape(-1, width) @ projection
        for i in range(0, len(rows), step)
    ]
    sketch = np.concatenate(blocks).astype(np.float64)
    sketch -= sketch.mean(0)
    sketch /= np.maximum(sketch.std(0), 1e-30)
    radius = np.sqrt(2 * _SKETCH) * (_NEAR if width >= _FEWEST_VALUES else _EQUAL)
    found = np.ones(len(rows), dtype=bool)
    # Cells first: a thousand copies of one probe would make half a million pairs.
    _, first = np.unique(np.round(sketch / radius), axis=0, return_index=True)
    found[first] = False
    first = np.sort(first)
    pairs = cKDTree(sketch[first]).query_pairs(radius, output_type="ndarray")
    found[first[pairs.max(axis=1)]] = True
    return found
