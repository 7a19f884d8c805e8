"""Figures of paired outcomes beside hand-made numbers, enumeration and simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from onnx_auditors.estimates import proportion, wilson
from onnx_auditors.transfer.fooling import smallest_cover
from onnx_auditors.transfer.kinds import Kind, pairs_by_tag
from onnx_auditors.transfer.similarity import grouped
from onnx_auditors.transfer.sizes import lengths, scaled
from onnx_auditors.transfer.statistics import clustered, excess, holm, noise_rate, p_value


def test_wilson_by_hand() -> None:
    """8 of 10, worked out with z = 1.959964: centre 0.71676, half width 0.22660."""
    interval = proportion(8, 10).interval
    assert interval.lower == pytest.approx(0.490162, abs=1e-6)
    assert interval.upper == pytest.approx(0.943318, abs=1e-6)
    exact = stats.binomtest(3, 17).proportion_ci(method="wilson")
    assert wilson(3 / 17, 17).interval.lower == pytest.approx(exact.low)
    assert noise_rate(12, 17, 4).interval.upper == pytest.approx(exact.high)


def test_one_draw_is_mcnemars_test() -> None:
    """Of 10 probes that differ 8 err on the example alone: (45 + 10 + 1) / 1024."""
    table = np.array([[30, 2], [8, 5]])
    assert p_value(table) == pytest.approx(56 / 1024)
    assert p_value(table) == pytest.approx(stats.binomtest(8, 10, alternative="greater").pvalue)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=5))
def test_p_value_is_what_exchanging_gives(outcomes: list[tuple[bool, int]]) -> None:
    """Which of the 4 outcomes of a probe is the example's is enumerated for all probes at once."""
    table = np.zeros((2, 4), dtype=np.int64)
    for error, draws in outcomes:
        table[int(error), draws] += 1
    found = sum(error for error, _ in outcomes)
    sets = [[1] * (error + draws) + [0] * (4 - error - draws) for error, draws in outcomes]
    all_ways = [sum(way) for way in product(*sets)]
    expected = np.mean([ways >= found for ways in all_ways])
    assert p_value(table) == pytest.approx(expected)


def test_holm_by_hand() -> None:
    """0.01 x 3, 0.03 x 2, and 0.04 x 1 is raised to the one before."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1, 1]


@pytest.mark.parametrize(("rate", "noise", "draws"), [(0.3, 0.05, 1), (0.6, 0.2, 4), (1.0, 0.1, 4)])
def test_the_excess_is_covered(rate: float, noise: float, draws: int) -> None:
    """In simulated audits with a common difficulty of probes, 95 % intervals hold the truth."""
    random, covered, runs, count = np.random.default_rng(1), 0, 400, 60
    for _ in range(runs):
        easy = random.random((count, 1)) < 0.5
        # Half of the probes are harder for both: pairs are correlated.
        factor = np.where(easy, 1.5, 0.5)
        errors = random.random(count) < np.minimum(rate * factor[:, 0], 1)
        wrong = (random.random((count, draws)) < noise * factor).sum(1)
        table = np.zeros((2, draws + 1), dtype=np.int64)
        np.add.at(table, (errors.astype(int), wrong), 1)
        truth = np.mean([min(rate * f, 1) - noise * f for f in (1.5, 0.5)])
        interval = excess(table).interval
        covered += bool(interval.lower <= truth <= interval.upper)
    assert covered / runs >= 0.93


def test_excess_without_noise_and_certain_errors() -> None:
    """60 of 60 against 0 of 60: the interval ends at 1 and does not shrink to a point."""
    table = np.zeros((2, 5), dtype=np.int64)
    table[1, 0] = 60
    found = excess(table)
    assert found.value == 1
    assert found.interval.upper == 1
    assert 0.85 < found.interval.lower < 0.95


def test_pooled_rates() -> None:
    """A rate is errors over cells, and one without spread has an interval all the same."""
    rate, noise, difference = clustered(
        np.array([2.0, 0, 1, 0]), np.array([2.0, 2, 2, 0]), np.zeros(4), seed=0
    )
    assert (rate.value, noise.value, difference.value, rate.count) == (0.5, 0, 0.5, 6)
    assert rate.interval.lower < 0.5 < rate.interval.upper
    assert noise.interval.upper == pytest.approx(proportion(0, 3).interval.upper)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 3))
def test_changes_are_brought_to_their_size(seed: int, size: float) -> None:
    """Either the size is reached, as by bisection, or every entry that changes is at the box."""
    random = np.random.default_rng(seed)
    inputs = random.random((3, 2, 4)).astype(np.float32)
    change = random.normal(size=(3, 2, 4)) * (random.random((3, 2, 4)) < 0.7)
    box = np.zeros((), np.float32), np.ones((), np.float32)
    moved = scaled(inputs, change, np.full(3, size), box)
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert (moved == inputs)[change == 0].all()
    for x, r, y in zip(inputs.astype(float), change, moved, strict=True):
        low, high = 0.0, 1e9
        for _ in range(200):
            middle = (low + high) / 2
            short = np.linalg.norm(np.clip(x + middle * r, 0, 1) - x) < size
            low, high = (middle, high) if short else (low, middle)
        np.testing.assert_allclose(y, np.clip(x + high * r, 0, 1), atol=1e-6)
    reached = lengths(inputs, moved)
    assert (reached <= size * (1 + 1e-5)).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_smallest_fooling_set(seed: int) -> None:
    """No set of fewer examples does it, by brute force."""
    random = np.random.default_rng(seed)
    fooled = random.random((7, 5)) < 0.3
    chosen, proved = smallest_cover(fooled)
    wanted = fooled.any(axis=0)
    assert proved
    assert (fooled[chosen].any(axis=0) == wanted).all()
    sets = [s for s in product([False, True], repeat=7)
            if (fooled[list(s)].any(axis=0) == wanted).all()]  # fmt: skip
    assert len(chosen) == min(sum(s) for s in sets)


def test_pairs_by_tag() -> None:
    """Pairs without one of the tags say nothing; "alone" is where nothing else differs."""
    tags = [{"a": "1", "b": "1"}, {"a": "2", "b": "1"}, {"a": "2", "b": "2"}, {"b": "1"}]
    found = pairs_by_tag(tags)
    assert found[Kind("a", alone=True)] == {(0, 1), (1, 0)}
    assert found[Kind("a", alone=False)] == {(0, 1), (1, 0), (0, 2), (2, 0)}
    assert found[Kind("b", alone=True)] == {(1, 2), (2, 1), (2, 3), (3, 2)}
    assert found[Kind("b", alone=False)] == found[Kind("b", alone=True)] | {(0, 2), (2, 0)}
    assert found[Kind("b", True, "1", "2")] == {(1, 2), (3, 2)}
    assert found[Kind("b", True, "2", "1")] == {(2, 1), (2, 3)}
    assert len(found) == 8
    assert len(pairs_by_tag([{"r": str(i)} for i in range(4)])) == 2 + 12
    assert len(pairs_by_tag([{"r": str(i)} for i in range(5)])) == 2


def test_groups_by_hand() -> None:
    """Models 0 and 2 fool each other at 80 and 60 %, all others at 10 %."""
    rates = np.array([[1, 0.1, 0.8], [0.1, 1, 0.1], [0.6, 0.1, 1]])
    order, merges = grouped(rates)
    assert {merges[0].left, merges[0].right} == {0, 2}
    assert merges[0].distance == pytest.approx(0.3)
    assert merges[1].distance == pytest.approx(0.9)
    assert order.index(0) in {0, 1, 2}
    assert abs(order.index(0) - order.index(2)) == 1
