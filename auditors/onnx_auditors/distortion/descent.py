"""A descent of the main engine: averaged linearised projection of pairs of a probe and a rival.

From the point x the margin is replaced by its linear form, whose normal is averaged over the last
steps, and x moves towards the point of {linear margin <= -overshoot} inside the box that is nearest
to the probe. The averaged normal keeps the iteration from jumping between the linear pieces of a
ReLU network. An annealed descent asks the network at points with noise around x, which fades: it
follows the boundary of the smoothed margin (Duchi, Bartlett and Wainwright 2012, "Randomized
smoothing for stochastic optimization"), which has fewer local minima, until that is the margin's.
A thinned descent asks where some entries are the probe's again, by lot: what an entry is worth then
depends less on which others have changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist

import torch
from torch import Tensor

from onnx_auditors.distortion.cuts import Cuts
from onnx_auditors.distortion.norms import dot
from onnx_auditors.distortion.search import Margin, Search

# Lengths are shares of the box's mean width.
UNKNOWN = 0.05
"""What counts as the best change's root mean square where there is none."""
BOOST = (1.5, 1.5)
"""Growth of the overshoot while a row is not across the boundary, and fall while it is."""
FIRST_STEP = 0.006
"""First step of a walk, times the square root of the dimension."""
TRUST = 0.05
"""Farthest that a linear form is believed, times the square root of the dimension."""
LEAST_SLOPE = 0.5
"""Least slope along the averaged normal, as a share of the gradient's length."""
TINY = 1e-12
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Plan:
    """How a descent goes, from its first step to the last.

    Attributes:
        overshoot: How far past the linear boundary to aim, a share of the last change.
        step: Share of the way to the nearest point of the linear form that a step goes.
        average: Largest weight of the past in the average of normals; it grows as k / (k + 3).
        blur: Standard deviation of the noise around the point at which the network is asked, a
            share of the best change's root mean square; 0 without.
        drop: Share of the entries that are the probe's where the network is asked; 0 without.
        sharp: Share of the descent after which there is no more of either.
    """

    overshoot: tuple[float, float]
    step: tuple[float, float] = (0.5, 0.5)
    average: tuple[float, float] = (0.8, 0.8)
    blur: tuple[float, float] = (0.0, 0.0)
    drop: tuple[float, float] = (0.0, 0.0)
    sharp: float = 0.85


QUICK = Plan(overshoot=(1e-2, 3e-5))
SLIGHTLY_ANNEALED = replace(QUICK, blur=(0.25, 0.03))
ANNEALED = Plan(overshoot=(3e-3, 3e-5), step=(0.5, 0.2), average=(0.8, 0.9), blur=(4.0, 0.2))
WIDELY_ANNEALED = replace(ANNEALED, blur=(8.0, 0.2))
THINNED = Plan(overshoot=(1e-2, 3e-5), drop=(0.8, 0.05), sharp=0.8)


@dataclass
class Pairs:
    """Probes paired with rival classes, and where the iteration of each pair stands.

    Attributes:
        rows: Probe of each pair.
        rival: Class of each pair.
        change: From the probe to the current point.
        normal: Average of the normalised gradients so far.
        estimate: Distance to the linearised boundary at the last step.
        boost: Factor of the overshoot.
        reach: Length of the last change in L2.
        cuts: Half-spaces of several classes; None where one class stands in the way.
        steps: Steps made.
    """

    rows: Tensor
    rival: Tensor
    change: Tensor
    normal: Tensor
    estimate: Tensor
    boost: Tensor
    reach: Tensor
    cuts: Cuts | None
    steps: int = 0

    def pick(self, chosen: Tensor) -> Pairs:
        """Returns some of the pairs, chosen by place or by a mask."""
        places = chosen.nonzero().squeeze(1) if chosen.dtype == torch.bool else chosen
        return self._each(lambda value: value.index_select(0, places))

    def part(self, rows: slice) -> Pairs:
        """Returns some of the pairs as views: where those are moved, these are."""
        return self._each(lambda value: value[rows])

    def _each(self, taken: Callable[[Tensor], Tensor]) -> Pairs:
        return Pairs(
            taken(self.rows),
            taken(self.rival),
            taken(self.change),
            taken(self.normal),
            taken(self.estimate),
            taken(self.boost),
            taken(self.reach),
            self.cuts and self.cuts.each(taken),
            self.steps,
        )


