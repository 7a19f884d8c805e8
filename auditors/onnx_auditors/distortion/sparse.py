"""L0: from a point with k changed entries to one with fewer.

At a fixed number of entries the averaged normal of the margin ranks them by what they gain when
moved to the end of their box, and the best k - 1 are moved (iterative hard thresholding, Blumensath
and Davies 2009, with the average of the main engine). Each try starts without one of the entries of
the best point, which stays out, and with the gains blurred, so that tries differ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onnx_auditors.distortion.norms import ends, gains, highest
from onnx_auditors.distortion.search import Search

TRIES = 4
"""Tries per probe that run side by side."""
STEPS = 8
LEAST_STEPS = 5
"""Steps of a try, and the fewest that are worth one."""
BLURS = (0.1, 0.3, 1.0)
"""Standard deviations of the logarithm of the blur, in turn."""
LARGEST_AVERAGE = 0.8
_TINY = 1e-12
_FAR = 1e3
"""More than any difference of Gaussian noise."""


def thin(search: Search, rows: Tensor, order: Tensor, budget: float) -> None:
    """Looks for points with fewer changed entries until the budget is spent.

    Args:
        search: The search; rows without an example, or with one changed entry, are left alone.
        rows: Probes, [m].
        order: Classes that each may be taken to, most promising first, [m, k].
        budget: Evaluations that each row may have spent at the end.
    """
    turn = 0
    while True:
        going = search.distance[rows].isfinite() & (search.distance[rows] > 1)
        rows, order = rows[going], order[going]
        if not len(rows):
            return
        # Those with about equally many entries are worked on together.
        alike = search.distance[rows].argsort(stable=True)
        rows, order = rows[alike], order[alike]
        # Half an evaluation says what class the best points are of.
        steps = min(STEPS, int((search.left(rows, budget) - 0.5) / TRIES))
        if steps < LEAST_STEPS:
            return
        found = search.scores(search.best[rows], rows).argmax(1)
        # Half of the tries keep the class of the best point, the others take the likeliest ones.
        columns = [
            found if i % 2 == 0 or search.targets is not None else order[:, i // 2 % order.shape[1]]
            for i in range(TRIES)
        ]
        rival = torch.stack(columns, 1).reshape(-1)
        first = _shifted(search.noise(rows)), _shifted(search.noise(rows))
        each = rows.repeat_interleave(TRIES)
        for part in search.parts(len(each)):
            lot, blurred = (noise[part] for noise in first)
            factor = (BLURS[turn % len(BLURS)] * blurred).exp_()
            _tries(search, each[part], rival[part], steps, lot, factor)
        turn += 1


def _shifted(noise: Tensor) -> Tensor:
    """Returns the noise of each probe's tries, [m * tries, d]: shifts make it differ."""
    by = noise.shape[1] // TRIES
    return torch.stack([noise.roll(-i * by, 1) for i in range(TRIES)], 1).flatten(0, 1)


def _tries(
    search: Search, rows: Tensor, rival: Tensor, steps: int, lot: Tensor, factor: Tensor
) -> None:
    """Tries to do with an entry less.

    Args:
        search: The search.
        rows: Probes, [m].
        rival: Class that each is taken to, [m].
        steps: Steps of a try.
        lot: What decides which entry stays out, [m, d].
        factor: How much each entry's gain counts, [m, d].
    """
    origin, best = (each.index_select(0, rows) for each in (search.origin, search.best))
    lower, upper = search.room(rows)
    allowed = (search.distance[rows] - 1).long()
    most = int(allowed.max())
    rank = torch.arange(most, device=rows.device)
    change = best - origin
    # One of the changed entries, whose signs are not 0.
    out = lot.add(change.sign().abs_(), alpha=_FAR).argmax(1, keepdim=True)
    factor, change = factor.scatter(1, out, 0.0), change.scatter(1, out, 0.0)
    normal = torch.zeros_like(change)
    for step in range(steps):
        x = origin + change
        at = search.margin(x, rows, rival)
        search.offer(x, rows, at.excess < 0, change)
        unit = at.gradient / at.gradient.norm(dim=1, keepdim=True).clamp_min(_TINY)
        normal.lerp_(unit, 1 - min(step / (step + 3), LARGEST_AVERAGE))
        chosen = highest(gains(normal, lower, upper).mul_(factor), most)
        moved = (rank < allowed[:, None]) & (factor.gather(1, chosen) > 0)
        end = ends(normal, lower, upper, chosen)[1] * moved
        change = torch.zeros_like(change).scatter_(1, chosen, end)
