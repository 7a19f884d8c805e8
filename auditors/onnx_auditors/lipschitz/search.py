"""The search for the largest radius that bounds in balls certify, for a batch of probes at once."""

from __future__ import annotations

import torch
from torch import Tensor

from onnx_auditors.lipschitz.activations import UNIT32
from onnx_auditors.lipschitz.ball import Ball, ball
from onnx_auditors.lipschitz.crown import Bounds
from onnx_auditors.lipschitz.graph import Graph
from onnx_auditors.lipschitz.local import anchored_margins, margin_rows

RELAXATIONS = 6
"""Radii at which all intervals of a probe are relaxed anew, at most."""
PRECISION = 0.004
"""Relative width of the interval in which the search for the radius ends."""
_SHRUNK = 5
"""Radii at which intervals of a larger ball are used, at most."""
_CLOSE = 0.05
"""How far above the end that is foreseen, relatively, a ball is worth being shrunk."""
_FIRST = 0.05
"""First radius as a share of where the margin's linear model ends."""
_FIRST_POWER, _STEEP, _GROWTH = 2.0, 12.0, 3.0
"""Power of a fall of which one radius is known, largest power, largest growth of the radius."""
_TIES = 64 * UNIT32
"""Relative margin by which logits have to differ where the file squashes them in float32."""
_TINY = 1e-300


class Search:
    """Brackets [certified, not certified) of the radii of some probes.

    Attributes:
        low: Certified radii, float64 [n].
        method: What certified them.
    """

    def __init__(
        self, graph: Graph, x: Tensor, y: Tensor, norm: str, box: tuple[Tensor, Tensor]
    ) -> None:
        self.graph, self.x, self.y, self.norm, self.box = graph, x, y, norm, box
        self.values = graph.evaluate(x)
        self.low = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        self.high = torch.full_like(self.low, torch.inf)
        self.method = [""] * len(x)

    def run(self) -> None:
        """Narrows the brackets of all probes that are answered rightly.

        All intervals are relaxed at a few radii, each where the margins so far are foreseen to end.
        From a ball a little too large those of smaller balls are derived, at little cost.
        """
        margin, slope = self._linear_model()
        trend = Trend(margin, slope)
        rows = torch.nonzero(margin > 0)[:, 0]
        trial = trend.end * _FIRST
        for turn in range(RELAXATIONS):
            if not len(rows):
                return
            bounds = Bounds(self.graph, self._ball(rows, trial[rows]))
            worth = self._try(rows, trial[rows], bounds)
            high = torch.where(worth > 0, torch.inf, trial[rows])
            self.high[rows] = torch.minimum(self.high[rows], high)
            trend.add(rows, trial[rows], worth)
            close = trial[rows] < trend.end[rows] * (1 + _CLOSE)
            again = (worth <= 0) & (close | (turn == RELAXATIONS - 1))
            if bool(again.any()):
                self._shrink(bounds, rows[again], torch.nonzero(again)[:, 0], worth[again], margin)
            goal = torch.minimum(self.high, trend.end)
            rows = rows[self.low[rows] * (1 + PRECISION) < goal[rows]]
            trial = trend.trial(self.low, self.high)

    def _ball(self, rows: Tensor, radius: Tensor) -> Ball:
        return ball(self.x[rows], radius, self.norm, self.box)

    def _try(self, rows: Tensor, radius: Tensor, bounds: Bounds) -> Tensor:
        """Raises the certified radii to those that hold; returns the margins."""
        worth, names = self._margins(rows, bounds)
        better = (worth > 0) & (radius > self.low[rows])
        self.low[rows[better]] = radius[better]
        for row, name, chosen in zip(rows.tolist(), names, better.tolist(), strict=True):
            if chosen:
                self.method[row] = name
        return worth

    def _shrink(
        self, bounds: Bounds, rows: Tensor, places: Tensor, short: Tensor, margin: Tensor
    ) -> None:
        """Certifies smaller balls from the relaxations of a ball that is too large.

        By regula falsi: margins fall the faster the larger the ball, so that a chord ends early.
        """
        high, short = bounds.ball.radius[places], short.clone()
        low, worth = torch.zeros_like(high), margin[rows]
        for _ in range(_SHRUNK):
            radius = low + (high - low) * worth / (worth - short).clamp(min=_TINY)
            radius = radius * (1 - PRECISION / 8)
            found = self._try(rows, radius, bounds.inside(self._ball(rows, radius), places))
            sure = found > 0
            low, worth = torch.where(sure, radius, low), torch.where(sure, found, worth)
            high, short = torch.where(sure, high, radius), torch.where(sure, short, found)
            if bool((worth < margin[rows] * PRECISION).all()):
                return

    def _linear_model(self) -> tuple[Tensor, Tensor]:
        """Returns the margins at the probes, and how fast they fall with the radius at first."""
        with torch.enable_grad():
            x = self.x.detach().requires_grad_()
            scores = self.graph.logits(x)
            own = scores.gather(1, self.y[:, None])
            margin = own[:, 0] - scores.scatter(1, self.y[:, None], -torch.inf).amax(1)
            (slope,) = torch.autograd.grad(margin.sum(), x)
        flat = slope.flatten(1)
        size = flat.norm(dim=1) if self.norm == "l2" else flat.abs().sum(1)
        return margin.detach(), size

    def _margins(self, rows: Tensor, bounds: Bounds) -> tuple[Tensor, list[str]]:
        """Returns the least margin of some probes in balls, less what ties need, and who says so.

        By the better one of both methods for each other class, so that the label may owe its
        margins to both.
        """
        labels = self.y[rows]
        forms = margin_rows(labels, self.graph.classes)
        crown = bounds.least(len(self.graph.nodes) - 1, forms)
        anchored = anchored_margins(bounds, [v[rows] for v in self.values], labels)
        ties = self._ties(bounds)
        by_one = crown.amin(1) - ties, anchored.amin(1) - ties
        names = [
            "crown" if a > 0 else "anchored" if b > 0 else "together"
            for a, b in zip(by_one[0].tolist(), by_one[1].tolist(), strict=True)
        ]
        return torch.maximum(crown, anchored).amin(1) - ties, names

    def _ties(self, bounds: Bounds) -> Tensor:
        if not self.graph.squashed:
            return bounds.low[0].new_zeros(len(bounds.low[0]))
        ends = torch.maximum(bounds.low[-1].abs(), bounds.high[-1].abs())
        return _TIES * ends.flatten(1).amax(1).clamp(min=1)


