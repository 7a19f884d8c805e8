"""The exact shortest change for one layer of ReLUs: which of them are active is searched.

With z = z0 + W d the answer changes where V relu(z) + v0 >= 0. A unit whose weights V are not
positive needs no decision, because relu is convex; the others are bounded from above by the line
between the ends of z's range (Ehlers 2017; Wong and Kolter 2018) until they are decided. L2 is
searched by branch and bound, Linf and L1 by mixed-integer linear programming (Tjeng, Xiao and
Tedrake 2019).
"""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, sparse

from onnx_auditors.distortion.polyhedra import Floats, Shortest, shortest_l2

GAP = 1e-6
"""Largest relative difference between the shortest change and the proved lower bound."""
_NODES = 20_000
_CUTS = 40
_INFEASIBLE = 2
_PUSHES = (0.0, 1e-7, 1e-6, 1e-5, 1e-4)
"""Shares by which HiGHS' optimum is lengthened until it meets the conditions in float64."""
_MEET = 1e-7
"""Largest violation of V relu(z) + v0 >= 0, as a share of its scale."""


@dataclass(frozen=True)
class Problem:
    """One probe and what its answer has to become.

    Attributes:
        inner: W, float64 [h, d]; h may be 0.
        start: z0, float64 [h].
        outer: V, float64 [q, h].
        direct: Weights of d itself in the condition, float64 [q, d]; 0 where there are ReLUs.
        offset: v0, float64 [q].
        lower: Lower end of d, float64 [d].
        upper: Upper end.
    """

    inner: Floats
    start: Floats
    outer: Floats
    direct: Floats
    offset: Floats
    lower: Floats
    upper: Floats

    def met(self, change: Floats) -> bool:
        """Returns whether a change meets all conditions, up to rounding."""
        active = np.maximum(self.start + self.inner @ change, 0)
        value = self.outer @ active + self.direct @ change + self.offset
        scale = np.abs(self.outer) @ active + np.abs(self.direct @ change) + np.abs(self.offset)
        return bool((value >= -_MEET * np.maximum(scale, 1e-12)).all())

    def ranges(self, norm: str, cutoff: float) -> tuple[Floats, Floats]:
        """Returns the ends of z over the box and the ball of radius `cutoff`, each [h]."""
        lower, upper = self.lower, self.upper
        ball = np.full(len(self.start), math.inf)
        if norm == "linf":
            lower, upper = np.maximum(lower, -cutoff), np.minimum(upper, cutoff)
        elif norm == "l2":
            ball = cutoff * np.linalg.norm(self.inner, axis=1)
        else:
            ball = cutoff * np.abs(self.inner).max(axis=1, initial=0)
        rise, fall = np.maximum(self.inner, 0), np.minimum(self.inner, 0)
        low = np.maximum(rise @ lower + fall @ upper, -ball)
        high = np.minimum(rise @ upper + fall @ lower, ball)
        return self.start + low, self.start + high


def shortest(problem: Problem, norm: str, cutoff: float) -> Shortest:
    """Returns the shortest change that meets the conditions and is no longer than `cutoff`."""
    if norm == "l2":
        return _branch_and_bound(problem, cutoff)
    return _integer_program(problem, norm, cutoff)


def _branch_and_bound(problem: Problem, cutoff: float) -> Shortest:
    """Searches over activation patterns, least bound first."""
    best, length, unsettled = None, cutoff, math.inf
    count = itertools.count()
    heap = [(0.0, next(count), np.zeros(len(problem.start), dtype=np.int8))]
    for _ in range(_NODES):
        if not heap or heap[0][0] >= length * (1 - GAP):
            break
        bound, _, signs = heapq.heappop(heap)
        low, high = problem.ranges("l2", length)
        signs = np.where(signs == 0, (low >= 0).astype(np.int8) - (high <= 0), signs)
        relaxed = _relaxed(problem, signs, low, high, length)
        if relaxed.change is None:
            continue
        bound = max(bound, relaxed.bound)
        z = problem.start + problem.inner @ relaxed.change
        for change in (relaxed.change, _within(problem, z > 0, length)):
            if change is not None and problem.met(change) and np.linalg.norm(change) < length:
                best, length = change, float(np.linalg.norm(change))
        # How much the bound of each undecided unit may overstate it.
        line = high * (z - low) / np.maximum(high - low, 1e-300)
        loose = np.maximum(problem.outer, 0).sum(0) * (line - np.maximum(z, 0)) * (signs == 0)
        if bound >= length * (1 - GAP) or problem.met(relaxed.change):
            continue
        if not loose.any():
            unsettled = min(unsettled, bound)
            continue
        for sign in (-1, 1):
            child = signs.copy()
            child[loose.argmax()] = sign
            heapq.heappush(heap, (bound, next(count), child))
    return Shortest(best, min([length * (1 - GAP), unsettled, *(node[0] for node in heap[:1])]))


