"""The reference embedding in which coherence is measured; never the audited network's own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.units.source import Indices, Single, Source
from onnx_auditors.units.statistics import band

BUILT_IN = "built in: random convolutions"
RAW = "built in: the probes' values"
GIVEN = "given"
_FILTERS, _WINDOW, _GRID = 32, 5, 3
_SEED = 41
_DIMENSIONS = 64
_EXPLAINED = 0.95
_WIDEST = 4096
_NEIGHBOURS, _PERMUTATIONS, _SAMPLE = 9, 99, 2048
_LEAST_AGREEMENT = 0.05


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference embedding: centred, PCA-whitened features as unit vectors.

    Attributes:
        source: The probes.
        mean: Mean of the features over a sample, float32 [f].
        whitening: Float32 [f, e].
    """

    source: Source
    mean: Single
    whitening: Single

    @classmethod
    def fit(cls, source: Source, rows: Indices, step: int) -> Reference:
        """Whitens on a sample.

        The components that hold 95 % of the variance are kept, at most 64. Without whitening the
        common brightness and contrast of images would decide what lies close together.

        Args:
            source: The probes.
            rows: Indices of the sample's probes; the first are taken.
            step: Probes at once.
        """
        rows = rows[:_SAMPLE]
        found = [features(source, rows[i : i + step]) for i in range(0, len(rows), step)]
        centred = np.concatenate(found).astype(np.float64)
        mean = centred.mean(0)
        centred -= mean
        covariance = centred.T @ centred / len(centred)
        solved = torch.linalg.eigh(torch.from_numpy(covariance))
        values, vectors = (t.flip(-1)[..., :_DIMENSIONS].numpy() for t in solved)
        values = np.maximum(values, 0)
        held = np.cumsum(values) / max(float(np.trace(covariance)), 1e-300)
        kept = min(len(values), int(np.searchsorted(held, _EXPLAINED)) + 1)
        scale = np.sqrt(values[:kept] + 1e-12 * max(values[0], 1e-300))
        whitening = vectors[:, :kept] / scale
        return cls(source, mean.astype(np.float32), whitening.astype(np.float32))

    def __call__(self, rows: Indices) -> Single:
        """Returns probes by index as unit vectors, float32 [n, e]."""
        white = (features(self.source, rows) - self.mean) @ self.whitening
        length = np.linalg.norm(white, axis=1, keepdims=True)
        return np.asarray(white / np.maximum(length, 1e-12), dtype=np.float32)


def features(source: Source, rows: Indices) -> Single:
    """Returns features of probes that the embedding is made of, float32 [n, any].

    For images they are the answers of random zero-mean filters, rectified on both sides and
    averaged over a grid of 3 x 3 (random features see textures and places without any training,
    Saxe et al. 2011, "On random weights and unsupervised feature learning"); for other probes the
    values themselves.
    """
    if source.embedding is not None:
        return _narrowed(source.embedding.features(rows), source.seed)
    probes = source.images(rows)
    if source.image_shape is None:
        return _narrowed(probes.reshape(len(probes), -1), source.seed)
    images = torch.from_numpy(source.as_images(probes))
    return _convolved(images, source.seed).numpy()


def _narrowed(flat: Single, seed: int) -> Single:
    """Returns features [n, any], seeded random projections of them where there are very many."""
    if flat.shape[1] <= _WIDEST:
        return flat
    rng = np.random.default_rng([seed, _SEED])
    drawn = rng.standard_normal((flat.shape[1], _WIDEST // 4), dtype=np.float32)
    return np.asarray(flat @ drawn, dtype=np.float32)


def describe(source: Source) -> str:
    """Returns where the embedding comes from."""
    if source.embedding is not None:
        return source.embedding.source
    return BUILT_IN if source.image_shape is not None else RAW


def check(source: Source, embedding: Single, labels: Indices | None) -> v1.UnitEmbedding:
    """Says whether the embedding can see the labels: do a probe's nearest neighbours share its own?

    Args:
        source: The probes.
        embedding: Unit vectors by rank, [n, e].
        labels: Labels by rank, [n]; None where there are none.
    """
    result = v1.UnitEmbedding(source=describe(source), dimension=embedding.shape[1])
    if labels is None:
        return result
    points, named = embedding[:_SAMPLE], labels[:_SAMPLE]
    near = cKDTree(points).query(points, min(_NEIGHBOURS + 1, len(points)))[1][:, 1:]
    rng = np.random.default_rng([source.seed, _SEED, 1])
    seen = _agreement(named, near)
    permuted = np.array([_agreement(rng.permutation(named), near) for _ in range(_PERMUTATIONS)])
    result.neighbours_agree.CopyFrom(v1.Estimate(value=seen, count=len(points), unit="1"))
    result.neighbours_agree.interval.CopyFrom(band(permuted + seen - permuted.mean()).interval)
    result.sees_labels = bool(seen > permuted.max() and seen >= _LEAST_AGREEMENT)
    return result


def _agreement(labels: Indices, near: Indices) -> float:
    counts = np.bincount(np.unique(labels, return_inverse=True)[1]).astype(np.float64)
    total = len(labels)
    chance = float((counts * (counts - 1)).sum() / (total * (total - 1)))
    share = float((labels[near] == labels[:, None]).mean())
    return (share - chance) / (1 - chance) if chance < 1 else 0.0


def _convolved(images: Tensor, seed: int) -> Tensor:
    channels = images.shape[1]
    rng = np.random.default_rng([seed, _SEED])
    window = min(_WINDOW, *images.shape[2:])
    drawn = rng.standard_normal((_FILTERS, channels, window, window), dtype=np.float32)
    drawn -= drawn.mean((2, 3), keepdims=True)
    drawn /= np.sqrt((drawn**2).sum((1, 2, 3), keepdims=True))
    stride = max(1, min(images.shape[2:]) // 32)
    answers = torch.nn.functional.conv2d(images, torch.from_numpy(drawn), stride=stride)
    both = torch.cat([answers.clamp_min(0), (-answers).clamp_min(0)], 1)
    pooled = torch.nn.functional.adaptive_avg_pool2d(both, _GRID)
    colour = torch.nn.functional.adaptive_avg_pool2d(images, _GRID)
    return torch.cat([pooled.flatten(1), colour.flatten(1)], 1)
