"""A report for reading in a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from onnx_audit import v1
from onnx_audit.cli.figures import (
    auditor_name,
    estimate_text,
    layout_name,
    norm_name,
    number,
    shape_text,
    short_digest,
)

_BAR_WIDTH: Final = 40
_CURVE_ROWS: Final = 12
_FRAGILE_ROWS: Final = 10


def print_report(console: Console, report: v1.Report) -> None:
    """Prints what a report says, warnings first."""
    _facts(console, "Report", _overview(report))
    for warning in report.warnings:
        console.print(
            f"[yellow]Warning[/] {escape(warning.code)}: {escape(warning.message)}",
            highlight=False,
        )
    if report.HasField("distortion"):
        _print_distortion(console, report.distortion)
    if report.HasField("lipschitz"):
        _print_lipschitz(console, report.lipschitz)
    if report.HasField("transfer"):
        _print_transfer(console, report.transfer)
    if report.HasField("units"):
        _print_units(console, report.units)
    _facts(console, "Provenance", _provenance(report))


def print_facts(console: Console, rows: Iterable[tuple[str, str]]) -> None:
    """Prints names and values below each other; empty values are left out, none is cut."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value:
            table.add_row(f"[dim]{escape(name)}[/]", escape(value))
    console.print(table, highlight=False)


