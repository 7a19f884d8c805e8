"""Ways to a first adversarial point that need no gradient, and the last stretch to the boundary."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onnx_auditors.distortion.search import Search

ANCHOR_BISECTIONS = 8
CROSSING = 6
"""Forward passes that bring a point to the boundary."""
FAR_CROSSING = 16
"""The same from far away."""
LEAST_PASSES = 3
CLEAR = 1e-5
"""How far beyond the boundary to end, a share of the probe's margin."""
NEAR_END = 1e-3
"""Least share of the stretch left that is cut off at once."""
RESCUE_DRAWS = 4
RESCUE_COST = (4 + RESCUE_DRAWS + 1 + FAR_CROSSING + CROSSING) / 2


def ranking(search: Search, rows: Tensor, clean: Tensor) -> Tensor:
    """Returns the classes that each row may be taken to, most promising first, [m, k].

    Args:
        search: The search.
        rows: Probes, [m].
        clean: Logits of the probes, [m, classes].
    """
    if search.targets is not None:
        return search.targets[rows][:, None]
    others = clean.scatter(1, search.labels[rows][:, None], -math.inf)
    return others.argsort(dim=1, descending=True, stable=True)[:, :-1]


def first(order: Tensor, chosen: Tensor) -> Tensor:
    """Puts one class of each row first; the one that was there takes its place."""
    moved = torch.where(order == chosen[:, None], order[:, :1], order)
    moved[:, 0] = chosen
    return moved


def anchored(
    search: Search, rows: Tensor, points: Tensor, answers: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Walks from each row to the nearest point that is answered otherwise, up to the boundary.

    Args:
        search: The search.
        rows: Probes, [m].
        points: Points of the box, [p, d].
        answers: The network's answers to them, int64 [p].

    Returns:
        The places in `rows` that have such a point [k], where the line crosses [k, d], and the
        class found there [k].
    """
    apart = torch.cdist(search.origin[rows], points)
    if search.targets is None:
        useless = answers[None, :] == search.labels[rows][:, None]
    else:
        useless = answers[None, :] != search.targets[rows][:, None]
    gap, nearest = apart.masked_fill(useless, math.inf).min(dim=1)
    places = gap.isfinite().nonzero().squeeze(1)
    far = nearest[places]
    x, answer = bisect(search, rows[places], points[far], answers[far], ANCHOR_BISECTIONS)
    return places, x, answer


def rescue(search: Search, rows: Tensor, order: Tensor) -> Tensor:
    """Looks far away where gradients vanish: at the box's ends, the negative, and at noise.

    What is found is brought to the boundary; its class is put first among the row's rivals.
    """
    origin = search.origin[rows]
    lower, upper = (end.expand_as(origin) for end in search.box(rows))
    width = upper - lower
    random = [
        search.clip(lower + width * (0.5 + 0.5 * search.noise(rows)), rows)
        for _ in range(RESCUE_DRAWS)
    ]
    for start in [lower, upper, lower + width / 2, lower + upper - origin, *random]:
        search.fooled(start, rows)
    to_boundary(search, rows, FAR_CROSSING)
    found = search.scores(search.best[rows], rows).argmax(1)
    if search.targets is not None:
        return order
    return first(order, torch.where(found == search.labels[rows], order[:, 0], found))


def to_boundary(search: Search, rows: Tensor, passes: int) -> None:
    """Moves the best points along the line to the probe until they lie on the boundary.

    The margin's zero is taken from its values at both ends; an end that stays twice has its value
    halved (the Illinois variant of regula falsi, Dowell and Jarratt 1971).

    Args:
        search: The search.
        rows: Probes, [m].
        passes: Forward passes that each may cost; nothing is done with fewer than 3.
    """
    rows = rows[search.distance[rows].isfinite()]
    if not len(rows) or passes < LEAST_PASSES:
        return
    origin, far = search.origin[rows], search.best[rows]
    low, high = torch.zeros_like(far[:, 0]), torch.ones_like(far[:, 0])
    clean = search.excess(search.scores(origin, rows), rows)
    # Another runtime's rounding must not undo the example.
    aim = CLEAR * clean
    above, below = clean + aim, search.excess(search.scores(far, rows), rows) + aim
    stayed = torch.zeros_like(low)
    for _ in range(passes - 2):
        share = (above / (above - below)).nan_to_num(1 / 2).clamp(NEAR_END, 1 - NEAR_END)
        middle = low + share * (high - low)
        x = search.clip(origin + middle[:, None] * (far - origin), rows)
        value = search.excess(search.scores(x, rows), rows) + aim
        fooled = value < 0
        search.offer(x, rows, fooled)
        above = torch.where(fooled, torch.where(stayed < 0, above / 2, above), value)
        below = torch.where(fooled, value, torch.where(stayed > 0, below / 2, below))
        low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
        stayed = torch.where(fooled, -torch.ones_like(low), torch.ones_like(low))


def bisect(
    search: Search, rows: Tensor, far: Tensor, answer: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Bisects from each row's probe to an adversarial point [m, d]; offers what it finds.

    Returns:
        The nearest adversarial point, and its class; `answer` where none was nearer than `far`.
    """
    origin = search.origin[rows]
    low, high = torch.zeros(len(rows), 1).to(origin), torch.ones(len(rows), 1).to(origin)
    x = far
    for _ in range(steps):
        middle = (low + high) / 2
        tried = search.clip(origin + middle * (far - origin), rows)
        scores = search.scores(tried, rows)
        fooled = search.excess(scores, rows) < 0
        search.offer(tried, rows, fooled)
        answer = torch.where(fooled, scores.argmax(1), answer)
        x = torch.where(fooled[:, None], tried, x)
        high = torch.where(fooled[:, None], middle, high)
        low = torch.where(fooled[:, None], low, middle)
    return x, answer
