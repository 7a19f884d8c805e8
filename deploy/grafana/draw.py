"""Draws the dashboard's panels from a Prometheus server's data to a picture, without Grafana.

python deploy/grafana/draw.py http://127.0.0.1:9090 dashboard.png --minutes 30
"""

from __future__ import annotations

import argparse
import json
import math
import time
import urllib.parse
import urllib.request
from typing import Any

import matplotlib as mpl
from deploy.grafana.dashboard import ROWS, Panel, lines
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter

POINTS = 120
UNITS = {"s": "s", "bytes": "B", "Bps": "B/s"}
RATES = {"ops": "/s", "reqps": "/s", "cps": "/s", "cpm": "/min"}
FEW = 5
"""Legends with more entries than this cover the curves."""


def query_range(url: str, expression: str, start: float, end: float) -> list[dict[str, Any]]:
    """The series of a query over a time, in at most POINTS steps."""
    step = max(1.0, (end - start) / POINTS)
    window = f"{max(4 * step, 15):.0f}s"
    parameters = {
        "query": expression.replace("$__rate_interval", window),
        "start": f"{start:.3f}",
        "end": f"{end:.3f}",
        "step": f"{step:.3f}",
    }
    address = f"{url}/api/v1/query_range?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(address) as response:  # noqa: S310 - the user's own server
        found: list[dict[str, Any]] = json.load(response)["data"]["result"]
    return found


def legend(template: str, labels: dict[str, str]) -> str:
    """A series' name as Grafana makes it."""
    for name, value in labels.items():
        template = template.replace(f"{{{{{name}}}}}", value.rpartition("/")[2])
    return template


def draw_panel(axes: Axes, panel: Panel, url: str, start: float, end: float) -> None:
    """Draws one panel; series without a finite value are left out."""
    axes.set_title(panel.title, fontsize=9)
    curves = []
    for expression, template in panel.queries:
        for series in query_range(url, expression, start, end):
            times = [float(moment) - end for moment, _ in series["values"]]
            values = [float(value) for _, value in series["values"]]
            finite = [value for value in values if math.isfinite(value)]
            if finite:
                curves.append((max(finite), legend(template, series["metric"]), times, values))
    if panel.single or not curves:
        axes.axis("off")
        finite = [value for *_, values in curves for value in values if math.isfinite(value)]
        text = shown(panel, finite[-1]) if finite else "No data"
        axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=20)
        return
    curves.sort(key=lambda curve: -curve[0])
    for number, (_, name, times, values) in enumerate(curves):
        axes.plot(times, values, label=name if number < FEW else None, linewidth=1.2)
    axes.set_xlim(start - end, 0)
    highest = curves[0][0]
    axes.set_ylim(0, panel.most if panel.most is not None else 1.3 * highest or 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(panel, value)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 60:.3g} min"))
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=6, loc="upper left", ncols=2)
    axes.grid(visible=True, linewidth=0.3)


def shown(panel: Panel, value: float) -> str:
    """A figure with its unit."""
    if panel.unit == "percentunit":
        return f"{value:.1%}" if panel.single else f"{value:.0%}"
    if panel.unit in RATES:
        return f"{value:.3g}{RATES[panel.unit]}"
    places = 1 if panel.single and value % 1 else None
    return EngFormatter(UNITS.get(panel.unit, ""), places=places).format_data(value)


def main() -> None:
    """Draws all rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("file")
    parser.add_argument("--minutes", type=float, default=30)
    given = parser.parse_args()
    mpl.use("Agg")
    end = time.time()
    start = end - 60 * given.minutes
    drawn = [
        ("" if number else row.title, line)
        for row in ROWS
        for number, line in enumerate(lines(row))
    ]
    heights = [1.2 if panels[0].single else 2.6 for _, panels in drawn]
    figure = plt.figure(figsize=(16, sum(heights) + 0.4 * len(drawn)), layout="constrained")
    parts = figure.subfigures(len(drawn), 1, height_ratios=heights, squeeze=False)
    for part, (title, panels) in zip(parts[:, 0], drawn, strict=True):
        part.suptitle(title, fontsize=10, x=0.01, ha="left", weight="bold")
        grid = part.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(grid, panels, strict=True):
            draw_panel(axes, panel, given.url, start, end)
    figure.savefig(given.file, dpi=80)


if __name__ == "__main__":
    main()
