"""A figure over the releases of one model: what is drawn, as numbers and as places in a drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from onnx_audit import v1
from onnx_audit_server.reports import assemble
from onnx_audit_server.reports.words import interval, number
from onnx_audit_server.store.blobs import BlobStore
from onnx_audit_server.store.records import Cursor, Records

MOST_MODELS: Final = 5000
"""Latest models that are looked through for names."""
MOST_RELEASES: Final = 20
"""Latest releases of a model that are drawn."""
_PAGE: Final = 500
_AUDITS: Final = 3
"""Latest audits of a release that are read."""
WIDTH: Final = 720
HEIGHT: Final = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 24, 16, 44
_TICKS: Final = 5


@dataclass(frozen=True)
class Point:
    """A release's figure.

    Attributes:
        audit: `audits/{id}` whose report has it.
        label: What the release is called.
        value: The figure.
        lower: Lower end of its interval; the value where there is none.
        upper: Upper end.
        text: The figure with its interval.
    """

    audit: str
    label: str
    value: float
    lower: float
    upper: float
    text: str


@dataclass(frozen=True)
class Metric:
    """A figure over releases, the oldest first."""

    path: str
    label: str
    points: list[Point]


@dataclass(frozen=True)
class Mark:
    """A point in the drawing: x, y, and the ends of its interval."""

    point: Point
    x: float
    y: float
    y_lower: float
    y_upper: float


@dataclass(frozen=True)
class Drawing:
    """Marks, the line through them, and the axis: pairs of y and text."""

    marks: list[Mark]
    line: str
    ticks: list[tuple[float, str]]
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    bottom: float = HEIGHT - _BOTTOM


def names(records: Records) -> list[tuple[str, int]]:
    """Display names of models with their number of releases, the latest first."""
    counts: dict[str, int] = {}
    for model in _models(records):
        counts[model.display_name] = counts.get(model.display_name, 0) + 1
    return list(counts.items())


def metrics(records: Records, blobs: BlobStore, name: str) -> list[Metric]:
    """Every figure of the latest releases of a model, each from the latest audit that has it."""
    # Statistics take long to import, and a server that serves needs none.
    from onnx_audit_server.reports.compare.figures import figures  # noqa: PLC0415

    found: dict[str, Metric] = {}
    releases = [model for model in _models(records) if model.display_name == name]
    for model in reversed(releases[:MOST_RELEASES]):
        seen: set[str] = set()
        for audit, report in _reports(records, blobs, model):
            for path, figure in figures(report).items():
                if path not in seen and math.isfinite(figure.estimate.value):
                    seen.add(path)
                    metric = found.setdefault(path, Metric(path, figure.label, []))
                    metric.points.append(_point(audit, model, figure.estimate))
    return list(found.values())


def drawing(points: Sequence[Point]) -> Drawing:
    """Places of points in a drawing, from left to right; at least one point."""
    ends = [end for point in points for end in (point.lower, point.upper, point.value)]
    low, high = _range([end for end in ends if math.isfinite(end)])
    bottom, top = HEIGHT - _BOTTOM, _TOP

    def y(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return round(bottom - share * (bottom - top), 1)

    step = (WIDTH - _LEFT - _RIGHT) / len(points)
    marks = [
        Mark(
            point,
            round(_LEFT + step * (i + 0.5), 1),
            y(point.value),
            y(point.lower),
            y(point.upper),
        )
        for i, point in enumerate(points)
    ]
    values = [low + (high - low) * i / (_TICKS - 1) for i in range(_TICKS)]
    return Drawing(
        marks,
        " ".join(f"{mark.x},{mark.y}" for mark in marks),
        [(y(value), number(value)) for value in values],
    )


def _range(ends: Sequence[float]) -> tuple[float, float]:
    """The range of the axis: a little more than the points and their intervals take."""
    low, high = min(ends), max(ends)
    pad = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - pad, high + pad


def _models(records: Records) -> Iterator[v1.Model]:
    cursor: Cursor | None = None
    for _ in range(MOST_MODELS // _PAGE):
        page, cursor = records.list_models(_PAGE, cursor)
        yield from page
        if cursor is None:
            return


def _reports(
    records: Records, blobs: BlobStore, model: v1.Model
) -> Iterator[tuple[v1.Audit, v1.Report]]:
    """The latest audits of a model that have a report, with their reports."""
    digest = model.name.partition("/")[2]
    audits, _ = records.list_audits(_AUDITS, None, [v1.AUDIT_STATE_SUCCEEDED], digest)
    for audit in audits:
        blob = records.report_blob(audit.name.partition("/")[2])
        if blob is not None:
            yield audit, assemble.from_json(blobs.get(blob))


def _point(audit: v1.Audit, model: v1.Model, estimate: v1.Estimate) -> Point:
    ends: Iterable[float] = (estimate.value, estimate.value)
    if estimate.HasField("interval"):
        ends = (estimate.interval.lower, estimate.interval.upper)
    lower, upper = ends
    around = interval(estimate)
    return Point(
        audit=audit.name,
        label=model.tags.get("release") or model.name.partition("/")[2][:8],
        value=estimate.value,
        lower=lower,
        upper=upper,
        text=number(estimate.value) + (f" ({around})" if around else ""),
    )
