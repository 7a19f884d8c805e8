"""The section of `lipschitz` as a part of a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from onnx_audit import v1
from onnx_audit_server.reports.html import charts, row_charts, svg
from onnx_audit_server.reports.html.blocks import Block, Chart, Group, Note, Section, Table
from onnx_audit_server.reports.words import count, figure, norm_name, number, shape_text

METHOD: Final = "lipschitz"
_MOST_ROWS: Final = 40
_HALF: Final = 0.5


def section(report: v1.Report) -> Section:
    """Bounds of the network and of its layers, and the certificates of probes."""
    found = report.lipschitz
    lead = (
        "How much the network, and each of its layers, can amplify a change. No input is amplified "
        "more than an upper bound says; some input shows the lower one."
    )
    return Section(
        METHOD,
        "Amplification and certificates",
        lead,
        (
            _network(found),
            *(Note(f"No global bound: {reason}.") for reason in found.unbounded[:5]),
            *_certified(found),
            *([Group("Layers", tuple(_layers(found)))] if found.layers else []),
        ),
    )


def _network(found: v1.LipschitzSection) -> Table:
    return Table(
        "The whole network, from probe space to the logits",
        ("norm", "lower", "upper", "product of layers", "recursion", "difference of two logits",
         "in words"),
        [
            (
                norm_name(row.bound.norm),
                number(row.bound.lower),
                number(row.bound.upper),
                number(row.product),
                number(row.recursion),
                number(row.largest_pair),
                row.meaning + (" (vacuous)" if row.vacuous else ""),
            )
            for row in found.network
        ],
        "A change of the input by r changes no logit vector by more than upper times r; a bound "
        "that is vacuous is a figure to compare between releases and no certificate.",
        "networks",
    )  # fmt: skip


def _certified(found: v1.LipschitzSection) -> Iterator[Block]:
    if found.certificates:
        charts_of_norms = [chart for row in found.certificates for chart in _radii(row)]
        yield Group("Certificates", (_certificates(found), *charts_of_norms))


def _certificates(found: v1.LipschitzSection) -> Table:
    rows: dict[str, list[str]] = {}
    for row in found.certificates:
        figures = {"mean": figure(row.mean)}
        for quantile in row.quantiles:
            figures[f"{number(100 * quantile.probability)} % below"] = figure(quantile.estimate)
        figures["found / certified"] = figure(row.sandwich) if row.sandwich.count else "-"
        figures["proved by"] = ", ".join(f"{name} {n:,}" for name, n in sorted(row.methods.items()))
        for name, text in figures.items():
            rows.setdefault(name, []).append(text)
    return Table(
        "Certified radii",
        ("radius", *(norm_name(row.norm) for row in found.certificates)),
        [(name, *texts) for name, texts in rows.items()],
        "Mean and quantiles over the probes that are answered rightly, and how many times as far "
        "the nearest example was found (median).",
        "certificates",
    )


def _radii(row: v1.LipschitzCertificates) -> Iterator[Block]:
    name = norm_name(row.norm)
    radii = np.array([probe.radius for probe in row.probes if np.isfinite(probe.radius)])
    if not len(radii):
        return
    none = int((radii == 0).sum())
    alt = (
        f"Histogram of the certified radii of {count(len(radii), 'probe')} in {name}, from "
        f"{number(float(radii.min()))} to {number(float(radii.max()))}; {none} are 0."
    )
    median = next((q.estimate.value for q in row.quantiles if q.probability == _HALF), np.nan)
    yield Chart(
        f"Certified radius, {name}",
        charts.histogram(
            f"radii-{name}", alt, radii, f"certified {name} radius", colour=svg.GREEN,
            median=float(median),
        ),
        "No change of a probe that is smaller than its radius changes the answer."
        + _without_radius(none),
        "certificates",
    )  # fmt: skip


def _without_radius(number_of_probes: int) -> str:
    if not number_of_probes:
        return ""
    which = count(number_of_probes, "probe has", "probes have")
    return f" {which} none, because the model errs there or nothing could be proved."


def _layers(found: v1.LipschitzSection) -> Iterator[Block]:
    layers = list(found.layers)
    first = found.config.norms[0] if found.config.norms else v1.NORM_L2
    shown = _shown(found)
    names = [layers[i].name for i in shown]
    bounds = [_bound(layers[i], first) for i in shown]
    upper = np.array([bound.upper for bound in bounds])
    part = (
        f", the {len(shown)} of {len(layers)} that weigh most" if len(shown) < len(layers) else ""
    )
    finite = upper[np.isfinite(upper)]
    yield Chart(
        f"Bounds of each layer, {norm_name(first)}{part}",
        row_charts.ranges(
            "layers",
            f"Bounds of {count(len(names), 'layer')} in the order of the graph; the largest finite "
            f"upper bound is {number(float(finite.max(initial=0.0)))}.",
            names,
            np.array([bound.lower for bound in bounds]),
            upper,
            f"amplification in {norm_name(first)} (1: none)",
        ),
        "The dot is an amplification that some input shows, the bar ends at the certified limit: "
        "where both meet, the layer's constant is known.",
        METHOD,
    )
    dominant = [i for i in found.dominant if layers[i].log_share > 0]
    if dominant:
        yield Chart(
            "Share of the product",
            row_charts.bars(
                "shares",
                f"{layers[dominant[0]].name} has the largest share of the product, "
                f"{100 * layers[dominant[0]].log_share:.1f} per cent.",
                [layers[i].name for i in dominant],
                np.array([layers[i].log_share for i in dominant]),
                "share of the sum of |log(upper bound)|",
            ),
            "What dominates the product of the layers' bounds: to tighten the network, begin at "
            "the top.",
            METHOD,
        )
    yield _layer_table(layers)


def _shown(found: v1.LipschitzSection) -> list[int]:
    """The layers that a chart has room for, in the order of the graph."""
    order = sorted(range(len(found.layers)), key=lambda i: -found.layers[i].log_share)
    return sorted(order[:_MOST_ROWS])


def _bound(layer: v1.LipschitzLayer, norm: v1.Norm.ValueType) -> v1.LipschitzBound:
    empty = v1.LipschitzBound(upper=np.inf)
    return next((bound for bound in layer.bounds if bound.norm == norm), empty)


def _layer_table(layers: Sequence[v1.LipschitzLayer]) -> Table:
    return Table(
        f"All {len(layers)} layers",
        ("layer", "operators", "shape", "norm", "lower", "upper", "method"),
        [
            (
                layer.name,
                ", ".join(layer.op_types),
                f"{shape_text(layer.input_shape)} → {shape_text(layer.output_shape)}",
                norm_name(bound.norm),
                number(bound.lower),
                number(bound.upper),
                bound.method + _chance(bound),
            )
            for layer in layers
            for bound in layer.bounds
        ],
        "Every layer in the order of the graph, in each norm.",
        METHOD,
        folded=True,
    )


def _chance(bound: v1.LipschitzBound) -> str:
    if bound.proof != v1.PROOF_KIND_PROBABILISTIC:
        return ""
    return f" (fails with chance {number(bound.failure_probability)})"