def start(search: Search, rows: Tensor, rival: Tensor, x: Tensor) -> Pairs:
    """Returns pairs of probes [m] and rivals [m] that stand at points [m, d]."""
    change = search.clip(x, rows).sub_(search.origin.index_select(0, rows))
    one = torch.ones_like(x[:, 0])
    cuts = Cuts(len(x), x) if several(search) else None
    normal = torch.zeros_like(x)
    return Pairs(rows, rival, change, normal, math.inf * one, one, search.width * one, cuts)


def several(search: Search) -> bool:
    """Whether several classes may stand in the way at once."""
    return search.targets is not None and search.norm.name == "l2"


def descend(
    search: Search, pairs: Pairs, steps: int, plan: Plan = QUICK, last: bool = True
) -> None:
    """Moves each pair towards the nearest point of its averaged linearised boundary.

    Args:
        search: The search.
        pairs: The pairs; they are moved.
        steps: Number of steps, an evaluation each.
        plan: How it goes.
        last: Whether no other descent follows: it ends with a whole step, and a look at its end.
    """
    rows = pairs.rows
    noise = search.noise(rows) if plan.blur[0] or plan.drop[0] else None
    if noise is not None and plan.blur[0]:
        noise *= radius(search, rows)[:, None]
    for part in search.parts(len(rows)):
        drawn = None if noise is None else noise[part]
        _descend(search, pairs.part(part), steps, plan, drawn, last=last)
    pairs.steps += steps


def _descend(
    search: Search, pairs: Pairs, steps: int, plan: Plan, noise: Tensor | None, *, last: bool
) -> None:
    """The same for some of the pairs, and the noise that the plan asks for, [m, d]."""
    rows = pairs.rows
    origin, room = search.origin.index_select(0, rows), search.room(rows)
    for step in range(steps):
        share, end = step / max(steps - 1, 1), step == steps - 1
        here = seen = pairs.change
        if noise is not None and share < plan.sharp:
            drawn = _shifted(noise, step)
            here, seen = _hidden(plan, share / plan.sharp, pairs.change, drawn, room)
        x = origin + seen
        at = search.margin(x, rows, pairs.rival)
        search.offer(x, rows, at.excess < 0, seen)
        overshoot, average = _between(plan.overshoot, share), _between(plan.average, share)
        aim, away = _aim(search, pairs, here, at, room, overshoot, average)
        if end:
            pairs.estimate.copy_(search.norm.size(aim) + away)
        whole = search.norm.sparse or (end and last)
        pairs.change.lerp_(aim, 1.0 if whole else _between(plan.step, share))
        pairs.steps += 1
    if last:
        search.fooled(origin + pairs.change, rows)


