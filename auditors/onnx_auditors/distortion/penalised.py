"""Penalised gradient descent, for comparison with the literature (Carlini and Wagner 2017).

It minimises c ||r||^2 + loss(x + r), with the cross-entropy to the class aimed at as the loss, by
Adam (Kingma and Ba 2015) with projection onto the box instead of the authors' change of variables.
A search over c repeats it: c grows where an example was found, and falls where none was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onnx_auditors.distortion.search import Search

ROUNDS, LEAST_STEPS = 9, 25
"""Rounds of the search over c at most, and the steps that each should have."""
FIRST = 0.1
"""The first c, for a box of width 1."""
FACTOR = 10.0
"""Change of c while only one end of the bracket is known."""
RATE = 0.03
"""Adam's rate, as a share of the box's mean width."""
DECAY = (0.9, 0.999)
"""Adam's averages of the slope and of its square."""
TINY = 1e-12


def penalised(search: Search, rows: Tensor, rivals: Tensor, budget: float) -> None:
    """Looks for near adversarial points of some rows, in L2.

    Args:
        search: The search.
        rows: Probes, [m].
        rivals: Classes that each may be taken to, most promising first, [m, k]; the first is taken.
        budget: Evaluations that each row may have spent at the end.
    """
    available = int(search.left(rows, budget))
    rounds = max(1, min(ROUNDS, available // LEAST_STEPS))
    c = torch.full_like(search.origin[rows, 0], FIRST / search.width**2)
    low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
    for _ in range(rounds):
        found = _descend(search, rows, rivals[:, 0], c, available // rounds)
        low, high = torch.where(found, c, low), torch.where(found, high, c)
        c = torch.where(high.isinf(), FACTOR * low, (low * high).sqrt())
        c = torch.where(low == 0, high / FACTOR, c)


def _descend(search: Search, rows: Tensor, rival: Tensor, c: Tensor, steps: int) -> Tensor:
    """Runs Adam from the probes; returns which of them came to an example, bool [m]."""
    origin = search.origin[rows]
    x, mean, square = origin, torch.zeros_like(origin), torch.zeros_like(origin)
    found = torch.zeros_like(rows, dtype=torch.bool)
    for step in range(1, steps + 1):
        loss = search.cross_entropy(x, rows, rival, torch.ones_like(c))
        search.offer(x, rows, loss.excess < 0)
        found |= loss.excess < 0
        slope = loss.gradient + 2 * c[:, None] * (x - origin)
        mean = DECAY[0] * mean + (1 - DECAY[0]) * slope
        square = DECAY[1] * square + (1 - DECAY[1]) * slope.square()
        deviation = (square / (1 - DECAY[1] ** step)).sqrt() + TINY
        moved = RATE * search.width * mean / (1 - DECAY[0] ** step) / deviation
        x = search.clip(x - moved, rows)
    return found
