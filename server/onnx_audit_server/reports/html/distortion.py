"""The section of `distortion` as a part of a page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import numpy as np

from onnx_audit import v1
from onnx_audit_server.reports.document import Document
from onnx_audit_server.reports.html import charts, distortion_tables, gallery, pictures, svg
from onnx_audit_server.reports.html.blocks import Block, Chart, Group, Section
from onnx_audit_server.reports.html.charts import Curve, Floats
from onnx_audit_server.reports.words import count, figure, norm_name, number, percent

METHOD: Final = "distortion"
_HALF: Final = 0.5


def section(document: Document, allowance: pictures.Allowance) -> Section:
    """Everything that the auditor found, a group for each norm."""
    report = document.report
    found = report.distortion
    accuracy = figure(found.clean_accuracy, share=True)
    lead = (
        "How small a change of an input changes the answer, while the input stays inside its box. "
        f"{found.probe_count:,} probes were audited; the model answers {accuracy} of them rightly."
    )
    groups: list[Block] = [
        Group(f"In {norm_name(norm.norm)}", tuple(_norm(document, norm, allowance)))
        for norm in found.norms
    ]
    return Section(
        METHOD, "Smallest changes", lead, (*groups, *distortion_tables.whole_section(found))
    )


def _norm(
    document: Document, norm: v1.NormDistortion, allowance: pictures.Allowance
) -> Iterator[Block]:
    if norm.robust_accuracy:
        yield _survival(document.report, norm)
    distances = finite_distances(document, norm)
    if len(distances):
        yield _histogram(document, norm, distances)
    yield distortion_tables.facts(norm)
    yield from gallery.examples(document, norm, allowance)
    yield from distortion_tables.tables(norm)


def _survival(report: v1.Report, norm: v1.NormDistortion) -> Chart:
    name = norm_name(norm.norm)
    attack = limit("attack: no more stand a change", norm.robust_accuracy, "post")
    proved = _certified(report, norm.norm)
    alt = (
        f"Share of probes that stand a change, over its size in {name}: at most "
        f"{percent(float(attack.y[0]))} at {number(float(attack.x[0]))}, at most "
        f"{percent(float(attack.y[-1]))} at {number(float(attack.x[-1]))}."
    )
    meaning = (
        "The share of probes that are answered rightly and for which no example was found within "
        "the radius. The true robust accuracy is at most this."
    )
    if proved is not None:
        meaning = _between(norm, _certificates(report, norm.norm))
    return Chart(
        f"Robust accuracy over the size of the change, {name}",
        charts.curves(
            f"survival-{name}",
            alt,
            [attack] if proved is None else [attack, proved],
            f"{name} radius in probe space",
            "share of probes",
            between=None if proved is None else (proved, attack),
        ),
        meaning,
        METHOD,
    )


def _between(norm: v1.NormDistortion, certified: Sequence[v1.CurvePoint]) -> str:
    attacked, proved = norm.robust_accuracy[0].y.count, certified[0].y.count
    said = (
        "The true robust accuracy lies in the grey area: examples show that no more probes stand "
        "a change of this size, certificates that no fewer do."
    )
    if attacked == proved:
        return said
    return (
        f"{said} The curves are of {attacked:,} attacked and {proved:,} certified probes; their "
        "95 % intervals allow for the choice."
    )


def limit(name: str, points: Sequence[v1.CurvePoint], step: Literal["pre", "post"]) -> Curve:
    """A curve of the report as an upper ("post") or lower ("pre") limit, with its intervals."""
    colour = svg.ORANGE if step == "post" else svg.GREEN
    return Curve(name, *columns(points), colour, step)


def columns(points: Sequence[v1.CurvePoint]) -> tuple[Floats, Floats, Floats, Floats]:
    """Positions and values of a curve, and the ends of its intervals."""
    ends = [
        (point.y.interval.lower, point.y.interval.upper) if point.y.HasField("interval")
        else (point.y.value, point.y.value)
        for point in points
    ]  # fmt: skip
    lower, upper = (np.array([end[side] for end in ends]) for side in (0, 1))
    x, y = np.array([point.x for point in points]), np.array([point.y.value for point in points])
    return x, y, lower, upper


def _certificates(report: v1.Report, norm: v1.Norm.ValueType) -> Sequence[v1.CurvePoint]:
    for certificates in report.lipschitz.certificates:
        if certificates.norm == norm:
            return certificates.certified_accuracy
    return ()


def _certified(report: v1.Report, norm: v1.Norm.ValueType) -> Curve | None:
    points = _certificates(report, norm)
    return limit("certificate: no fewer stand it", points, "pre") if points else None


def _histogram(document: Document, norm: v1.NormDistortion, distances: Floats) -> Chart:
    name = norm_name(norm.norm)
    median = next((q.estimate.value for q in norm.quantiles if q.probability == _HALF), math.nan)
    before = _baseline(document, norm.norm)
    baseline = None if before is None else finite_distances(document, before)
    alt = (
        f"Histogram of {len(distances):,} distances in {name}, from "
        f"{number(float(distances.min()))} to {number(float(distances.max()))}, median "
        f"{number(median)}."
    )
    return Chart(
        f"Distance of the nearest example, {name}",
        charts.histogram(
            f"distances-{name}",
            alt,
            distances,
            f"{name} distance in probe space",
            baseline=baseline,
            median=median,
        ),
        "How far each rightly answered probe is from the nearest example that was found."
        + _left_out(norm.not_found + norm.unconfirmed),
        METHOD,
    )


def _left_out(number: int) -> str:
    if not number:
        return ""
    left = "is left out of the bars and counts" if number == 1 else "are left out and count"
    return f" {count(number, 'probe')} without an example {left} as infinitely far in the median."


def _baseline(document: Document, norm: v1.Norm.ValueType) -> v1.NormDistortion | None:
    if document.baseline is None:
        return None
    return next((n for n in document.baseline.distortion.norms if n.norm == norm), None)


def finite_distances(document: Document, norm: v1.NormDistortion) -> Floats:
    """Distances of the confirmed examples, from the table or, where that is left out, the file."""
    if norm.probes:
        return np.array(
            [row.distance for row in norm.probes if row.outcome == v1.PROBE_OUTCOME_CONFIRMED]
        )
    if not norm.artefact.sha256:
        return np.zeros(0)
    try:
        outcome = pictures.column(document.artefacts, norm.artefact, "outcome")
        distance = pictures.column(document.artefacts, norm.artefact, "distance")
    except FileNotFoundError:
        return np.zeros(0)
    found: Floats = distance[outcome == v1.PROBE_OUTCOME_CONFIRMED].astype(np.float64)
    return found
