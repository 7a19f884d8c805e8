"""L0: from a point with k changed entries to one with fewer.

At a fixed number of entries the averaged normal of the margin ranks them by what they gain when
moved to the end of their box, and the best k - 1 are moved (iterative hard thresholding, Blumensath
and Davies 2009, with the average of the main engine). Each try starts without one of the entries of
the best point, which stays out, and with the gains blurred, so that tries differ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onnx_auditors.distortion.search import Search

TRIES = 4
"""Tries per probe that run side by side."""
STEPS = 8
LEAST_STEPS = 5
"""Steps of a try, and the fewest that are worth one."""
BLURS = (0.1, 0.3)
"""Standard deviations of the logarithm of the blur, in turn."""
LARGEST_AVERAGE = 0.8
_TINY = 1e-12


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
        _tries(search, rows.repeat_interleave(TRIES), rival, steps, BLURS[turn % len(BLURS)])
        turn += 1


def _tries(search: Search, rows: Tensor, rival: Tensor, steps: int, blur: float) -> None:
    origin, x = search.origin[rows], search.best[rows]
    lower, upper = search.room(rows)
    allowed = (search.distance[rows] - 1).long()
    first = search.noise(rows), search.noise(rows)
    each = torch.arange(len(rows), device=rows.device)
    # Rows of one probe draw the same noise: shifting it makes their tries differ.
    shift = (each[:, None] % TRIES) * (origin.shape[1] // TRIES)
    places = (torch.arange(origin.shape[1], device=rows.device)[None, :] + shift) % origin.shape[1]
    lot, blurred = (noise.gather(1, places) for noise in first)
    out = lot.masked_fill(x == origin, -torch.inf).argmax(1, keepdim=True)
    factor = (blur * blurred).exp().scatter(1, out, 0.0)
    x = x.scatter(1, out, origin.gather(1, out))
    normal = torch.zeros_like(x)
    for step in range(steps):
        at = search.margin(x, rows, rival)
        search.offer(x, rows, at.excess < 0)
        unit = at.gradient / at.gradient.norm(dim=1, keepdim=True).clamp_min(_TINY)
        beta = min(step / (step + 3), LARGEST_AVERAGE)
        normal = beta * normal + (1 - beta) * unit
        room = torch.where(normal > 0, -lower, upper)
        gain, chosen = (normal.abs() * room * factor).topk(int(allowed.max()), dim=1)
        rank = torch.arange(gain.shape[1], device=rows.device)
        amount = room.gather(1, chosen) * ((rank < allowed[:, None]) & (gain > 0))
        change = torch.zeros_like(x).scatter(1, chosen, amount) * -normal.sign()
        x = origin + change
