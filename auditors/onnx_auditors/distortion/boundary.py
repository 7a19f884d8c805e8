"""Walks to a decision boundary by answers alone: first adversarial points, paths, bisection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from onnx_auditors.distortion.noise import uniform

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Answers = Callable[[Floats], npt.NDArray[Any]]
"""From a batch [m, ...] to the classes that the model answers, [m]."""
Path = Callable[[Doubles, Ints], Floats]
"""From levels [k] and the places of their rows [k] to points [k, d]; a lower level is nearer."""

SIZES: dict[str, Callable[[Doubles], Doubles]] = {
    "l2": lambda change: np.linalg.norm(change, axis=1),
    "linf": lambda change: np.abs(change).max(axis=1),
    "l1": lambda change: np.abs(change).sum(axis=1),
    "l0": lambda change: (change != 0).sum(axis=1).astype(np.float64),
}
"""From changes [n, d] to their sizes in a norm, [n]."""
_ANCHORS = 6
_NOISE_SHARES = (0.1, 0.3, 1.0, 1.0)
_NOISE_DRAW = 2**24
_CORNER_SHARE = 0.25
_UPPER_SHARES = (0.5, 0.25, 0.75, 0.1, 0.9)
_FIRST_GAP = 1 / 256
_GALLOPS = 8
_BISECTIONS = 6
_DOUBLINGS, _HALVINGS = 10, 30


class Walk:
    """The rows of a search, their best points, and what they have spent.

    Attributes:
        origin: The inputs, float32 [n, d].
        lower: Lower end of the box, [n, d].
        upper: Upper end, [n, d].
        shape: Shape of the inputs as given.
        width: d.
        norm: The norm by which points are nearer, a key of `SIZES`.
        size: From changes to sizes in it.
        queries: Answers that each row may ask for.
        seeds: Int64 [n].
        best: The nearest adversarial points so far, [n, d]; the input itself at first.
        distance: Their sizes, float64 [n]; inf at first.
        answer: The answers to them, int64 [n]; the label at first.
        spent: Answers asked for, int64 [n].
    """

    def __init__(
        self,
        answers: Answers,
        inputs: Floats,
        labels: Ints,
        box: tuple[npt.ArrayLike, npt.ArrayLike],
        queries: int,
        *,
        norm: str,
        targets: Ints | None,
        seeds: Ints,
    ) -> None:
        self._answers, self._labels, self._targets = answers, labels, targets
        self.shape, self.queries, self.seeds = inputs.shape, queries, seeds
        self.origin = inputs.reshape(len(inputs), -1)
        self.width = self.origin.shape[1]
        self.lower, self.upper = (
            np.broadcast_to(np.asarray(end, dtype=np.float32), inputs.shape).reshape(
                len(inputs), -1
            )
            for end in box
        )
        self.best, self.answer = self.origin.copy(), labels.copy()
        self.distance = np.full(len(inputs), np.inf)
        self.norm, self.size = norm, SIZES[norm]
        self.spent = np.zeros(len(inputs), dtype=np.int64)

    def measure(self, norm: str) -> None:
        """Changes the norm, and sizes the best points in it."""
        self.norm, self.size = norm, SIZES[norm]
        rows = self.open()
        self.distance[rows] = self.change_size(self.best[rows], rows)

    def left(self, rows: Ints) -> Ints:
        """Returns how many answers rows may still ask for."""
        return self.queries - self.spent[rows]

    def open(self) -> Ints:
        """Returns the rows that have an example other than the input."""
        return np.flatnonzero(np.isfinite(self.distance) & (self.distance > 0))

    def clip(self, points: npt.NDArray[Any], rows: Ints) -> Floats:
        """Returns points [..., d] clipped to the box of rows [...]."""
        clipped: Floats = np.clip(points, self.lower[rows], self.upper[rows]).astype(np.float32)
        return clipped

    def change_size(self, points: Floats, rows: Ints) -> Doubles:
        """Returns the sizes of the changes from the inputs, [m]."""
        return self.size(points.astype(np.float64) - self.origin[rows])

    def adversarial(self, classes: npt.NDArray[Any], rows: Ints) -> Bools:
        """Says which answers are the wanted ones, [m]."""
        wanted: Bools = (
            classes != self._labels[rows]
            if self._targets is None
            else classes == self._targets[rows]
        )
        return wanted

    def classes(self, points: Floats, rows: Ints) -> npt.NDArray[Any]:
        """Asks for the answers to points [m, d]; a row may come several times."""
        if not len(rows):
            return np.zeros(0, dtype=np.int64)
        np.add.at(self.spent, rows, 1)
        return np.asarray(self._answers(points.reshape(-1, *self.shape[1:])))

    def fools(self, points: Floats, rows: Ints) -> Bools:
        """Asks likewise; says which answers are the wanted ones."""
        return self.adversarial(self.classes(points, rows), rows)

    def tries(self, points: Floats, rows: Ints) -> Bools:
        """Asks for one point per row [m, d], and keeps those that fool and are nearer."""
        classes = self.classes(points, rows)
        fooled, distance = self.adversarial(classes, rows), self.change_size(points, rows)
        nearer = fooled & (distance < self.distance[rows])
        kept = rows[nearer]
        self.best[kept], self.distance[kept] = points[nearer], distance[nearer]
        self.answer[kept] = classes[nearer]
        return fooled


def start(walk: Walk, anchors: tuple[Floats, Ints] | None) -> None:
    """Finds the first adversarial points: the input, anchors, the box's ends, noise, corners.

    Args:
        walk: The walk.
        anchors: Points [p, ...] and the answers to them [p].
    """
    everything = np.arange(len(walk.origin))
    walk.tries(walk.origin, everything)
    rows = everything[walk.distance > 0]
    if anchors is not None:
        _from_anchors(walk, rows, anchors)
    lower, upper, origin = walk.lower[rows], walk.upper[rows], walk.origin[rows]
    for far in (lower, upper, (lower + upper) / 2, lower + upper - origin):
        _towards(walk, rows, walk.clip(far, rows))
    for i, share in enumerate(_NOISE_SHARES):
        drawn = uniform(torch.from_numpy(walk.seeds[rows]), _NOISE_DRAW + i, walk.width).numpy()
        far = origin + np.float32(share) * (lower + (upper - lower) * drawn - origin)
        _towards(walk, rows, walk.clip(far, rows))
    _from_corners(walk, rows)


def _from_corners(walk: Walk, rows: Ints) -> None:
    """Tries random corners of the box for rows without any start, with a part of their queries."""
    for i in range(int(_CORNER_SHARE * walk.queries)):
        rows = rows[np.isinf(walk.distance[rows]) & (walk.left(rows) > 0)]
        if not len(rows):
            return
        seeds = torch.from_numpy(walk.seeds[rows])
        drawn = uniform(seeds, _NOISE_DRAW + len(_NOISE_SHARES) + i, walk.width).numpy()
        share = _UPPER_SHARES[i % len(_UPPER_SHARES)]
        _towards(walk, rows, np.where(drawn < share, walk.upper[rows], walk.lower[rows]))


def _from_anchors(walk: Walk, rows: Ints, anchors: tuple[Floats, Ints]) -> None:
    """Goes towards the nearest anchors that are answered as wanted."""
    points = anchors[0].reshape(len(anchors[0]), -1)
    apart = np.stack([walk.change_size(points, np.full(len(points), row)) for row in rows])
    useful = np.stack([walk.adversarial(anchors[1], np.full(len(points), row)) for row in rows])
    nearest = np.where(useful, apart, np.inf).argsort(axis=1, kind="stable")[:, :_ANCHORS]
    for place in nearest.T:
        reached = useful[np.arange(len(rows)), place]
        _towards(walk, rows[reached], points[place[reached]])


def _towards(walk: Walk, rows: Ints, far: Floats) -> None:
    """Looks on the lines to far points [m, d], just inside the best point so far, and goes on."""
    size = walk.change_size(far, rows)
    keep = (size > 0) & (walk.left(rows) > 0)
    rows, far, size = rows[keep], far[keep], size[keep]
    level = np.minimum(1, walk.distance[rows] / size)
    path = line(walk, rows, far)
    shrink(walk, rows, path, level, first=np.isinf(walk.distance[rows]))


def line(walk: Walk, rows: Ints, far: Floats) -> Path:
    """Returns the path from the inputs (level 0) to far points [m, d] (level 1)."""
    origin = walk.origin[rows]

    def path(level: Doubles, places: Ints) -> Floats:
        change = far[places].astype(np.float64) - origin[places]
        points = (origin[places] + level[:, None] * change).astype(np.float32)
        return walk.clip(points, rows[places])

    return path


def along(walk: Walk, rows: Ints, normal: Floats) -> None:
    """Looks for a nearer point by the shortest change against a boundary of this normal [m, d].

    In L2 the change is the normal's multiple, in Linf that of its signs; clipped to the box.
    """
    steepest = np.sign(normal) if walk.norm == "linf" else normal
    origin = walk.origin[rows]

    def path(level: Doubles, places: Ints) -> Floats:
        points = origin[places] + (level[:, None] * steepest[places]).astype(np.float32)
        return walk.clip(points, rows[places])

    # The level at which the clipped change has the size of the best.
    wanted, places = walk.distance[rows], np.arange(len(rows))
    low, high = np.zeros(len(rows)), 2 * wanted
    for _ in range(_DOUBLINGS):
        high = np.where(walk.change_size(path(high, places), rows) < wanted, 2 * high, high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        short = walk.change_size(path(middle, places), rows) < wanted
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    shrink(walk, rows, path, high)


def aside(walk: Walk, rows: Ints, step: Floats) -> None:
    """Steps aside from the best points by [m, d], and looks from there for a nearer point.

    Where several boundaries meet, no path along one normal leads to the nearest point. In Linf the
    largest changes are cut off, in L2 the path goes straight to the input.
    """
    far = walk.clip(walk.best[rows] + step, rows)
    if walk.norm != "linf":
        _towards(walk, rows, far)
        return
    origin = walk.origin[rows]
    change = (far - origin).astype(np.float64)

    def cut(level: Doubles, places: Ints) -> Floats:
        bound = level[:, None]
        return walk.clip(origin[places] + np.clip(change[places], -bound, bound), rows[places])

    shrink(walk, rows, cut, walk.distance[rows])


def shrink(walk: Walk, rows: Ints, path: Path, high: Doubles, first: Bools | None = None) -> None:
    """Goes inwards along a path as long as its points fool, in growing steps, then bisects.

    Args:
        walk: The walk; its best points are updated.
        rows: The rows, [m].
        path: Their paths.
        high: Levels to begin below, [m].
        first: Whether the level itself is asked for before, [m]; by default not.
    """
    good, bad = high.copy(), np.zeros_like(high)
    gap = np.full(len(rows), _FIRST_GAP)
    alive, moved = np.arange(len(rows)), np.zeros(len(rows), dtype=bool)

    def ask(places: Ints, level: Doubles) -> tuple[Ints, Bools]:
        affordable = walk.left(rows[places]) > 0
        places, level = places[affordable], level[affordable]
        fooled = walk.tries(path(level, places), rows[places])
        good[places[fooled]], bad[places[~fooled]] = level[fooled], level[~fooled]
        moved[places[fooled]] = True
        return places, fooled

    if first is not None and first.any():
        begin = alive[first]
        places, fooled = ask(begin, high[begin])
        failed = np.setdiff1d(begin, places[fooled])
        alive = np.setdiff1d(alive, failed)
    for _ in range(_GALLOPS):
        places, fooled = ask(alive, (1 - gap[alive]) * high[alive])
        alive = places[fooled]
        gap[alive] *= 2
    for _ in range(_BISECTIONS):
        places = np.flatnonzero(moved)
        ask(places, (good[places] + bad[places]) / 2)
