"""Elementwise nonlinearities: slope ranges on intervals, secants from a point, enclosing lines.

All in float64 and rounded outwards. Formulas of derivatives are elementary; the bounds of second
derivatives are the maxima of their closed forms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

UNIT64 = 2.0**-53
UNIT32 = 2.0**-24
_OUT = 1e-9
"""Relative margin of slopes: far above the rounding of the few operations that make them."""
_NEAR = 1e-6
"""Points relatively nearer than this to the anchor do not give a secant, but the slopes there."""
_CELLS = 48
"""Cells in which a smooth function is compared with a line."""
APPROXIMATION = 2e-6
"""Assumed error of ONNX Runtime's float32 sigmoid, tanh, erf and the like, times max(1, |z|)."""

Slopes = tuple[Tensor, Tensor]
Function = Callable[[Tensor], Tensor]


def largest_size(slopes: Slopes) -> Tensor:
    """Returns the largest absolute value of slopes between two bounds."""
    return torch.maximum(slopes[0].abs(), slopes[1].abs())


@dataclass(frozen=True)
class Lines:
    """lower_slope z + lower_offset <= g(z) <= upper_slope z + upper_offset on an interval."""

    lower_slope: Tensor
    lower_offset: Tensor
    upper_slope: Tensor
    upper_offset: Tensor

    def gap(self, low: Tensor, high: Tensor) -> Tensor:
        """Returns the largest distance of the lines on intervals, not rounded."""
        slope = self.upper_slope - self.lower_slope
        offset = self.upper_offset - self.lower_offset
        return torch.maximum(slope * low + offset, slope * high + offset).clamp(min=0)


@dataclass(frozen=True)
class Activation:
    """A function of each entry alone.

    Attributes:
        name: Its operator.
        function: The function, float64.
        slopes: From an interval's ends to the least and largest derivative on it, or secant.
        breaks: Where a piecewise linear function bends; None if it is not of that kind.
        curvature: Bound of its second derivative; inf where it has kinks.
        bounds: Least and largest derivative anywhere; of each entry where they differ.
        exact: Whether float32 evaluates it with at most one rounding.
        gain: What the error of any other evaluation is multiplied by.
    """

    name: str
    function: Function
    slopes: Callable[[Tensor, Tensor], Slopes]
    breaks: Sequence[float] | None
    curvature: float
    bounds: tuple[float, float]
    exact: bool
    gain: float = 1.0

    def evaluation_error(self, low: Tensor, high: Tensor) -> Tensor:
        """Returns a bound of the error of a float32 evaluation on intervals."""
        reach = torch.maximum(low.abs(), high.abs())
        if self.exact:
            values = self.function(low).abs() + self.function(high).abs()
            return 4 * UNIT32 * (largest_size(self.slopes(low, high)) * reach + values)
        return APPROXIMATION * self.gain * reach.clamp(min=1)

    def range(self, low: Tensor, high: Tensor) -> Slopes:
        """Returns the least and largest value on intervals."""
        lines = self.lines(low, high)
        ends = (low, high)
        lower = torch.minimum(*(lines.lower_slope * e + lines.lower_offset for e in ends))
        upper = torch.maximum(*(lines.upper_slope * e + lines.upper_offset for e in ends))
        least, most = self.slopes(low, high)
        at_low, at_high = self.function(low), self.function(high)
        slack = 16 * UNIT64 * (at_low.abs() + at_high.abs() + low.abs() + high.abs())
        # A monotone function has its extremes at the ends.
        up, down = least >= 0, most <= 0
        lower = torch.where(up, at_low - slack, torch.where(down, at_high - slack, lower))
        upper = torch.where(up, at_high + slack, torch.where(down, at_low + slack, upper))
        return lower, upper

    def secants(self, anchor: Tensor, low: Tensor, high: Tensor) -> Slopes:
        """Returns the range of (g(z) - g(anchor)) / (z - anchor) for z in intervals.

        Of a piecewise linear function the extremes are at the ends, at bends, or at the anchor. Of
        others the range of the derivative on an interval with the anchor holds every secant.
        """
        if self.breaks is None:
            return self.slopes(torch.minimum(low, anchor), torch.maximum(high, anchor))
        value = self.function(anchor)
        # Points so near to the anchor that their secant is not exact give the slopes around it.
        width = _NEAR * (anchor.abs() + low.abs().maximum(high.abs())) + 1e-300
        least, most = self.slopes(anchor - width, anchor + width)
        for point in self._corners(low, high):
            step = point - anchor
            far = step.abs() > width
            secant = (self.function(point) - value) / torch.where(far, step, 1)
            size = _OUT * (1 + secant.abs())
            least = torch.where(far, torch.minimum(least, secant - size), least)
            most = torch.where(far, torch.maximum(most, secant + size), most)
        return least, most

    def _corners(self, low: Tensor, high: Tensor) -> list[Tensor]:
        inner = [
            torch.minimum(torch.maximum(low, low.new_tensor(b)), high) for b in self.breaks or ()
        ]
        return [low, high, *inner]

    def lines(self, low: Tensor, high: Tensor) -> Lines:
        """Returns lines that enclose the function on intervals.

        Of a few slopes, those of the chord and of tangents, each with the offset that just makes it
        a bound, the one is taken that is tightest in the middle (for ReLU: the rule of CROWN, Zhang
        et al. 2018, arXiv 1811.00866, section 3.2).
        """
        width = high - low
        least, most = self.slopes(low, high)
        chord = (self.function(high) - self.function(low)) / torch.where(width > 0, width, 1)
        chord = torch.where(width > 0, chord.clamp(least, most), (least + most) / 2)
        candidates = [chord, least, most]
        if self.breaks is None:
            for share in (0.0, 0.5, 1.0):
                point = low + share * width
                candidates.append(torch.stack(self.slopes(point, point)).mean(0))
        middle = low / 2 + high / 2
        best: list[Tensor] | None = None
        for slope in candidates:
            below, above = self._offsets(slope, low, high, least, most)
            if best is None:
                best = [slope, below, slope, above]
                continue
            tighter = slope * middle + below > best[0] * middle + best[1]
            best[0] = torch.where(tighter, slope, best[0])
            best[1] = torch.where(tighter, below, best[1])
            tighter = slope * middle + above < best[2] * middle + best[3]
            best[2] = torch.where(tighter, slope, best[2])
            best[3] = torch.where(tighter, above, best[3])
        assert best is not None  # noqa: S101 - there are candidates
        return Lines(*best)

    def _offsets(
        self, slope: Tensor, low: Tensor, high: Tensor, least: Tensor, most: Tensor
    ) -> Slopes:
        """Returns bounds of the least and largest g(z) - slope z on intervals."""
        if self.breaks is not None:
            points = torch.stack(self._corners(low, high))
            slack = torch.zeros_like(low)
        else:
            shares = torch.linspace(0, 1, _CELLS + 1, dtype=low.dtype, device=low.device)
            points = low + shares.reshape(-1, *[1] * low.dim()) * (high - low)
            cell = (high - low) / _CELLS * (1 + _OUT)
            # Within a cell a function leaves the chord by at most curvature h^2 / 8, and its ends
            # by at most half the cell times the largest slope.
            slack = cell / 2 * torch.maximum((most - slope).abs(), (least - slope).abs())
            if math.isfinite(self.curvature):
                slack = torch.minimum(slack, self.curvature * cell.square() / 8)
        values = self.function(points)
        rest = values - slope * points
        rounding = 16 * UNIT64 * (values.abs() + (slope * points).abs() + points.abs()).amax(0)
        return rest.amin(0) - slack - rounding, rest.amax(0) + slack + rounding


