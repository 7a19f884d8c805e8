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
_CLOSE = 1e-2
"""Last relative change of a multiplier: Newton's method leaves about its square as the error."""
_TINY = 1e-30
_FEW, _MORE = 32, 4
"""Number of entries that L1 and L0 look at first, and its growth where they are not enough."""
_GROUP = 8
"""Entries of which the largest is looked for first."""
_BLOCK = 2**18
"""Entries of the rows that are projected together: their intermediate values stay in the cache."""

Nearest = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""From normal [n, d], needed [n], lower and upper [n, d] to the step [n, d]."""


@dataclass(frozen=True)
class Norm:
    """A norm.

    Attributes:
        name: "l2", "linf", "l1" or "l0".
        size: From changes [n, d] to their sizes, float64 [n], as exact as the changes' type; L0
            counts the entries that differ.
        nearest: The shortest step into a half-space within a box. Rows with needed <= 0 get no
            step; where the half-space is out of reach, the step goes as far as the box allows.
        sparse: Whether points must differ from the probe in few entries.
    """

    name: str
    size: Callable[[Tensor], Tensor]
    nearest: Nearest
    sparse: bool = False


def nearest_l2(normal: Tensor, needed: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Returns the shortest step in L2; see `Norm.nearest`."""
    return _along(normal, normal, needed, lower, upper)


def nearest_linf(normal: Tensor, needed: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Returns the shortest step in Linf; see `Norm.nearest`."""
    return _along(normal.sign(), normal, needed, lower, upper)


def nearest_l1(normal: Tensor, needed: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Returns the shortest step in L1; see `Norm.nearest`. The last entry is filled in part."""
    return _filled(normal.abs(), (normal, needed, lower, upper), _FEW, whole=False)


def nearest_l0(normal: Tensor, needed: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Returns a step of the fewest entries, each moved to the box's end; see `Norm.nearest`."""
    gain = gains(normal, lower, upper)
    return _filled(gain, (normal, needed, lower, upper), _FEW, whole=True)


def gains(normal: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Returns what each entry adds to the reach where it is moved to the box's end, [n, d]."""
    least = normal * lower
    return torch.minimum(least, normal * upper, out=least).neg_()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Returns the products of rows, [n]."""
    # On the CPU this is several times as fast as a batch of matrix products.
    return (a * b).sum(1)


def ends(normal: Tensor, lower: Tensor, upper: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what entries in places [n, k] gain at their box's ends, and the ends, [n, k]."""
    normal, lower, upper = (each.gather(1, order) for each in (normal, lower, upper))
    end = torch.where(normal > 0, lower, upper) * (normal != 0)
    return -normal * end, end


def highest(rank: Tensor, count: int) -> Tensor:
    """Returns the places of each row's largest entries, largest first, int64 [n, count].

    So many entries lie in as many groups, those with the largest maxima.
    """
    width = rank.shape[1] // _GROUP
    if rank.shape[1] % _GROUP or count > width // 2:
        return rank.topk(count, dim=1).indices
    maxima = rank.reshape(-1, _GROUP, width).amax(1)
    group = maxima.topk(count, dim=1, sorted=False).indices
    first = torch.arange(0, rank.shape[1], width, device=rank.device)
    places = (group[:, None] + first[:, None]).flatten(1)
    best = rank.gather(1, places).topk(count, dim=1).indices
    return places.gather(1, best)


def _along(
    direction: Tensor, normal: Tensor, needed: Tensor, lower: Tensor, upper: Tensor
) -> Tensor:
    """Returns the step -lam * direction, cut off at the box, for the smallest lam that is enough.

    The reach is concave, piecewise linear and rising in lam, so Newton's method from below never
    oversteps, and its last stretch is as good as exact.
    """
    rate = normal * direction
    # Without the box's ends this were the multiplier, so it is not beyond the exact one.
    lam = needed.clamp_min(0) / rate.sum(1).clamp_min(_TINY)
    lam = _newton(lam, (direction, rate, normal, needed, lower, upper))
    return (-lam[:, None] * direction).clamp_(lower, upper)


def _newton(lam: Tensor, values: tuple[Tensor, ...], most: int = _NEWTON_STEPS) -> Tensor:
    """Returns the multipliers [n] that Newton's method comes to from others, in so many steps."""
    direction, rate, normal, needed, lower, upper = values
    wish = -lam[:, None] * direction
    step = torch.clamp(wish, lower, upper)
    slope = wish.eq_(step).mul_(rate).sum(1)
    missing = needed + step.mul_(normal).sum(1)
    # Nothing more is to be had where no entry is free.
    increase = (missing / slope).nan_to_num(0.0, 0.0, 0.0).clamp_min_(0)
    found = lam + increase
    moves = increase > _CLOSE * lam
    moving = moves.nonzero().squeeze(1)
    if len(moving) and most > 1:
        if len(moving) > len(lam) // 2:
            # What becomes of a row must not depend on the others.
            return torch.where(moves, _newton(found, values, most - 1), found)
        few = tuple(value.index_select(0, moving) for value in values)
        found[moving] = _newton(found[moving], few, most - 1)
    return found


def _filled(rank: Tensor, half_spaces: tuple[Tensor, ...], count: int, *, whole: bool) -> Tensor:
    """Returns the step that moves entries to the box's ends, the highest in rank first.

    Few entries are enough as a rule, and finding those is much faster than sorting all.

    Args:
        rank: What entries are ordered by, [n, d].
        half_spaces: Normals, needed, lower and upper ends; see `Norm.nearest`.
        count: Number of entries that are looked at first.
        whole: Whether the last entry is moved all the way too.
    """
    count = min(count, rank.shape[1])
    order = highest(rank, count)
    normal, needed, lower, upper = half_spaces
    gain, end = ends(normal, lower, upper, order)
    reach = gain.cumsum(1)
    missing = needed[:, None] - (reach - gain)
    share = (missing > 0).to(end) if whole else (missing / gain.clamp_min(_TINY)).clamp(0, 1)
    step = torch.zeros_like(rank).scatter_(1, order, share * end)
    if count < rank.shape[1]:
        short = (reach[:, -1] < needed).nonzero().squeeze(1)
        if len(short):
            rest = tuple(each[short] for each in half_spaces)
            step[short] = _filled(rank[short], rest, _MORE * count, whole=whole)
    return step


def rows_together(values: Tensor) -> int:
    """Returns the number of rows like those of values [n, d] that are best worked on together."""
    width = max(1, values.shape[1])
    return max(1, _BLOCK // width if values.device.type == "cpu" else len(values))


def _in_blocks(nearest: Nearest) -> Nearest:
    """Returns the same projection, made of a few rows at a time."""

    def blocked(normal: Tensor, needed: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        rows = rows_together(normal)
        if rows >= len(normal):
            return nearest(normal, needed, lower, upper)
        parts = (torch.split(each, rows) for each in (normal, needed, lower, upper))
        return torch.cat([nearest(*part) for part in zip(*parts, strict=True)])

    return blocked


NORMS = {
    norm.name: norm
    for norm in (
        Norm("l2", lambda change: change.norm(dim=1).double(), _in_blocks(nearest_l2)),
        Norm("linf", lambda change: change.abs().amax(1).double(), _in_blocks(nearest_linf)),
        Norm("l1", lambda change: change.abs().sum(1).double(), _in_blocks(nearest_l1)),
        # Comparisons take several times as long as signs.
        Norm(
            "l0", lambda change: change.sign().abs_().sum(1).double(), _in_blocks(nearest_l0), True
        ),
    )
}
