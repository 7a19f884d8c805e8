"""The drawings of a report, each of plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from onnx_audit_server.reports.html import svg
from onnx_audit_server.reports.html.row_charts import name_rows, rows_chart
from onnx_audit_server.reports.words import number, short

Floats = npt.NDArray[np.float64]

_BINS = 24
_ONE_COLUMN = 3


@dataclass(frozen=True)
class Curve:
    """A line over x with an interval at each point.

    `step` says what is known between the points of a falling curve: with "post" no more than the
    last point (an upper limit), with "pre" no less than the next one (a lower limit).
    """

    name: str
    x: Floats
    y: Floats
    lower: Floats
    upper: Floats
    colour: str
    step: Literal["pre", "post"] | None = None
    dashed: bool = False

    def between(self, edges: Floats) -> Floats:
        """The limit on each piece between edges that contain all its points, in [0, 1]."""
        if self.step == "post":
            before = np.insert(self.y, 0, 1.0)
            return before[np.searchsorted(self.x, edges[:-1], side="right")]
        after = np.append(self.y, 0.0)
        return after[np.searchsorted(self.x, edges[1:], side="left")]


def curves(
    identifier: str,
    alt: str,
    lines: Sequence[Curve],
    x_label: str,
    y_label: str,
    *,
    between: tuple[Curve, Curve] | None = None,
    in_percent: bool = True,
) -> Markup:
    """Shares over x, with their intervals as bands.

    Args:
        identifier: Unique in the page.
        alt: What it shows.
        lines: The curves, y in [0, 1].
        x_label: What x is.
        y_label: What y is.
        between: Two of the curves, a lower and an upper limit: the area between is shaded.
        in_percent: Whether y is written in per cent.
    """

    def draw(axes: Axes) -> None:
        if between is not None:
            edges = np.union1d(between[0].x, between[1].x)
            lower, upper = (curve.between(edges) for curve in between)
            axes.stairs(upper, edges, baseline=lower, fill=True, color=svg.GREY, alpha=0.16,
                        linewidth=0)  # fmt: skip
        for line in lines:
            axes.fill_between(line.x, line.lower, line.upper, color=line.colour, alpha=0.18,
                              linewidth=0, step=line.step)  # fmt: skip
            axes.plot(
                line.x,
                line.y,
                color=line.colour,
                linestyle="--" if line.dashed else "-",
                drawstyle=f"steps-{line.step}" if line.step else "default",
                marker=None if line.step else "o",
                markersize=4,
                label=short(line.name, 48),
            )
        axes.set_ylim(0, 1.03)
        axes.set_xlim(left=min(0.0, *(float(line.x[0]) for line in lines)))
        if in_percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0,
                    ncols=columns)  # fmt: skip

    columns = 1 if len(lines) <= _ONE_COLUMN else 2
    top = 12 + 19 * -(-len(lines) // columns)
    return svg.chart(identifier, alt, draw, height=270 + top, margins=(68, 14, top, 50))


def histogram(
    identifier: str,
    alt: str,
    values: Floats,
    x_label: str,
    *,
    baseline: Floats | None = None,
    colour: str = svg.BLUE,
    median: float = math.nan,
) -> Markup:
    """How values are distributed, beside those of a baseline; values are finite, at least one."""

    def draw(axes: Axes) -> None:
        both = values if baseline is None else np.concatenate([values, baseline])
        edges = np.linspace(min(0.0, float(both.min())), float(both.max()) or 1.0, _BINS + 1)
        axes.hist(values, bins=edges.tolist(), color=colour, alpha=0.55, label="this model")
        if baseline is not None and len(baseline):
            axes.hist(
                baseline,
                bins=edges.tolist(),
                histtype="step",
                color=svg.GREY,
                linewidth=2,
                label="baseline",
            )
        if math.isfinite(median):
            axes.axvline(median, color=svg.INK, linewidth=1.5, linestyle=":",
                         label=f"median {number(median)}")  # fmt: skip
        axes.set_xlabel(x_label)
        axes.set_ylabel("probes")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=False, axis="x")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0, ncols=3)

    return svg.chart(identifier, alt, draw, margins=(62, 14, 30, 50))


def shares(
    identifier: str,
    alt: str,
    edges: Floats,
    series: Sequence[tuple[str, Floats]],
    band: tuple[Floats, Floats],
    x_label: str,
) -> Markup:
    """Shares per bin as steps, before the range of a null.

    Args:
        identifier: Unique in the page.
        alt: What it shows.
        edges: Ends of the bins, [b + 1].
        series: Names with shares, [b] each.
        band: Lower and upper ends of the null's range, [b] each.
        x_label: What is binned.
    """

    def draw(axes: Axes) -> None:
        axes.stairs(band[1], edges, baseline=band[0], fill=True, color=svg.GREY, alpha=0.3,
                    linewidth=0, label="rotated bases")  # fmt: skip
        for (name, values), colour in zip(series, svg.SERIES, strict=False):
            axes.stairs(values, edges, color=colour, linewidth=2, label=name)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel(x_label)
        axes.set_ylabel("share")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.12, 1.0), borderaxespad=0, ncols=3)

    return svg.chart(identifier, alt, draw, margins=(62, 14, 30, 50))


def tree(
    identifier: str,
    alt: str,
    names: Sequence[str],
    order: Sequence[int],
    merges: Sequence[tuple[int, int, float]],
) -> Markup:
    """How leaves join: a dendrogram with a row for each leaf.

    Args:
        identifier: Unique in the page.
        alt: What it shows.
        names: Of the n leaves.
        order: The leaves from top to bottom.
        merges: Two groups and their distance, from the nearest on; group n + i is made by merge i.
    """
    place = {leaf: float(row) for row, leaf in enumerate(order)}
    reach = dict.fromkeys(place, 0.0)

    def draw(axes: Axes) -> None:
        for i, (left, right, distance) in enumerate(merges):
            ends = place[left], place[right]
            axes.plot(
                [reach[left], distance, distance, reach[right]],
                [ends[0], ends[0], ends[1], ends[1]],
                color=svg.BLUE,
                linewidth=2,
            )
            place[len(names) + i] = sum(ends) / 2
            reach[len(names) + i] = distance
        name_rows(axes, [names[leaf] for leaf in order], "1 - mean transfer rate")
        axes.set_xlim(0, max(1.0, *(distance for *_, distance in merges)) * 1.02)

    return rows_chart(identifier, alt, draw, len(names))