def piecewise(
    name: str, function: Function, breaks: Sequence[float], slopes: Sequence[float | Tensor]
) -> Activation:
    """Returns a continuous, piecewise linear function.

    Args:
        name: Its operator.
        function: The function.
        breaks: Where it bends, in ascending order.
        slopes: Its slopes before, between and after; a tensor where they differ between entries.
    """

    def on(low: Tensor, high: Tensor) -> Slopes:
        least = torch.full_like(low, torch.inf)
        most = torch.full_like(low, -torch.inf)
        for i, slope in enumerate(slopes):
            inside = torch.ones_like(low, dtype=torch.bool)
            if i > 0:
                inside &= high >= breaks[i - 1]
            if i < len(breaks):
                inside &= low <= breaks[i]
            s = torch.as_tensor(slope, dtype=low.dtype, device=low.device)
            least = torch.where(inside, torch.minimum(least, s), least)
            most = torch.where(inside, torch.maximum(most, s), most)
        return least, most

    values = [torch.as_tensor(s, dtype=torch.float64) for s in slopes]
    bounds = (min(float(v.min()) for v in values), max(float(v.max()) for v in values))
    return Activation(name, function, on, tuple(breaks), math.inf, bounds, exact=True)


def smooth(
    name: str,
    function: Function,
    derivative: Function,
    turns: Sequence[float],
    bounds: tuple[float, float],
    curvature: float,
) -> Activation:
    """Returns a function whose derivative is known.

    Args:
        name: Its operator.
        function: The function.
        derivative: Its derivative.
        turns: Where the derivative has its local extremes, in ascending order.
        bounds: Least and largest derivative anywhere, rounded outwards.
        curvature: Bound of the second derivative; inf where there are kinks.
    """

    def on(low: Tensor, high: Tensor) -> Slopes:
        inner = [torch.minimum(torch.maximum(low, low.new_tensor(t)), high) for t in turns]
        found = torch.stack([derivative(point) for point in (low, high, *inner)])
        least = (found.amin(0) - _OUT).clamp(min=bounds[0])
        most = (found.amax(0) + _OUT).clamp(max=bounds[1])
        return torch.minimum(least, most), torch.maximum(least, most)

    return Activation(name, function, on, None, curvature, bounds, exact=False)


def bounded(name: str, function: Function, bounds: tuple[float, float]) -> Activation:
    """Returns a function of whose derivative only the range is known."""

    def on(low: Tensor, high: Tensor) -> Slopes:
        del high
        return torch.full_like(low, bounds[0]), torch.full_like(low, bounds[1])

    return Activation(name, function, on, None, math.inf, bounds, exact=False)
