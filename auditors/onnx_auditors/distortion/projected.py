"""The main engine: averaged linearised projection.

For a rival class k the margin is m(x) = z_y(x) - z_k(x). From the point x the margin is replaced by
its linear form, whose normal is averaged over the last steps, and x moves towards the point of
{linear margin <= -overshoot} inside the box that is nearest to the probe. The averaged normal keeps
the iteration from jumping between the linear pieces of a ReLU network.

All rivals compete at first; the best few go on (a beam). A second start is where the line to the
nearest input that the network answers otherwise crosses the boundary: it finds its way where the
gradients around the probe vanish. What is left of the budget restarts from noise around the best
point found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnx_auditors.distortion import sparse, starts
from onnx_auditors.distortion.cuts import Cuts
from onnx_auditors.distortion.search import Search

# Lengths are shares of the box's mean width.
LARGEST_AVERAGE = 0.8
"""Largest weight of the past in the average of normals; it grows as k / (k + 3)."""
OVERSHOOT = (1e-2, 3e-5)
"""How far past the linear boundary the first and the last step aim."""
BOOST = (1.5, 1.5)
"""Growth of the overshoot while a row is not across the boundary, and fall while it is."""
NOISE = 0.2
"""Standard deviation of the noise from which the beam starts."""
BEAM = ((9, 3), (3, 8), (1, 25))
"""Stages of the beam: rivals per probe, steps for each."""
ANCHOR_STEPS = 13
ANCHOR_COST = starts.ANCHOR_BISECTIONS / 2 + ANCHOR_STEPS
ANCHORED_BUDGET = 60
"""Least budget of which a second start may take its part."""
ROUND = ((0.3, True), (1.0, True), (0.1, False), (0.3, True), (1.0, True), (0.2, False))
"""Noise of a round's restarts: a share of the best distance around the best point (True), or a
standard deviation around the probe (False)."""
ROUND_STAGES = ((6, 10), (2, 20))
EDGE_STAGES = ((6, 30), (3, 40))
"""The same where several classes stand in the way at once: following edges takes longer."""
LEAST_ROUND = 8
"""What a start alone needs, where a whole round costs too much."""
RIVALS = (0, 0, 1, 1, 0, 0, 2)
WALK = (0.006, 1.25)
"""First step of a walk, times the square root of the dimension, and the growth of its steps."""
WALK_STEPS = 12
STEP = 0.5
"""Share of the way to the nearest point of the linear form that a step goes."""
TRUST = 0.05
"""Farthest that a linear form is believed, times the square root of the dimension."""
LEAST_SLOPE = 0.5
"""Least slope along the averaged normal, as a share of the gradient's length."""
TINY = 1e-12


def projected(search: Search, rows: Tensor, rivals: Tensor, budget: float) -> None:
    """Looks for near adversarial points of some rows.

    Args:
        search: The search.
        rows: Probes, [m].
        rivals: Classes that each may be taken to, most promising first, [m, k].
        budget: Evaluations that each row may have spent at the end.
    """
    anchors = search.anchors
    reserve = ANCHOR_COST if anchors is not None and budget >= ANCHORED_BUDGET else 0.0
    rivals = _beam(search, rows, rivals, budget - reserve).clone()
    if anchors is not None and reserve:
        places, x, rival = starts.anchored(search, rows, *anchors)
        if len(places):
            _descend(search, _start(search, rows[places], rival, x), ANCHOR_STEPS)
            if search.targets is None:
                rivals[places] = starts.first(rivals[places], rival)
    lost = search.distance[rows].isinf()
    if bool(lost.any()) and search.left(rows, budget) >= starts.RESCUE_COST:
        rivals[lost] = starts.rescue(search, rows[lost], rivals[lost])
    if search.norm.sparse:
        sparse.thin(search, rows, rivals, budget)
    else:
        _restarts(search, rows, rivals, budget)