def _hidden(
    plan: Plan, past: float, change: Tensor, drawn: Tensor, room: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns the change that the margin seen counts for, and the one to ask the network at.

    Args:
        plan: What hides the point.
        past: Share of the hidden steps that is past.
        change: Where the pairs are, [m, d].
        drawn: Noise, [m, d]; it is overwritten.
        room: Least and largest change.
    """
    if plan.drop[0]:
        # On average over what is dropped.
        return change, change * drawn.ge_(NormalDist().inv_cdf(_between(plan.drop, past)))
    noisy = torch.clamp(change.add(drawn, alpha=_between(plan.blur, past)), *room)
    return noisy, noisy


def _aim(
    search: Search,
    pairs: Pairs,
    here: Tensor,
    at: Margin,
    room: tuple[Tensor, Tensor],
    overshoot: float,
    average: float,
) -> tuple[Tensor, Tensor]:
    """Returns the changes that lead to the nearest points of the linear forms.

    Args:
        search: The search.
        pairs: The pairs; their averages and what is known of their distance are brought up to date.
        here: Change at which the margin was taken, [m, d].
        at: The margin.
        room: Least and largest change, [m, d].
        overshoot: How far beyond the boundary to aim, a share of the last change.
        average: Largest weight of the past.

    Returns:
        The changes [m, d], and how far the boundaries lie beyond what is trusted [m].
    """
    trust = TRUST * search.width * math.sqrt(here.shape[1])
    length = at.gradient.norm(dim=1).clamp_min(TINY)
    beta = min(pairs.steps / (pairs.steps + 3), average)
    if pairs.cuts is None:
        weight = (1 - beta) / length
        normal = pairs.normal.mul_(beta).addcmul_(at.gradient, weight[:, None])
    else:
        slot, normal = pairs.cuts.renew(at.against, at.gradient / length[:, None], beta)
    size = normal.norm(dim=1).clamp_min(TINY)
    away = at.value / torch.maximum(dot(at.gradient, normal) / size, LEAST_SLOPE * length)
    # Where the boundary bends away from its linear forms, aim ever farther until it is crossed.
    boost = torch.where(at.excess < 0, pairs.boost / BOOST[1], pairs.boost * BOOST[0])
    pairs.boost.copy_(boost.clamp_min(1.0))
    needed = away.clamp_max(trust) - dot(normal, here) / size
    beyond = overshoot * pairs.reach * pairs.boost
    if pairs.cuts is None:
        aim = search.norm.nearest(normal, (needed + beyond) * size, *room)
    else:
        pairs.cuts.needed.scatter_(1, slot[:, None], needed[:, None])
        aim = pairs.cuts.nearest(beyond, *room)
    pairs.reach.copy_(aim.norm(dim=1).clamp(TINY, trust))
    return aim, (away - trust).clamp_min(0)


def _between(ends: tuple[float, float], share: float) -> float:
    """Goes from the first to the last value in equal ratios."""
    return ends[0] * (ends[1] / ends[0]) ** share if ends[0] else 0.0


def radius(search: Search, rows: Tensor) -> Tensor:
    """Returns the root mean square of the best change, [m]; of `UNKNOWN` where there is none."""
    root = math.sqrt(search.origin.shape[1])
    best, origin = (each.index_select(0, rows) for each in (search.best, search.origin))
    size = (best - origin).norm(dim=1) / root
    return torch.where(size > 0, size, UNKNOWN * search.width)


def _shifted(noise: Tensor, step: int) -> Tensor:
    """Returns the noise of a step: white noise is not correlated with its shifts."""
    width = noise.shape[1]
    return noise.roll(step * round(_GOLDEN * width) % width, 1)


@dataclass(frozen=True)
class Walk:
    """How a walk goes.

    Attributes:
        steps: Number of steps.
        growth: Growth of their lengths.
    """

    steps: int
    growth: float


SHORT_WALK, LONG_WALK = Walk(12, 1.25), Walk(24, 1.1)


def walk(search: Search, rows: Tensor, rival: Tensor, x: Tensor, way: Walk) -> Pairs:
    """Goes down the margin in short steps, until it is crossed.

    Where linear forms are good nearby only, as on plateaus, their boundaries lead astray; short
    steps follow the margin where it bends.

    Args:
        search: The search.
        rows: Probes, [m].
        rival: Classes to go to, [m]; without targets the strongest one on the way takes over.
        x: Points of the box to start from, [m, d].
        way: How it goes.
    """
    lower, upper = search.box(rows)
    crossed = torch.zeros_like(rows, dtype=torch.bool)
    for step in range(way.steps):
        at = search.margin(x, rows, rival)
        search.offer(x, rows, at.excess < 0)
        crossed |= at.excess < 0
        if search.targets is None:
            rival = at.against
        unit = at.gradient / at.gradient.norm(dim=1, keepdim=True).clamp_min(TINY)
        length = FIRST_STEP * way.growth**step * search.width * math.sqrt(x.shape[1])
        needed = length * (~crossed).to(x)
        x = x + search.norm.nearest(unit, needed, lower - x, upper - x)
    return start(search, rows, rival, x)
