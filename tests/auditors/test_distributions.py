"""Our short cuts around scipy.stats against scipy.stats."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from onnx_auditors import distributions

PROBABILITIES = st.floats(1e-6, 1 - 1e-6)


@given(PROBABILITIES, st.floats(1, 1e4), st.floats(-40, 40))
def test_normal_and_student(probability: float, freedom: float, value: float) -> None:
    """Quantiles and tails, also far out."""
    assert distributions.normal_quantile(probability) == pytest.approx(stats.norm.ppf(probability))
    found = distributions.student_quantile(probability, freedom)
    assert found == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-7, abs=1e-9)
    found = distributions.student_tail(value, freedom)
    assert found == pytest.approx(stats.t.sf(value, freedom), rel=1e-8, abs=1e-300)


@given(PROBABILITIES, st.integers(1, 3000), st.floats(1e-3, 1 - 1e-3))
def test_binomial(probability: float, trials: int, success: float) -> None:
    """The quantile is the least number that has the probability; the probabilities add up."""
    found = distributions.binomial_quantile(probability, trials, success)
    assert abs(found - stats.binom.ppf(probability, trials, success)) <= 1
    assert stats.binom.cdf(found, trials, success) >= probability - 1e-12
    assert found == 0 or stats.binom.cdf(found - 1, trials, success) < probability + 1e-12
    every = distributions.binomial_probabilities(trials, success)
    np.testing.assert_allclose(
        every, stats.binom.pmf(np.arange(trials + 1), trials, success), rtol=1e-9, atol=1e-300
    )


@pytest.mark.parametrize("success", [0.0, 1.0])
def test_certain_trials(success: float) -> None:
    """All probability lies at one end."""
    every = distributions.binomial_probabilities(5, success)
    np.testing.assert_array_equal(every, np.eye(6)[-1 if success else 0])
