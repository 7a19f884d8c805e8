"""Minimal adversarial distortion in L2 by averaged linearised projection.

For a rival class k the margin is m(x) = z_y(x) - z_k(x). From the point x the margin is replaced by
its linear form, whose normal is averaged over the last steps, and x moves towards the point of
{linear margin <= -overshoot} inside the box that is nearest to the probe. The averaged normal keeps
the iteration from jumping between the linear pieces of a ReLU network.

All rivals compete at first; the best few go on (a beam). A second start is where the line to the
nearest input that the network answers otherwise crosses the boundary: it finds its way where the
gradients around the probe vanish. What is left of the budget restarts from noise around the best
point found. A bisection towards the probe ends on the boundary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnx_auditors.distortion.projection import nearest_l2

Logits = Callable[[Tensor], Tensor]
"""From a batch in probe space [n, ...] to logits [n, classes]."""

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
ANCHOR_BISECTIONS = 8
ANCHOR_STEPS = 13
ANCHOR_COST = ANCHOR_BISECTIONS / 2 + ANCHOR_STEPS
ANCHORED_BUDGET = 60
"""Least budget of which a second start may take its part."""
RESTART_RIVALS = 4
RESTART_STEPS = 25
BISECTIONS = 16
RESTARTS = ((0.1, True), (0.05, False), (0.3, True), (0.02, False))
"""Noise of the restarts in turn: a share of the best distance around the best point (True), or a
standard deviation around the probe (False)."""
STEP = 0.5
"""Share of the way to the nearest point of the linear form that a step goes."""
TRUST = 0.05
"""Farthest that a linear form is believed, times the square root of the dimension."""
LEAST_SLOPE = 0.5
"""Least slope along the averaged normal, as a share of the gradient's length."""
RESCUE_DRAWS = 4
RESCUE_COST = (4 + RESCUE_DRAWS + 1 + 2 * BISECTIONS) / 2
TINY = 1e-12
_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class Result:
    """Examples and their sizes.

    Attributes:
        examples: Float32 [n, ...]; the input itself where there is no example.
        distance: Float64 [n], L2 in probe space; inf where none was found, 0 where the network
            errs on the input itself.
        evaluations: Int64 [n], (forward + backward rows) / 2 spent, rounded up.
    """

    examples: Tensor
    distance: Tensor
    evaluations: Tensor


