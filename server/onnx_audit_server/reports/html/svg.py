"""Charts as SVG that takes its colours from the page it stands in.

Matplotlib draws with placeholder colours, each of which becomes a CSS variable, so that one drawing
serves a light and a dark page. Text stays text; ids are made unique within the page.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable
from typing import Any, Final, TypeAlias
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from onnx_audit_server.reports.words import clean

Draw: TypeAlias = Callable[[Axes], None]

WIDTH: Final = 480
"""Width of a chart in CSS pixels: readable on a phone, and two beside each other on a laptop."""
_DPI: Final = 72

INK, FAINT = "#000101", "#000102"
BLUE, ORANGE, GREEN, PURPLE, GREY = "#000103", "#000104", "#000105", "#000106", "#000107"
SERIES: Final = (BLUE, ORANGE, GREEN, PURPLE, GREY)
_VARIABLES: Final = {
    INK: "var(--ink)",
    FAINT: "var(--line)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
    PURPLE: "var(--purple)",
    GREY: "var(--grey)",
}
_STYLE: Final[Any] = {
    "axes.edgecolor": GREY,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 13,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "font.family": ["sans-serif"],
    "font.size": 13,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 12.5,
    "legend.labelcolor": INK,
    "lines.linewidth": 2.0,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    # Names from models are text, not formulas.
    "text.parse_math": False,
    "text.color": INK,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
}
# The settings and the pictures in the making are global to matplotlib.
_LOCK: Final = threading.Lock()
_LINK: Final = re.compile(r"#([^)]*)")
_FONT: Final = re.compile(r"font: ([\d.]+px)[^;]*|font-family: [^;]*")
_COLOUR: Final = re.compile("|".join(_VARIABLES))
_NAMESPACE: Final = re.compile(r"\{[^}]*\}")


def chart(
    identifier: str,
    alt: str,
    draw: Draw,
    *,
    height: int = 300,
    margins: tuple[float, float, float, float] = (62, 14, 14, 50),
) -> Markup:
    """Returns a chart as an inline `<svg>`; the same drawing gives the same text.

    Args:
        identifier: Unique in the page: letters, digits and hyphens.
        alt: What it shows, for those who do not see it.
        draw: Draws on the axes, with the colours of this module alone.
        height: Height in CSS pixels.
        margins: Left, right, top and bottom of the axes in CSS pixels.
    """
    left, right, top, bottom = margins
    with _LOCK, mpl.rc_context({**_STYLE, "svg.hashsalt": identifier}), warnings.catch_warnings():
        # Text is drawn by the reader's fonts: those here need not know every sign of a name.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure = Figure(figsize=(WIDTH / _DPI, height / _DPI), dpi=_DPI)
        figure.subplots_adjust(left / WIDTH, bottom / height, 1 - right / WIDTH, 1 - top / height)
        draw(figure.add_subplot())
        file = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(file, metadata=metadata)  # type: ignore[no-untyped-call]
    return _inline(file.getvalue(), identifier, alt, height)


def _inline(text: str, identifier: str, alt: str, height: int) -> Markup:
    """Matplotlib's file as a part of a page."""
    drawing = ElementTree.fromstring(text)  # noqa: S314 - matplotlib wrote it just now
    for element in list(drawing.iter()):
        for child in [child for child in element if child.tag.endswith(("style", "metadata"))]:
            element.remove(child)
    elements = list(drawing.iter())
    linked = {
        link
        for element in elements
        for name, value in element.attrib.items()
        if name.endswith(("href", "clip-path"))
        for link in _LINK.findall(value)
    }
    for element in elements:
        element.tag = _NAMESPACE.sub("", element.tag)
        element.attrib = {
            _NAMESPACE.sub("", name): _attribute(name, value, identifier)
            for name, value in element.attrib.items()
            if name != "id" or value in linked
        }
    drawing.attrib = {
        "viewBox": f"0 0 {WIDTH} {height}",
        "role": "img",
        "aria-labelledby": f"{identifier}-alt",
    }
    title = ElementTree.Element("title", {"id": f"{identifier}-alt"})
    title.text = clean(alt)
    drawing.insert(0, title)
    # ElementTree has escaped every name that stands in it.
    return Markup(ElementTree.tostring(drawing, encoding="unicode"))  # noqa: S704


def _attribute(name: str, value: str, identifier: str) -> str:
    """An attribute with colours of the page, its font, and ids that are unique in it."""
    if name == "style":
        value = _COLOUR.sub(lambda match: _VARIABLES[match[0]], value)
        return _FONT.sub(lambda match: f"font-size: {match[1]}" if match[1] else "", value)
    if name == "id":
        return f"{identifier}-{value}"
    if name.endswith(("href", "clip-path")):
        return _LINK.sub(rf"#{identifier}-\1", value)
    return value.replace("\n", " ") if name == "d" else value
