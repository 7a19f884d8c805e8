"""The main engine: descents of many pairs of a probe and a rival class.

For a rival class k the margin is m(x) = z_y(x) - z_k(x). All rivals compete at first; the best few
go on (a beam). A second start is where the line to the nearest input that the network answers
otherwise crosses the boundary: it finds its way where the gradients around the probe vanish. What
is left of the budget goes to restarts from noise and to annealed descents; in L0, to thinned
descents and to fewer entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnx_auditors.distortion import descent, sparse, starts
from onnx_auditors.distortion.descent import LONG_WALK, SHORT_WALK, Pairs, Plan
from onnx_auditors.distortion.search import Search

# Lengths are shares of the box's mean width.
NOISE = 0.2
"""Standard deviation of the noise from which the beam starts."""
BEAM = ((9, 3), (3, 4), (2, 6), (1, 27))
"""Stages of the beam: rivals per probe, steps for each."""
THINNED_BEAMS = {"l1": (*BEAM[:-1], (1, 48)), "l0": ((9, 4), (4, 4), (2, 6), (1, 34))}
"""The same in L1 and L0, where the last is a thinned descent."""
ANCHOR_STEPS = 13
ANCHOR_COST = starts.ANCHOR_BISECTIONS / 2 + ANCHOR_STEPS
ANCHORED_BUDGET = 60
"""Least budget of which a second start may take its part where the first has found nothing."""
ANCHORED_BUDGETS = {"l2": 60, "linf": 200, "l1": 200, "l0": 200}
"""The same for all rows."""
ROUND = ((0.3, True), (1.0, True), (0.1, False), (0.3, True), (1.0, True), (0.2, False))
"""Noise of a round's restarts: a share of the best distance around the best point (True), or a
standard deviation around the probe (False)."""
ROUND_STAGES = ((6, 15), (2, 30))
LEAST_ROUND = 8
"""What a start alone needs, where a whole round costs too much."""
RIVALS = (0, 0, 1, 1, 0, 0, 2)
FAR = 0.3
"""Root mean square of a change beyond which the probe's surroundings are walked through."""
WALKS, WALK_NOISE, WALK_DESCENT = 8, 0.05, 13
"""Most long walks, the standard deviation of the noise from which they start, and the steps of the
descent that follows each."""
LEAST_ANNEAL = 40
"""Fewest steps that are worth an annealed descent."""


@dataclass(frozen=True)
class LeftOver:
    """How what is left after the beam is spent.

    Attributes:
        restarted: Share that goes to restarts, if it pays for a round; the rest is annealed.
        steps: About how many steps an annealed descent takes where the budget allows.
        plan: How it goes.
    """

    restarted: float
    steps: int
    plan: Plan


THINNED_SHARE, THINNED_STEPS = 1 / 2, 49
"""Share of what is left in L0 that goes to thinned descents, and the steps of one."""
LEFT_OVER = {
    "l2": LeftOver(1 / 3, 320, descent.ANNEALED),
    "linf": LeftOver(1 / 2, 160, descent.WIDELY_ANNEALED),
    "l1": LeftOver(1 / 2, 160, descent.WIDELY_ANNEALED),
}


def projected(search: Search, rows: Tensor, rivals: Tensor, budget: float) -> None:
    """Looks for near adversarial points of some rows.

    Args:
        search: The search.
        rows: Probes, [m].
        rivals: Classes that each may be taken to, most promising first, [m, k].
        budget: Evaluations that each row may have spent at the end.
    """
    anchors = search.anchors if budget >= ANCHORED_BUDGET else None
    always = anchors is not None and budget >= ANCHORED_BUDGETS[search.norm.name]
    rivals = _beam(search, rows, rivals, budget - ANCHOR_COST * always).clone()
    if anchors is not None:
        served = search.distance[rows].isinf() | always
        if bool(served.any()) and search.left(rows[served], budget) >= ANCHOR_COST:
            rivals[served] = _anchored(search, rows[served], rivals[served], anchors)
    lost = search.distance[rows].isinf()
    if bool(lost.any()) and search.left(rows[lost], budget) >= starts.RESCUE_COST:
        rivals[lost] = starts.rescue(search, rows[lost], rivals[lost])
    explored = _explore(search, rows, rivals, budget)
    for group in (explored, ~explored):
        # What some have spent is not taken from the others.
        if bool(group.any()):
            _spend(search, rows[group], rivals[group], budget)


