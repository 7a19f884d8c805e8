"""Expressions taken apart: what is shown of a gate, and what is counted in it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_audit import v1
from onnx_audit_server.reports.policy.atoms import (
    all_over,
    atoms,
    fields,
    macro_depth,
    mentions,
    rename,
)
from onnx_audit_server.reports.policy.expression import mistakes


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a.b >= 0.5", [("a.b", "0.5", "AT_LEAST")]),
        ("0.5 <= a.b", [("a.b", "0.5", "AT_LEAST")]),
        (
            "(a < 1.0 || b > 2.0) && c == 3",
            [
                ("a", "1.0", "BELOW"),
                ("b", "2.0", "ABOVE"),
                ("c", "3", "EQUAL"),
            ],
        ),
        ("!(a < 1.0 && b != 2)", [("a", "1.0", "AT_LEAST"), ("b", "2", "EQUAL")]),
        ("!!(a < 1.0)", [("a", "1.0", "BELOW")]),
        ("at_least(f(a, b), g(1, 2))", [("f(a, b)", "g(1, 2)", "AT_LEAST")]),
        ("!at_most(a, 2.0)", [("a", "2.0", "ABOVE")]),
        ("at_most(a, 1.0) == true", [("at_most(a, 1.0)", "true", "EQUAL")]),
        ("x.all(a, a.b < 1.0)", [("x.all(a, a.b < 1.0)", "", "UNSPECIFIED")]),
        ("a ? b < 1 : c < 2", [("a ? b < 1 : c < 2", "", "UNSPECIFIED")]),
        ("a['>= 1 && (']['(<'] > 2", [("a['>= 1 && (']['(<']", "2", "ABOVE")]),
        ("a > // b > 3\n 2", [("a", "// b > 3\n 2", "ABOVE")]),
        ("!a.b", [("!(a.b)", "", "UNSPECIFIED")]),
    ],
)
def test_comparisons_are_found(expression: str, expected: list[tuple[str, str, str]]) -> None:
    """Each comparison outside macros, with figure, threshold, and the relation that must hold."""
    found = [
        (
            atom.figure,
            atom.threshold,
            v1.GateRelation.Name(atom.relation).removeprefix("GATE_RELATION_"),
        )
        for atom in atoms(expression)
    ]
    assert found == expected


def test_conditions_over_lists_are_told_apart() -> None:
    """Only where the macro is all there is."""
    assert all_over("a.b.all( x, x.c > 1 && f(x))") == ("a.b", "x", "x.c > 1 && f(x)")
    found = all_over("a.filter(y, y.all(z, true)).all(x, g(x)[x])")
    assert found == ("a.filter(y, y.all(z, true))", "x", "g(x)[x]")
    for other in ("a.all(x, true).b", "a.exists(x, true)", "all(x)", "a.b", "!a.all(x, true)"):
        assert all_over(other) is None


def test_variables_are_told_from_fields_and_texts() -> None:
    """Only the variable is renamed."""
    text = "report.report.x > report . y && f('report', report) // report"
    assert rename(text, "report", "baseline") == (
        "baseline.report.x > baseline . y && f('report', baseline) // report"
    )
    assert not mentions("x.report == 'report'", "report")
    assert fields("a.b(c)['d']") == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("expression", "depth"),
    [
        ("a.b == 1", 0),
        ("a.all(x, true) && a.map(x, 1) == []", 1),
        ("a.filter(x, x.b . exists ( y, true)).all(z, true)", 2),
        ("a.all(x, b.all(y, c.map(z, 1) == []))", 3),
        ("all(a.all)", 0),
        (r"""a.all(x, r"\" == b && c.all(y, d.all(z, r'\' == "")))""", 3),
        ("a.all(x, // )\n b.all(y, true))", 2),
        ("a.all(x, ')))' == b.map(y, '''(''')[0])", 2),
    ],
)
def test_macros_inside_each_other_are_counted(expression: str, depth: int) -> None:
    """Whatever texts and comments hide them."""
    assert macro_depth(expression) == depth


@settings(deadline=None)
@given(st.text(alphabet="report.x()[]'\"\\r &|!<>=?:/\n019a", max_size=40))
def test_any_text_can_be_taken_apart(text: str) -> None:
    """Nothing is lost, nothing raises; where the whole is right, so is every part of it."""
    assert rename(text, "nothing", "else") == text
    parts = atoms(text)
    if not mistakes(text):
        assert not any(mistakes(part.text) for part in parts)