class _Search:
    """The state of a search over a batch: probes, best examples, what was spent.

    Everything is flat: rows of d values.
    """

    def __init__(
        self,
        logits: Logits,
        inputs: Tensor,
        labels: Tensor,
        box: tuple[Tensor, Tensor],
        seeds: Sequence[int],
        tell: Callable[[float], object],
    ) -> None:
        self.shape = inputs.shape[1:]
        self.origin = inputs.flatten(1)
        self.labels = labels
        self.lower = (box[0].expand_as(inputs)).flatten(1)
        self.upper = (box[1].expand_as(inputs)).flatten(1)
        self.width = float((box[1] - box[0]).mean())
        self.best = self.origin.clone()
        self.distance = torch.full(
            (len(inputs),), math.inf, dtype=torch.float64, device=inputs.device
        )
        self.spent = torch.zeros(len(inputs), dtype=torch.float64, device=inputs.device)
        self._logits = logits
        self._tell = tell
        self._generators = [np.random.Generator(np.random.Philox(seed)) for seed in seeds]

    def scores(self, x: Tensor, rows: Tensor) -> Tensor:
        """Returns logits without gradients; costs half an evaluation a row."""
        self.charge(rows, 0.5)
        with torch.no_grad():
            return torch.cat(
                [self._logits(b.reshape(-1, *self.shape)) for b in torch.split(x, _BLOCK_ROWS)]
            )

    def margin(self, x: Tensor, rows: Tensor, rival: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns margin to the rival, its gradient, and the margin to the nearest class."""
        self.charge(rows, 1.0)
        self._tell(float(self.spent.max()))
        parts = []
        blocks = zip(torch.split(x, _BLOCK_ROWS), torch.split(self.labels[rows], _BLOCK_ROWS),
                     torch.split(rival, _BLOCK_ROWS), strict=True)  # fmt: skip
        for block, label, other in blocks:
            leaf = block.detach().requires_grad_()
            scores = self._logits(leaf.reshape(-1, *self.shape))
            right = scores.gather(1, label[:, None]).squeeze(1)
            margin = right - scores.gather(1, other[:, None]).squeeze(1)
            (gradient,) = torch.autograd.grad(margin.sum(), leaf)
            others = scores.detach().scatter(1, label[:, None], -math.inf)
            parts.append((margin.detach(), gradient, right.detach() - others.amax(1)))
        margins, gradients, nearest = (torch.cat(column) for column in zip(*parts, strict=True))
        return margins, gradients, nearest

    def charge(self, rows: Tensor, cost: float) -> None:
        """Books the cost of one row for each entry of `rows`."""
        self.spent.index_add_(
            0, rows, torch.full(rows.shape, cost, dtype=torch.float64, device=rows.device)
        )

    def left(self, rows: Tensor, budget: int) -> float:
        """Returns how many evaluations every row can still afford."""
        return budget - float(self.spent[rows].max())

    def noise(self, rows: Tensor) -> Tensor:
        """Returns standard Gaussian noise; each probe's own, whatever else is in the batch."""
        width = self.origin.shape[1]
        drawn = [
            self._generators[row].standard_normal(width, dtype=np.float32) for row in rows.tolist()
        ]
        return torch.from_numpy(np.stack(drawn)).to(self.origin)

    def offer(self, x: Tensor, rows: Tensor, adversarial: Tensor) -> None:
        """Takes those adversarial points that are nearer than the best so far."""
        x, rows = x[adversarial], rows[adversarial]
        distance = (x - self.origin[rows]).double().norm(dim=1)
        # Of several points for one probe the nearest counts: later entries overwrite earlier ones.
        order = distance.argsort(descending=True, stable=True)
        for_row = torch.full_like(self.distance, math.inf)
        for_row.scatter_reduce_(0, rows, distance, "amin")
        chosen = order[
            (distance[order] == for_row[rows[order]]) & (distance < self.distance[rows])[order]
        ]
        self.distance[rows[chosen]] = distance[chosen]
        self.best[rows[chosen]] = x[chosen]


def minimal(
    network: Logits,
    inputs: Tensor,
    labels: Tensor,
    *,
    norm: str = "l2",
    budget: int = 500,
    box: tuple[float | Tensor, float | Tensor] = (0.0, 1.0),
    seed: int | Sequence[int] = 0,
    anchors: tuple[Tensor, Tensor] | None = None,
    progress: Callable[[float], object] = lambda _: None,
) -> Result:
    """Finds small changes of inputs that change the network's answer.

    Args:
        network: From probe space [n, ...] to logits [n, classes >= 2], differentiable.
        inputs: Float32 [n, ...] inside the box.
        labels: Int64 [n], the classes that count as right.
        norm: "l2".
        budget: Gradient evaluations per input, (forward + backward rows) / 2, at least 2.
        box: Lower and upper end, numbers or tensors that broadcast to an input.
        seed: Seed of the noise; or one for each input, which then do not depend on each other.
        anchors: Points of the box [m, ...] and the network's answers to them, int64 [m], as
            further starts where the budget is 60 or more; none if not given.
        progress: Told from time to time which share of the budget is spent.

    Returns:
        The examples; each is inside the box and misclassified by the network.

    Raises:
        ValueError: A norm that is not offered, or a budget below 2.
    """
    if norm != "l2":
        raise ValueError(f"norm is {norm!r}; available: 'l2'")
    if budget < 2:  # noqa: PLR2004 - one look at the input and one gradient
        raise ValueError(f"budget is {budget}; at least 2 evaluations are needed")
    lower, upper = (torch.as_tensor(end, dtype=inputs.dtype, device=inputs.device) for end in box)
    seeds = [seed + i for i in range(len(inputs))] if isinstance(seed, int) else seed
    search = _Search(
        network, inputs, labels, (lower, upper), seeds, lambda spent: progress(spent / budget)
    )
    everything = torch.arange(len(inputs), device=inputs.device)
    clean = search.scores(search.origin, everything)
    right = clean.argmax(1) == labels
    search.distance[~right] = 0.0
    rows = everything[right]
    if len(rows):
        reserve = ANCHOR_COST if anchors is not None and budget >= ANCHORED_BUDGET else 0.0
        rivals = _beam(search, rows, clean, budget, reserve)
        if anchors is not None and reserve:
            rivals = _anchor(search, rows, rivals, anchors[0].flatten(1), anchors[1])
        lost = search.distance[rows].isinf()
        if bool(lost.any()) and search.left(rows, budget) >= RESCUE_COST:
            rivals[lost] = _rescue(search, rows[lost], rivals[lost])
        _restarts(search, rows, rivals, budget)
        _bisect(search, rows, min(BISECTIONS, int(2 * search.left(rows, budget))))
    return Result(
        search.best.reshape(-1, *search.shape), search.distance, search.spent.ceil().long()
    )


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
            self.steps,
        )