def _anchored(
    search: Search, rows: Tensor, rivals: Tensor, anchors: tuple[Tensor, Tensor]
) -> Tensor:
    """Descends from the lines to other inputs; returns the rivals, first what is nearer there."""
    before = search.distance[rows]
    places, x, rival = starts.anchored(search, rows, *anchors)
    if not len(places):
        return rivals
    descent.descend(search, descent.start(search, rows[places], rival, x), ANCHOR_STEPS)
    nearer = (search.distance[rows] < before)[places]
    if search.targets is None and bool(nearer.any()):
        better = places[nearer]
        rivals[better] = starts.first(rivals[better], rival[nearer])
    return rivals


def _explore(search: Search, rows: Tensor, order: Tensor, budget: float) -> Tensor:
    """Walks to several classes where nothing near was found; returns for which rows, bool [m]."""
    explored = torch.zeros_like(rows, dtype=torch.bool)
    cost = LONG_WALK.steps + WALK_DESCENT + 1 / 2
    for turn in range(WALKS):
        far = _lost(search, rows)
        some = rows[far]
        if not len(some) or search.left(some, budget) < cost:
            break
        explored |= far
        x = search.origin.index_select(0, some)
        if turn:
            x = search.clip(search.noise(some).mul_(WALK_NOISE * search.width).add_(x), some)
        rival = order[far, turn % order.shape[1]]
        walked = descent.walk(search, some, rival, x, LONG_WALK)
        descent.descend(search, walked, WALK_DESCENT)
    return explored


def _spend(search: Search, rows: Tensor, rivals: Tensor, budget: float) -> None:
    """Spends what is left after the beam, as each norm does best."""
    if search.norm.sparse:
        left = search.left(rows, budget)
        _thinned(search, rows, rivals, budget - (1 - THINNED_SHARE) * left)
        sparse.thin(search, rows, rivals, budget)
        return
    rest, left = LEFT_OVER[search.norm.name], search.left(rows, budget)
    if left <= LEAST_ANNEAL:
        _restarts(search, rows, rivals, budget)
        return
    # Restarts come first, as they see what is far away.
    if left * rest.restarted >= _cost(ROUND_STAGES):
        _restarts(search, rows, rivals, budget - (1 - rest.restarted) * left)
    _anneals(search, rows, rivals, budget, rest)


