"""Expressions: what is refused on loading, and what a report that lacks things gives."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.made_reports import report

from onnx_audit import v1
from onnx_audit_server.reports.policy.checking import MAX_EXPRESSION, check
from onnx_audit_server.reports.policy.expression import Data, mistakes
from onnx_audit_server.reports.policy.values import plain


def answer(expression: str, made: v1.Report, **more: object) -> object:
    """What an expression gives, None where there is no answer."""
    assert mistakes(expression) == []
    return Data({"report": plain(made), **more}).evaluate(expression).value


def reason(expression: str, made: v1.Report) -> str:
    """Why an expression has no answer."""
    found = Data({"report": plain(made)}).evaluate(expression)
    assert found.value is None
    return found.reason


@pytest.mark.parametrize(
    ("expression", "line", "column", "text"),
    [
        ("report.parity.passd", 1, 14, "undefined field 'passd'"),
        ("report.parity.passed &&\n  report.probes.count >= 1.0", 2, 23, "no matching overload"),
        ("report.distortion.clean_accuracy >= 0.9", 1, 34, "no matching overload"),
        ("at_least(report.distortion, 0.9)", 1, 9, "no matching overload"),
        ("norm(report.distortion, L3).confirmed > 0", 1, 25, "undeclared reference to 'L3'"),
        ("report.parity.passed &&", 1, 24, "Syntax error"),
        ("report.probes.count", 1, 1, "gives INT; expected true or false"),
    ],
)
def test_mistakes_are_found_without_a_report(
    expression: str, line: int, column: int, text: str
) -> None:
    """Fields, types, syntax and the kind of the result are checked, with line and column."""
    first = mistakes(expression)[0]
    assert (first.line, first.column) == (line, column)
    assert text in first.text


def test_what_is_missing_has_no_answer() -> None:
    """A section, an optional figure or a list that is not there is no zero and holds nowhere."""
    made = report([0.1, 0.2, 0.3])
    for expression in (
        "report.lipschitz.network[0].bound.upper < 1.0",
        "report.lipschitz.network.all(n, n.bound.upper < 1.0)",
        "report.distortion.hidden.all(h, h.mean.value > 1.0)",
        "report.distortion.norms.all(n, n.stability.found_once == 0)",
        "norm(report.distortion, LINF).mean.value < 1.0",
        "report.units.layers.size() == 0",
        "!(report.transfer.probe_count > 5)",
        "baseline.parity.passed",
        "not_worse(changes, '*')",
        "report.distortion.norms[0].quantiles[7].estimate.value < 9.0",
    ):
        assert answer(expression, made) is None, expression
    assert answer("has(report.lipschitz)", made) is False
    assert answer("report.warnings.size() == 0", made) is True
    assert reason("report.lipschitz.network[0].bound.upper < 1.0", made) == "lipschitz is missing"


def test_nan_is_missing_and_infinity_is_a_number() -> None:
    """An undefined figure answers no comparison, not even a negated one."""
    made = report([math.inf, math.inf, math.inf])
    assert math.isnan(made.distortion.norms[0].mean.value)
    assert answer("report.distortion.norms[0].mean.value > 0.0", made) is None
    assert answer("!(report.distortion.norms[0].mean.value < 0.0)", made) is None
    assert answer("quantile(norm(report.distortion, L2), 0.5).value > 1e9", made) is True
    made.distortion.norms[0].mean.Clear()
    made.distortion.norms[0].mean.SetInParent()
    assert answer("report.distortion.norms[0].mean.value < 1.0", made) is None
    listed = v1.Report()
    listed.distortion.hidden.add(distances=[math.nan, 1.0])
    assert answer("report.distortion.hidden[0].distances[0] > 0.0", listed) is None
    assert answer("report.distortion.hidden[0].distances[1] > 0.0", listed) is True


@pytest.mark.parametrize(
    ("lower", "upper", "threshold", "least", "most"),
    [
        (0.4, 0.6, 0.4, True, None),
        (0.4, 0.6, 0.39, True, False),
        (0.4, 0.6, 0.5, None, None),
        (0.4, 0.6, 0.6, None, True),
        (0.4, 0.6, 0.61, False, True),
        (0.4, math.inf, 1e9, None, None),
        (-math.inf, 0.6, 0.7, False, True),
    ],
)
def test_intervals_count_whole(
    lower: float, upper: float, threshold: float, least: bool | None, most: bool | None
) -> None:
    """True or false when the whole interval is on one side, no answer when it straddles."""
    made = v1.Report()
    made.distortion.clean_accuracy.CopyFrom(
        v1.Estimate(value=0.5, interval=v1.Interval(lower=lower, upper=upper))
    )
    figure = "report.distortion.clean_accuracy"
    assert answer(f"at_least({figure}, {threshold:.3f})", made) is least
    assert answer(f"at_most({figure}, {threshold:.3f})", made) is most


def test_a_figure_without_interval_is_not_sure() -> None:
    """A gate that asks for confidence gets no answer from a bare value."""
    made = v1.Report()
    made.distortion.clean_accuracy.value = 1
    assert answer("at_least(report.distortion.clean_accuracy, 0.5)", made) is None
    assert answer("report.distortion.clean_accuracy.value >= 0.5", made) is True


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=30), st.floats(0, 1.5))
def test_accuracy_at_a_radius_never_says_too_much(distances: list[float], radius: float) -> None:
    """Beside the share counted from the rows: never more, equal at the curve's points."""
    made = report(distances)
    curve = made.distortion.norms[0].robust_accuracy
    data = Data({"report": plain(made)})

    def found(at: float) -> float | None:
        value: float | None = data.evaluate(
            f"accuracy_at(norm(report.distortion, L2), {at:.60f}).value"
        ).value
        return value

    value = found(radius)
    if value is None:
        assert radius > max(point.x for point in curve)
    else:
        assert value <= sum(size > radius for size in distances) / len(distances) + 1e-12
    assert found(curve[-1].x) == curve[-1].y.value


