"""Index, intervals, nulls and verdicts: what makes of scores a statement."""

from __future__ import annotations

import math

import numpy as np

from onnx_audit import v1
from onnx_auditors.distributions import student_quantile, student_tail
from onnx_auditors.estimates import CONFIDENCE
from onnx_auditors.units.source import Floats

MARGIN = 0.1
"""Distance of the index from 1/2 that counts as a distinction."""
LEVEL = 0.01
"""Level of Holm's p at which a distinction counts."""


def index(natural: Floats, random: Floats) -> float:
    """Returns P(natural > random) + P(tie) / 2 of scores [d] and [m]: Mann-Whitney's U over d m."""
    ordered = np.sort(random)
    below = np.searchsorted(ordered, natural, "left")
    upto = np.searchsorted(ordered, natural, "right")
    return float((below + upto).mean() / (2 * len(random)))


def jackknife(value: float, without: Floats, count: int, low: float, high: float) -> v1.Estimate:
    """Returns an estimate with the delete-a-group jackknife interval by Student's t.

    Kott 2001, "The delete-a-group jackknife". A bootstrap draws probes twice, which makes top
    inputs alike, and is biased here.

    Args:
        value: The figure on all probes.
        without: The figure without each group, [g].
        count: Observations behind the value.
        low: Smallest value that the figure can have.
        high: Largest.
    """
    half = student_quantile((1 + CONFIDENCE) / 2, len(without) - 1) * jackknife_error(without)
    interval = v1.Interval(
        lower=max(low, value - half),
        upper=min(high, value + half),
        confidence=CONFIDENCE,
        method="jackknife-eighths",
    )
    return v1.Estimate(value=value, interval=interval, count=count, unit="1")


def jackknife_error(without: Floats) -> float:
    """Returns the standard error from the figures without each group."""
    groups = len(without)
    return math.sqrt((groups - 1) / groups * float(((without - without.mean()) ** 2).sum()))


def band(values: Floats) -> v1.Estimate:
    """Returns a mean with the range that holds 95 % of the values."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    interval = v1.Interval(
        lower=float(low), upper=float(high), confidence=CONFIDENCE, method="empirical-range"
    )
    return v1.Estimate(value=float(values.mean()), interval=interval, count=len(values), unit="1")


def rotation_test(tested: float, rotated: Floats) -> tuple[float, float, float, float]:
    """Compares an index with those of rotated bases.

    Returns:
        z; the shares of bases at least as high and at most as high, each with the tested one
        counted among them (Phipson & Smyth 2010); and the two-sided p of z by Student's t for one
        more draw, which goes on below what the number of rotations can resolve.
    """
    count = len(rotated)
    spread = float(rotated.std(ddof=1))
    high = float((1 + (rotated >= tested).sum()) / (count + 1))
    low = float((1 + (rotated <= tested).sum()) / (count + 1))
    if spread == 0:
        z = 0.0 if tested == rotated[0] else math.copysign(math.inf, tested - rotated[0])
    else:
        z = (tested - float(rotated.mean())) / spread
    two_sided = 2 * student_tail(abs(z) / math.sqrt(1 + 1 / count), count - 1)
    return z, high, low, min(1.0, two_sided)


def holm(p: Floats) -> Floats:
    """Returns p corrected for a family of tests (Holm 1979), [n]."""
    order = np.argsort(p, kind="stable")
    stepped = p[order] * (len(p) - np.arange(len(p)))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return corrected


def unit_p(natural: Floats, random: Floats) -> Floats:
    """Returns each unit's share of random directions with at least its score, [d]."""
    ordered = np.sort(random)
    at_least = len(random) - np.searchsorted(ordered, natural, "left")
    return np.asarray((1 + at_least) / (len(random) + 1), dtype=np.float64)


def benjamini_hochberg(p: Floats) -> Floats:
    """Returns p corrected for the rate of false discoveries (Benjamini & Hochberg 1995), [n]."""
    order = np.argsort(p, kind="stable")
    stepped = p[order] * len(p) / np.arange(1, len(p) + 1)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, np.minimum.accumulate(stepped[::-1])[::-1])
    return corrected


def verdict(
    value: float, p_holm: float, error: float, spread: float, probes: int
) -> tuple[v1.UnitVerdict.ValueType, int]:
    """Returns what an index says, and the probes with which an undecided one would be decided.

    Args:
        value: The index.
        p_holm: Its p after Holm's correction.
        error: Its jackknife error over probes, which falls with the root of their number.
        spread: Standard deviation of the rotated bases' index, which does not.
        probes: Number of probes.
    """
    quantile = student_quantile((1 + CONFIDENCE) / 2, 7)
    off = abs(value - 0.5)
    half = quantile * math.hypot(error, spread)
    if p_holm < LEVEL and off >= MARGIN:
        return (v1.UNIT_VERDICT_MORE if value > 0.5 else v1.UNIT_VERDICT_LESS), 0  # noqa: PLR2004 - no distinction
    if off + half < MARGIN:
        return v1.UNIT_VERDICT_NO_DISTINCTION, 0
    if off >= MARGIN:
        # The rotations vary as much: there are too few units, whatever the number of probes.
        return v1.UNIT_VERDICT_UNDECIDED, 0
    left = ((MARGIN - off) / quantile) ** 2 - spread**2
    if left <= 0:
        return v1.UNIT_VERDICT_UNDECIDED, 0
    return v1.UNIT_VERDICT_UNDECIDED, math.ceil(probes * error**2 / left)
