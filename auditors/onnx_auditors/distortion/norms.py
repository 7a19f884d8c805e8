"""The norms of a change: its size, and the nearest point of a half-space inside the box.

The smallest step d with <normal, d> <= -needed and lower <= d <= upper moves each entry against the
sign of its normal, by an amount between 0 and the room that the box leaves on that side. With
w = |normal| that amount is min(lam w, room) in L2, min(lam, room) in Linf, for the smallest lam
that meets the half-space; in L1 the entries of the largest w are filled one after the other, in L0
those of the largest w * room (conditions of Karush, Kuhn and Tucker; the fractional knapsack).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_NEWTON_STEPS = 30
_CLOSE = 1e-6
_TINY = 1e-30
_FEW = 64
"""Least number of entries that are looked at before all are sorted."""
_BLOCK = 2**17
"""Entries of the rows that are projected together: their intermediate values stay in the cache."""

Nearest = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""From normal [n, d], needed [n], lower and upper [n, d] to the step [n, d]."""


@dataclass(frozen=True)
class Norm:
    """A norm.

    Attributes:
        name: "l2", "linf", "l1" or "l0".
        size: From changes [n, d] to their sizes, float64 [n]; L0 counts the entries that differ.
        nearest: The shortest step into a half-space within a box. Rows with needed <= 0 get no
            step; where the half-space is out of reach, the step goes as far as the box allows.
        sparse: Whether points must differ from the probe in few entries.
    """

    name: str
    size: Callable[[Tensor], Tensor]
    nearest: Nearest
    sparse: bool = False


def nearest_l2(normal: Tensor, needed: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Returns the shortest step in L2; see `Norm.nearest`.

    The reach <w, min(lam w, room)> is concave, piecewise linear and rising in lam, so Newton's
    method from below never oversteps and ends at the exact multiplier.
    """
    squares = normal.square()
    # Without the box's ends this were the multiplier, so it is not beyond the exact one.
    lam = (needed.clamp_min(0) / squares.sum(1).clamp_min(_TINY))[:, None]
    for _ in range(_NEWTON_STEPS):
        wish = -lam * normal
        step = torch.clamp(wish, lower, upper)
        missing = needed + _dot(normal, step)
        lam, moved = _newton(lam, missing, _dot(squares, (step == wish).to(squares)))
        if not moved:
            break
    return torch.clamp(-lam * normal, lower, upper)


def nearest_linf(normal: Tensor, needed: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Returns the shortest step in Linf; see `Norm.nearest`. The same Newton's method as in L2."""
    weight, direction = normal.abs(), -normal.sign()
    lam = (needed.clamp_min(0) / weight.sum(1).clamp_min(_TINY))[:, None]
    for _ in range(_NEWTON_STEPS):
        wish = lam * direction
        step = torch.clamp(wish, lower, upper)
        missing = needed + _dot(normal, step)
        lam, moved = _newton(lam, missing, _dot(weight, (step == wish).to(weight)))
        if not moved:
            break
    return torch.clamp(lam * direction, lower, upper)


def nearest_l1(normal: Tensor, needed: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Returns the shortest step in L1; see `Norm.nearest`. The last entry is filled in part."""
    weight, room = normal.abs(), _room(normal, lower, upper)
    order, gain, before = _by_rank(weight, weight * room, needed)
    share = ((needed[:, None] - before) / gain.clamp_min(_TINY)).clamp(0, 1)
    amount = torch.zeros_like(room).scatter_(1, order, share * room.gather(1, order))
    return amount * -normal.sign()


def nearest_l0(normal: Tensor, needed: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Returns a step of the fewest entries, each moved to the box's end; see `Norm.nearest`."""
    room = _room(normal, lower, upper)
    gain = normal.abs() * room
    order, _, before = _by_rank(gain, gain, needed)
    chosen = before < needed[:, None]
    amount = torch.zeros_like(room).scatter_(1, order, chosen * room.gather(1, order))
    return amount * -normal.sign()


def _by_rank(rank: Tensor, gain: Tensor, needed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the entries of the highest rank, in order, as many as some row needs.

    Few entries are enough as a rule, and finding those is much faster than sorting all.

    Args:
        rank: What entries are ordered by, [n, d].
        gain: What each entry adds to the reach, [n, d].
        needed: The reach that each row needs, [n].

    Returns:
        Places of the entries, int64 [n, k], their gains, and the sums of the gains before them.
    """
    width = rank.shape[1]
    few = max(_FEW, width // 16)
    if few < width:
        order = rank.topk(few, dim=1).indices
        sorted_gain = gain.gather(1, order)
        total = sorted_gain.cumsum(1)
        if bool((total[:, -1] >= needed).all()):
            return order, sorted_gain, total - sorted_gain
    order = rank.argsort(dim=1, descending=True, stable=True)
    sorted_gain = gain.gather(1, order)
    return order, sorted_gain, sorted_gain.cumsum(1) - sorted_gain


def _room(normal: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Returns how far each entry can go against its normal, [n, d], nowhere negative."""
    return torch.where(normal > 0, -lower, upper)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    # On the CPU this is about twice as fast as a batch of matrix products.
    return (a * b).sum(1)


def _newton(lam: Tensor, missing: Tensor, slope: Tensor) -> tuple[Tensor, bool]:
    """Returns the next multipliers [n, 1], and whether any of them still moves."""
    grows = (missing > 0) & (slope > 0)
    increase = torch.where(grows, missing / slope.clamp_min(_TINY), torch.zeros_like(missing))
    increase = increase[:, None]
    return lam + increase, bool((increase > _CLOSE * lam).any())


def _in_blocks(nearest: Nearest) -> Nearest:
    """Returns the same projection, made of a few rows at a time."""

    def blocked(normal: Tensor, needed: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        rows = max(1, _BLOCK // max(1, normal.shape[1]))
        if normal.device.type != "cpu" or rows >= len(normal):
            return nearest(normal, needed, lower, upper)
        parts = (torch.split(each, rows) for each in (normal, needed, lower, upper))
        return torch.cat([nearest(*part) for part in zip(*parts, strict=True)])

    return blocked


NORMS = {
    norm.name: norm
    for norm in (
        Norm("l2", lambda change: change.double().norm(dim=1), _in_blocks(nearest_l2)),
        Norm("linf", lambda change: change.abs().amax(1).double(), _in_blocks(nearest_linf)),
        Norm("l1", lambda change: change.double().abs().sum(1), _in_blocks(nearest_l1)),
        Norm(
            "l0", lambda change: (change != 0).sum(1).double(), _in_blocks(nearest_l0), sparse=True
        ),
    )
}