def _start(search: _Search, rows: Tensor, rival: Tensor, x: Tensor) -> _Pairs:
    x = torch.clamp(x, search.lower[rows], search.upper[rows])
    one = torch.ones_like(x[:, 0])
    return _Pairs(rows, rival, x, torch.zeros_like(x), math.inf * one, one)


def _descend(search: _Search, pairs: _Pairs, steps: int) -> None:
    """Moves each pair towards the nearest point of its averaged linearised boundary."""
    rows = pairs.rows
    origin = search.origin[rows]
    lower, upper = search.lower[rows] - origin, search.upper[rows] - origin
    trust = TRUST * search.width * math.sqrt(origin.shape[1])
    for step in range(steps):
        margin, gradient, nearest = search.margin(pairs.x, rows, pairs.rival)
        search.offer(pairs.x, rows, nearest < 0)
        length = gradient.norm(dim=1).clamp_min(TINY)
        beta = min(pairs.steps / (pairs.steps + 3), LARGEST_AVERAGE)
        pairs.normal = beta * pairs.normal + (1 - beta) * gradient / length[:, None]
        normal = pairs.normal / pairs.normal.norm(dim=1, keepdim=True).clamp_min(TINY)
        overshoot = OVERSHOOT[0] * (OVERSHOOT[1] / OVERSHOOT[0]) ** (step / max(steps - 1, 1))
        passed = (normal * (pairs.x - origin)).sum(1)
        slope = (gradient * normal).sum(1)
        away = margin / torch.maximum(slope, LEAST_SLOPE * length)
        # Where the boundary bends away from its linear forms, aim ever farther until it is crossed.
        pairs.boost = torch.where(
            nearest < 0, pairs.boost / BOOST[1], pairs.boost * BOOST[0]
        ).clamp_min(1.0)
        missing = away.clamp_max(trust) + overshoot * search.width * pairs.boost
        change = nearest_l2(normal, missing - passed, lower, upper)
        pairs.estimate = change.norm(dim=1) + (away - trust).clamp_min(0)
        pairs.x = pairs.x + STEP * (origin + change - pairs.x)
        pairs.steps += 1


