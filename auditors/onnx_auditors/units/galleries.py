"""Pictures to judge by eye: which rows there are and what they show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_audit import v1
from onnx_auditors.auditor import SaveArtefact
from onnx_auditors.units import charts, places, receptive, sprites
from onnx_auditors.units.directions import Family
from onnx_auditors.units.places import Rows
from onnx_auditors.units.scored import Scored, Tops
from onnx_auditors.units.setup import Prepared, Setup
from onnx_auditors.units.source import Floats, Indices
from onnx_auditors.units.values import layers_of
from onnx_auditors.units.words import NAMES

NINE = 9
_PAIRS, _STRIPS, _LISTED = 8, 6, 64
_STRIP_SHARES = (1 / 100, 1 / 20)
_MOST_FILTERS, _FILTER_COLUMNS = 256, 16
_CHANNELS = frozenset({1, 3})
_KERNEL_AXES = 4
_SEED = 91


def draw(
    setup: Setup,
    prepared: Prepared,
    tops: Tops,
    scores: Sequence[Scored],
    message: v1.UnitsLayer,
    save: SaveArtefact,
) -> None:
    """Adds the pictures of a layer to its message.

    Args:
        setup: What all shards agree on.
        prepared: The layer.
        tops: Top inputs.
        scores: Its scores; the first says how good a direction is.
        message: The layer's message, with scores and units.
        save: Keeps a picture.
    """

    def keep(
        kind: v1.UnitGalleryKind.ValueType, content: bytes, media: str, order: Indices
    ) -> None:
        image = save([content], media)
        message.galleries.append(v1.UnitGallery(kind=kind, image=image, order=order))

    none = np.zeros(0, dtype=np.int64)
    if setup.source.image_shape is not None:
        studio = _Studio(setup, prepared, tops)
        for kind, canvas, order in studio.galleries(scores[0], message):
            keep(kind, *sprites.encoded(canvas), order)
    if (kernels := _kernels(prepared)) is not None:
        canvas = sprites.grid(sprites.filters(kernels), _FILTER_COLUMNS, background=sprites.BLUE)
        keep(v1.UNIT_GALLERY_KIND_FILTERS, *sprites.encoded(canvas), np.arange(len(kernels)))
    for score in message.scores:
        picture = _histogram(message.value, score)
        keep(v1.UNIT_GALLERY_KIND_HISTOGRAM, picture, sprites.PNG, none)
    if (curve := _curve(message)) is not None:
        keep(v1.UNIT_GALLERY_KIND_CURVE, curve, sprites.PNG, none)


def depth(layers: Sequence[v1.UnitsLayer]) -> bytes | None:
    """Returns the index of each score over the layers as PNG; None for a single layer."""
    if len(layers) < 2:  # noqa: PLR2004 - a line has two ends
        return None
    series: dict[str, list[float]] = {}
    for layer in layers:
        for score in layer.scores:
            series.setdefault(NAMES[score.kind], []).append(score.index_auc.value)
    # Scores that only some layers have, such as masks, have no line over the depth.
    whole = {name: values for name, values in series.items() if len(values) == len(layers)}
    return charts.lines("index over depth", whole, [layer.value for layer in layers], 0.5)


class _Studio:
    """Makes the galleries of one layer."""

    def __init__(self, setup: Setup, prepared: Prepared, tops: Tops) -> None:
        self._setup, self._prepared, self._tops = setup, prepared, tops
        value = prepared.job.value
        self._field = receptive.field_of(prepared.job.network, value.measured)

    def galleries(
        self, score: Scored, message: v1.UnitsLayer
    ) -> list[tuple[v1.UnitGalleryKind.ValueType, sprites.Bytes, Indices]]:
        """Returns each gallery with its kind and what its rows show."""
        units, random = (_at_quantiles(s) for s in (score.natural, score.random))
        live = self._prepared.scale.live
        left = self._pictures(Family.NATURAL, units, self._first(Family.NATURAL, units))
        right = self._pictures(Family.RANDOM, random, self._first(Family.RANDOM, random))
        both = np.stack([left, right], 1).reshape(-1, *left.shape[1:])
        order = np.stack([live[units], -1 - random], 1).ravel()
        blind = np.random.default_rng([self._setup.source.seed, _SEED]).permutation(len(order))
        best = np.argsort(-score.natural, kind="stable")
        strips = np.repeat(best[:_STRIPS], 1 + len(_STRIP_SHARES))
        shown = np.concatenate([self._strips(unit) for unit in best[:_STRIPS]])
        place = {int(unit): i for i, unit in enumerate(live)}
        listed = np.array([place[row.unit] for row in message.units[:_LISTED]], dtype=np.int64)
        every = self._pictures(Family.NATURAL, listed, self._first(Family.NATURAL, listed))
        wide = self._pictures(Family.NATURAL, strips, shown)
        named = [f"unit {live[i]}\n{score.natural[i]:.2f}" for i in range(len(live))]
        pairs = [
            text
            for i, j in zip(units, random, strict=True)
            for text in (named[i], f"random\n{score.random[j]:.2f}")
        ]
        ends = ["top 9", *(f"top {share:.0%}" for share in _STRIP_SHARES)] * len(best[:_STRIPS])
        strip_names = [f"unit {live[i]}\n{end}" for i, end in zip(strips, ends, strict=True)]
        numbers = [str(i + 1) for i in range(len(order))]
        return [
            (v1.UNIT_GALLERY_KIND_PAIRS, _rows(both, pairs, 2), order),
            (v1.UNIT_GALLERY_KIND_BLIND, _rows(both[blind], numbers), order[blind]),
            (v1.UNIT_GALLERY_KIND_STRIPS, _rows(wide, strip_names), live[strips]),
            (v1.UNIT_GALLERY_KIND_UNITS, _rows(every, [named[i] for i in listed]), live[listed]),
        ]

    def _first(self, family: int, directions: Indices) -> Indices:
        return self._tops.ranks[family][directions, :NINE]

    def _strips(self, unit: np.int64) -> Indices:
        """Returns the top nine, and nine spread over the top 1 % and 5 %, [3, 9]."""
        ranks = self._tops.ranks[Family.NATURAL][unit]
        count = len(self._setup.order.probes)
        ends = [NINE, *(max(NINE, min(len(ranks), round(s * count))) for s in _STRIP_SHARES)]
        return np.stack([ranks[np.linspace(0, end - 1, NINE).round().astype(int)] for end in ends])

    def _pictures(self, family: int, directions: Indices, ranks: Indices) -> sprites.Bytes:
        """Returns pictures [rows, 9, height, width, 3] of ranks [rows, 9], with boxes for maps."""
        setup = self._setup
        pictures = sprites.tiles(setup.source, setup.order.probes[ranks.ravel()])
        field, grid = self._field, self._prepared.job.value.grid
        shape = setup.source.image_shape
        if field is not None and len(grid) == 2 and shape is not None:  # noqa: PLR2004 - axes of space
            found = places.largest(setup, self._prepared, Rows(family, directions, ranks))
            height, width = setup.source.as_images(setup.source.images(np.arange(1))).shape[2:]
            boxes = field.boxes(found.ravel(), (grid[0], grid[1]), (height, width))
            pictures = sprites.boxed(pictures, boxes, (height, width))
        return pictures.reshape(*ranks.shape, *pictures.shape[1:])


def _rows(pictures: sprites.Bytes, names: Sequence[str], beside: int = 1) -> sprites.Bytes:
    flat = pictures.reshape(-1, *pictures.shape[2:])
    return sprites.grid(flat, NINE * beside, names)


def _at_quantiles(scores: Floats) -> Indices:
    """Returns the directions at evenly spread quantiles of the score, best first."""
    falling = np.argsort(-scores, kind="stable")
    chosen = np.linspace(0, len(scores) - 1, min(_PAIRS, len(scores))).round()
    return np.asarray(falling[chosen.astype(int)])


def _kernels(prepared: Prepared) -> Floats | None:
    """Returns the kernels of a first layer that reads 1 or 3 channels, as [m, c, h, w]."""
    network = prepared.job.network
    for layer in layers_of(network):
        names = {prepared.job.value.measured, prepared.job.value.name}
        if layer.op_type != "Conv" or names.isdisjoint(layer.outputs):
            continue
        weight = layer.weights.get(1)
        first = list(layer.inputs) == [network.input.name]
        if weight is not None and first and weight.ndim == _KERNEL_AXES:
            kernels: Floats = weight.detach().cpu().double().numpy()[:_MOST_FILTERS]
            return kernels if kernels.shape[1] in _CHANNELS else None
    return None


def _histogram(value: str, score: v1.UnitScore) -> bytes:
    table = score.histogram
    return charts.histogram(
        f"{value}: score by {NAMES[score.kind]}, share of the directions",
        np.array(table.edges),
        (np.array(table.rotated_lower), np.array(table.rotated_upper)),
        {"units": np.array(table.natural), "random directions": np.array(table.random)},
    )


def _curve(message: v1.UnitsLayer) -> bytes | None:
    series = {
        NAMES[score.kind]: [point.y.value for point in score.index_by_top]
        for score in message.scores
        if score.index_by_top
    }
    if not series:
        return None
    points = next(score.index_by_top for score in message.scores if score.index_by_top)
    names = [f"{point.x:g}" for point in points]
    title = f"{message.value}: index over the number of top inputs"
    return charts.lines(title, series, names, 0.5)
