"""Adversarial examples that an image file can hold: whole levels, as small as the model allows.

Where the boundary is flat, the change of whole levels that is smallest in L2 and reaches it is the
boundary's normal times a number, rounded to the nearest level: an entry goes from k to k + 1
levels where that gains more than 2k + 1 times a multiplier (Lagrange). The change of a small
example points along the normal, so its multiples are tried. In Linf only the largest entries cost
anything, in L1 and L0 the last entries are filled in part: rounding away from the input takes
them up.
"""

from __future__ import annotations

import numpy as np

from onnx_auditors.distortion.boundary import Bools, Doubles, Floats, Ints, Walk

_THRESHOLDS = (0.5, 0.25, 0.02)
"""Parts of a level from which an entry is rounded away from the input."""
_SCALES = (1.0, 1.02, 1.05, 1.1, 1.2, 1.4, 1.8, 2.6, 4.0, 8.0, 32.0, 256.0)
_BISECTIONS = 4
_BELOW = 0.9
_SLACK = 1e-3


def round_examples(walk: Walk, examples: Floats, levels: float) -> None:
    """Looks for the smallest adversarial change of whole levels; the walk's best points hold it.

    For each threshold, multiples of the change are tried until one fools, then smaller ones by
    bisection. The second and third threshold only ask for points nearer than the best so far.

    Args:
        walk: The inputs, the answers and the norm.
        examples: Adversarial points, float32 [n, d].
        levels: Levels per unit: an entry that changes becomes a whole number over `levels`.
    """
    for threshold in _THRESHOLDS:
        rows = np.arange(len(examples))
        low, high = np.full(len(rows), _BELOW), np.full(len(rows), np.inf)
        for scale in _SCALES:
            tried = np.full(len(rows), scale)
            points = _on_levels(walk, rows, examples[rows], tried, levels, threshold)
            fooled, hopeless = _ask(walk, rows, points)
            low[rows[~fooled]] = scale
            high[rows[fooled]] = scale
            rows = rows[~fooled & ~hopeless]
            if not len(rows):
                break
        rows = np.flatnonzero(np.isfinite(high))
        for _ in range(_BISECTIONS):
            middle = (low[rows] + high[rows]) / 2
            points = _on_levels(walk, rows, examples[rows], middle, levels, threshold)
            fooled, far = _ask(walk, rows, points)
            too_much = fooled | far
            high[rows[too_much]], low[rows[~too_much]] = middle[too_much], middle[~too_much]


def _ask(walk: Walk, rows: Ints, points: Floats) -> tuple[Bools, Bools]:
    """Asks for the points that would be nearer than the best; says which fool, which are not."""
    far = walk.change_size(points, rows) >= walk.distance[rows]
    fooled = np.zeros(len(rows), dtype=bool)
    fooled[~far] = walk.tries(points[~far], rows[~far])
    return fooled, far


def _on_levels(
    walk: Walk, rows: Ints, examples: Floats, scale: Doubles, levels: float, threshold: float
) -> Floats:
    """Returns inputs plus scaled changes on whole levels inside the box, float32 [m, d].

    A value is the float32 quotient of two float32 numbers, as an image's values are when it is
    read. Entries that do not change stay as the input has them.
    """
    origin = walk.origin[rows].astype(np.float64)
    change = (examples - origin) * levels
    amount = np.minimum(scale[:, None] * np.abs(change), levels * (walk.upper - walk.lower)[rows])
    inside = np.rint(origin * levels)
    offset = (origin * levels - inside) * np.sign(change)  # 0 where the input is on a level
    steps = np.floor(amount + offset + 1 - threshold)
    moved = inside + np.sign(change) * steps
    lowest = np.ceil(walk.lower[rows].astype(np.float64) * levels - _SLACK)
    highest = np.floor(walk.upper[rows].astype(np.float64) * levels + _SLACK)
    values = np.clip(moved, lowest, highest).astype(np.float32) / np.float32(levels)
    values = walk.clip(values, rows)
    kept: Floats = np.where(change == 0, walk.origin[rows], values)
    return kept
