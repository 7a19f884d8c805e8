"""Drawings with a row for each name: layers, bounds, indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from onnx_audit_server.reports.html import svg
from onnx_audit_server.reports.words import apart, number

Floats = npt.NDArray[np.float64]

_ROW, _FRAME = 24, 84
_LABEL_CHARACTERS = 20
_LEFT = 158
_TWO_DECADES = 100


def ranges(
    identifier: str,
    alt: str,
    names: Sequence[str],
    lower: Floats,
    upper: Floats,
    x_label: str,
) -> Markup:
    """A row for each name, from a lower to an upper figure on a logarithmic axis.

    An upper figure that is infinite is drawn as an arrow to the edge; lower ones of 0 are left out.
    """
    finite = np.concatenate([lower[lower > 0], upper[np.isfinite(upper) & (upper > 0)]])
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (1.0, 1.0)
    low, high = min(low, 0.5) / 1.3, max(high, 2.0) * 1.6

    def draw(axes: Axes) -> None:
        rows = np.arange(len(names))
        ends = np.where(np.isfinite(upper), np.maximum(upper, low), high)
        axes.barh(rows, ends - low, left=low, height=0.62, color=svg.BLUE, alpha=0.32,
                  label="certified upper bound")  # fmt: skip
        shown = lower > 0
        axes.scatter(lower[shown], rows[shown], color=svg.ORANGE, s=26, zorder=3,
                     label="attained lower bound")  # fmt: skip
        for row in rows[~np.isfinite(upper)]:
            axes.annotate("no bound →", (high, row), ha="right", va="center", color=svg.INK,
                          fontsize=12)  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=_few_ticks(high / low)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(low, high)
        axes.axvline(1.0, color=svg.GREY, linewidth=1)
        name_rows(axes, names, x_label)
        _legend(axes)

    return rows_chart(identifier, alt, draw, len(names))


def _legend(axes: Axes) -> None:
    """Puts the legend above everything, names of rows included."""
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(0, 1),
        bbox_transform=axes.figure.transFigure,
        borderaxespad=0.2,
        columnspacing=1.2,
        handlelength=1.4,
        handletextpad=0.5,
        ncols=4,
    )


def _few_ticks(ratio: float) -> tuple[int, ...]:
    """Multiples of each power of ten that an axis of such a ratio of its ends has room for."""
    return (1, 2, 5) if ratio < _TWO_DECADES else (1,)


def bars(identifier: str, alt: str, names: Sequence[str], values: Floats, x_label: str) -> Markup:
    """A bar for each name, values in [0, 1], with its figure at the end."""

    def draw(axes: Axes) -> None:
        rows = np.arange(len(names))
        axes.barh(rows, values, height=0.62, color=svg.PURPLE, alpha=0.55)
        most = max(float(values.max(initial=0.0)), 0.05)
        for row, value in zip(rows, values, strict=True):
            axes.annotate(f"{100 * value:.1f} %", (value + most / 60, row), va="center",
                          color=svg.INK, fontsize=12)  # fmt: skip
        axes.set_xlim(0, most * 1.22)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        name_rows(axes, names, x_label)

    return rows_chart(identifier, alt, draw, len(names))


@dataclass(frozen=True)
class Dots:
    """A figure with its interval for each row, beside the range of a null."""

    name: str
    value: Floats
    lower: Floats
    upper: Floats
    null_lower: Floats
    null_upper: Floats
    colour: str


def dots(
    identifier: str, alt: str, names: Sequence[str], series: Sequence[Dots], x_label: str
) -> Markup:
    """A row for each name with dots in [0, 1], their intervals, and nulls as grey bars."""

    def draw(axes: Axes) -> None:
        step = 0.7 / len(series)
        for i, dot in enumerate(series):
            rows = np.arange(len(names)) + (i - (len(series) - 1) / 2) * step
            axes.barh(rows, dot.null_upper - dot.null_lower, left=dot.null_lower,
                      height=step * 0.9, color=svg.GREY, alpha=0.35, linewidth=0,
                      label="rotated bases" if i == len(series) - 1 else None)  # fmt: skip
            spread = np.abs(np.stack([dot.value - dot.lower, dot.upper - dot.value]))
            axes.errorbar(dot.value, rows, xerr=spread, fmt="o", color=dot.colour, markersize=6,
                          capsize=3, label=dot.name)  # fmt: skip
        axes.axvline(0.5, color=svg.GREY, linewidth=1)
        axes.set_xlim(0, 1)
        name_rows(axes, names, x_label)
        _legend(axes)

    return rows_chart(identifier, alt, draw, len(names))


def name_rows(axes: Axes, names: Sequence[str], x_label: str) -> None:
    """Makes the vertical axis one of names, the first on top."""
    axes.set_yticks(range(len(names)), apart(names, _LABEL_CHARACTERS))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(x_label)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def rows_chart(identifier: str, alt: str, draw: svg.Draw, rows: int) -> Markup:
    """A chart that is as high as its rows need."""
    return svg.chart(
        identifier,
        alt,
        draw,
        height=_FRAME + _ROW * rows,
        margins=(_LEFT, 18, 30, 50),
    )
