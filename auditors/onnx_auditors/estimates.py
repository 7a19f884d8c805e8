"""Figures with their intervals, as the report publishes them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_audit import v1
from onnx_auditors.distributions import binomial_quantile, normal_quantile

CONFIDENCE = 0.95
_RESAMPLES = 2000
_BLOCK_DRAWS = 2**22
_EVEN_RADII, _OWN_RADII = 17, 16
_CURVE_MARGIN = 1.02

Floats = npt.NDArray[np.float64]


def proportion(successes: int, count: int, unit: str = "1") -> v1.Estimate:
    """Returns a share with Wilson's score interval.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Args:
        successes: Number of successes.
        count: Number of trials; 0 gives NaN.
        unit: Unit of the estimate.
    """
    if not count:
        return v1.Estimate(value=math.nan, unit=unit)
    return wilson(successes / count, count, unit)


def wilson(share: float, count: int, unit: str = "1") -> v1.Estimate:
    """Returns a share, which need not be that of a whole number, with Wilson's score interval.

    Args:
        share: In [0, 1].
        count: Number of trials, at least 1.
        unit: Unit of the estimate.
    """
    z = normal_quantile((1 + CONFIDENCE) / 2)
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    spread = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    # Without failures or successes the ends are exactly 1 and 0, which rounding may miss.
    lower = 0.0 if share == 0 else max(0.0, centre - spread)
    upper = 1.0 if share == 1 else min(1.0, centre + spread)
    return v1.Estimate(
        value=share, interval=_interval(lower, upper, "wilson"), count=count, unit=unit
    )


def mean(values: Floats, unit: str, seed: int) -> v1.Estimate:
    """Returns a mean with a percentile bootstrap interval.

    Args:
        values: Float64 [n]; none gives NaN, one gives no interval.
        unit: Unit of the values.
        seed: Seed of the resampling.
    """
    count = len(values)
    if not count:
        return v1.Estimate(value=math.nan, unit=unit)
    estimate = v1.Estimate(value=float(values.mean()), count=count, unit=unit)
    if count > 1:
        rng = np.random.default_rng(seed)
        rows = max(1, _BLOCK_DRAWS // count)
        means = np.concatenate(
            [
                values[rng.integers(count, size=(min(rows, _RESAMPLES - done), count))].mean(axis=1)
                for done in range(0, _RESAMPLES, rows)
            ]
        )
        lower, upper = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        estimate.interval.CopyFrom(_interval(lower, upper, "bootstrap-percentile"))
    return estimate


def quantile(values: Floats, probability: float, unit: str) -> v1.Estimate:
    """Returns a quantile with the order-statistics interval, which holds for any distribution.

    The estimate is the smallest value that at least the share `probability` does not exceed. The
    number of values below the true quantile is binomial; the interval's ends are the order
    statistics at its quantiles (David & Nagaraja, Order Statistics, 3rd ed., section 7.1).

    Args:
        values: Float64 [n], Infinity allowed; none gives NaN.
        probability: In (0, 1).
        unit: Unit of the values.
    """
    count = len(values)
    if not count:
        return v1.Estimate(value=math.nan, unit=unit)
    ordered = np.sort(values)
    # A product such as 0.1 * 30 may lie just above the integer that it stands for.
    rank = max(1, math.ceil(probability * count - 1e-9))
    tail = (1 - CONFIDENCE) / 2
    # P(X_(l) <= q) = P(B >= l) must be at least 1 - tail, and P(X_(u) >= q) = P(B <= u - 1) too.
    below = binomial_quantile(tail, count, probability)
    above = binomial_quantile(1 - tail, count, probability) + 1
    return v1.Estimate(
        value=float(ordered[rank - 1]),
        interval=_interval(
            float(ordered[below - 1]) if below >= 1 else -math.inf,
            float(ordered[above - 1]) if above <= count else math.inf,
            "order-statistics",
        ),
        count=count,
        unit=unit,
    )


def curve(distance: Floats, searched: npt.NDArray[np.bool_]) -> list[v1.CurvePoint]:
    """Returns the share of all with a distance beyond each radius, of those that may have one.

    Of searched probes these are the ones answered rightly and without an example within the radius.

    The radii are spread evenly up to just beyond the largest distance, and as the distances
    themselves are: some norms have most of them near 0 and a few far away.

    Args:
        distance: Of the probes that take part, [n].
        searched: Which of them count as answered rightly, [n].
    """
    finite = distance[searched & np.isfinite(distance)]
    if len(finite):
        even = np.linspace(0, _CURVE_MARGIN * finite.max(), _EVEN_RADII)
        shares = (np.arange(_OWN_RADII) + 0.5) / _OWN_RADII
        grid = np.union1d(even, np.quantile(finite, shares, method="inverted_cdf"))
    else:
        grid = np.zeros(1)
    return [
        v1.CurvePoint(x=x, y=proportion(int((searched & (distance > x)).sum()), len(distance)))
        for x in grid.tolist()
    ]


def _interval(lower: Any, upper: Any, method: str) -> v1.Interval:  # noqa: ANN401 - numpy or float
    return v1.Interval(lower=float(lower), upper=float(upper), confidence=CONFIDENCE, method=method)
