"""Comparisons of reports whose differences are planted, and their intervals against brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.server.made_reports import report

from onnx_audit import v1
from onnx_audit_server.reports.compare import compare
from onnx_audit_server.reports.compare.differences import difference, movement, paired_share
from onnx_audit_server.reports.compare.figures import Figure, Rows
from onnx_audit_server.reports.compare.resampling import RESAMPLES, Resampling
from onnx_auditors import estimates

MEDIAN, MEAN = "distortion.norms[L2].quantiles[0.5]", "distortion.norms[L2].mean"
CLEAN, ROBUST = (
    "distortion.clean_accuracy",
    "distortion.norms[L2].robust_accuracy_at_baseline_median",
)


def rows(older: v1.Report, newer: v1.Report) -> dict[str, v1.Comparison]:
    return {row.path: row for row in compare(older, newer).comparisons}


def shares(values: list[int]) -> Rows:
    return Rows(np.arange(len(values)), np.array(values, np.float64), share=True)


def test_a_planted_regression_is_found_and_its_size_is_known() -> None:
    """Every distance a tenth less: mean and median are a tenth less, beyond noise."""
    sizes = np.random.default_rng(0).gamma(3, 0.1, 200)
    found = rows(report(sizes), report(0.9 * sizes))
    for path, expected in ((MEAN, -0.1 * sizes.mean()), (MEDIAN, -0.1 * np.sort(sizes)[99])):
        assert found[path].movement == v1.MOVEMENT_WORSE
        assert found[path].difference.value == pytest.approx(expected)
        assert found[path].difference.interval.method == "paired-bootstrap"
        assert found[path].difference.interval.upper < 0
    assert found[ROBUST].movement == v1.MOVEMENT_WORSE
    assert found[CLEAN].movement == v1.MOVEMENT_WITHIN_NOISE
    back = rows(report(0.9 * sizes), report(sizes))
    assert back[MEAN].movement == v1.MOVEMENT_BETTER


def test_pairs_see_what_independent_intervals_cannot() -> None:
    """The same difference is worse over the same probes, and within noise over other ones."""
    sizes = np.random.default_rng(1).gamma(3, 0.1, 100)
    older = report(sizes)
    assert rows(older, report(0.95 * sizes))[MEAN].movement == v1.MOVEMENT_WORSE
    other = report(0.95 * sizes, probes="e" * 64)
    assert rows(older, other)[MEAN].movement == v1.MOVEMENT_WITHIN_NOISE
    assert rows(older, other)[MEAN].difference.interval.method == "square-and-add"
    assert any("probe sets" in note for note in compare(older, other).notes)


def test_a_report_beside_itself_has_not_moved() -> None:
    """All differences are 0 within noise, infinite medians included, and nothing is left over."""
    for sizes in ([0.1, 0.2, 0.4], [0.1, 0.2, 0.3, 0.4] + 5 * [math.inf]):
        made = report(sizes)
        found = compare(made, made)
        assert not found.baseline_only
        assert not found.candidate_only
        assert {row.difference.value for row in found.comparisons} == {0.0}
        assert {row.movement for row in found.comparisons} == {v1.MOVEMENT_WITHIN_NOISE}


def test_what_one_report_lacks_is_named() -> None:
    """Figures of a section that only one report has are listed, and not compared."""
    older, newer = report([0.1, 0.2]), report([0.1, 0.2])
    newer.lipschitz.network.add(bound=v1.LipschitzBound(norm=v1.NORM_L2, upper=4), largest_pair=3)
    found = compare(older, newer)
    assert list(found.candidate_only) == [
        "lipschitz.network[L2].upper",
        "lipschitz.network[L2].largest_pair",
    ]
    assert list(compare(newer, older).baseline_only) == list(found.candidate_only)


def test_exact_figures_move_without_noise() -> None:
    """A certified bound depends on the model alone: more of it is worse, rounding is nothing."""
    made = []
    for upper in (4.0, 4.0 + 1e-12, 4.1):
        one = report([0.1, 0.2])
        one.lipschitz.network.add(bound=v1.LipschitzBound(norm=v1.NORM_L2, upper=upper))
        made.append(one)
    path = "lipschitz.network[L2].upper"
    assert rows(made[0], made[1])[path].movement == v1.MOVEMENT_WITHIN_NOISE
    assert rows(made[0], made[2])[path].movement == v1.MOVEMENT_WORSE
    assert rows(made[2], made[0])[path].movement == v1.MOVEMENT_BETTER


def test_a_figure_without_interval_cannot_be_told() -> None:
    """No rows and no intervals: the movement is not known."""
    bare = Figure("x", v1.Estimate(value=1.0), 1)
    moved = difference(bare, Figure("x", v1.Estimate(value=2.0), 1), None)
    assert movement(moved, bare) == v1.MOVEMENT_UNSPECIFIED


def test_direction_says_what_is_worse() -> None:
    """More errors on foreign examples are worse for the audited model, a change for another one."""
    made = []
    for errors in (10, 60):
        one = report([0.1, 0.2])
        one.transfer.models[:] = ["mine", "peer"]
        for source, target in ((0, 0), (0, 1), (1, 0)):
            one.transfer.cells.add(
                source=source,
                target=target,
                attack=v1.TRANSFER_ATTACK_MINIMAL,
                error_rate=estimates.proportion(errors, 100),
            )
        made.append(one)
    found = rows(*made)
    assert found["transfer.cells[MINIMAL:peer>mine].error_rate"].movement == v1.MOVEMENT_WORSE
    assert found["transfer.cells[MINIMAL:mine>peer].error_rate"].movement == v1.MOVEMENT_CHANGED
    assert "transfer.cells[MINIMAL:mine>mine].error_rate" not in found


@pytest.mark.parametrize("p", [(0.7, 0.1, 0.05, 0.15), (0.9, 0.02, 0.06, 0.02)])
def test_paired_shares_cover_the_truth(p: tuple[float, ...]) -> None:
    """Over all tables of 24 pairs, the interval holds the true difference as often as it says."""
    count = 24
    tables = [
        (a, b, c, count - a - b - c)
        for a, b, c in itertools.product(range(count + 1), repeat=3)
        if a + b + c <= count
    ]
    masses = stats.multinomial.pmf(tables, count, p)
    covered = total = 0.0
    for (a, b, c, d), mass in zip(tables, masses, strict=True):
        if mass > 1e-5:
            older = shares([1] * a + [0] * b + [1] * c + [0] * d)
            newer = shares([1] * a + [1] * b + [0] * c + [0] * d)
            interval = paired_share(older, newer)
            covered += mass * (interval.lower <= p[1] - p[2] <= interval.upper)
            total += mass
    assert total > 0.99
    assert covered / total >= 0.94


def test_paired_shares_agree_with_the_exact_test() -> None:
    """Where the discordant pairs say nothing (McNemar's exact test), the interval holds 0."""
    for better, worse in itertools.product(range(6), repeat=2):
        older = shares([1] * 90 + [0] * better + [1] * worse)
        newer = shares([1] * 90 + [1] * better + [0] * worse)
        interval = paired_share(older, newer)
        discordant = better + worse
        p = stats.binomtest(better, discordant).pvalue if discordant else 1.0
        if p > 0.2:
            assert interval.lower <= 0 <= interval.upper


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.one_of(st.floats(0, 9), st.just(math.inf)), min_size=1, max_size=12),
    st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.9]),
)
def test_resampled_quantiles_are_those_of_the_report(values: list[float], p: float) -> None:
    """A resample's figure is what the report would publish for the probes that were drawn."""
    resampling = Resampling(3)
    zero = Rows(np.arange(len(values)), np.zeros(len(values)), probability=p)
    some = Rows(np.arange(len(values)), np.array(values), probability=p)
    weights = resampling._draw(len(values))
    assert (weights.sum(axis=1) == len(values)).all()
    found = resampling.differences(zero, some)
    for weight, value in list(zip(weights, found, strict=True))[:20]:
        drawn = np.repeat(np.array(values), weight.astype(int))
        assert value == estimates.quantile(drawn, p, "").value


def test_the_bootstrap_of_a_mean_is_as_wide_as_theory_says() -> None:
    """The half-width over many probes is 1.96 standard errors of the paired differences."""
    rng = np.random.default_rng(5)
    older, change = rng.normal(5, 2, 400), rng.normal(0.1, 0.5, 400)
    probes = np.arange(400)
    found = Resampling(0).differences(Rows(probes, older), Rows(probes, older + change))
    assert len(found) == RESAMPLES
    assert found.std() == pytest.approx(change.std() / 20, rel=0.06)
    assert found.mean() == pytest.approx(change.mean(), abs=4 * change.std() / 20 / math.sqrt(2000))


def test_the_same_reports_give_the_same_comparison() -> None:
    """Draws derive from the two digests."""
    sizes = np.random.default_rng(2).gamma(3, 0.1, 50)
    older, newer = report(sizes), report(sizes[::-1])
    assert compare(older, newer) == compare(older, newer)
