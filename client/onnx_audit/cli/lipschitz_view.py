"""The section of `lipschitz` for reading in a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Console

from onnx_audit import v1
from onnx_audit.cli.figures import estimate_text, norm_name, number, shape_text
from onnx_audit.cli.tables import print_section, print_table

_LAYER_ROWS: Final = 40
_OPERATORS: Final = 4
_CURVE_ROWS: Final = 10


def print_lipschitz(console: Console, section: v1.LipschitzSection) -> None:
    """Prints a section: the network first, then its layers, then the certificates."""
    print_table(
        console,
        "\n[bold]Lipschitz: how much the network can amplify a change[/]",
        ("norm", "at least", "at most", "product", "recursion", "two logits", "proof"),
        (
            (
                norm_name(row.bound.norm),
                number(row.bound.lower),
                number(row.bound.upper),
                number(row.product),
                number(row.recursion),
                number(row.largest_pair),
                _proof(row.bound),
            )
            for row in section.network
        ),
    )
    print_section(console, "What that means", _meanings(section))
    _print_layers(console, section)
    for certificates in section.certificates:
        _print_certificates(console, certificates)


def gap_text(bound: v1.LipschitzBound) -> str:
    """How far the ends of a bound are apart, relative to the lower one, such as "0.02%"."""
    if not math.isfinite(bound.upper) or not bound.lower > 0:
        return "-"
    return f"{bound.upper / bound.lower - 1:.2g}"


def _proof(bound: v1.LipschitzBound) -> str:
    if math.isinf(bound.upper):
        return "none"
    if bound.proof == v1.PROOF_KIND_PROBABILISTIC:
        return f"but for {number(bound.failure_probability)}"
    return "certain"


def _meanings(section: v1.LipschitzSection) -> list[tuple[str, str]]:
    rows = [(norm_name(row.bound.norm), row.meaning) for row in section.network]
    return rows + [("no bound", reason) for reason in section.unbounded]


def _print_layers(console: Console, section: v1.LipschitzSection) -> None:
    rows = list(range(len(section.layers)))
    if len(rows) > _LAYER_ROWS:
        rows = sorted(section.dominant[:_LAYER_ROWS])
        note = f" (the {len(rows)} that weigh most of {len(section.layers)}; the report has all)"
    else:
        note = ""
    print_table(
        console,
        f"\n[bold]Layers[/]{note}",
        ("layer", "operators", "output", "at least", "at most", "gap", "share"),
        (_layer(section.layers[i]) for i in rows),
    )


def _layer(layer: v1.LipschitzLayer) -> Sequence[str]:
    bound = layer.bounds[0]
    operators = ", ".join(layer.op_types[:_OPERATORS])
    if len(layer.op_types) > _OPERATORS:
        operators += f" +{len(layer.op_types) - _OPERATORS}"
    return (
        layer.name,
        operators,
        shape_text(list(layer.output_shape)),
        number(bound.lower),
        number(bound.upper),
        gap_text(bound),
        f"{layer.log_share:.0%}",
    )


def _print_certificates(console: Console, certificates: v1.LipschitzCertificates) -> None:
    methods = ", ".join(
        f"{name} {count}" for name, count in sorted(certificates.methods.items(), key=_falling)
    )
    median = next((q.estimate for q in certificates.quantiles if q.probability == 1 / 2), None)
    print_section(
        console,
        f"{norm_name(certificates.norm)} certificates: no smaller change alters the answer",
        [
            ("probes", str(len(certificates.probes))),
            ("mean radius", estimate_text(certificates.mean)),
            ("median radius", "" if median is None else estimate_text(median)),
            ("by method", methods),
            ("found / certified", _sandwich(certificates)),
        ],
    )
    print_table(
        console,
        "",
        ("radius", "certified accuracy"),
        ((number(point.x), estimate_text(point.y)) for point in _thinned(certificates)),
    )


def _falling(row: tuple[str, int]) -> tuple[int, str]:
    return -row[1], row[0]


def _sandwich(certificates: v1.LipschitzCertificates) -> str:
    if not certificates.sandwich.count:
        return ""
    return f"median {estimate_text(certificates.sandwich)}, {certificates.sandwich.count} probes"


def _thinned(certificates: v1.LipschitzCertificates) -> Iterator[v1.CurvePoint]:
    points = certificates.certified_accuracy
    count = min(_CURVE_ROWS, len(points))
    for i in range(count):
        yield points[round(i * (len(points) - 1) / max(count - 1, 1))]
