"""The paper's method: box-constrained L-BFGS and a search over c (Szegedy et al. 2013, 4.1).

It minimises c ||r||^2 + loss(x + r) over the changes r that keep x + r in the box, with the
cross-entropy to the class aimed at as the loss, and looks for the largest c whose minimiser still
reaches that class; then again, from there, with a sharper loss. A step of L-BFGS moves the entries
that no end of the box holds, and is cut off at the box (projected quasi-Newton methods; Schmidt,
Kim and Sra 2012).

All pairs of a probe and a class run in one batch without a barrier: each evaluation of the network
serves every pair in its own phase, be it a trial of its line search or the first look at another c.
Every trial, taken or not, adds a pair of differences to the memory, so that the memories of all
pairs turn at the same pace.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from onnx_auditors.distortion.search import Search

RIVALS, RIVAL_BUDGET = 4, 60
"""Most classes that a probe is taken to, and the evaluations that one of them should have."""
SHARPNESS = 10.0
"""Excess of the probe itself in the loss, to which its logits are scaled at first."""
SHARPENED, SHARPER = 2, 8.0
"""How often the search over c goes on with a sharper loss, and the factor of the logits then: a
smooth loss leads to better minima, a sharp one ends nearer to the boundary itself."""
MEMORY = 6
"""Pairs of differences that are kept."""
CURVED = 1e-8
"""Least <s, y> of a pair that counts, as a share of <y, y>."""
ARMIJO = 1e-4
"""Share of the decrease along the slope that a step must bring."""
SHRINK = (0.1, 0.5)
"""Least and largest factor of a step's length after a trial that failed."""
TRIES, STEPS = 5, 30
"""Failed trials in a row, and evaluations, after which a minimisation ends in any case."""
SETTLED = 0.1
"""Slope at which a minimisation ends, as a share of 2 c ||r||."""
GAIN = 7e-4
"""Decrease at which a minimisation ends, as a share of c ||r||^2."""
NEAR = 1e-3
"""Excess at which the search over c ends, as a share of the probe's own."""
CLOSE = 1.04
"""Ratio of the least c that failed to the largest that did not at which the search over c ends."""
INNER = 0.2
"""Least distance of the next c from the ends of a bracket, as a share of it (of the logarithms)."""
GROWTH = (1.02, 50)
"""Least and largest growth of c while none is known to fail; it falls by at least RETREAT."""
RETREAT = 0.9
TINY = 1e-30


