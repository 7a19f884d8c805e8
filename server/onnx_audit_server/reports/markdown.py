"""A report as GitHub-flavoured Markdown, for step summaries and pull requests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from onnx_audit import v1
from onnx_audit_server.reports import gates, summary
from onnx_audit_server.reports.document import Document
from onnx_audit_server.reports.gates import GateView, Outcome
from onnx_audit_server.reports.words import (
    attack_name,
    clean,
    count,
    cut,
    figure,
    norm_name,
    number,
    score_name,
    verdict_name,
)

MOST_BYTES: Final = 1_000_000
"""GitHub takes step summaries of up to 1 MiB."""
_MOST_ROWS: Final = 60
_MOST_TEXT: Final = 2_000
_HALF: Final = 0.5
# Whatever could be markup or start a list, a rule or a link.
_MARKUP: Final = re.compile(r"[^\w \u0080-\U0010ffff.,;()%/=+?'-]|_|^[-+=]|^\d|www(?=\.)|/(?=/)")
_SIGNS: Final = {
    Outcome.PASS: "✅",
    Outcome.FAIL: "❌",
    Outcome.INCONCLUSIVE: "❓",
    Outcome.WAIVED: "⚪",
    Outcome.WARNING: "⚠️",
}
_VERDICTS: Final = {
    v1.VERDICT_PASS: "✅ PASS",
    v1.VERDICT_FAIL: "❌ FAIL",
    v1.VERDICT_INCONCLUSIVE: "❓ INCONCLUSIVE",
}


def render(document: Document) -> bytes:
    """Verdict, gates and key figures, then each section in short; UTF-8, below 1 MiB."""
    text, left_out = "", False
    for lines in _parts(document):
        part = "\n".join(lines) + "\n\n"
        if len((text + part).encode()) > MOST_BYTES:
            left_out = True
            continue
        text += part
    if left_out:
        text += "Parts that are too long for a summary are left out here; the report has them.\n"
    return text.encode()


def escaped(text: str, most: int = _MOST_TEXT) -> str:
    """Text in one line that Markdown takes as nothing but text."""
    line = " ".join(cut(text, most).split())
    return _MARKUP.sub(lambda match: "".join(f"&#{ord(sign)};" for sign in match[0]), line)


def code(text: str, most: int = 200) -> str:
    """Text in a fixed-width font, in which GitHub links no name and no number."""
    return f"<code>{escaped(text, most)}</code>"


def _parts(document: Document) -> Iterator[list[str]]:
    report, result = document.report, document.result
    verdict = "audit report"
    if result is not None:
        verdict = _VERDICTS.get(result.verdict, verdict_name(result.verdict))
    yield [
        f"## {verdict}: {code(document.model_name)}",
        "",
        f"{escaped(gates.sentence(result))} {escaped(summary.probes_text(report))}.",
    ]
    if report.warnings:
        yield [
            "> [!WARNING]",
            *(f"> - {code(row.code)} {escaped(row.message)}" for row in report.warnings),
        ]
    views = gates.views(result)
    if views:
        yield ["### Gates", "", *_gate_table(views)]
        yield _explanations(views)
    figures = summary.key_figures(report, document.baseline)
    if figures:
        yield ["### Key figures", "", *_table(
            ("figure", "value", "95 % interval", "baseline", "meaning"),
            [
                [escaped(text) for text in (f.name, f.value, f.interval, f.baseline, f.meaning)]
                for f in figures
            ],
        )]  # fmt: skip
    yield from _sections(report)
    yield [f"Report digest {code(report.digest)}, model {code(report.model.sha256)}"]


def _gate_table(views: Sequence[GateView]) -> list[str]:
    rows = []
    for view in views:
        state = f"{_SIGNS[view.outcome]} {view.outcome.value}"
        figures = list(view.figures) or [gates.Figure("", "", "", "", "")]
        for place, row in enumerate(figures):
            rows.append([
                "" if place else state,
                "" if place else code(view.identifier),
                code(row.name) if row.name else "",
                *(escaped(text) for text in (row.value, row.threshold, row.margin, row.baseline)),
            ])  # fmt: skip
    return _table(("", "gate", "figure", "value", "threshold", "margin", "baseline"), rows)


def _explanations(views: Sequence[GateView]) -> list[str]:
    """What to know of the gates that do not hold."""
    lines = []
    for view in views:
        if view.outcome is Outcome.PASS:
            continue
        said = [view.message, view.explanation, view.waiver]
        lines.append(
            f"- {_SIGNS[view.outcome]} {code(view.identifier)}: "
            + " ".join(escaped(text) for text in said if text)
        )
    return lines


def _sections(report: v1.Report) -> Iterator[list[str]]:
    if report.HasField("distortion"):
        yield _distortion(report.distortion)
    if report.HasField("lipschitz"):
        yield _lipschitz(report.lipschitz)
    if report.HasField("transfer"):
        yield _transfer(report.transfer)
    if report.HasField("units"):
        yield _units(report.units)


def _distortion(section: v1.DistortionSection) -> list[str]:
    rows = []
    for norm in section.norms:
        median = [q.estimate for q in norm.quantiles if q.probability == _HALF]
        rows.append([
            norm_name(norm.norm),
            figure(median[0]) if median else "-",
            figure(norm.mean),
            f"{norm.confirmed:,}",
            f"{norm.not_found + norm.unconfirmed:,}",
        ])  # fmt: skip
    header = ("norm", "median distortion", "mean", "confirmed", "without example")
    return _folded("Smallest changes", _table(header, rows))


def _lipschitz(section: v1.LipschitzSection) -> list[str]:
    rows = [
        [
            norm_name(row.bound.norm),
            number(row.bound.lower),
            number(row.bound.upper),
            escaped(row.meaning),
        ]
        for row in section.network
    ]
    lines = _table(("norm", "lower", "certified upper", "in words"), rows)
    if section.certificates:
        radii = [
            [norm_name(row.norm), count(len(row.probes), "probe"), figure(row.mean)]
            for row in section.certificates
        ]
        lines += ["", *_table(("norm", "certified", "mean radius"), radii)]
    return _folded("Amplification and certificates", lines)


def _transfer(section: v1.TransferSection) -> list[str]:
    """Error rates by the examples of other models; the audited one first."""
    rows = [
        [
            attack_name(cell.attack),
            "all others" if cell.source < 0 else code(section.models[cell.source], 60),
            code(section.models[cell.target], 60),
            figure(cell.error_rate, share=True),
            figure(cell.noise_error_rate, share=True),
        ]
        for cell in sorted(section.cells, key=lambda cell: cell.target)
        if cell.source != cell.target and cell.error_rate.count
    ]
    header = ("examples", "made for", "given to", "error rate", "noise of the same size")
    return _folded("Transfer to other models", _table(header, rows))


def _units(section: v1.UnitsSection) -> list[str]:
    rows = [
        [
            code(layer.value, 60),
            score_name(score.kind),
            figure(score.index_auc),
            figure(score.rotated_index),
            v1.UnitVerdict.Name(score.verdict).removeprefix("UNIT_VERDICT_").lower(),
        ]
        for layer in section.layers
        for score in layer.scores
    ]
    rows = [[*row[:4], row[4].replace("_", " ")] for row in rows]
    header = ("layer", "score", "index", "rotated bases", "units are")
    return _folded("Units against random directions", _table(header, rows))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of cells that are Markdown already."""
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows[:_MOST_ROWS]]
    if len(rows) > _MOST_ROWS:
        lines += ["", f"{len(rows) - _MOST_ROWS:,} more rows are in the report."]
    return lines


def _folded(title: str, lines: Sequence[str]) -> list[str]:
    return [f"<details><summary>{clean(title)}</summary>", "", *lines, "", "</details>"]
