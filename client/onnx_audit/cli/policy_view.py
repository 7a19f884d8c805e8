"""What a policy says, for reading in a terminal, and as an exit status."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from onnx_audit import v1
from onnx_audit.cli.figures import estimate_text, number
from onnx_audit.cli.tables import print_table

_STATUSES: Final = {
    v1.VERDICT_PASS: 0,
    v1.VERDICT_FAIL: 1,
    v1.VERDICT_INCONCLUSIVE: 2,
}
_NO_VERDICT: Final = 3
_COLOURS: Final = {
    v1.VERDICT_PASS: "green",
    v1.VERDICT_FAIL: "red",
    v1.VERDICT_INCONCLUSIVE: "yellow",
}
_SIGNS: Final = {
    v1.GATE_RELATION_AT_LEAST: ">=",
    v1.GATE_RELATION_ABOVE: ">",
    v1.GATE_RELATION_AT_MOST: "<=",
    v1.GATE_RELATION_BELOW: "<",
    v1.GATE_RELATION_EQUAL: "=",
    v1.GATE_RELATION_NOT_EQUAL: "!=",
}


def exit_status(result: v1.PolicyResult) -> int:
    """The exit status of a verdict; without one the service is at fault."""
    return _STATUSES.get(result.verdict, _NO_VERDICT)


def print_result(console: Console, result: v1.PolicyResult) -> None:
    """Prints the gates with their figures, and the verdict."""
    rows = [row for gate in result.gates for row in _rows(gate)]
    columns = ["gate", "verdict", "value", "threshold", "margin"]
    if result.baseline_digest:
        columns.append("baseline")
    name = result.policy_display_name or result.policy_digest[:12]
    console.print()
    print_table(
        console,
        f"[bold]Policy[/] {escape(name)}",
        columns,
        [row[: len(columns)] for row in rows],
        whole=2,
    )
    for gate in result.gates:
        if gate.verdict != v1.VERDICT_PASS or gate.waiver_state == v1.WAIVER_STATE_EXPIRED:
            message = f" {gate.gate.message}" if gate.gate.message else ""
            console.print(
                f"[bold]{escape(gate.gate.id)}[/]:{escape(message)} {escape(gate.explanation)}",
                highlight=False,
            )
    verdict = verdict_name(result.verdict)
    console.print(f"\nVerdict: [bold {_COLOURS.get(result.verdict, 'red')}]{verdict}[/]")


def verdict_name(verdict: v1.Verdict.ValueType) -> str:
    """A verdict's name, such as "PASS"."""
    return v1.Verdict.Name(verdict).removeprefix("VERDICT_")


def _rows(gate: v1.GateResult) -> list[tuple[str | Text, ...]]:
    """A gate's line, and one below for each further figure."""
    cells = (_cells(figure) for figure in gate.figures)
    lines = [line for line in cells if any(line)] or [("", "", "", "")]
    first: tuple[str | Text, ...] = (gate.gate.id, _verdict(gate), *lines[0])
    return [first, *(("", "", *line) for line in lines[1:])]


def _verdict(gate: v1.GateResult) -> Text:
    text = Text(verdict_name(gate.verdict), _COLOURS.get(gate.verdict, "red"))
    if gate.verdict != v1.VERDICT_PASS and gate.gate.severity == v1.SEVERITY_WARN:
        text.append("\n(warning)")
    if gate.verdict != v1.VERDICT_PASS and gate.waiver_state == v1.WAIVER_STATE_ACTIVE:
        text.append("\n(set aside)")
    return text


def _cells(figure: v1.GateFigure) -> tuple[str, str, str, str]:
    value = _value(figure.value) if figure.HasField("value") else ""
    threshold = ""
    if figure.HasField("threshold"):
        threshold = f"{_SIGNS.get(figure.relation, '')} {number(figure.threshold)}"
    margin = number(figure.margin) if figure.HasField("margin") else ""
    baseline = _value(figure.baseline) if figure.HasField("baseline") else ""
    return value, threshold, margin, baseline


def _value(estimate: v1.Estimate) -> str:
    """A figure that is set: a bare 0 has no content, but is one."""
    return estimate_text(estimate) if estimate.ByteSize() else number(estimate.value)