@dataclass
class _Pairs:
    """Probes paired with rival classes, and where the iteration of each pair stands.

    Attributes:
        rows: Probe of each pair.
        rival: Class of each pair.
        x: Current point.
        normal: Average of the normalised gradients so far.
        estimate: Distance to the linearised boundary at the last step.
        boost: Factor of the overshoot.
        steps: Steps made.
    """

    rows: Tensor
    rival: Tensor
    x: Tensor
    normal: Tensor
    estimate: Tensor
    boost: Tensor
    reach: Tensor
    cuts: Cuts | None
    steps: int = 0

    def pick(self, chosen: Tensor) -> _Pairs:
        """Returns some of the pairs."""
        return _Pairs(
            self.rows[chosen],
            self.rival[chosen],
            self.x[chosen],
            self.normal[chosen],
            self.estimate[chosen],
            self.boost[chosen],
            self.reach[chosen],
            self.cuts and self.cuts.pick(chosen),
            self.steps,
        )


def _start(search: Search, rows: Tensor, rival: Tensor, x: Tensor) -> _Pairs:
    x = search.clip(x, rows)
    one = torch.ones_like(x[:, 0])
    cuts = Cuts(len(x), x) if _several(search) else None
    normal = torch.zeros_like(x)
    return _Pairs(rows, rival, x, normal, math.inf * one, one, search.width * one, cuts)


def _several(search: Search) -> bool:
    """Whether several classes may stand in the way at once."""
    return search.targets is not None and search.norm.name == "l2"


def _descend(search: Search, pairs: _Pairs, steps: int, last: bool = True) -> None:
    """Moves each pair towards the nearest point of its averaged linearised boundary."""
    rows = pairs.rows
    origin = search.origin[rows]
    lower, upper = search.lower[rows] - origin, search.upper[rows] - origin
    trust = TRUST * search.width * math.sqrt(origin.shape[1])
    for step in range(steps):
        at = search.margin(pairs.x, rows, pairs.rival)
        search.offer(pairs.x, rows, at.excess < 0)
        length = at.gradient.norm(dim=1).clamp_min(TINY)
        beta = min(pairs.steps / (pairs.steps + 3), LARGEST_AVERAGE)
        unit = at.gradient / length[:, None]
        if pairs.cuts is None:
            pairs.normal = beta * pairs.normal + (1 - beta) * unit
            normal = pairs.normal / pairs.normal.norm(dim=1, keepdim=True).clamp_min(TINY)
        else:
            slot, normal = pairs.cuts.renew(at.against, unit, beta)
        overshoot = OVERSHOOT[0] * (OVERSHOOT[1] / OVERSHOOT[0]) ** (step / max(steps - 1, 1))
        passed = (normal * (pairs.x - origin)).sum(1)
        slope = (at.gradient * normal).sum(1)
        away = at.value / torch.maximum(slope, LEAST_SLOPE * length)
        # Where the boundary bends away from its linear forms, aim ever farther until it is crossed.
        pairs.boost = torch.where(
            at.excess < 0, pairs.boost / BOOST[1], pairs.boost * BOOST[0]
        ).clamp_min(1.0)
        needed = away.clamp_max(trust) - passed
        beyond = overshoot * pairs.reach * pairs.boost
        if pairs.cuts is None:
            change = search.norm.nearest(normal, needed + beyond, lower, upper)
        else:
            pairs.cuts.needed.scatter_(1, slot[:, None], needed[:, None])
            change = pairs.cuts.nearest(beyond, lower, upper)
        pairs.reach = change.norm(dim=1).clamp(TINY, trust)
        pairs.estimate = search.norm.size(change).to(away) + (away - trust).clamp_min(0)
        whole = search.norm.sparse or (step == steps - 1 and last)
        aim = origin + change
        pairs.x = aim if whole else pairs.x + STEP * (aim - pairs.x)
        pairs.steps += 1
    if last:
        search.fooled(pairs.x, rows)


