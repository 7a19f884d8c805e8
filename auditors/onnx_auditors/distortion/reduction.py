"""Fewer or shorter entries of an adversarial change by answers alone: the norms L0 and L1."""

from __future__ import annotations

import numpy as np

from onnx_auditors.distortion import boundary
from onnx_auditors.distortion.boundary import Bools, Floats, Ints, Walk

_BLOCKS = 16
_PART = 1 / 32


def reduce(walk: Walk, norm: str, normal: Floats) -> None:
    """Makes the best points smaller in L1 or L0.

    First the fewest entries that still fool, in two orders: those that the boundary's normal says
    gain most, moved to the box's end; then those that change most, as they are and moved to the
    box's end. Then entries are put back to the input, by blocks and one by one.

    Args:
        walk: The walk, with what a search in another norm found.
        norm: "l1" or "l0".
        normal: Estimates of the boundary's normal, pointing to the wrong side, [n, d].
    """
    walk.measure(norm)
    rows = walk.open()
    change = walk.best[rows] - walk.origin[rows]
    for way, end in ((normal[rows], True), (change, True), (change, False)):
        far = np.where(way > 0, walk.upper[rows], walk.lower[rows])
        room = np.where(way == 0, 0, far - walk.origin[rows])
        gain = np.abs(way * room) if end and norm == "l0" else np.abs(way)
        _fill(walk, rows, gain, room if end else change, 1.0 if norm == "l0" else _PART)
    for _ in range(2 if norm == "l1" else 1):
        _restore(walk, rows)
        if norm == "l1":
            path = boundary.line(walk, rows, walk.best[rows])
            boundary.shrink(walk, rows, path, np.ones(len(rows)))


def _fill(walk: Walk, rows: Ints, gain: Floats, change: Floats, part: float) -> None:
    """Bisects on the number of entries that take the change [m, d], those of most gain first.

    Args:
        walk: The walk.
        rows: Its rows, [m].
        gain: What decides the order, [m, d].
        change: Changes of the entries, [m, d].
        part: Precision; below 1 the last entry takes a part of its change.
    """
    place = (-gain).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    low, high = np.zeros(len(rows)), np.full(len(rows), float(walk.width))
    while (open_ := np.flatnonzero((high - low > part) & (walk.left(rows) > 0))).size:
        middle = np.ceil((low[open_] + high[open_]) / 2 / part) * part
        middle = np.where(middle == high[open_], middle - part, middle)
        taken = np.clip(middle[:, None] - place[open_], 0, 1) * change[open_]
        points = walk.clip(walk.origin[rows[open_]] + taken, rows[open_])
        fooled = walk.tries(points, rows[open_])
        high[open_[fooled]], low[open_[~fooled]] = middle[fooled], middle[~fooled]


def _restore(walk: Walk, rows: Ints) -> None:
    """Puts entries back to the input where the point still fools, those that change least first.

    Blocks of a sixteenth of the changed entries; twice as many after a success, half after a
    failure, and an entry that alone cannot be put back stays.
    """
    change = np.abs(walk.best[rows] - walk.origin[rows])
    count = (change > 0).sum(axis=1)
    order = np.where(change > 0, change, np.inf).argsort(axis=1, kind="stable")
    place = order.argsort(axis=1, kind="stable")
    at, block = np.zeros(len(rows), dtype=np.int64), np.maximum(1, count // _BLOCKS)
    while (open_ := np.flatnonzero((at < count) & (walk.left(rows) > 0))).size:
        begin, end = at[open_], at[open_] + block[open_]
        back: Bools = (place[open_] >= begin[:, None]) & (place[open_] < end[:, None])
        picked = rows[open_]
        fooled = walk.tries(np.where(back, walk.origin[picked], walk.best[picked]), picked)
        stays = ~fooled & (block[open_] == 1)
        at[open_] = np.where(fooled, end, np.where(stays, begin + 1, begin))
        block[open_] = np.where(fooled, 2 * block[open_], np.maximum(1, block[open_] // 2))
