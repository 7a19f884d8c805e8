"""What a gate looked at: each comparison with its figure, threshold, margin and baseline."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from onnx_audit import v1
from onnx_audit_server.reports.policy.atoms import Atom, all_over, atoms, mentions, rename
from onnx_audit_server.reports.policy.expression import Answer, Data
from onnx_audit_server.reports.policy.functions import matching
from onnx_audit_server.reports.policy.values import Plain

_GROWING = {v1.GATE_RELATION_AT_LEAST, v1.GATE_RELATION_ABOVE}
_FALLING = {v1.GATE_RELATION_AT_MOST, v1.GATE_RELATION_BELOW}
_RELATION_TEXT = {
    v1.GATE_RELATION_AT_LEAST: "at least",
    v1.GATE_RELATION_ABOVE: "above",
    v1.GATE_RELATION_AT_MOST: "at most",
    v1.GATE_RELATION_BELOW: "below",
    v1.GATE_RELATION_EQUAL: "equal to",
    v1.GATE_RELATION_NOT_EQUAL: "other than",
}
_MOVED = {
    v1.MOVEMENT_UNSPECIFIED: "whether by chance is not known",
    v1.MOVEMENT_WITHIN_NOISE: "within noise",
    v1.MOVEMENT_BETTER: "better",
    v1.MOVEMENT_WORSE: "worse",
    v1.MOVEMENT_CHANGED: "changed",
}
_MOST_ENTRIES = 8
"""Longest list whose entries are shown one by one."""
_NOT_WORSE = re.compile(r"""not_worse\(\s*changes\s*,\s*(["'])(.*)\1\s*\)""")


@dataclass(frozen=True)
class Seen:
    """A comparison with its figure.

    Attributes:
        figure: The figure.
        text: What to tell people about it.
        undefined: Whether a side of the comparison is NaN, with which no comparison says anything.
    """

    figure: v1.GateFigure
    text: str
    undefined: bool = False


def look(expression: str, data: Data) -> list[Seen]:
    """The comparisons of an expression, in its order; those of `all` for each entry of a list."""
    seen: list[Seen] = []
    for atom in atoms(expression):
        if match := _NOT_WORSE.fullmatch(atom.text):
            seen += [_changed(row) for row in matching(data.changes, match.group(2)).values()]
        elif parts := _entries(atom.text, data):
            for part in parts:
                seen += look(part, data)
        else:
            seen.append(_look(atom, data))
    return seen


def _entries(expression: str, data: Data) -> list[str]:
    """The condition of `list.all(variable, condition)` for each entry, if the list is short."""
    over = all_over(expression)
    if over is None:
        return []
    listed, variable, condition = over
    size = data.evaluate(f"{listed}.size()").value
    if not isinstance(size, int) or size > _MOST_ENTRIES:
        return []
    return [rename(condition, variable, f"{listed}[{number}]") for number in range(size)]


def _changed(row: Plain) -> Seen:
    """A figure that must not be worse than the baseline's."""
    movement = row["movement"]
    verdict = v1.VERDICT_FAIL if movement == v1.MOVEMENT_WORSE else v1.VERDICT_PASS
    if movement == v1.MOVEMENT_UNSPECIFIED:
        verdict = v1.VERDICT_INCONCLUSIVE
    figure = v1.GateFigure(
        expression=row["path"],
        value=_message(row["candidate"]),
        baseline=_message(row["baseline"]),
        verdict=verdict,
    )
    moved = f"{_MOVED[movement]} (difference {_value(_message(row['difference']))})"
    was = f"was {_value(figure.baseline)}"
    return Seen(figure, f"{row['label']} is {_value(figure.value)}, {was}: {moved}")


def _look(atom: Atom, data: Data) -> Seen:
    answer = data.evaluate(atom.text)
    figure = v1.GateFigure(
        expression=atom.figure, relation=atom.relation, verdict=verdict_of(answer)
    )
    undefined = False
    if atom.relation:
        _fill(figure, atom, data)
        undefined = math.isnan(figure.value.value) or math.isnan(figure.threshold)
    reason = answer.reason
    if undefined:
        figure.verdict = v1.VERDICT_INCONCLUSIVE
        reason = "a side of the comparison is not a number"
    return Seen(figure, _sentence(figure, reason), undefined)


def verdict_of(answer: Answer) -> v1.Verdict.ValueType:
    """What an answer makes of a gate: everything but true and false is undecided."""
    if answer.value is True:
        return v1.VERDICT_PASS
    return v1.VERDICT_FAIL if answer.value is False else v1.VERDICT_INCONCLUSIVE


def _fill(figure: v1.GateFigure, atom: Atom, data: Data) -> None:
    """Puts in what is known of a comparison."""
    if (value := _estimate(atom, data)) is not None:
        figure.value.CopyFrom(value)
    if (threshold := _number(data.evaluate(atom.threshold).value)) is not None:
        figure.threshold = threshold
    if value is not None and threshold is not None:
        margin = _margin(figure, sure=atom.sure)
        if margin is not None:
            figure.margin = margin
    if (baseline := _baseline(atom, data)) is not None:
        figure.baseline.CopyFrom(baseline)


def _margin(figure: v1.GateFigure, *, sure: bool) -> float | None:
    """How far the figure, or the end of its interval that counts, is on the right side."""
    relation, value = figure.relation, figure.value.value
    if sure and not figure.value.HasField("interval"):
        return None
    if sure:
        interval = figure.value.interval
        # A negated `at_most` asks for the whole interval above, as `at_least` does.
        value = interval.lower if relation in _GROWING else interval.upper
    margin = value - figure.threshold if relation in _GROWING else figure.threshold - value
    if relation not in _GROWING | _FALLING or math.isnan(margin):
        return None
    return margin


def _estimate(atom: Atom, data: Data) -> v1.Estimate | None:
    """The figure with its interval, count and unit where it has any; None where it is no number."""
    whole = atom.figure if atom.sure else atom.figure.removesuffix(".value")
    if whole != atom.figure or atom.sure:
        value = data.evaluate(whole).value
        if isinstance(value, dict) and _number(value.get("value")) is not None:
            return _message(value)
    number = _number(data.evaluate(atom.figure).value)
    return None if number is None else v1.Estimate(value=number)


def _baseline(atom: Atom, data: Data) -> v1.Estimate | None:
    if not data.has_baseline or not mentions(atom.figure, "report"):
        return None
    if mentions(atom.figure, "baseline"):
        return None
    renamed = Atom(
        atom.text, rename(atom.figure, "report", "baseline"), sure=atom.sure, relation=atom.relation
    )
    return _estimate(renamed, data)


def _message(value: Plain) -> v1.Estimate:
    estimate = v1.Estimate(
        value=value["value"], count=value.get("count", 0), unit=value.get("unit", "")
    )
    interval = value.get("interval", {})
    if "lower" in interval and "upper" in interval:
        estimate.interval.CopyFrom(v1.Interval(**interval))
    return estimate


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def _sentence(figure: v1.GateFigure, reason: str) -> str:
    name = figure.expression
    if reason:
        return f"{name} cannot be judged: {reason}"
    if not figure.HasField("value") or not figure.HasField("threshold"):
        return f"{name} {'holds' if figure.verdict == v1.VERDICT_PASS else 'does not hold'}"
    demand = f"{_RELATION_TEXT[figure.relation]} {figure.threshold:.4g}"
    if figure.verdict == v1.VERDICT_PASS:
        return f"{name} is {_value(figure.value)}, {demand}"
    return f"{name} is {_value(figure.value)}, not {demand}"


def _value(estimate: v1.Estimate) -> str:
    text = f"{estimate.value:.4g}"
    if estimate.HasField("interval"):
        text += f" [{estimate.interval.lower:.4g}, {estimate.interval.upper:.4g}]"
    return text