class Trend:
    """How the margins of probes fall with the radius: M(0) - M(r) = c r^p between two radii.

    Attributes:
        margin: Margins at the probes, float64 [n].
        end: Radii where the margins are foreseen to end, float64 [n].
    """

    def __init__(self, margin: Tensor, slope: Tensor) -> None:
        self.margin = margin.clamp(min=_TINY)
        # Radius and fall of the latest ball without a certificate, and with one.
        nothing = torch.full((len(margin), 2), torch.nan, dtype=margin.dtype, device=margin.device)
        self._latest = nothing, nothing.clone()
        self.end = self.margin / slope.clamp(min=1e-12)

    def add(self, rows: Tensor, radius: Tensor, margin: Tensor) -> None:
        """Takes in margins found at radii > 0."""
        new = torch.stack([radius, (self.margin[rows] - margin).clamp(min=_TINY)], 1)
        for sure, latest in enumerate(self._latest):
            chosen = (margin > 0) == bool(sure)
            across, before = self._latest[1 - sure][rows], latest[rows]
            other = torch.where(across.isnan(), before, across)
            ratio = (new / other).log()
            power = ratio[:, 1] / ratio[:, 0]
            power = torch.where(power.isfinite(), power.clamp(1, _STEEP), _FIRST_POWER)
            end = radius * (self.margin[rows] / new[:, 1]).pow(1 / power)
            self.end[rows[chosen]] = end[chosen]
            latest[rows[chosen]] = new[chosen]

    def trial(self, low: Tensor, high: Tensor) -> Tensor:
        """Returns radii just before the ends, well inside the brackets."""
        wide = torch.where(high.isinf(), _GROWTH * low, high)
        least, most = low + (wide - low) / 64, wide - (wide - low) / 4
        return (self.end * (1 - PRECISION / 4)).clamp(least, most)
