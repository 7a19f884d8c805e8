"""The shortest change in L2 into a polyhedron inside a box, with a proof of how short it can be."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize

Floats = npt.NDArray[np.float64]

TOLERANCE = 1e-9
"""Largest violation of a half-space of unit normal, as a share of the box's widest side, and
largest gap of the squared length."""
_STEPS = 200
_RIDGE = 1e-12
_HALVINGS = 60


class Shortest(NamedTuple):
    """A change [d] and a lower bound of the length of every change in the polyhedron.

    The change is None where the polyhedron holds none that is as short as the cutoff. Whoever uses
    a change checks it; the bound holds in any case.
    """

    change: Floats | None
    bound: float


def shortest_l2(
    normals: Floats, offsets: Floats, lower: Floats, upper: Floats, cutoff: float = math.inf
) -> Shortest:
    """Returns the shortest change d in L2 with normals d <= offsets and lower <= d <= upper.

    The dual of this strictly convex program has one multiplier per half-space and no more, and is
    concave and piecewise quadratic; each step solves the quadratic piece under nonnegativity
    (Lawson and Hanson 1974, NNLS), then searches the line. Every dual value is a lower bound.

    Args:
        normals: Float64 [m, d].
        offsets: Float64 [m].
        lower: Float64 [d], at most 0 and finite.
        upper: Float64 [d], at least 0 and finite.
        cutoff: Length from which on changes are of no interest.
    """
    length = np.linalg.norm(normals, axis=1)
    length[length == 0] = 1.0
    a, c = normals / length[:, None], offsets / length
    # No change in the box is longer, so a dual value beyond it proves that there is none.
    far = min(cutoff, float(np.linalg.norm(np.maximum(-lower, upper))) * (1 + 1e-9) + 1e-300)
    slack = TOLERANCE * float((upper - lower).max())
    least = np.maximum(a, 0) @ lower + np.minimum(a, 0) @ upper
    if (least > c + slack).any():
        return Shortest(None, math.inf)
    mu, change, bound = np.zeros(len(c)), np.zeros(a.shape[1]), 0.0
    for _ in range(_STEPS):
        wish = -mu @ a
        change = np.clip(wish, lower, upper)
        slope = a @ change - c
        half_square = 0.5 * float(change @ change)
        dual = half_square + float(mu @ slope)
        bound = max(bound, math.sqrt(max(0.0, 2 * dual)))
        if bound > far:
            return Shortest(None, bound if bound > cutoff else math.inf)
        if slope.max(initial=0) <= slack and half_square - dual <= TOLERANCE * half_square:
            return Shortest(change, bound)
        step = _piece(a[:, (wish > lower) & (wish < upper)], slope, mu) - mu
        mu = mu + _length(a, c, lower, upper, mu, step) * step
    return Shortest(change, bound)


def _piece(a: Floats, slope: Floats, mu: Floats) -> Floats:
    """Returns the maximiser of the dual's quadratic piece over mu >= 0; `a` of free entries."""
    curvature = a @ a.T
    curvature += (_RIDGE * np.trace(curvature) + 1e-14) * np.eye(len(mu))
    root = np.linalg.cholesky(curvature)
    best: Floats = optimize.nnls(root.T, np.linalg.solve(root, slope + curvature @ mu))[0]
    return best


def _length(a: Floats, c: Floats, lower: Floats, upper: Floats, mu: Floats, step: Floats) -> float:
    """Returns the share of a step that maximises the concave dual along it, at most 1."""

    def rises(share: float) -> bool:
        change = np.clip(-(mu + share * step) @ a, lower, upper)
        return bool(step @ (a @ change - c) >= 0)

    low, high = 0.0, 1.0
    if rises(high):
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rises(middle) else (low, middle)
    return (low + high) / 2
