"""Random orthonormal directions for each row of a batch, drawn in parts."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from onnx_auditors.distortion.noise import uniform

_DRAWS = 2
_HALF = 0.5


def directions(
    seeds: npt.NDArray[np.int64], number: int, begin: int, count: int, width: int
) -> npt.NDArray[np.float32]:
    """Returns vectors of a random orthonormal basis per row, then their opposites.

    The basis is that of the discrete cosine transform (type II) in random order, with the signs of
    its entries flipped at random, which spreads each vector over all entries.

    Args:
        seeds: Int64 [n], one for each row.
        number: Number of the basis, from 0.
        begin: Place of the first vector; from `width` on the opposites.
        count: Number of vectors; begin + count is at most 2 * width.
        width: Dimension.

    Returns:
        Float32 [n, count, width].
    """
    drawn = torch.from_numpy(seeds)
    flips = np.sign(uniform(drawn, _DRAWS * number, width).numpy() - _HALF)
    order = uniform(drawn, _DRAWS * number + 1, width).numpy().argsort(axis=1, kind="stable")
    period = 4 * width
    table = np.cos(2 * math.pi * np.arange(period) / period)
    odd = 2 * np.arange(width, dtype=np.int64) + 1
    places = np.arange(begin, begin + count)
    frequency = order[:, places % width, None]
    waves = table.astype(np.float32)[(frequency * odd) % period]
    scale = np.where(frequency == 0, math.sqrt(1 / width), math.sqrt(2 / width))
    scale = np.where(places[:, None] < width, scale, -scale)
    vectors: npt.NDArray[np.float32] = (waves * scale * flips[:, None, :]).astype(np.float32)
    return vectors
