"""A report for reading in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from onnx_audit import v1
from onnx_audit.cli.distortion_view import print_distortion
from onnx_audit.cli.figures import (
    auditor_name,
    estimate_text,
    layout_name,
    number,
    shape_text,
    short_digest,
)
from onnx_audit.cli.head_options import config_text
from onnx_audit.cli.lipschitz_view import print_lipschitz
from onnx_audit.cli.tables import print_section
from onnx_audit.cli.transfer_view import print_transfer
from onnx_audit.cli.units_view import print_units


def print_report(console: Console, report: v1.Report) -> None:
    """Prints what a report says, warnings first."""
    print_section(console, "Report", _overview(report))
    for warning in report.warnings:
        console.print(
            f"[yellow]Warning[/] {escape(warning.code)}: {escape(warning.message)}",
            highlight=False,
        )
    if report.HasField("distortion"):
        print_distortion(console, report.distortion)
    if report.HasField("lipschitz"):
        print_lipschitz(console, report.lipschitz)
    if report.HasField("transfer"):
        print_transfer(console, report.transfer)
    if report.HasField("units"):
        print_units(console, report.units)
    print_section(console, "Provenance", _provenance(report))


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
    if report.HasField("linear_head"):
        head = report.linear_head
        rows.append(
            (
                "linear head",
                f"{config_text(head.config)}: {head.features} features, {head.classes} classes, "
                f"fitted on {head.probe_count} probes, accuracy there "
                f"{estimate_text(head.training_accuracy)}, held out "
                f"{estimate_text(head.held_out_accuracy)} ({short_digest(head.sha256)})",
            )
        )
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
            f"none: reused from {row.reused_from}"
            if row.reused_from
            else f"{row.duration.ToTimedelta().total_seconds():.1f} s in {row.shards} shards",
        )
        for row in report.execution.auditor_seconds
    ]
    return [(name, value) for name, value in rows if value]
