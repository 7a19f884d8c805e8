"""Figures of paired outcomes: an example beside its draws of noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnx_audit import v1
from onnx_auditors.distributions import binomial_probabilities
from onnx_auditors.estimates import CONFIDENCE, proportion, wilson

Doubles = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def noise_rate(errors: int, count: int, draws: int) -> v1.Estimate:
    """Returns the error rate over all draws, with Wilson's interval as of one draw.

    Draws at one probe depend on each other, so that the true interval lies between that of `count`
    and of `count * draws` trials; the wider one is given.

    Args:
        errors: Wrong answers over all draws.
        count: Probes; 0 gives NaN.
        draws: Draws per probe.
    """
    return wilson(errors / (count * draws), count) if count else proportion(0, 0)


def excess(table: Counts) -> v1.Estimate:
    """Returns the error rate of examples less that of their noise, with an interval.

    The square-and-add interval of Newcombe 1998 ("Improved confidence intervals for the difference
    between binomial proportions based on paired data", Statistics in Medicine 17, method 10), from
    both Wilson intervals and the correlation of the pairs, which is here that of an example's error
    with the share of its draws that err.

    Args:
        table: Int64 [2, draws + 1]: probes by error of the example (0 or 1) and number of draws
            with an error.
    """
    count = int(table.sum())
    if not count:
        return v1.Estimate(value=math.nan, unit="1")
    shares = np.arange(table.shape[1]) / (table.shape[1] - 1)
    first = table[1].sum() / count
    second = float(table.sum(axis=0) @ shares) / count
    covariance = float(table[1] @ shares) / count - first * second
    variances = first * (1 - first) * (float(table.sum(axis=0) @ shares**2) / count - second**2)
    correlation = covariance / math.sqrt(variances) if variances > 1e-15 else 0.0  # noqa: PLR2004
    one, two = wilson(float(first), count).interval, wilson(second, count).interval

    def spread(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a**2 - 2 * correlation * a * b + b**2))

    difference = float(first) - second
    return v1.Estimate(
        value=difference,
        interval=v1.Interval(
            lower=max(-1.0, difference - spread(float(first) - one.lower, two.upper - second)),
            upper=min(1.0, difference + spread(one.upper - float(first), second - two.lower)),
            confidence=CONFIDENCE,
            method="newcombe-paired",
        ),
        count=count,
        unit="1",
    )


def p_value(table: Counts) -> float:
    """Returns the probability of at least as many errors of examples, were they like their noise.

    Then an example and its draws are exchangeable: of m errors among the k + 1 of them one is the
    example's with probability m / (k + 1), independently for each probe. The number of errors of
    examples is a sum of binomial numbers, whose distribution is computed exactly. With one draw it
    is McNemar's exact test, one-sided.

    Args:
        table: As in `excess`.
    """
    most = table.shape[1]
    distribution: Doubles = np.ones(1)
    for total in range(1, most + 1):
        # Examples right and `total` draws wrong, or example wrong and one draw fewer.
        probes = int(table[1, total - 1]) + (int(table[0, total]) if total < most else 0)
        if probes:
            steps = binomial_probabilities(probes, total / most)
            distribution = np.convolve(distribution, steps)
    found = int(table[1].sum())
    return float(min(1.0, distribution[found:].sum()))


def holm(values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number (Holm 1979), in the order given."""
    order = np.argsort(np.asarray(values), kind="stable")
    corrected, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = largest
    return corrected


def clustered(
    successes: Doubles, trials: Doubles, other: Doubles, seed: int
) -> tuple[v1.Estimate, v1.Estimate, v1.Estimate]:
    """Returns two pooled rates over the same probes and their difference, with intervals.

    A rate is sum(successes) / sum(trials); a probe counts in many cells, so whole probes are
    resampled (percentile bootstrap of 2,000 resamples). Where they do not differ at all, the
    interval is Wilson's over the number of probes.

    Args:
        successes: Errors by probe, float64 [n].
        trials: Cells by probe, [n].
        other: Errors of noise by probe, as means over draws, [n].
        seed: Seed of the resampling.
    """
    count = int(trials.sum())
    if not count:
        missing = v1.Estimate(value=math.nan, unit="1")
        return missing, missing, missing
    used = trials > 0
    successes, trials, other = successes[used], trials[used], other[used]
    rng = np.random.default_rng(seed)
    parts = np.stack([successes, other, successes - other])
    rates = np.stack(
        [parts[:, rows].sum(axis=1) / trials[rows].sum()
         for rows in rng.integers(len(trials), size=(2000, len(trials)))]
    )  # fmt: skip
    ends = np.quantile(rates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    values = parts.sum(axis=1) / count
    rate, noise, difference = (
        v1.Estimate(
            value=float(values[i]),
            interval=v1.Interval(
                lower=float(ends[0, i]),
                upper=float(ends[1, i]),
                confidence=CONFIDENCE,
                method="bootstrap-probes",
            ),
            count=count,
            unit="1",
        )
        for i in range(3)
    )
    _widen(rate, len(trials))
    _widen(noise, len(trials))
    ends_meet = difference.interval.lower == difference.interval.upper
    if ends_meet:
        difference.interval.lower = rate.interval.lower - noise.interval.upper
        difference.interval.upper = rate.interval.upper - noise.interval.lower
    return rate, noise, difference


def _widen(rate: v1.Estimate, probes: int) -> None:
    """Gives a rate without any spread, such as 0, Wilson's interval over whole probes."""
    if rate.interval.lower == rate.interval.upper:
        rate.interval.CopyFrom(wilson(rate.value, probes).interval)