def _facts(console: Console, title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Prints a heading with names and values below."""
    console.print(f"\n[bold]{title}[/]")
    print_facts(console, rows)


def _rows(
    console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text]]
) -> None:
    """Prints a table under a title."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) if isinstance(cell, str) else cell for cell in row))
    if title:
        console.print(title, highlight=False)
    console.print(table, highlight=False)


def _overview(report: v1.Report) -> list[tuple[str, str]]:
    model, probes, parity = report.model, report.probes, report.parity
    inputs = ", ".join(
        f"{tensor.name} {tensor.dtype} {shape_text(list(tensor.shape))}" for tensor in model.inputs
    )
    labels = "unlabelled"
    if probes.has_labels:
        labels = f"labels {probes.min_label} to {probes.max_label}"
    rows = [
        ("digest", report.digest),
        (
            "model",
            f"{report.execution.model_display_name or 'model'} ({short_digest(model.sha256)}): "
            f"{model.node_count} nodes, {model.parameter_count} weights, opset {model.opset}",
        ),
        ("input", inputs),
        (
            "probes",
            f"{probes.count} of {shape_text(list(probes.shape))} {probes.dtype}, "
            f"values {number(probes.min)} to {number(probes.max)}, {labels} "
            f"({short_digest(probes.sha256)})",
        ),
        ("input spec", spec_text(report.input_spec)),
    ]
    if report.HasField("parity"):
        rows.append(
            (
                "parity",
                f"{'holds' if parity.passed else 'DOES NOT HOLD'}: the network and ONNX Runtime "
                f"differ by at most {number(parity.max_relative_difference)} (relative; allowed "
                f"{number(parity.tolerance)}), same label for {parity.label_agreement} of "
                f"{parity.probe_count} probes",
            )
        )
    return rows


def spec_text(spec: v1.InputSpec) -> str:
    """An input spec in a line."""

    def joined(values: Sequence[float]) -> str:
        return ", ".join(number(value) for value in values)

    parts = [f"input {spec.input_name}"] if spec.input_name else []
    if spec.divisor not in (0, 1):
        parts.append(f"stored values / {number(spec.divisor)}")
    if spec.lower or spec.upper:
        parts.append(f"box [{joined(spec.lower)}] to [{joined(spec.upper)}]")
    if spec.mean:
        parts.append(f"mean {joined(spec.mean)}")
    if spec.std:
        parts.append(f"std {joined(spec.std)}")
    if spec.probe_layout or spec.model_layout:
        parts.append(f"{layout_name(spec.probe_layout)} to {layout_name(spec.model_layout)}")
    if spec.channel_order == v1.CHANNEL_ORDER_REVERSED:
        parts.append("channels reversed")
    return "; ".join(parts) or "as stored"


def quantile(norm: v1.NormDistortion, probability: float) -> v1.Estimate:
    """The estimate of a quantile of the distance; an empty one if the section does not have it."""
    for row in norm.quantiles:
        if math.isclose(row.probability, probability):
            return row.estimate
    return v1.Estimate()


def _print_distortion(console: Console, section: v1.DistortionSection) -> None:
    accuracy = section.clean_accuracy
    facts = [
        ("clean accuracy", estimate_text(accuracy)),
        ("probes", f"{section.probe_count}, of which {section.misclassified} misclassified"),
        ("search", f"{section.config.budget} gradient evaluations per probe and norm"),
    ]
    facts += [
        (
            f"{norm_name(norm.norm)} examples",
            f"{norm.confirmed} confirmed by ONNX Runtime, {norm.unconfirmed} not confirmed, "
            f"none found for {norm.not_found}",
        )
        for norm in section.norms
    ]
    if accuracy.HasField("interval"):
        facts.append(("[low, high]", f"{accuracy.interval.confidence:.0%} confidence intervals"))
    _facts(console, "Distortion: the smallest changes that change the answer", facts)
    _rows(
        console,
        "",
        ("norm", "median", "mean", "mean rms"),
        (
            (
                norm_name(norm.norm),
                estimate_text(quantile(norm, 0.5)),
                estimate_text(norm.mean),
                estimate_text(norm.mean_rms),
            )
            for norm in section.norms
        ),
    )
    for norm in section.norms:
        _print_curve(console, norm)
        _print_fragile(console, norm)


def thinned(points: Sequence[v1.CurvePoint], rows: int) -> list[v1.CurvePoint]:
    """At most so many points of a curve, evenly spread, both ends among them."""
    if len(points) <= rows:
        return list(points)
    return [points[round(index * (len(points) - 1) / (rows - 1))] for index in range(rows)]


def _print_curve(console: Console, norm: v1.NormDistortion) -> None:
    if not norm.robust_accuracy:
        return

    def bar(share: float) -> Text:
        filled = round(max(0.0, min(1.0, share)) * _BAR_WIDTH)
        return Text("█" * filled + "·" * (_BAR_WIDTH - filled))

    _rows(
        console,
        f"{norm_name(norm.norm)}: share of probes answered rightly and without an example within "
        "the radius; an attack's figure, the true robust accuracy is at most this",
        ("radius", "", "robust accuracy"),
        (
            (number(point.x), bar(point.y.value), estimate_text(point.y))
            for point in thinned(norm.robust_accuracy, _CURVE_ROWS)
        ),
    )


def _print_fragile(console: Console, norm: v1.NormDistortion) -> None:
    rows = {probe.probe: probe for probe in norm.probes}
    shown = [rows[index] for index in norm.most_fragile if index in rows][:_FRAGILE_ROWS]
    if not shown:
        return
    _rows(
        console,
        f"{norm_name(norm.norm)}: most fragile probes",
        ("probe", "label", "becomes", "distance"),
        (
            (
                str(probe.probe),
                str(probe.label),
                str(probe.adversarial_prediction),
                number(probe.distance),
            )
            for probe in shown
        ),
    )


def _print_lipschitz(console: Console, section: v1.LipschitzSection) -> None:
    def proof(bound: v1.LipschitzBound) -> str:
        name = v1.ProofKind.Name(bound.proof).removeprefix("PROOF_KIND_").lower()
        chance = f" ({number(bound.failure_probability)})"
        return name + (chance if bound.proof == v1.PROOF_KIND_PROBABILISTIC else "")

    _rows(
        console,
        "\n[bold]Lipschitz: how much the network can amplify a change[/]",
        ("norm", "at least", "at most", "proof", "method"),
        (
            (
                norm_name(bound.norm),
                number(bound.lower),
                number(bound.upper),
                proof(bound),
                bound.method,
            )
            for bound in section.network
        ),
    )


def _print_transfer(console: Console, section: v1.TransferSection) -> None:
    _rows(
        console,
        "\n[bold]Transfer: errors that one model's examples induce in another[/]",
        ("source", "target", "error rate", "noise of the same size"),
        (
            (
                section.models[cell.source],
                section.models[cell.target],
                estimate_text(cell.error_rate),
                estimate_text(cell.noise_error_rate),
            )
            for cell in section.cells
        ),
    )


def _print_units(console: Console, section: v1.UnitsSection) -> None:
    def kind(score: v1.UnitScore) -> str:
        return v1.UnitScoreKind.Name(score.kind).removeprefix("UNIT_SCORE_KIND_").lower()

    _rows(
        console,
        "\n[bold]Units against random directions[/] (0.5 is no distinction)",
        ("value", "units", "dead", "score", "index", "p (rotation)"),
        (
            (
                layer.value,
                str(layer.dimension),
                str(layer.dead),
                kind(score),
                estimate_text(score.index_auc),
                number(score.p_rotation),
            )
            for layer in section.layers
            for score in layer.scores
        ),
    )


def _provenance(report: v1.Report) -> list[tuple[str, str]]:
    source = report.provenance
    rows = [
        ("seed", str(source.seed)),
        ("device", f"{source.device} ({source.machine}), {source.threads} threads"),
        ("software", ", ".join(f"{item.name} {item.version}" for item in source.software)),
        ("precision", ", ".join(source.precision)),
        ("providers", ", ".join(source.providers)),
        ("audit", report.execution.audit),
    ]
    rows += [
        (
            f"time of {auditor_name(row.auditor)}",
            f"{row.duration.ToTimedelta().total_seconds():.1f} s in {row.shards} shards",
        )
        for row in report.execution.auditor_seconds
    ]
    return [(name, value) for name, value in rows if value]
