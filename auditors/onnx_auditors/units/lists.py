"""Scores of top inputs: do they share labels, and do they lie close together?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from onnx_auditors.units.source import EIGHTHS, Bools, Floats, Indices, Single

_BLOCK = 2**22


class ListScore(Protocol):
    """Gives directions a score for some of their top inputs."""

    def __call__(self, ranks: Indices, chosen: Bools) -> Floats:
        """Returns scores [directions] for ranks [directions, width], of which some are chosen."""


class LabelScore:
    """A = sum over labels of n_c (n_c - 1) / (k (k - 1)), set so that chance is 0 and purity 1.

    A is the share of pairs of top inputs with the same label; by chance it is the same share among
    all probes.
    """

    def __init__(self, labels: Indices) -> None:
        """Takes labels by rank, [n]."""
        _, self._labels = np.unique(labels, return_inverse=True)
        counts = np.bincount(self._labels)
        self._chance = _pairs(counts).sum() / _pairs(np.array(len(labels)))

    def __call__(self, ranks: Indices, chosen: Bools) -> Floats:
        """Returns the scores; NaN where fewer than two inputs are chosen."""
        classes = int(self._labels.max()) + 1
        same = np.empty(len(ranks))
        step = max(1, _BLOCK // max(classes, ranks.shape[1]))
        for begin in range(0, len(ranks), step):
            rows, kept = ranks[begin : begin + step], chosen[begin : begin + step]
            cells = np.arange(len(rows))[:, None] * classes + self._labels[rows]
            counts = np.bincount(cells[kept], minlength=len(rows) * classes)
            same[begin : begin + step] = _pairs(counts.reshape(len(rows), -1)).sum(1)
        with np.errstate(invalid="ignore"):
            share = same / _pairs(chosen.sum(1))
        return np.asarray((share - self._chance) / (1 - self._chance), dtype=np.float64)


class CoherenceScore:
    """Mean cosine of pairs of top inputs in a reference embedding; 0 for pairs of any probes."""

    def __init__(self, embedding: Single) -> None:
        """Takes unit vectors by rank, float32 [n, e]."""
        self._embedding = embedding
        total = embedding.astype(np.float64).sum(0)
        count = len(embedding)
        self._chance = float((total @ total - count) / (count * (count - 1)))

    def __call__(self, ranks: Indices, chosen: Bools) -> Floats:
        """Returns the scores; NaN where fewer than two inputs are chosen."""
        length = np.empty(len(ranks))
        step = max(1, _BLOCK // (ranks.shape[1] * self._embedding.shape[1]))
        for begin in range(0, len(ranks), step):
            rows = ranks[begin : begin + step]
            weight = chosen[begin : begin + step].astype(np.float32)
            total = np.einsum("dk,dke->de", weight, self._embedding[rows])
            length[begin : begin + step] = (total.astype(np.float64) ** 2).sum(1)
        count = chosen.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = (length - count) / (count * (count - 1))
        return np.asarray((cosine - self._chance) / (1 - self._chance), dtype=np.float64)


def first(ranks: Indices, top: int) -> Bools:
    """Chooses the first `top` inputs of each direction."""
    return np.broadcast_to(np.arange(ranks.shape[1]) < top, ranks.shape)


def without_eighth(ranks: Indices, part: int, top: int, least: int) -> Bools:
    """Chooses the first inputs that are outside one eighth of the probes.

    Args:
        ranks: Ranks, best first, [directions, width].
        part: The eighth to leave out.
        top: Inputs with all probes; seven eighths of it are chosen, as a share of the probes.
        least: But at least so many.
    """
    kept = ranks % EIGHTHS != part
    wanted = max(min(top, least), round(top * (1 - 1 / EIGHTHS)))
    return np.asarray(kept & (np.cumsum(kept, 1) <= wanted))


def width_for(top: int, least: int) -> int:
    """Returns how many inputs to keep so that seven eighths of `top` are outside any eighth.

    The number inside is hypergeometric; 4 standard deviations are allowed for.
    """
    wanted = max(min(top, least), round(top * (1 - 1 / EIGHTHS)))
    return int(np.ceil(wanted * EIGHTHS / (EIGHTHS - 1) + 2 * np.sqrt(wanted) + 4))


def _pairs(counts: Indices | Sequence[int]) -> Floats:
    numbers = np.asarray(counts, dtype=np.float64)
    return numbers * (numbers - 1)
