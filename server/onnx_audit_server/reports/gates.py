"""A policy's result gate by gate, as every form of a report shows it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from onnx_audit import v1
from onnx_audit_server.reports.words import figure, given, number, verdict_name

_RELATIONS: Final = {
    v1.GATE_RELATION_AT_LEAST: "≥",
    v1.GATE_RELATION_ABOVE: ">",
    v1.GATE_RELATION_AT_MOST: "≤",
    v1.GATE_RELATION_BELOW: "<",
    v1.GATE_RELATION_EQUAL: "=",
    v1.GATE_RELATION_NOT_EQUAL: "≠",
}


_NAMED: Final = 5
_CONDITIONS: Final = {v1.VERDICT_PASS: "holds", v1.VERDICT_FAIL: "does not hold"}


class Outcome(enum.Enum):
    """What becomes of a release at a gate."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    WAIVED = "waived"
    WARNING = "warning"

    @property
    def blocks(self) -> bool:
        """Whether the release stops here."""
        return self in {Outcome.FAIL, Outcome.INCONCLUSIVE}


@dataclass(frozen=True)
class Figure:
    """A figure or condition that a gate looked at, as text; what is missing is "-"."""

    name: str
    value: str
    threshold: str
    margin: str
    baseline: str


@dataclass(frozen=True)
class GateView:
    """A gate and what became of it.

    Attributes:
        identifier: Its id.
        outcome: What became of it, waivers and severity taken into account.
        verdict: What it says before any waiver, such as "FAIL".
        warns_only: Whether it cannot block.
        message: What to tell people when it does not hold.
        explanation: Why, in a sentence.
        expression: Its expression.
        waiver: The waiver for it in a sentence; empty where there is none.
        figures: What it looked at.
    """

    identifier: str
    outcome: Outcome
    verdict: str
    warns_only: bool
    message: str
    explanation: str
    expression: str
    waiver: str
    figures: Sequence[Figure]


def views(result: v1.PolicyResult | None) -> list[GateView]:
    """All gates of a result in its order; none where no policy was applied."""
    return [_view(row) for row in result.gates] if result is not None else []


def worst_first(result: v1.PolicyResult | None) -> list[GateView]:
    """All gates of a result: first those that block, last those that hold."""
    order = [Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.WARNING, Outcome.WAIVED, Outcome.PASS]
    return sorted(views(result), key=lambda view: order.index(view.outcome))


def sentence(result: v1.PolicyResult | None) -> str:
    """What a policy says of a report."""
    if result is None:
        return "No policy was applied: the figures stand for themselves."
    listed = views(result)
    outcomes = [view.outcome for view in listed]
    parts = [
        f"{outcomes.count(outcome)} {outcome.value}" for outcome in Outcome if outcome in outcomes
    ]
    name = result.policy_display_name or "the policy"
    said = f"Of {len(outcomes)} gates of {name}: {', '.join(parts) or 'none'}."
    blocking = [view.identifier for view in listed if view.outcome.blocks]
    if blocking:
        more = len(blocking) - _NAMED
        rest = f" and {more} more" if more > 0 else ""
        said += f" Blocked by {', '.join(blocking[:_NAMED])}{rest}."
    return said


def _view(row: v1.GateResult) -> GateView:
    return GateView(
        identifier=row.gate.id,
        outcome=_outcome(row),
        verdict=verdict_name(row.verdict),
        warns_only=row.gate.severity == v1.SEVERITY_WARN,
        message=row.gate.message,
        explanation=row.explanation,
        expression=row.gate.expression,
        waiver=_waiver(row),
        figures=[_figure(item) for item in row.figures],
    )


def _outcome(row: v1.GateResult) -> Outcome:
    if row.verdict == v1.VERDICT_PASS:
        return Outcome.PASS
    if row.waiver_state == v1.WAIVER_STATE_ACTIVE:
        return Outcome.WAIVED
    if row.gate.severity == v1.SEVERITY_WARN:
        return Outcome.WARNING
    # With an expired waiver a gate that cannot be decided fails, too.
    if row.verdict == v1.VERDICT_FAIL or row.waiver_state == v1.WAIVER_STATE_EXPIRED:
        return Outcome.FAIL
    return Outcome.INCONCLUSIVE


def _waiver(row: v1.GateResult) -> str:
    if row.waiver_state == v1.WAIVER_STATE_UNSPECIFIED:
        return ""
    waiver = row.waiver
    ended = row.waiver_state == v1.WAIVER_STATE_EXPIRED
    return (
        f"{'waiver expired on' if ended else 'waived until'} "
        f"{waiver.expire_time.ToDatetime():%Y-%m-%d} by {waiver.owner}: {waiver.reason}"
    )


def _figure(row: v1.GateFigure) -> Figure:
    threshold = "-"
    if row.HasField("threshold"):
        threshold = f"{_RELATIONS.get(row.relation, '')} {number(row.threshold)}".strip()
    value = _shown(row.value) if row.HasField("value") else "missing"
    if row.relation == v1.GATE_RELATION_UNSPECIFIED:
        value = _CONDITIONS.get(row.verdict, "undecided")
    return Figure(
        name=row.expression,
        value=value,
        threshold=threshold,
        margin=f"{row.margin:+.3g}" if row.HasField("margin") else "-",
        baseline=_shown(row.baseline) if row.HasField("baseline") else "-",
    )


def _shown(estimate: v1.Estimate) -> str:
    """A gate's figure, which is there: without a count and an interval a 0 is one, too."""
    return figure(estimate) if given(estimate) else number(estimate.value)
