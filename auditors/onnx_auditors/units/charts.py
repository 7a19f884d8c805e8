"""Small line charts and histograms as pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from onnx_auditors.units.source import Floats

_WIDTH, _HEIGHT = 420, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 30, 34
_COLOURS = ((31, 119, 180), (214, 99, 20), (44, 140, 60), (150, 90, 170))
_INK, _FAINT = (40, 40, 40), (215, 215, 215)
_BAND, _BAND_NAME = (225, 225, 225), (120, 120, 120)
_TICKS = 5


class _Axes:
    """A canvas with axes, in data coordinates."""

    def __init__(self, title: str, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.image = Image.new("RGB", (_WIDTH, _HEIGHT), (255, 255, 255))
        self.draw = ImageDraw.Draw(self.image)
        self._x, self._y = x, y
        self.draw.text((_LEFT, 4), title, fill=_INK)
        for value in np.linspace(*y, _TICKS):
            height = self.at(x[0], float(value))[1]
            self.draw.line((_LEFT, height, _WIDTH - _RIGHT, height), fill=_FAINT)
            self.draw.text((4, height - 6), f"{value:.3g}", fill=_INK)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the pixel of a point."""
        across = (x - self._x[0]) / max(self._x[1] - self._x[0], 1e-30)
        up = (y - self._y[0]) / max(self._y[1] - self._y[0], 1e-30)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    def ticks(self, places: Sequence[float], texts: Sequence[str]) -> None:
        """Writes below the axis."""
        for place, text in zip(places, texts, strict=True):
            self.draw.text(
                (self.at(place, self._y[0])[0], _HEIGHT - _BOTTOM + 4), text, fill=_INK, anchor="ma"
            )

    def legend(self, names: Sequence[str], band: str = "") -> None:
        """Writes the names of the series in their colours, and that of the band in grey."""
        left = float(_LEFT)
        colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(names))]
        for name, colour in zip([*names, band], [*colours, _BAND_NAME], strict=True):
            self.draw.text((left, 16), name, fill=colour)
            left += self.draw.textlength(name) + 14

    def png(self) -> bytes:
        """Returns the picture as a file."""
        file = io.BytesIO()
        self.image.save(file, "PNG")
        return file.getvalue()


def lines(
    title: str, series: Mapping[str, Sequence[float]], names: Sequence[str], level: float
) -> bytes:
    """Draws series over places that have names, with values in [0, 1], as PNG.

    Args:
        title: Title.
        series: Values by name, one per place.
        names: Names of the places.
        level: Where to draw a line across.
    """
    axes = _Axes(title, (0, max(len(names) - 1, 1)), (0, 1))
    axes.draw.line((*axes.at(0, level), *axes.at(max(len(names) - 1, 1), level)), fill=_INK)
    every = max(1, -(-len(names) // 8))
    axes.ticks(list(range(0, len(names), every)), [str(name)[-12:] for name in names[::every]])
    axes.legend(list(series))
    for i, values in enumerate(series.values()):
        colour = _COLOURS[i % len(_COLOURS)]
        points = [axes.at(x, y) for x, y in enumerate(values)]
        axes.draw.line([side for point in points for side in point], fill=colour, width=2)
        for x, y in points:
            axes.draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
    return axes.png()


def histogram(
    title: str, edges: Floats, band: tuple[Floats, Floats], series: Mapping[str, Floats]
) -> bytes:
    """Draws shares per bin as steps before a band, as PNG.

    Args:
        title: Title.
        edges: Ends of the bins, [b + 1].
        band: Lower and upper ends of the band, [b] each.
        series: Shares by name, [b] each.
    """
    highest = max(float(band[1].max()), *(float(values.max()) for values in series.values()))
    axes = _Axes(title, (float(edges[0]), float(edges[-1])), (0, max(highest, 1e-9)))
    for begin, end, low, high in zip(edges[:-1], edges[1:], *band, strict=True):
        left, top = axes.at(float(begin), float(high))
        right, bottom = axes.at(float(end), float(low))
        axes.draw.rectangle((left, top, right, bottom), fill=_BAND)
    for i, values in enumerate(series.values()):
        points = [
            axes.at(float(x), float(y))
            for begin, end, y in zip(edges[:-1], edges[1:], values, strict=True)
            for x in (begin, end)
        ]
        colour = _COLOURS[i % len(_COLOURS)]
        axes.draw.line([side for point in points for side in point], fill=colour, width=2)
    places = np.linspace(edges[0], edges[-1], _TICKS)
    axes.ticks(list(places), [f"{place:.2f}" for place in places])
    axes.legend(list(series), "rotated bases (95 %)")
    return axes.png()
