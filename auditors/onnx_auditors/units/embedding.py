"""The reference embedding in which coherence is measured; never the audited network's own."""

from __future__ import annotations

import math

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
_FILTERS, _WINDOW, _GRID = 96, 5, 3
_SEED = 41
_DIMENSIONS = 64
_EXPLAINED = 0.95
_IMAGE_RANK = 3
_SMOOTH = 0.3
_SMALLEST_SIDE = 8
_WIDEST = 4096
_NEIGHBOURS, _PERMUTATIONS, _SAMPLE = 9, 99, 2048
_LEAST_AGREEMENT = 0.05


def features(source: Source, rows: Indices) -> Single:
    """Returns features of probes that the embedding is made of, float32 [n, any].

    For images they are the answers of 96 random zero-mean filters, rectified on both sides and
    averaged over a grid of 3 x 3 (random features see textures and places without any training,
    Saxe et al. 2011, "On random weights and unsupervised feature learning"); for other probes the
    values themselves.
    """
    if source.embedding is not None:
        return source.embedding[rows].astype(np.float32)
    probes = source.images(rows)
    side = _image_shape(source)
    if side is None:
        flat = probes.reshape(len(probes), -1)
        if flat.shape[1] > _WIDEST:
            rng = np.random.default_rng([source.seed, _SEED])
            flat = flat @ rng.standard_normal((flat.shape[1], _WIDEST // 4), dtype=np.float32)
        return flat
    images = torch.from_numpy(np.ascontiguousarray(probes)).reshape(len(probes), *side)
    if source.channels_last and len(side) == _IMAGE_RANK:
        images = images.permute(0, 3, 1, 2)
    elif len(side) < _IMAGE_RANK:
        images = images[:, None]
    return _convolved(images, source.seed).numpy()


def describe(source: Source) -> str:
    """Returns where the embedding comes from."""
    if source.embedding is not None:
        return GIVEN
    return BUILT_IN if _image_shape(source) is not None else RAW


def whiten(found: Single) -> Single:
    """Returns the centred, PCA-whitened embedding as unit vectors, float32 [n, e].

    The components that hold 95 % of the variance are kept, at most 64. Without whitening the common
    brightness and contrast of images would decide what lies close together.

    Args:
        found: Features of the probes by rank, [n, any].
    """
    centred = found.astype(np.float64)
    centred -= centred.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    values, vectors = values[::-1], vectors[:, ::-1]
    held = np.cumsum(np.maximum(values, 0)) / max(values.sum(), 1e-300)
    kept = min(_DIMENSIONS, int(np.searchsorted(held, _EXPLAINED)) + 1)
    scale = np.sqrt(np.maximum(values[:kept], 0) + 1e-12 * max(values[0], 1e-300))
    white = centred @ (vectors[:, :kept] / scale)
    length = np.linalg.norm(white, axis=1, keepdims=True)
    return (white / np.maximum(length, 1e-12)).astype(np.float32)


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


def _image_shape(source: Source) -> tuple[int, ...] | None:
    """Returns the shape of a probe as an image; None where it is none.

    A flat probe counts as a square grey image where neighbours in both directions are alike.
    """
    rows = np.arange(min(source.count, 256))
    probes = source.images(rows)
    shape = probes.shape[1:]
    long = tuple(size for size in shape if size > 1)
    if len(long) == _IMAGE_RANK - 1 and min(long) >= _SMALLEST_SIDE:
        return long
    if len(shape) == _IMAGE_RANK:
        spatial = shape[:2] if source.channels_last else shape[1:]
        return shape if min(spatial) >= _SMALLEST_SIDE else None
    side = math.isqrt(math.prod(shape))
    if len(long) != 1 or side**2 != long[0] or side < _SMALLEST_SIDE:
        return None
    square = probes.reshape(-1, side, side).astype(np.float64)
    square = square - square.mean(0)
    alike = [
        float((a * b).mean() / max(math.sqrt((a * a).mean() * (b * b).mean()), 1e-30))
        for a, b in ((square[:, 1:], square[:, :-1]), (square[:, :, 1:], square[:, :, :-1]))
    ]
    return (side, side) if min(alike) > _SMOOTH else None


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
