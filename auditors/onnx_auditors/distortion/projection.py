"""Nearest points: projections onto a half-space intersected with a box."""

from __future__ import annotations

import torch
from torch import Tensor

_NEWTON_STEPS = 30


def nearest_l2(normal: Tensor, needed: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Returns the shortest step d with <normal, d> <= -needed and lower <= d <= upper.

    By the conditions of Karush, Kuhn and Tucker d = clip(-lam normal, lower, upper) for the
    smallest lam >= 0 that meets the half-space. phi(lam) = <normal, d(lam)> is convex, piecewise
    linear and falling, so Newton's method from lam = 0 never oversteps and ends at the exact
    multiplier after at most as many steps as there are pieces; the last step returned is the
    farthest the box allows where the half-space is out of reach.

    Args:
        normal: Float [n, d].
        needed: Float [n]; rows with needed <= 0 get d = 0.
        lower: Lower end of the step, [n, d], nowhere positive.
        upper: Upper end of the step, [n, d], nowhere negative.

    Returns:
        Float [n, d].
    """
    squares = normal.square()
    lam = torch.zeros_like(needed)
    step = torch.zeros_like(normal)
    for _ in range(_NEWTON_STEPS):
        missing = (normal * step).sum(1) + needed
        # An entry is stuck only at the end that it moves towards; many begin at the other one.
        free = torch.where(normal > 0, step > lower, step < upper)
        slope = (squares * free).sum(1)
        increase = torch.where(
            (missing > 0) & (slope > 0), missing / slope.clamp_min(1e-30), torch.zeros_like(lam)
        )
        if not bool((increase > 1e-6 * lam).any()):
            break
        lam = lam + increase
        step = torch.clamp(-lam[:, None] * normal, lower, upper)
    return step