def _relaxed(
    problem: Problem, signs: npt.NDArray[np.int8], low: Floats, high: Floats, cutoff: float
) -> Shortest:
    """Returns the shortest change of a node's convex relaxation, by cutting planes.

    The relaxed condition is concave and piecewise linear in d: each cut is its piece at the last
    change, and lies above it everywhere, so every bound on the way holds.
    """
    decided = np.flatnonzero(signs)
    side = signs[decided, None]
    # An active unit has z >= 0, an inactive one z <= 0.
    normals = [-side * problem.inner[decided]]
    offsets = [side[:, 0] * problem.start[decided]]
    slope = high / np.maximum(high - low, 1e-300)
    change, bound = np.zeros(len(problem.lower)), 0.0
    for _ in range(_CUTS):
        z = problem.start + problem.inner @ change
        undecided = np.where(problem.outer > 0, slope, z > 0)
        weight = problem.outer * np.where(signs == 0, undecided, signs > 0)
        lifted = np.where((signs == 0) & (problem.outer > 0), -slope * low, 0)
        normal = weight @ problem.inner + problem.direct
        offset = problem.offset + weight @ problem.start + (problem.outer * lifted).sum(1)
        missing = -(normal @ change + offset)
        if missing.max() <= _MEET / 10 * max(1e-12, float(np.abs(offset).max())):
            return Shortest(change, bound)
        normals.append(-normal)
        offsets.append(offset)
        found = shortest_l2(
            np.vstack(normals), np.concatenate(offsets), problem.lower, problem.upper, cutoff
        )
        if found.change is None:
            return found
        change, bound = found.change, max(bound, found.bound)
    return Shortest(change, bound)


def _within(problem: Problem, active: npt.NDArray[np.bool_], cutoff: float) -> Floats | None:
    """Returns the shortest change with a given pattern of active units, if there is one."""
    signs = np.where(active, 1, -1).astype(np.int8)
    unused = np.zeros(len(signs))
    return _relaxed(problem, signs, unused, unused, cutoff).change


def _integer_program(problem: Problem, norm: str, cutoff: float) -> Shortest:
    """Solves the program over rises and falls of d, its size, activations and their signs."""
    units, width = problem.inner.shape
    low, high = problem.ranges(norm, cutoff)
    eye, none, ones = sparse.eye_array(units), np.zeros((units, 1)), np.ones((1, width))
    wide = np.hstack([problem.inner, -problem.inner, none])
    rows, limits = [], []

    def add(values: object, most: Floats) -> None:
        rows.append(values)
        limits.append(most)

    direct = np.hstack([problem.direct, -problem.direct, np.zeros((len(problem.offset), 1))])
    zeros = np.zeros((len(problem.offset), units))
    add(np.hstack([-direct, -problem.outer, zeros]), problem.offset)
    # relu(z) <= a; a <= high s; a <= z - low (1 - s).
    add(sparse.hstack([wide, -eye, 0 * eye]), -problem.start)
    add(sparse.hstack([0 * wide, eye, sparse.diags_array(-high)]), np.zeros(units))
    add(sparse.hstack([-wide, eye, sparse.diags_array(-low)]), problem.start - low)
    tail = sparse.csr_array((width if norm == "linf" else 1, 2 * units))
    each = sparse.eye_array(width) if norm == "linf" else ones
    size = -np.ones((tail.shape[0], 1))
    add(sparse.hstack([each, each, size, tail]), np.zeros(tail.shape[0]))
    # Where no condition gains from a unit, only a >= relu(z) binds, and its sign is free.
    gains = (problem.outer > 0).any(0)
    high_a = np.where(gains, np.maximum(high, 0), np.inf)
    keep = np.concatenate([np.tile(gains, 2)])
    matrix = sparse.vstack([rows[0], rows[1], sparse.vstack(rows[2:4]).tocsr()[keep], rows[4]])
    most = np.concatenate([limits[0], limits[1], np.concatenate(limits[2:4])[keep], limits[4]])
    top = np.concatenate([problem.upper, -problem.lower, [cutoff], high_a, high >= 0])
    bottom = np.concatenate([np.zeros(2 * width + 1 + units), low >= 0])
    cost = np.zeros(len(top))
    cost[2 * width] = 1
    found = optimize.milp(
        cost,
        integrality=np.concatenate([np.zeros(2 * width + 1 + units), gains]),
        bounds=optimize.Bounds(bottom, np.maximum(top, bottom)),
        constraints=optimize.LinearConstraint(matrix.tocsr(), -np.inf, most),
        options={"mip_rel_gap": GAP},
    )
    if found.x is None:
        return Shortest(None, cutoff if found.status == _INFEASIBLE else 0.0)
    bound = found.mip_dual_bound if gains.any() else found.fun
    change = found.x[:width] - found.x[width : 2 * width]
    for push in _PUSHES:
        pushed = np.clip((1 + push) * change, problem.lower, problem.upper)
        if problem.met(pushed):
            return Shortest(pushed, float(bound))
    return Shortest(None, float(bound))