def _beam(search: _Search, rows: Tensor, clean: Tensor, budget: int, reserve: float) -> Tensor:
    """Lets all rivals compete, then fewer; returns each row's rivals, most promising first.

    Leaves `reserve` evaluations of the budget besides those of the last bisection.
    """
    rivals = _ranking(search, rows, clean)
    available = max(1.0, search.left(rows, budget) - BISECTIONS / 2 - reserve)
    share = min(1.0, available / sum(k * steps for k, steps in BEAM))
    count = min(BEAM[0][0], rivals.shape[1], max(1, int(available // 4)))
    flat = rows.repeat_interleave(count)
    start = search.origin[flat] + NOISE * search.width * search.noise(rows).repeat_interleave(
        count, 0
    )
    pairs = _start(search, flat, rivals[:, :count].reshape(-1), start)
    order = rivals
    for stage, steps in BEAM:
        width = min(stage, count)
        if width < count:
            estimates = pairs.estimate.reshape(len(rows), count)
            best = estimates.argsort(dim=1, stable=True)
            if order is rivals:
                order = rivals[:, :count].gather(1, best)
            offsets = torch.arange(len(rows), device=best.device)[:, None] * count
            pairs = pairs.pick((best[:, :width] + offsets).reshape(-1))
            count = width
        affordable = int(search.left(rows, budget) // width)
        _descend(search, pairs, min(max(1, int(steps * share)), affordable))
    return order


def _anchor(
    search: _Search, rows: Tensor, order: Tensor, points: Tensor, answers: Tensor
) -> Tensor:
    """Starts from where the line to each row's nearest other answer crosses the boundary.

    Returns the rows' rivals, the class found there first.
    """
    apart = torch.cdist(search.origin[rows], points)
    apart[answers[None, :] == search.labels[rows][:, None]] = math.inf
    gap, nearest = apart.min(dim=1)
    found = gap.isfinite()
    rows, target = rows[found], points[nearest[found]]
    if not len(rows):
        return order
    x, rival = _cross(search, rows, target, answers[nearest[found]])
    _descend(search, _start(search, rows, rival, x), ANCHOR_STEPS)
    order = order.clone()
    order[found] = _first(order[found], rival)
    return order


def _cross(search: _Search, rows: Tensor, target: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
    """Bisects from each row's probe to a point answered otherwise; returns where and as what."""
    origin = search.origin[rows]
    low, high = torch.zeros(len(rows), 1).to(origin), torch.ones(len(rows), 1).to(origin)
    x = target
    for _ in range(ANCHOR_BISECTIONS):
        middle = (low + high) / 2
        tried = origin + middle * (target - origin)
        answers = search.scores(tried, rows).argmax(1)
        fooled = answers != search.labels[rows]
        search.offer(tried, rows, fooled)
        x, answer = torch.where(fooled[:, None], tried, x), torch.where(fooled, answers, answer)
        high = torch.where(fooled[:, None], middle, high)
        low = torch.where(fooled[:, None], low, middle)
    return x, answer


def _first(order: Tensor, chosen: Tensor) -> Tensor:
    """Puts one class of each row first; the one that was there takes its place."""
    moved = torch.where(order == chosen[:, None], order[:, :1], order)
    moved[:, 0] = chosen
    return moved


def _rescue(search: _Search, rows: Tensor, order: Tensor) -> Tensor:
    """Looks far away where gradients vanish: at the box's ends, the negative, and at noise.

    What is found is brought to the boundary; its class is put first among the row's rivals.
    """
    origin, lower, upper = search.origin[rows], search.lower[rows], search.upper[rows]
    width = upper - lower
    random = [
        torch.clamp(lower + width * (0.5 + 0.5 * search.noise(rows)), lower, upper)
        for _ in range(RESCUE_DRAWS)
    ]
    for start in [lower, upper, lower + width / 2, lower + upper - origin, *random]:
        answers = search.scores(start, rows).argmax(1)
        search.offer(start, rows, answers != search.labels[rows])
    _bisect(search, rows, BISECTIONS)
    found = search.scores(search.best[rows], rows).argmax(1)
    return _first(order, torch.where(found == search.labels[rows], order[:, 0], found))


def _ranking(search: _Search, rows: Tensor, clean: Tensor) -> Tensor:
    """Returns the other classes of each row by falling logit, [rows, classes - 1]."""
    others = clean[rows].scatter(1, search.labels[rows][:, None], -math.inf)
    return others.argsort(dim=1, descending=True, stable=True)[:, :-1]


def _restarts(search: _Search, rows: Tensor, order: Tensor, budget: int) -> None:
    """Spends what is left on restarts from noise, around the best point and around the probe.

    Around the best point noise finds the neighbouring pieces of the boundary; little noise around
    the probe finds a way where the larger noise of the beam has led into flat regions.
    """
    for scale, around_best in itertools.cycle(RESTARTS):
        left = search.left(rows, budget) - BISECTIONS / 2
        width = min(RESTART_RIVALS, order.shape[1], int(left // RESTART_STEPS))
        if width < 1:
            return
        flat = rows.repeat_interleave(width)
        noise = torch.stack([search.noise(rows) for _ in range(width)], 1).flatten(0, 1)
        if around_best:
            size = scale * search.distance[flat].nan_to_num(posinf=0.0).to(noise)
            start = search.best[flat] + size[:, None] / math.sqrt(noise.shape[1]) * noise
        else:
            start = search.origin[flat] + scale * search.width * noise
        _descend(search, _start(search, flat, order[:, :width].reshape(-1), start), RESTART_STEPS)


def _bisect(search: _Search, rows: Tensor, steps: int) -> None:
    """Moves the best points along the line to the probe until they lie on the boundary."""
    rows = rows[search.distance[rows].isfinite()]
    if not len(rows):
        return
    origin, best = search.origin[rows], search.best[rows]
    low, high = torch.zeros(len(rows), 1).to(origin), torch.ones(len(rows), 1).to(origin)
    for _ in range(steps):
        middle = (low + high) / 2
        x = torch.clamp(origin + middle * (best - origin), search.lower[rows], search.upper[rows])
        fooled = search.scores(x, rows).argmax(1) != search.labels[rows]
        search.offer(x, rows, fooled)
        high, low = (
            torch.where(fooled[:, None], middle, high),
            torch.where(fooled[:, None], low, middle),
        )
