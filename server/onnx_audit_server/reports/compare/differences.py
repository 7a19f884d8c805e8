"""Differences of figures with intervals over the choice of probes."""

from __future__ import annotations

import math

import numpy as np

from onnx_audit import v1
from onnx_audit_server.reports.compare.figures import Figure, Rows
from onnx_audit_server.reports.compare.resampling import Resampling, subtract
from onnx_auditors.estimates import CONFIDENCE, wilson

_ROUNDING = 1e-9
"""Relative difference of exact figures that the order of summation explains."""
_FEWEST = 0.95
"""Share of the resamples that must have a figure for an interval to be taken from them."""


def difference(older: Figure, newer: Figure, paired: Resampling | None) -> v1.Estimate:
    """Newer less older figure.

    Args:
        older: The older figure.
        newer: The newer figure.
        paired: Draws of probes; None where the reports are of other probes.
    """
    a, b = newer.estimate.value, older.estimate.value
    result = v1.Estimate(value=0.0 if a == b else a - b, unit=newer.estimate.unit)
    if newer.exact and older.exact:
        return result
    rows = _same_probes(older, newer) if paired is not None else None
    if paired is not None and rows is not None:
        result.count = len(rows[0].probes)
        interval = paired_share(*rows) if rows[0].share else _bootstrap(*rows, paired)
    else:
        interval = _independent(older.estimate, newer.estimate)
    if interval is not None:
        result.interval.CopyFrom(interval)
    return result


def movement(moved: v1.Estimate, newer: Figure) -> v1.Movement.ValueType:
    """What a difference means."""
    if newer.exact:
        scale = abs(newer.estimate.value)
        still = moved.value == 0 or abs(moved.value) <= _ROUNDING * scale < math.inf
    elif not moved.HasField("interval"):
        return v1.MOVEMENT_UNSPECIFIED
    else:
        still = moved.interval.lower <= 0 <= moved.interval.upper
    if still:
        return v1.MOVEMENT_WITHIN_NOISE
    if not newer.better:
        return v1.MOVEMENT_CHANGED
    return v1.MOVEMENT_BETTER if newer.better * moved.value > 0 else v1.MOVEMENT_WORSE


def paired_share(older: Rows, newer: Rows) -> v1.Interval:
    """Interval of the difference of two shares of the same probes.

    Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions
    based on paired data", method 10: Wilson's intervals of the two shares, joined with the
    correlation of the pairs.
    """
    new, old = newer.values, older.values
    count = len(new)
    both = float((new * old).sum())
    only_new, only_old = float(new.sum()) - both, float(old.sum()) - both
    neither = count - both - only_new - only_old
    product = (both + only_new) * (only_old + neither) * (both + only_old) * (only_new + neither)
    surplus = both * neither - only_new * only_old
    if surplus > 0:
        surplus = max(surplus - count / 2, 0.0)
    phi = surplus / math.sqrt(product) if product > 0 else 0.0
    a, b = wilson(new.mean(), count), wilson(old.mean(), count)
    lower, upper = _square_and_add(a, b, phi)
    return _interval(lower, upper, "newcombe-paired")


def _bootstrap(older: Rows, newer: Rows, resampling: Resampling) -> v1.Interval | None:
    found = resampling.differences(older, newer)
    defined = found[~np.isnan(found)]
    if len(defined) < _FEWEST * len(found):
        return None
    ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    # Quantiles between order statistics would be NaN beside infinite ones.
    lower, upper = np.quantile(defined, ends, method="inverted_cdf")
    return _interval(float(lower), float(upper), "paired-bootstrap")


def _independent(older: v1.Estimate, newer: v1.Estimate) -> v1.Interval | None:
    """Interval of the difference of two figures from their own intervals.

    Zou & Donner 2008, "Construction of confidence limits about effect measures: a general
    approach" (MOVER). It holds for independent figures; over the same probes it is too wide, never
    too narrow, where both rise and fall with the choice of probes.
    """
    if not older.HasField("interval") or not newer.HasField("interval"):
        return None
    ends = (older.value, newer.value, older.interval.lower, newer.interval.upper)
    if all(map(math.isfinite, (*ends, older.interval.upper, newer.interval.lower))):
        return _interval(*_square_and_add(newer, older, 0.0), "square-and-add")
    lower = subtract(np.array(newer.interval.lower), np.array(older.interval.upper))
    upper = subtract(np.array(newer.interval.upper), np.array(older.interval.lower))
    return _interval(float(lower), float(upper), "interval-arithmetic")


def _square_and_add(a: v1.Estimate, b: v1.Estimate, phi: float) -> tuple[float, float]:
    """Ends of the interval of a - b from those of a and b, whose errors correlate by phi."""
    down_a, up_a = a.value - a.interval.lower, a.interval.upper - a.value
    down_b, up_b = b.value - b.interval.lower, b.interval.upper - b.value
    below = down_a**2 - 2 * phi * down_a * up_b + up_b**2
    above = up_a**2 - 2 * phi * up_a * down_b + down_b**2
    return (
        a.value - b.value - math.sqrt(max(below, 0.0)),
        a.value - b.value + math.sqrt(max(above, 0.0)),
    )


def _same_probes(older: Figure, newer: Figure) -> tuple[Rows, Rows] | None:
    """The rows of two figures, if they are of the same probes."""
    if older.rows is None or newer.rows is None:
        return None
    same = np.array_equal(older.rows.probes, newer.rows.probes)
    return (older.rows, newer.rows) if same else None


def _interval(lower: float, upper: float, method: str) -> v1.Interval:
    return v1.Interval(lower=lower, upper=upper, confidence=CONFIDENCE, method=method)
