"""The paired bootstrap: both reports lose and repeat the same probes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnx_audit_server.reports.compare.figures import Floats, Rows

RESAMPLES = 2000


class Resampling:
    """Draws probes again, with the same draws for every figure over as many of them.

    Args:
        seed: Seed of the draws.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._weights: dict[int, Floats] = {}

    def differences(self, older: Rows, newer: Rows) -> Floats:
        """Newer less older figure in each resample, [resamples]; NaN where one has no probe.

        Args:
            older: Rows of the older figure, [n].
            newer: Rows of the same probes in the same order, [n].
        """
        weights = self._draw(len(older.values))
        return subtract(_statistic(newer, weights), _statistic(older, weights))

    def _draw(self, count: int) -> Floats:
        """How often each probe is drawn, [resamples, count]."""
        if count not in self._weights:
            rng = np.random.default_rng(self._seed)
            drawn = rng.integers(count, size=(RESAMPLES, count))
            flat = (drawn + count * np.arange(RESAMPLES)[:, None]).ravel()
            weights = np.bincount(flat, minlength=RESAMPLES * count).astype(np.float64)
            self._weights = {count: weights.reshape(RESAMPLES, count)}
        return self._weights[count]


def subtract(minuend: Floats, subtrahend: Floats) -> Floats:
    """Differences in which equal values, infinite ones too, differ by 0."""
    with np.errstate(invalid="ignore"):
        return np.where(minuend == subtrahend, 0.0, minuend - subtrahend)


def _statistic(rows: Rows, weights: Floats) -> Floats:
    """The figure in each resample, [resamples]."""
    part = ~np.isnan(rows.values)
    values, weights = rows.values[part], weights[:, part]
    with np.errstate(invalid="ignore"):
        if rows.probability is None:
            total = weights.sum(axis=1)
            return np.where(total > 0, weights @ values / np.maximum(total, 1), np.nan)
        return _quantile(values, weights, rows.probability)


def _quantile(values: Floats, weights: Floats, probability: float) -> Floats:
    """The smallest value that at least the share `probability` does not exceed, [resamples]."""
    if not len(values):
        return np.full(len(weights), np.nan)
    order = np.argsort(values)
    below = np.cumsum(weights[:, order], axis=1)
    total = below[:, -1]
    # As in the report: a product may lie just above the integer that it stands for.
    rank = np.maximum(1, np.ceil(probability * total - 1e-9))
    place: npt.NDArray[np.int64] = (below < rank[:, None]).sum(axis=1)
    found: Floats = values[order][np.minimum(place, len(values) - 1)]
    return np.where(total > 0, found, np.nan)