def _beam(search: Search, rows: Tensor, rivals: Tensor, budget: float) -> Tensor:
    """Lets all rivals compete, then fewer; returns each row's rivals, most promising first."""
    available = max(1.0, search.left(rows, budget))
    beam, finish = THINNED_BEAMS.get(search.norm.name), descent.THINNED
    if beam is None:
        beam, finish = BEAM, descent.QUICK
    stages = beam if rivals.shape[1] > 1 else beam[-1:]
    share = min(1.0, available / sum(k * steps for k, steps in stages))
    count = min(stages[0][0], rivals.shape[1], max(1, int(available // 4)))
    scale = 0.0 if search.norm.sparse else NOISE * search.width
    start = search.noise(rows).mul_(scale).add_(search.origin.index_select(0, rows))
    one = descent.start(search, rows, rivals[:, 0], start)
    pairs = one.pick(torch.arange(len(rows), device=rows.device).repeat_interleave(count))
    pairs.rival = rivals[:, :count].reshape(-1)
    scaled = [(width, max(1, round(steps * share))) for width, steps in stages]
    best = _narrow(search, rows, pairs, scaled, budget, (descent.QUICK, finish), walks=True)
    order = rivals.clone()
    order[:, :count] = rivals[:, :count].gather(1, best)
    return order


def _narrow(
    search: Search,
    rows: Tensor,
    pairs: Pairs,
    stages: Sequence[tuple[int, int]],
    budget: float,
    plans: tuple[Plan, Plan],
    *,
    walks: bool = False,
) -> Tensor:
    """Runs stages of (pairs per row, steps), each with the nearest of the stage before.

    Args:
        search: The search.
        rows: Probes, [m].
        pairs: Equally many pairs for each of the rows, in their order.
        stages: Pairs per row, which fall, and steps of each stage.
        budget: Evaluations that each row may have spent at the end.
        plans: How the stages go, and the last one.
        walks: Whether the last stage walks away from the probe where nothing near was found.

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
        walking = walks and last and steps > 2 * SHORT_WALK.steps
        if walking and bool((lost := _lost(search, pairs.rows)).any()):
            some = pairs.rows[lost]
            _walk(search, some, pairs.rival[lost], steps, budget)
            pairs = pairs.pick(~lost)
        if len(pairs.rows):
            descent.descend(search, pairs, steps, plans[last], last=last)
    return ranks


def _walk(search: Search, rows: Tensor, rival: Tensor, steps: int, budget: float) -> None:
    """Walks away from the probes and descends; what finds nothing leaves enough for a rescue."""
    origin = search.origin.index_select(0, rows)
    walked = descent.walk(search, rows, rival, origin, SHORT_WALK)
    rest = steps - SHORT_WALK.steps
    # A descent ends with a look at its last point.
    spare = search.left(rows, budget) - max(ANCHOR_COST, starts.RESCUE_COST) - 1 / 2
    first = min(rest, max(0, int(spare)))
    descent.descend(search, walked, first)
    found = search.distance[rows].isfinite()
    if rest > first and bool(found.any()):
        descent.descend(search, walked.pick(found), rest - first)


def _lost(search: Search, rows: Tensor) -> Tensor:
    """Returns where linear forms have led nowhere, or so far away that others may be nearer."""
    far = descent.radius(search, rows) > FAR * search.width
    return search.distance[rows].isinf() | far


def _anneals(search: Search, rows: Tensor, order: Tensor, budget: float, rest: LeftOver) -> None:
    """Spends what is left on annealed descents from noise around the best point."""
    left = search.left(rows, budget)
    rounds = max(1, round(left / rest.steps))
    # Each ends with a look at its last point.
    steps = int(left / rounds - 1 / 2)
    for turn in range(rounds):
        start = search.best[rows] + descent.radius(search, rows)[:, None] * search.noise(rows)
        rival = order[:, RIVALS[turn % len(RIVALS)] % order.shape[1]]
        descent.descend(search, descent.start(search, rows, rival, start), steps, rest.plan)


def _cost(stages: Sequence[tuple[int, int]]) -> float:
    """Returns the evaluations of a round, with the look at the last points."""
    return sum(k * steps for k, steps in stages) + stages[-1][0] / 2


def _thinned(search: Search, rows: Tensor, order: Tensor, budget: float) -> None:
    """Spends a part on thinned descents, in turn from the probe and from the best point."""
    turn = 0
    while search.left(rows, budget) >= THINNED_STEPS + 1:
        going = search.distance[rows] > 1
        rows, order = rows[going], order[going]
        if not len(rows):
            return
        start = search.best[rows] if turn % 2 else search.origin[rows]
        rival = order[:, RIVALS[turn % len(RIVALS)] % order.shape[1]]
        pairs = descent.start(search, rows, rival, start)
        descent.descend(search, pairs, THINNED_STEPS, descent.THINNED)
        turn += 1


def _restarts(search: Search, rows: Tensor, order: Tensor, budget: float) -> None:
    """Spends what is left on restarts from noise, around the best point and around the probe.

    Around the best point noise finds the neighbouring pieces of the boundary; around the probe it
    finds other ways.
    """
    turn, cost = 0, _cost(ROUND_STAGES)
    while (left := search.left(rows, budget)) >= LEAST_ROUND:
        stages = ROUND_STAGES if left >= cost else ((1, int(left - 1 / 2)),)
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
        pairs = descent.start(search, flat, rivals, torch.stack(starts_, 1).flatten(0, 1))
        _narrow(search, rows, pairs, stages, budget, (descent.SLIGHTLY_ANNEALED,) * 2)