def _beam(search: Search, rows: Tensor, rivals: Tensor, budget: float) -> Tensor:
    """Lets all rivals compete, then fewer; returns each row's rivals, most promising first."""
    available = max(1.0, search.left(rows, budget))
    stages = BEAM if rivals.shape[1] > 1 else BEAM[-1:]
    share = min(1.0, available / sum(k * steps for k, steps in stages))
    count = min(stages[0][0], rivals.shape[1], max(1, int(available // 4)))
    flat = rows.repeat_interleave(count)
    noise = search.noise(rows).repeat_interleave(count, 0)
    scale = 0.0 if search.norm.sparse else NOISE * search.width
    start = search.origin[flat] + scale * noise
    pairs = _start(search, flat, rivals[:, :count].reshape(-1), start)
    scaled = [(width, max(1, int(steps * share))) for width, steps in stages]
    best = _narrow(search, rows, pairs, scaled, budget)
    order = rivals.clone()
    order[:, :count] = rivals[:, :count].gather(1, best)
    return order


def _narrow(
    search: Search,
    rows: Tensor,
    pairs: _Pairs,
    stages: Sequence[tuple[int, int]],
    budget: float,
) -> Tensor:
    """Runs stages of (pairs per row, steps), each with the nearest of the stage before.

    Args:
        search: The search.
        rows: Probes, [m].
        pairs: Equally many pairs for each of the rows, in their order.
        stages: Pairs per row, which fall, and steps of each stage.
        budget: Evaluations that each row may have spent at the end.

    Returns:
        The ranks of the pairs after the first stage that chooses, int64 [m, pairs per row].
    """
    count = len(pairs.rows) // len(rows)
    ranks = torch.arange(count, device=rows.device).expand(len(rows), count)
    chosen = False
    for i, (stage, most) in enumerate(stages):
        width = min(stage, count)
        if width < count:
            best = pairs.estimate.reshape(len(rows), count).argsort(dim=1, stable=True)
            if not chosen:
                ranks, chosen = best, True
            offsets = torch.arange(len(rows), device=rows.device)[:, None] * count
            pairs = pairs.pick((best[:, :width] + offsets).reshape(-1))
            count = width
        last = i == len(stages) - 1
        affordable = int((search.left(rows, budget) - 0.5 * last) // width)
        steps = min(most, affordable)
        lost = search.distance[pairs.rows].isinf()
        if last and steps > 2 * WALK_STEPS and bool(lost.any()):
            walked = _walk(search, pairs.pick(lost), WALK_STEPS)
            _descend(search, walked, steps - WALK_STEPS)
            pairs = pairs.pick(~lost)
        if len(pairs.rows):
            _descend(search, pairs, steps, last=last)
    return ranks


def _walk(search: Search, pairs: _Pairs, steps: int) -> _Pairs:
    """Goes down the margin from the probe in short steps, until it is crossed.

    Where linear forms are good nearby only, as on plateaus, their boundaries lead astray; short
    steps follow the margin where it bends.
    """
    rows, rival = pairs.rows, pairs.rival
    x = search.origin[rows]
    crossed = torch.zeros_like(rows, dtype=torch.bool)
    for step in range(steps):
        at = search.margin(x, rows, rival)
        search.offer(x, rows, at.excess < 0)
        crossed |= at.excess < 0
        if search.targets is None:
            rival = at.against
        unit = at.gradient / at.gradient.norm(dim=1, keepdim=True).clamp_min(TINY)
        length = WALK[0] * WALK[1] ** step * search.width * math.sqrt(x.shape[1])
        change = search.norm.nearest(
            unit, length * (~crossed).to(x), search.lower[rows] - x, search.upper[rows] - x
        )
        x = x + change
    return _start(search, rows, rival, x)


def _restarts(search: Search, rows: Tensor, order: Tensor, budget: float) -> None:
    """Spends what is left on restarts from noise, around the best point and around the probe.

    Around the best point noise finds the neighbouring pieces of the boundary; around the probe it
    finds other ways.
    """
    turn, whole = 0, EDGE_STAGES if _several(search) else ROUND_STAGES
    cost = sum(k * steps for k, steps in whole) + whole[-1][0] / 2
    while (left := search.left(rows, budget)) >= LEAST_ROUND:
        stages = whole if left >= cost else ((1, int(left - 1 / 2)),)
        width = stages[0][0]
        flat = rows.repeat_interleave(width)
        noise = torch.stack([search.noise(rows) for _ in range(width)], 1)
        size = (search.best[rows] - search.origin[rows]).norm(dim=1) / math.sqrt(noise.shape[2])
        starts_ = []
        rival = []
        for i, (scale, around_best) in enumerate(ROUND[:width]):
            if around_best:
                starts_.append(search.best[rows] + scale * size[:, None] * noise[:, i])
            else:
                starts_.append(search.origin[rows] + scale * search.width * noise[:, i])
            rival.append(order[:, RIVALS[(turn + i) % len(RIVALS)] % order.shape[1]])
        turn += width
        rivals = torch.stack(rival, 1).reshape(-1)
        pairs = _start(search, flat, rivals, torch.stack(starts_, 1).flatten(0, 1))
        _narrow(search, rows, pairs, stages, budget)
