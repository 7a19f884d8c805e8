"""Gates, waivers and verdicts over reports whose figures are known."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.made_reports import report

from onnx_audit import v1
from onnx_audit_server.reports.policy import check, evaluate

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOLDS, FAILS, UNKNOWN = "report.parity.passed", "!report.parity.passed", "has(report.units.config)"


def gate(expression: str, name: str = "g", severity: int = v1.SEVERITY_BLOCK) -> v1.Gate:
    return v1.Gate(id=name, expression=expression, severity=v1.Severity.ValueType(severity))


def waiver(name: str = "g", model: str = "scorer*", days: float = 1) -> v1.Waiver:
    made = v1.Waiver(gate_id=name, model=model, reason="known", owner="ann")
    made.expire_time.FromDatetime(NOW + timedelta(days=days))
    return made


def result(
    policy: v1.Policy, made: v1.Report | None = None, baseline: v1.Report | None = None
) -> v1.PolicyResult:
    assert check(policy) == []
    return evaluate(policy, made or report([0.1, 0.2]), baseline, NOW)


def verdict(*gates: v1.Gate, waivers: tuple[v1.Waiver, ...] = ()) -> int:
    return result(v1.Policy(gates=gates, waivers=waivers)).verdict


GATES = st.lists(
    st.tuples(
        st.sampled_from([HOLDS, FAILS, UNKNOWN]),
        st.sampled_from([v1.SEVERITY_UNSPECIFIED, v1.SEVERITY_BLOCK, v1.SEVERITY_WARN]),
        st.sampled_from(["none", "active", "expired", "other model", "both"]),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=50, deadline=None)
@given(GATES)
def test_a_pass_needs_every_blocking_gate(rows: list[tuple[str, int, str]]) -> None:
    """PASS exactly if each gate that blocks is true or set aside; FAIL if one of the rest fails."""
    policy = v1.Policy()
    for number, (expression, severity, waived) in enumerate(rows):
        name = f"gate-{number}"
        policy.gates.append(gate(expression, name, severity))
        if waived in {"active", "both"}:
            policy.waivers.append(waiver(name))
        if waived in {"expired", "both"}:
            policy.waivers.append(waiver(name, days=-1))
        if waived == "other model":
            policy.waivers.append(waiver(name, model="c" * 64))
    found = result(policy)
    counted = [
        (expression, waived)
        for expression, severity, waived in rows
        if severity != v1.SEVERITY_WARN and waived not in {"active", "both"}
    ]
    failing = [row for row in counted if row[0] == FAILS or row == (UNKNOWN, "expired")]
    if failing:
        assert found.verdict == v1.VERDICT_FAIL
    elif all(expression == HOLDS for expression, _ in counted):
        assert found.verdict == v1.VERDICT_PASS
    else:
        assert found.verdict == v1.VERDICT_INCONCLUSIVE


def test_waivers_name_models_by_digest_or_pattern() -> None:
    """The digest, or a display name with "*" for any text; nothing else is a wildcard."""
    made = report([0.1], model="d" * 64, name="fraud.scorer [3]")
    for model, applies in (
        ("d" * 64, True),
        ("c" * 64, False),
        ("fraud.scorer [3]", True),
        ("fraud*", True),
        ("*[3]", True),
        ("*scorer*", True),
        ("fraud.scorer [?]", False),
        ("fraudxscorer*", False),
        ("scorer", False),
    ):
        found = result(v1.Policy(gates=[gate(FAILS)], waivers=[waiver(model=model)]), made)
        expected = v1.VERDICT_PASS if applies else v1.VERDICT_FAIL
        assert found.verdict == expected, model
        assert (found.gates[0].waiver_state == v1.WAIVER_STATE_ACTIVE) is applies


def test_a_waiver_ends_at_its_moment() -> None:
    """Active before it, expired from it on; an expired one makes what is undecided fail."""
    second = 1 / 86400
    for expression, days, expected in (
        (FAILS, second, v1.VERDICT_PASS),
        (FAILS, 0, v1.VERDICT_FAIL),
        (UNKNOWN, second, v1.VERDICT_PASS),
        (UNKNOWN, 0, v1.VERDICT_FAIL),
        (HOLDS, 0, v1.VERDICT_PASS),
    ):
        assert verdict(gate(expression), waivers=(waiver(days=days),)) == expected
    expired = result(v1.Policy(gates=[gate(FAILS)], waivers=[waiver(days=-1)])).gates[0]
    assert expired.waiver_state == v1.WAIVER_STATE_EXPIRED
    assert "the waiver of ann has ended" in expired.explanation


@pytest.mark.parametrize(
    ("expression", "value", "threshold", "margin", "relation"),
    [
        ("report.distortion.clean_accuracy.value >= 0.9", 0.75, 0.9, -0.15, "AT_LEAST"),
        ("0.9 > report.distortion.clean_accuracy.value", 0.75, 0.9, 0.15, "BELOW"),
        ("!(report.distortion.clean_accuracy.value < 0.7)", 0.75, 0.7, 0.05, "AT_LEAST"),
        ("(true && report.distortion.misclassified != 3)", 0, 3, None, "NOT_EQUAL"),
        ("report.distortion.norms[0].mean.value / 2.0 <= 0.1", 0.1, 0.1, 0.0, "AT_MOST"),
    ],
)
def test_figures_of_a_gate(
    expression: str, value: float, threshold: float, margin: float | None, relation: str
) -> None:
    """Every comparison is shown with value, threshold and the margin on the right side."""
    made = report([0.1, 0.2, 0.3, 9.0], [True, True, True, False])
    figure = result(v1.Policy(gates=[gate(expression)]), made).gates[0].figures[-1]
    assert figure.value.value == pytest.approx(value)
    assert figure.threshold == threshold
    assert v1.GateRelation.Name(figure.relation) == f"GATE_RELATION_{relation}"
    assert figure.HasField("margin") is (margin is not None)
    assert figure.margin == pytest.approx(margin or 0.0, abs=1e-12)


def test_conditions_over_lists_are_shown_entry_by_entry() -> None:
    """Each entry's comparison is a figure of its own; a NaN in one leaves the gate undecided."""
    made = report([0.1, 0.2, 0.3])
    made.distortion.norms.add(norm=v1.NORM_LINF).mean.value = 0.05
    expression = "report.distortion.norms.all(n, n.mean.value >= 0.1 && n.confirmed >= 0)"
    row = result(v1.Policy(gates=[gate(expression)]), made).gates[0]
    assert row.verdict == v1.VERDICT_FAIL
    assert [(figure.expression, figure.verdict) for figure in row.figures] == [
        ("report.distortion.norms[0].mean.value", v1.VERDICT_PASS),
        ("report.distortion.norms[0].confirmed", v1.VERDICT_PASS),
        ("report.distortion.norms[1].mean.value", v1.VERDICT_FAIL),
        ("report.distortion.norms[1].confirmed", v1.VERDICT_PASS),
    ]
    assert row.explanation == "report.distortion.norms[1].mean.value is 0.05, not at least 0.1"


