"""The search for the largest radius that bounds in balls certify, for a batch of probes at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onnx_auditors.lipschitz.activations import UNIT32
from onnx_auditors.lipschitz.ball import ball
from onnx_auditors.lipschitz.crown import Bounds
from onnx_auditors.lipschitz.graph import Graph
from onnx_auditors.lipschitz.local import anchored_margins, margin_rows
from onnx_auditors.lipschitz.refining import Wider

RELAXATIONS = 12
"""Radii at which a probe is looked at, at most."""
PRECISION = 0.004
"""Relative width of the interval in which the search for the radius ends."""
_FIRST = 0.1
"""Share of the first layer's neurons that may turn in the first ball."""
_MOST = 0.9
"""First radius at most, as a share of where the margin's linear model ends."""
_TIES = 64 * UNIT32
"""Relative margin by which logits have to differ where the file squashes them in float32."""
_TINY = 1e-300
_LEAST = 1e-9
"""Least radius, and least share of a margin that is told from none."""
_POWER, _STEEP, _SURE = 6.0, 20.0, 5.0
"""Power where one radius is known, largest power, largest one that tells where a margin ends."""
_STEP = math.log(3)
"""Largest step between radii, on a logarithmic scale, where only one end is known."""


class Search:
    """Radii of some probes.

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
        self.method = [""] * len(x)

    def run(self) -> None:
        """Narrows the brackets of all probes that are answered rightly.

        Each ball is relaxed anew, with what is known of one that holds it.
        """
        margin, slope = self._linear_model()
        rows = torch.nonzero(margin > 0)[:, 0]
        secant = Secant(margin, torch.minimum(self._turning(), _MOST * margin / slope))
        wider: Bounds | None = None
        places = rows
        for _ in range(RELAXATIONS):
            if not len(rows):
                return
            balls = ball(self.x[rows], secant.trial[rows], self.norm, self.box)
            bounds = Bounds(self.graph, balls, None if wider is None else Wider(wider, places))
            secant.add(rows, self._try(rows, secant.trial[rows], bounds))
            places = torch.nonzero(~secant.done[rows])[:, 0]
            rows, wider = rows[places], bounds

    def _turning(self) -> Tensor:
        """Returns the radii at which some neurons of the first layer may turn, float64 [n]."""
        found = torch.full_like(self.low, torch.inf)
        parents = [node.parents[0] for node in self.graph.bent[:1]]
        for index in parents:
            rows = self.graph.rows(index)
            if rows is not None:
                order = 2 if self.norm == "l2" else 1
                size = torch.linalg.vector_norm(rows, order, dim=1).clamp(min=_TINY)
                found = (self.values[index].flatten(1).abs() / size).quantile(_FIRST, dim=1)
        return found

    def _try(self, rows: Tensor, radius: Tensor, bounds: Bounds) -> Tensor:
        """Raises the certified radii to those that hold; returns the margins."""
        worth, names = self._margins(rows, bounds)
        better = (worth > 0) & (radius > self.low[rows])
        self.low[rows[better]] = radius[better]
        for row, name, chosen in zip(rows.tolist(), names, better.tolist(), strict=True):
            if chosen:
                self.method[row] = name
        return worth

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


class Secant:
    """Looks for the radius where each margin ends, by secants of its fall on logarithmic scales.

    The share of the margin that is lost grows as the radius at first, and near the end as a power
    of it that is the larger the deeper the network.

    Attributes:
        trial: Radii to look at next, float64 [n].
        done: Where the end is found, bool [n].
    """

    def __init__(self, margin: Tensor, first: Tensor) -> None:
        """Starts at some radii, float64 [n]."""
        self.margin = margin.clamp(min=_TINY)
        self.trial = first.clamp(_LEAST, 1 / _LEAST)
        self.done = torch.zeros_like(margin, dtype=torch.bool)
        nothing = torch.full_like(margin, torch.nan)
        self._at, self._lost, self._sure = (nothing.clone() for _ in range(3))
        self._low, self._high = (
            torch.full_like(margin, -torch.inf),
            torch.full_like(margin, torch.inf),
        )

    def add(self, rows: Tensor, margin: Tensor) -> None:
        """Takes in the margins of some probes at their trials."""
        at = self.trial[rows].log()
        lost = (1 - margin / self.margin[rows]).nan_to_num(1 / _LEAST)
        lost = lost.clamp(_LEAST, 1 / _LEAST).log()
        power = (lost - self._lost[rows]) / (at - self._at[rows])
        power = torch.where(power.isfinite(), power.clamp(1, _STEEP), _POWER)
        self._at[rows], self._lost[rows] = at, lost
        sure = margin > 0
        low = torch.where(sure, torch.maximum(self._low[rows], at), self._low[rows])
        high = torch.where(sure, self._high[rows], torch.minimum(self._high[rows], at))
        self._sure[rows] = torch.where(sure & (low == at), lost, self._sure[rows])
        self._low[rows], self._high[rows] = low, high
        # A margin that is nearly used up, at a power that it surely has, ends near.
        ends = low - self._sure[rows].nan_to_num(0) / power.clamp(max=_SURE)
        near = low + math.log1p(PRECISION) >= torch.minimum(ends, high)
        self.done[rows] = near & low.isfinite()
        width = torch.where(low.isfinite() & high.isfinite(), high - low, 0)
        least = torch.where(low.isfinite(), low + width / 16, high - _STEP)
        most = torch.where(high.isfinite(), high - width / 8, low + _STEP)
        end = at - lost / power - PRECISION / 4
        self.trial[rows] = torch.minimum(torch.maximum(end, least), most).exp()
