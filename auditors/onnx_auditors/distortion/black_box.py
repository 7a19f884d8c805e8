"""Small adversarial changes from a model's answers alone: no scores, no gradients.

For models whose gradients say nothing: saturated, underflowing, made of steps. The search keeps a
point next to the boundary and an estimate of the boundary's normal there, and goes in rounds:

1. Ask for the answers at points around the boundary point. Directions whose points fool add up to
   the part of the normal that is still missing (Chen, Jordan and Wainwright 2020, "HopSkipJump",
   eq. 9, with the mean taken off as in eq. 16). The directions are orthogonal to the estimate and
   to each other: d signs along an orthonormal basis find a share 2 / pi of the missing part's
   square, as against 2 / (2 + pi) along independent directions.
2. Try mixtures of the estimate and the missing part, as the length of the latter is not known: from
   the input along each normal to the boundary, if that is nearer than the best so far. The best
   mixture is the next estimate. In L2 this is a search in the plane of the two, as in Reza et al.
   2023, "CGBA".
3. In Linf, and in L2 where that found nothing, step from the best point along the missing part,
   and come nearer from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_auditors.distortion import boundary
from onnx_auditors.distortion.boundary import Answers, Floats, Ints, Walk
from onnx_auditors.distortion.directions import directions
from onnx_auditors.distortion.reduction import reduce

LEAST_QUERIES = 20
_CHUNK = 32
_FIRST_ROUNDS = 32
_GROWTH = 1.4
_RADIUS = 0.2
_MIXTURES = (1.0, 2.0, 0.5, 4.0, 0.25)
_STEPS_ASIDE = (1.0, 0.3, 0.1, 0.03)
_UNDECIDED = 0.2
_LEAST_SPREAD = 0.1
_SHARE_BEFORE_REDUCTION = 0.75
_GROUP_NUMBERS = 2**25
_TINY = 1e-30


@dataclass(frozen=True)
class Result:
    """Examples and their sizes.

    Attributes:
        examples: Float32 [n, ...]; the input itself where there is no example.
        distance: Float64 [n], in the norm; inf where none was found, 0 where the input itself is
            adversarial.
        queries: Int64 [n], answers asked for.
    """

    examples: Floats
    distance: npt.NDArray[np.float64]
    queries: Ints


def black_box(
    answers: Answers,
    inputs: Floats,
    labels: Ints,
    norm: str = "l2",
    queries: int = 2000,
    box: tuple[npt.ArrayLike, npt.ArrayLike] = (0.0, 1.0),
    targets: Ints | None = None,
    seed: int | Sequence[int] = 0,
    anchors: tuple[Floats, Ints] | None = None,
) -> Result:
    """Finds small changes of inputs that change the answer.

    Args:
        answers: From a batch [m, ...], float32 inside the box, to classes, integers [m].
        inputs: Float32 [n, ...] inside the box.
        labels: Int64 [n], the classes that count as right.
        norm: "l2", "linf", "l1" or "l0". The last two start from what the search in L2 finds.
        queries: Answers per input, at least 20.
        box: Lower and upper end; broadcast to an input.
        targets: Int64 [n], the classes that the answer has to become; any but the label if None.
        seed: Seed of the noise; or one for each input. Rows do not depend on each other.
        anchors: Points of the box [m, ...] and the answers to them [m], as further starts.

    Returns:
        The examples; each is inside the box, and `answers` gave the wanted class for it.

    Raises:
        ValueError: An unknown norm, fewer than 20 queries, a target equal to the label.
    """
    _check(norm, queries, labels, targets)
    seeds = [seed + i for i in range(len(inputs))] if isinstance(seed, int) else list(seed)
    width = int(np.prod(inputs.shape[1:]))
    group = max(1, _GROUP_NUMBERS // (_CHUNK * width))
    examples, distance = inputs.copy(), np.full(len(inputs), np.inf)
    spent = np.zeros(len(inputs), dtype=np.int64)
    for begin in range(0, len(inputs), group):
        rows = slice(begin, begin + group)
        walk = Walk(
            answers,
            inputs[rows],
            labels[rows],
            box,
            queries,
            norm="linf" if norm == "linf" else "l2",
            targets=None if targets is None else targets[rows],
            seeds=np.array(seeds[rows], dtype=np.int64),
        )
        _search(walk, norm, anchors)
        examples[rows] = walk.best.reshape(walk.shape)
        distance[rows], spent[rows] = walk.distance, walk.spent
    return Result(examples, distance, spent)


def _check(norm: str, queries: int, labels: Ints, targets: Ints | None) -> None:
    if norm not in boundary.SIZES:
        raise ValueError(f"norm is {norm!r}; available: {', '.join(map(repr, boundary.SIZES))}")
    if queries < LEAST_QUERIES:
        raise ValueError(f"queries is {queries}; at least {LEAST_QUERIES} are needed")
    if targets is not None and (targets == labels).any():
        row = int(np.flatnonzero(targets == labels)[0])
        raise ValueError(f"target {int(targets[row])} of input {row} is its label")


def _search(walk: Walk, norm: str, anchors: tuple[Floats, Ints] | None) -> None:
    boundary.start(walk, anchors)
    whole = walk.queries
    reduced = norm in {"l1", "l0"}
    if reduced:
        walk.queries = int(_SHARE_BEFORE_REDUCTION * whole)
    rows = walk.open()
    normal = np.zeros_like(walk.best)
    normal[rows] = _unit(walk.best[rows] - walk.origin[rows])
    size = max(_CHUNK, walk.queries // _FIRST_ROUNDS)
    number = 0
    while len(rows := rows[walk.left(rows) > min(_CHUNK, 2 * walk.width)]) and walk.width > 1:
        normal[rows] = _round(walk, rows, normal[rows], number, min(size, 2 * walk.width))
        size, number = int(_GROWTH * size), number + 1
    if reduced:
        walk.queries = whole
        reduce(walk, norm, normal)


def _round(walk: Walk, rows: Ints, normal: Floats, number: int, size: int) -> Floats:
    """Goes one round; returns the next estimates of the normal, [m, d]."""
    boundary.shrink(walk, rows, boundary.line(walk, rows, walk.best[rows]), np.ones(len(rows)))
    missing = _missing(walk, rows, normal, number, size)
    chosen = np.full(len(rows), _UNDECIDED)
    for mixture in _MIXTURES:
        before = walk.distance[rows]
        boundary.along(walk, rows, _unit(normal + mixture * missing))
        chosen[walk.distance[rows] < before] = mixture
    stuck = np.flatnonzero((chosen == _UNDECIDED) | (walk.norm == "linf"))
    length = np.linalg.norm(walk.best[rows] - walk.origin[rows], axis=1, keepdims=True)
    for share in _STEPS_ASIDE:
        boundary.aside(walk, rows[stuck], (share * length * missing)[stuck].astype(np.float32))
    return _unit(normal + chosen[:, None] * missing)


def _missing(walk: Walk, rows: Ints, normal: Floats, number: int, size: int) -> Floats:
    """Estimates the part of the normal that is orthogonal to its estimate; unit rows [m, d].

    Entries at an end of the box can only move one way, and so vary less: their covariance with the
    answers is divided by their variance. Chunks after the first are moved inwards or outwards so
    that about half of their points fool.
    """
    centre = walk.best[rows]
    outwards = centre - walk.origin[rows]
    radius = _RADIUS * np.linalg.norm(outwards, axis=1)[:, None, None]
    outwards = _unit(outwards)[:, None, :]
    offset, stride = np.zeros(len(rows)), np.full(len(rows), 2 / np.sqrt(walk.width))
    covariance, squares = np.zeros_like(centre), np.zeros_like(centre)
    for begin in range(0, size, _CHUNK):
        count = min(_CHUNK, size - begin)
        active = np.flatnonzero(walk.left(rows) >= count)
        if not len(active):
            break
        ways = directions(walk.seeds[rows[active]], number, begin, count, walk.width)
        ways -= (ways @ normal[active][:, :, None]) * normal[active][:, None, :]
        ways += offset[active, None, None].astype(np.float32) * outwards[active]
        points = centre[active][:, None, :] + radius[active] * ways
        points = walk.clip(points, rows[active][:, None])
        fooled = walk.fools(points.reshape(-1, walk.width), np.repeat(rows[active], count))
        signs = (2.0 * fooled - 1).astype(np.float32).reshape(len(active), count)
        moved = points - points.mean(axis=1, keepdims=True)
        mean = signs.mean(axis=1)
        covariance[active] += np.einsum("mc,mcd->md", signs - mean[:, None], moved)
        squares[active] += np.square(moved).sum(axis=1)
        offset[active] -= stride[active] * mean
        stride[active] *= np.where(np.abs(mean) == 1, 2, 1)
    typical = np.median(squares, axis=1, keepdims=True)
    estimate = covariance / np.maximum(squares, np.maximum(_LEAST_SPREAD * typical, _TINY))
    along = (estimate * normal).sum(axis=1, keepdims=True)
    return _unit(estimate - along * normal)


def _unit(rows: npt.NDArray[Any]) -> Floats:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: npt.NDArray[Any] = rows / np.maximum(length, _TINY)
    return unit.astype(np.float32)