def test_sure_figures_count_from_the_end_of_the_interval() -> None:
    """The margin of `at_least` is from the lower end, that of `at_most` from the upper one."""
    made = report([0.1, 0.2, 0.3, 9.0], [True, True, True, False])
    interval = made.distortion.clean_accuracy.interval
    for call, margin in (
        ("at_least(report.distortion.clean_accuracy, 0.1)", interval.lower - 0.1),
        ("at_most(report.distortion.clean_accuracy, 0.99)", 0.99 - interval.upper),
        ("!at_most(report.distortion.clean_accuracy, 0.1)", interval.lower - 0.1),
    ):
        row = result(v1.Policy(gates=[gate(call)]), made).gates[0]
        assert row.verdict == v1.VERDICT_PASS
        assert row.figures[0].margin == pytest.approx(margin)
        assert row.figures[0].value.interval == interval


def test_figures_stand_beside_the_baseline() -> None:
    """The same figure of the baseline is shown, where there is one and the gate is not about it."""
    older, newer = report([0.4, 0.4, 0.4]), report([0.1, 0.1, 0.1])
    expression = (
        "norm(report.distortion, L2).mean.value >= 0.5 * baseline.distortion.norms[0].mean.value"
    )
    row = result(v1.Policy(gates=[gate(expression)]), newer, older).gates[0]
    assert row.verdict == v1.VERDICT_FAIL
    assert row.figures[0].baseline.value == pytest.approx(0.4)
    assert row.figures[0].threshold == pytest.approx(0.2)
    alone = result(v1.Policy(gates=[gate(expression)]), newer).gates[0]
    assert alone.verdict == v1.VERDICT_INCONCLUSIVE
    assert "there is no baseline" in alone.explanation


def test_infinity_less_infinity_decides_nothing() -> None:
    """A comparison with an undefined side is INCONCLUSIVE, whichever way it is written."""
    made = report([math.inf, math.inf])
    median = "quantile(norm({}.distortion, L2), 0.5).value"
    for form in ("{} - {} <= 0.1", "!({} - {} > 0.1)"):
        expression = form.format(median.format("report"), median.format("baseline"))
        found = result(v1.Policy(gates=[gate(expression)]), made, made)
        assert found.verdict == v1.VERDICT_INCONCLUSIVE


def test_results_name_what_they_are_of() -> None:
    """Digests of report and baseline, the policy's name, and the moment are in the result."""
    older, newer = report([0.4]), report([0.1])
    policy = v1.Policy(display_name="mine", gates=[gate(HOLDS)])
    found = result(policy, newer, older)
    assert (found.report_digest, found.baseline_digest) == (newer.digest, older.digest)
    assert (found.policy_display_name, len(found.policy_digest)) == ("mine", 64)
    assert found.evaluate_time.ToDatetime(UTC) == NOW
    policy.gates[0].message = "other"
    assert result(policy, newer, older).policy_digest != found.policy_digest


def test_regressions_beyond_noise_fail() -> None:
    """not_worse over figures that are planted: worse fails, within noise and better hold."""
    rng_like = [0.2 + 0.001 * (number % 17) for number in range(60)]
    older = report(rng_like)
    policy = v1.Policy(
        gates=[gate('not_worse(changes, "distortion.norms[*].quantiles[0.5]")', "median")]
    )
    for factor, expected in (
        (0.8, v1.VERDICT_FAIL),
        (1.0, v1.VERDICT_PASS),
        (1.2, v1.VERDICT_PASS),
    ):
        row = result(policy, report([factor * size for size in rng_like]), older).gates[0]
        assert row.verdict == expected
        figure = row.figures[0]
        assert figure.expression == "distortion.norms[L2].quantiles[0.5]"
        assert figure.value.value == pytest.approx(factor * figure.baseline.value)
    none = v1.Policy(gates=[gate('not_worse(changes, "distortion.norms[L7].mean")')])
    assert result(none, older, older).verdict == v1.VERDICT_INCONCLUSIVE