def lbfgs(search: Search, rows: Tensor, rivals: Tensor, budget: float) -> None:
    """Looks for near adversarial points of some rows, in L2; ends early where it is done.

    Args:
        search: The search.
        rows: Probes, [m].
        rivals: Classes that each may be taken to, most promising first, [m, k].
        budget: Evaluations that each row may have spent at the end.
    """
    available = search.left(rows, budget)
    width = max(1, min(RIVALS, rivals.shape[1], int(available // RIVAL_BUDGET)))
    evaluations = int(available // width)
    if evaluations < 1:
        return
    pairs = _begin(search, rows.repeat_interleave(width), rivals[:, :width].reshape(-1))
    for clock in range(evaluations - 2):
        _try(search, pairs, _direction(pairs, clock), clock % MEMORY)
        going = _choose(pairs)
        if not bool(going.all()):
            pairs = pairs.pick(going.nonzero().squeeze(1))
        if not len(pairs.rows):
            return


@dataclass
class _Point:
    """Changes of the probes, and the loss there.

    Attributes:
        r: The change, [k, d].
        value: The loss, [k].
        gradient: Its gradient, [k, d].
        excess: Margin to being adversarial at all, [k].
    """

    r: Tensor
    value: Tensor
    gradient: Tensor
    excess: Tensor

    def pick(self, chosen: Tensor) -> _Point:
        """Returns some of the points."""
        parts = (self.r, self.value, self.gradient, self.excess)
        return _Point(*(part.index_select(0, chosen) for part in parts))

    def replaced(self, chosen: Tensor, other: _Point) -> _Point:
        """Returns the points, the chosen ones [k] taken from others."""
        wide = chosen[:, None]
        return _Point(
            torch.where(wide, other.r, self.r),
            torch.where(chosen, other.value, self.value),
            torch.where(wide, other.gradient, self.gradient),
            torch.where(chosen, other.excess, self.excess),
        )


@dataclass
class _Pairs:
    """Probes paired with classes, and where each pair stands.

    Attributes:
        rows, rival: Probe and class of each pair, [k].
        lower, upper: Ends of the box, seen from the probe, [k, d].
        at: The current point.
        first: Excess of the probe itself, [k].
        sharpness: Factor of the logits in the loss, [k].
        sharpened: How often it has grown, [k].
        c: Weight of ||r||^2, [k].
        low, high: The largest c that reached the class, or 0; the least that failed, or inf, [k].
        reached: The minimiser for `low`.
        length: Length of the next trial, as a share of the quasi-Newton step, [k].
        gain: Decrease at the last trial, [k].
        steps, tries: Evaluations for this c; trials that failed since the last step, [k].
        s, y: Differences of points and of slopes, [MEMORY, k, d].
    """

    rows: Tensor
    rival: Tensor
    lower: Tensor
    upper: Tensor
    at: _Point
    first: Tensor
    sharpness: Tensor
    sharpened: Tensor
    c: Tensor
    low: Tensor
    high: Tensor
    reached: _Point
    length: Tensor
    gain: Tensor
    steps: Tensor
    tries: Tensor
    s: Tensor
    y: Tensor

    def pick(self, chosen: Tensor) -> _Pairs:
        """Returns some of the pairs, int64 [k']."""
        take = partial(torch.index_select, dim=0, index=chosen)
        return _Pairs(
            take(self.rows), take(self.rival), take(self.lower), take(self.upper),
            self.at.pick(chosen), take(self.first), take(self.sharpness), take(self.sharpened),
            take(self.c), take(self.low), take(self.high), self.reached.pick(chosen),
            take(self.length), take(self.gain), take(self.steps), take(self.tries),
            self.s.index_select(1, chosen), self.y.index_select(1, chosen),
        )  # fmt: skip

    def slope(self) -> Tensor:
        """Returns the gradient of c ||r||^2 + loss, [k, d]."""
        return torch.addcmul(self.at.gradient, self.at.r, self.c[:, None], value=2)

    def free(self, slope: Tensor) -> Tensor:
        """Returns 0 for the entries that the box keeps from moving downhill, else 1, [k, d]."""
        held = torch.where(slope > 0, self.at.r <= self.lower, self.at.r >= self.upper)
        return (~held).to(slope)


def _begin(search: Search, rows: Tensor, rival: Tensor) -> _Pairs:
    """Starts at the probes; a linear loss falls to 0 halfway to the minimiser for the first c."""
    x = search.origin[rows]
    first = search.excess(search.scores(x, rows), rows).clamp_min(TINY)
    sharpness = SHARPNESS / first
    loss = search.cross_entropy(x, rows, rival, sharpness)
    at = _Point(torch.zeros_like(x), loss.value, loss.gradient, loss.excess)
    zero, count = torch.zeros_like(loss.value), torch.zeros_like(rows)
    memory = x.new_zeros(MEMORY, *x.shape)
    pairs = _Pairs(
        rows, rival, *search.room(rows), at, first, sharpness, count,
        zero, zero, zero + torch.inf, at, zero + 1, zero, count, count, memory, memory.clone(),
    )  # fmt: skip
    reachable = loss.gradient * pairs.free(loss.gradient)
    pairs.c = (_dot(reachable, reachable) / (4 * loss.value).clamp_min(TINY)).clamp_min(TINY)
    return pairs


def _direction(pairs: _Pairs, clock: int) -> Tensor:
    """Returns the quasi-Newton steps of the free entries, [k, d], by the two-loop recursion.

    (Nocedal 1980.) Pairs of differences that show no positive curvature among the free entries are
    left out; without any, the step is the one to the boundary of a linear loss at the first c.
    """
    slope = pairs.slope()
    free = pairs.free(slope)
    q = slope * free
    used = min(MEMORY, clock)
    s, y = pairs.s[:used] * free, pairs.y[:used] * free
    sy, yy = (s * y).sum(2), (y * y).sum(2)
    curved = sy > CURVED * yy
    rho = torch.where(curved, 1 / sy, torch.zeros_like(sy))
    newest_first = [(clock - 1 - i) % MEMORY for i in range(used)]
    scale = 1 / (4 * pairs.c)
    alphas = {}
    for i in newest_first:
        alphas[i] = rho[i] * _dot(s[i], q)
        q.addcmul_(y[i], alphas[i][:, None], value=-1)
    for i in reversed(newest_first):
        scale = torch.where(curved[i], sy[i] / yy[i], scale)
    q *= scale[:, None]
    for i in reversed(newest_first):
        beta = rho[i] * _dot(y[i], q)
        q.addcmul_(s[i], (alphas[i] - beta)[:, None])
    return -q


def _try(search: Search, pairs: _Pairs, direction: Tensor, slot: int) -> None:
    """Tries one step of each pair; takes it where Armijo's condition holds, else shortens it."""
    r = torch.addcmul(pairs.at.r, direction, pairs.length[:, None])
    r = torch.minimum(torch.maximum(r, pairs.lower), pairs.upper)
    x = search.clip(search.origin[pairs.rows] + r, pairs.rows)
    loss = search.cross_entropy(x, pairs.rows, pairs.rival, pairs.sharpness)
    search.offer(x, pairs.rows, loss.excess < 0)
    s = r - pairs.at.r
    pairs.s[slot] = s
    pairs.y[slot] = (loss.gradient - pairs.at.gradient).addcmul_(s, pairs.c[:, None], value=2)
    descent = _dot(pairs.slope(), s)
    rise = loss.value - pairs.at.value + pairs.c * _dot(s, r + pairs.at.r)
    accepted = (rise <= ARMIJO * descent) & (descent < 0) | pairs.at.value.isinf()
    pairs.at = pairs.at.replaced(accepted, _Point(r, loss.value, loss.gradient, loss.excess))
    # The minimum of the parabola through what is known along the step.
    shorter = (-descent / (2 * (rise - descent)).clamp_min(TINY)).clamp(*SHRINK)
    pairs.length = torch.where(accepted, torch.ones_like(shorter), pairs.length * shorter)
    pairs.tries = torch.where(accepted, 0, pairs.tries + 1)
    pairs.steps = pairs.steps + 1
    pairs.gain = -rise


def _choose(pairs: _Pairs) -> Tensor:
    """Gives the pairs whose minimisation has ended another c; returns which pairs go on, [k]."""
    settled = _settled(pairs)
    success, failure = settled & (pairs.at.excess < 0), settled & (pairs.at.excess >= 0)
    pairs.low = torch.where(success, pairs.c, pairs.low)
    pairs.high = torch.where(failure, pairs.c, pairs.high)
    c = torch.where(settled, _next(pairs), pairs.c)
    pairs.reached = pairs.reached.replaced(success, pairs.at)
    pairs.at = pairs.at.replaced(failure & (pairs.low > 0), pairs.reached)
    # With c changes the slope by 2 dc r, and so its differences by 2 dc s.
    pairs.y.addcmul_(pairs.s, 2 * (c - pairs.c)[:, None])
    pairs.c = c
    pairs.length = torch.where(settled, torch.ones_like(c), pairs.length)
    pairs.steps = torch.where(settled, 0, pairs.steps)
    pairs.tries = torch.where(settled, 0, pairs.tries)
    near = success & (-pairs.at.excess < NEAR * pairs.first)
    ended = near | (pairs.high <= CLOSE * pairs.low) | (c <= TINY)
    again = ended & (pairs.sharpened < SHARPENED)
    _sharpen(pairs, again)
    return ~ended | again


def _sharpen(pairs: _Pairs, again: Tensor) -> None:
    """Begins the search over c anew from where it ended, with a sharper loss, for some pairs [k].

    A steeper margin needs a larger c; the differences of slopes grow about as much.
    """
    factor = torch.where(again, SHARPER, torch.ones_like(pairs.c))
    pairs.sharpness = factor * pairs.sharpness
    pairs.c = factor * torch.where(again & (pairs.low > 0), pairs.low, pairs.c)
    pairs.y *= factor[:, None]
    pairs.at = pairs.at.replaced(again & (pairs.low > 0), pairs.reached)
    pairs.low = torch.where(again, torch.zeros_like(pairs.low), pairs.low)
    pairs.high = pairs.high.masked_fill(again, torch.inf)
    # The loss here is not known yet: the next trial stays where it is, and is taken.
    pairs.at.value = pairs.at.value.masked_fill(again, torch.inf)
    pairs.length = pairs.length.masked_fill(again, 0)
    pairs.sharpened = pairs.sharpened + again.long()


def _settled(pairs: _Pairs) -> Tensor:
    """Returns whose minimisation has ended, [k]; a narrow bracket asks for a more exact one."""
    slope = pairs.slope()
    residual = (slope * pairs.free(slope)).norm(dim=1)
    square = _dot(pairs.at.r, pairs.at.r)
    bracket = torch.where(pairs.low > 0, (pairs.high / pairs.low - 1).clamp_max(1), 1)
    flat = residual <= SETTLED * bracket * 2 * pairs.c * square.sqrt()
    idle = (pairs.tries == 0) & (pairs.gain < GAIN * pairs.c * square)
    over = (pairs.steps >= STEPS) | (pairs.tries >= TRIES)
    settled: Tensor = flat | idle | over
    return settled


def _next(pairs: _Pairs) -> Tensor:
    """Returns the c at which the minimiser should lie on the boundary, [k].

    At a minimiser 2 c r = -grad loss, which between two classes is the gradient of their margin
    times sigmoid(margin). As long as r and that gradient change little, c is in proportion to
    sigmoid(margin), which is 1/2 on the boundary. A bracket that is known bounds the guess.
    """
    factor = (1 + torch.exp(-pairs.sharpness * pairs.at.excess)) / 2
    up, down = pairs.c * factor.clamp(*GROWTH), pairs.c * factor.clamp_max(RETREAT)
    ratio = pairs.high / pairs.low
    least, most = pairs.low * ratio**INNER, pairs.low * ratio ** (1 - INNER)
    inside = torch.minimum(torch.maximum(pairs.c * factor, least), most)
    opened = torch.where(pairs.low > 0, up, down)
    return torch.where((pairs.low > 0) & pairs.high.isfinite(), inside, opened)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)