def test_functions_pick_by_name() -> None:
    """Norms, layers and quantiles are found by what they are, in every section that has them."""
    made = v1.Report()
    for norm, value in ((v1.NORM_L1, 1.0), (v1.NORM_LINF, 2.0)):
        made.distortion.norms.add(norm=norm).mean.value = value
        made.lipschitz.network.add(bound=v1.LipschitzBound(norm=norm, upper=value))
        made.lipschitz.certificates.add(norm=norm).quantiles.add(
            probability=0.25
        ).estimate.value = value
    made.lipschitz.layers.add(name="fc").log_share = 0.7
    made.units.layers.add(value="fc").dead = 3
    for expression in (
        "norm(report.distortion, LINF).mean.value == 2.0",
        "norm(report.distortion, Norm.NORM_L1).mean.value == 1.0",
        "bound(report.lipschitz, LINF).bound.upper == 2.0",
        "quantile(certificates(report.lipschitz, L1), 0.25).value == 1.0",
        "layer(report.lipschitz, 'fc').log_share == 0.7",
        "layer(report.units, 'fc').dead == 3",
    ):
        assert answer(expression, made) is True, expression
    assert "no entry of 'conv' in layers" in reason("layer(report.units, 'conv').dead == 3", made)


TRUTH: dict[str, bool | None] = {
    "report.parity.passed": True,
    "!report.parity.passed": False,
    "report.units.left_out.size() == 0": None,
}


def kleene(tree: object) -> bool | None:
    """Three-valued logic: what is false in any case is false, what is true in any case true."""
    if isinstance(tree, str):
        return TRUTH[tree]
    assert isinstance(tree, tuple)
    operator, *parts = tree
    values: list[bool | None] = [kleene(part) for part in parts]
    if operator == "!":
        return None if values[0] is None else not values[0]
    decisive: bool = operator == "||"
    if decisive in values:
        return decisive
    undecided = any(value is None for value in values)
    return None if undecided else not decisive


def text(tree: object) -> str:
    """The tree as CEL."""
    if isinstance(tree, str):
        return tree
    assert isinstance(tree, tuple)
    if tree[0] == "!":
        return f"!({text(tree[1])})"
    return f"({text(tree[1])} {tree[0]} {text(tree[2])})"


TREES = st.recursive(
    st.sampled_from(list(TRUTH)),
    lambda inner: st.one_of(
        st.tuples(st.just("!"), inner),
        st.tuples(st.sampled_from(["&&", "||"]), inner, inner),
    ),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(TREES)
def test_what_is_unknown_spreads_as_in_three_valued_logic(tree: object) -> None:
    """An answer is given exactly where what is missing cannot change it (Kleene's strong logic)."""
    assert answer(text(tree), report([0.1])) is kleene(tree)


def test_policies_are_refused_as_a_whole() -> None:
    """Every mistake of a policy is found at once, each with its field."""
    gate = v1.Gate(id="a", expression="report.parity.passed")
    policy = v1.Policy(
        gates=[
            gate,
            gate,
            v1.Gate(id="Not An Id", expression="true"),
            v1.Gate(id="empty"),
            v1.Gate(id="long", expression="true" + " " * MAX_EXPRESSION),
            v1.Gate(
                id="deep",
                expression="report.distortion.norms.all(a, report.distortion.norms.all(b, "
                "report.distortion.norms.all(c, true)))",
            ),
        ],
        waivers=[v1.Waiver(gate_id="nobody", model="abcdef0123456789" * 3)],
    )
    assert [field for field, _ in check(policy)] == [
        "gates[1].id",
        "gates[2].id",
        "gates[3].expression",
        "gates[4].expression",
        "gates[5].expression",
        "waivers[0].gate_id",
        "waivers[0].model",
        "waivers[0].reason",
        "waivers[0].owner",
        "waivers[0].expire_time",
    ]
    assert [field for field, _ in check(v1.Policy())] == ["gates"]
