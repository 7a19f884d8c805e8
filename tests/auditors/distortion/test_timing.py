"""A budget from seconds, beside the number that the cost of a search gives in closed form."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.auditors.distortion.audits import COUNT

from onnx_audit import v1
from onnx_auditors.context import open_context
from onnx_auditors.distortion.attempts import Attempts
from onnx_auditors.distortion.auditor import DistortionAuditor
from onnx_auditors.errors import InvalidConfig

EACH = 0.05
"""Seconds that a gradient evaluation of all probes takes."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes in searches alone, as EACH says."""
    now = 0.0

    def search(attempts: Attempts, *_: object) -> None:
        nonlocal now
        now += EACH * attempts._config.budget

    monkeypatch.setattr(Attempts, "by_gradients", search)
    monkeypatch.setattr("time.perf_counter", lambda: now)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("norms", [1, 2])
def test_the_budget_is_what_fits(files: tuple[Path, Path], norms: int) -> None:
    """Norms share the time, and probes that are searched twice count twice."""
    context = open_context(*files, seed=3)
    asked = v1.DistortionConfig(
        norms=[v1.NORM_L2, v1.NORM_LINF][:norms], budget_seconds=norms * 100.0
    )
    resolved = DistortionAuditor().resolve(asked, context)
    searches = 1 + -(-COUNT // 4) / COUNT
    assert resolved.budget == pytest.approx(100.0 / searches / EACH, abs=1)
    assert resolved.budget_seconds == norms * 100.0


@pytest.mark.usefixtures("clock")
def test_time_that_is_too_short_is_refused(files: tuple[Path, Path]) -> None:
    """The error names the least time that would do."""
    context = open_context(*files, seed=3)
    with pytest.raises(InvalidConfig, match=r"0\.1 s are too short for 40 probes: about 0\.12 s"):
        DistortionAuditor().resolve(v1.DistortionConfig(budget_seconds=0.1), context)


def test_a_resolved_budget_stays(files: tuple[Path, Path]) -> None:
    """What was worked out once is not timed again by shards; the real search is what is timed."""
    context = open_context(*files, seed=3)
    auditor = DistortionAuditor()
    resolved = auditor.resolve(v1.DistortionConfig(budget_seconds=3600), context)
    assert resolved.budget > 500
    assert auditor.resolve(resolved, context) == resolved


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), 1e9])
def test_times_out_of_range_are_refused(files: tuple[Path, Path], seconds: float) -> None:
    """A time is above 0 and at most a week."""
    context = open_context(*files, seed=3)
    with pytest.raises(InvalidConfig, match="604,800"):
        DistortionAuditor().resolve(v1.DistortionConfig(budget_seconds=seconds), context)
