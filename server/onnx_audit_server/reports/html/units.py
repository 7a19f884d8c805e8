"""The section of `units` as a part of a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from onnx_audit import v1
from onnx_audit_server.reports.document import Artefacts, Document
from onnx_audit_server.reports.html import charts, pictures, row_charts, svg
from onnx_audit_server.reports.html.blocks import (
    Block,
    Chart,
    Facts,
    Group,
    Picture,
    Section,
    Table,
)
from onnx_audit_server.reports.html.charts import Curve
from onnx_audit_server.reports.html.distortion import columns
from onnx_audit_server.reports.html.row_charts import Dots
from onnx_audit_server.reports.words import (
    bytes_text,
    count,
    figure,
    number,
    score_name,
    short,
)

METHOD: Final = "units"
_MOST_DRAWN: Final = 8
_MOST_UNITS: Final = 8
_VERDICTS: Final = {
    v1.UNIT_VERDICT_MORE: "more meaningful than random",
    v1.UNIT_VERDICT_NO_DISTINCTION: "no distinction",
    v1.UNIT_VERDICT_LESS: "less meaningful than random",
    v1.UNIT_VERDICT_UNDECIDED: "undecided",
}
_GALLERIES: Final = {
    v1.UNIT_GALLERY_KIND_PAIRS: (
        "Top inputs of units (left) and of random directions (right)",
        "Each row has the nine inputs that speak most for a unit, and for a random direction at "
        "the same quantile of the score: if the left is no more alike than the right, the unit "
        "means no more than chance.",
    ),
    v1.UNIT_GALLERY_KIND_FILTERS: (
        "Weights of the first layer",
        "Each tile is the kernel of a unit, scaled by its own largest weight; grey is 0.",
    ),
}


def section(document: Document, allowance: pictures.Allowance) -> Section:
    """The index of every layer, and the layers one by one."""
    found = document.report.units
    lead = (
        "Whether the inputs that a single unit likes best are more alike than those of a random "
        f"direction. {count(found.probe_count, 'probe')} were looked at, beside "
        f"{count(found.config.directions, 'random direction')} and "
        f"{count(found.config.rotations, 'rotated basis', 'rotated bases')} in each layer."
    )
    blocks: list[Block] = [_embedding(found)]
    blocks += _depth(found)
    blocks.append(_scores(found))
    blocks += _groups(document.artefacts, found.layers, allowance)
    return Section(METHOD, "Units against random directions", lead, tuple(blocks))


def _groups(
    artefacts: Artefacts, layers: Sequence[v1.UnitsLayer], allowance: pictures.Allowance
) -> list[Group]:
    """A group for each layer, the last one open; room for pictures goes to the last ones first."""
    groups = []
    for place in reversed(range(len(layers))):
        behind = len(layers) - 1 - place
        layer = layers[place]
        blocks: list[Block] = []
        if behind < _MOST_DRAWN:
            blocks += _drawings(layer, place)
        blocks += _layer(artefacts, layer, allowance)
        groups.append(
            Group(f"Layer {layer.value}", tuple(blocks), layer.summary, folded=behind > 0)
        )
    return groups[::-1]


def _embedding(found: v1.UnitsSection) -> Facts:
    seen = found.embedding
    rows = [("embedding of coherence", f"{seen.source}, {count(seen.dimension, 'dimension')}")]
    if seen.HasField("sees_labels"):
        rows.append((
            "it sees the labels",
            f"{'yes' if seen.sees_labels else 'no: coherence says little here'}; neighbours agree "
            f"{figure(seen.neighbours_agree)}",
        ))  # fmt: skip
    if found.near_duplicates:
        rows.append(("near-duplicates left out", f"{found.near_duplicates:,}"))
    if found.left_out:
        rows.append(("layers left out", ", ".join(found.left_out)))
    return Facts(rows)


def _depth(found: v1.UnitsSection) -> Iterator[Block]:
    kinds = list(dict.fromkeys(score.kind for layer in found.layers for score in layer.scores))
    series = [
        _dots(kind, found.layers, colour) for kind, colour in zip(kinds, svg.SERIES, strict=False)
    ]
    if not series:
        return
    said = "; ".join(f"{layer.value}: {layer.summary}" for layer in found.layers[:_MOST_DRAWN])
    yield Chart(
        "Index of each layer",
        row_charts.dots(
            "units-depth",
            f"Index per layer and score. {said}",
            [layer.value for layer in found.layers],
            series,
            "P(unit > random direction); 0.5: no distinction",
        ),
        "At 0.5 a unit is no more meaningful than a random direction. A dot whose interval lies "
        "beyond the grey range of rotated bases stands out.",
        METHOD,
    )


def _dots(kind: v1.UnitScoreKind.ValueType, layers: Sequence[v1.UnitsLayer], colour: str) -> Dots:
    """A score over the layers; NaN where a layer lacks it."""
    rows = []
    for layer in layers:
        score = next((score for score in layer.scores if score.kind == kind), None)
        if score is None:
            rows.append([np.nan] * 5)
            continue
        index, null = score.index_auc, score.rotated_index
        ends = (*_ends(index), *_ends(null))
        rows.append([index.value, *ends])
    value, lower, upper, null_lower, null_upper = np.array(rows, dtype=np.float64).T
    return Dots(score_name(kind), value, lower, upper, null_lower, null_upper, colour)


def _ends(estimate: v1.Estimate) -> tuple[float, float]:
    """An estimate's interval; the value itself where there is none."""
    if not estimate.HasField("interval"):
        return estimate.value, estimate.value
    return estimate.interval.lower, estimate.interval.upper


def _scores(found: v1.UnitsSection) -> Table:
    return Table(
        "Scores of each layer",
        ("layer", "score", "index", "rotated bases", "p (Holm)", "units", "random", "verdict"),
        [
            (
                layer.value,
                score_name(score.kind),
                figure(score.index_auc),
                figure(score.rotated_index),
                number(score.p_holm) if score.verdict else "",
                number(score.natural_mean.value),
                number(score.random_mean.value),
                _verdict(score) if score.verdict else "secondary",
            )
            for layer in found.layers
            for score in (*layer.scores, *layer.secondary)
        ],
        "The index saturates: the mean scores of units and random directions say how good they are "
        "in absolute terms (0: chance, 1: best). Secondary scores have no verdict.",
        METHOD,
    )


def _verdict(score: v1.UnitScore) -> str:
    text = _VERDICTS.get(score.verdict, "")
    if score.probes_to_decide:
        text += f" (about {score.probes_to_decide:,} probes would decide)"
    return text


def _drawings(layer: v1.UnitsLayer, place: int) -> Iterator[Block]:
    if layer.scores and layer.scores[0].histogram.edges:
        yield _histogram(layer.scores[0], place)
    yield from _curve(layer, place)


def _layer(
    artefacts: Artefacts, layer: v1.UnitsLayer, allowance: pictures.Allowance
) -> Iterator[Block]:
    yield Facts(
        [
            (
                "units",
                f"{layer.live:,} live of {layer.dimension:,}; {layer.dead:,} dead, "
                f"{layer.near_dead:,} near-dead, "
                f"{layer.plateau:,} with a plateau at the top",
            ),
            ("measured", layer.measured_value if layer.measured_value != layer.value else ""),
        ],
        wide=True,
    )
    for gallery in layer.galleries:
        if gallery.kind in _GALLERIES:
            yield _picture(artefacts, layer, gallery, allowance)
    if layer.units:
        yield _units(layer)


def _histogram(score: v1.UnitScore, place: int) -> Chart:
    table = score.histogram
    name = score_name(score.kind)
    return Chart(
        f"Scores by {name}",
        charts.shares(
            f"scores-{place}",
            f"Shares of units and of random directions by their {name} score: means "
            f"{number(score.natural_mean.value)} and {number(score.random_mean.value)}.",
            np.array(table.edges),
            [("units", np.array(table.natural)), ("random", np.array(table.random))],
            (np.array(table.rotated_lower), np.array(table.rotated_upper)),
            f"{name} score (0: chance)",
        ),
        "If the units' line stays within the grey range, units score as any rotated basis does.",
        METHOD,
    )


def _curve(layer: v1.UnitsLayer, place: int) -> Iterator[Chart]:
    lines = [
        Curve(score_name(score.kind), *columns(score.index_by_top), colour)
        for score, colour in zip(layer.scores, svg.SERIES, strict=False)
        if score.index_by_top
    ]
    if lines:
        yield Chart(
            "Index over the number of top inputs",
            charts.curves(
                f"tops-{place}",
                "; ".join(
                    f"{line.name}: {number(float(line.y[0]))} for {line.x[0]:g} inputs, "
                    f"{number(float(line.y[-1]))} for {line.x[-1]:g}"
                    for line in lines
                ),
                lines,
                "top inputs",
                "index",
                in_percent=False,
            ),
            "How the index depends on how many inputs are said to speak for a direction.",
            METHOD,
        )


def _picture(
    artefacts: Artefacts,
    layer: v1.UnitsLayer,
    gallery: v1.UnitGallery,
    allowance: pictures.Allowance,
) -> Picture:
    title, meaning = _GALLERIES[gallery.kind]
    blob = gallery.image
    note = f"Blob {blob.sha256}, {bytes_text(blob.size_bytes)}"
    try:
        uri = allowance.data_uri(artefacts.get(blob.sha256), blob.media_type)
    except FileNotFoundError:
        uri = ""
    if not uri:
        note = f"The picture is not in this page: {note.lower()}"
    return Picture(
        title, uri, f"{title} of {short(layer.value, 60)}.", meaning, METHOD, note, _labels(gallery)
    )


def _labels(gallery: v1.UnitGallery) -> list[str]:
    """What the rows of a gallery of pairs show."""
    if gallery.kind != v1.UNIT_GALLERY_KIND_PAIRS:
        return []
    return [f"unit {unit}" for unit in gallery.order[::2]]


def _units(layer: v1.UnitsLayer) -> Table:
    names = [score_name(score.kind) for score in layer.scores]
    return Table(
        f"The best of {count(len(layer.units), 'listed unit')}",
        ("unit", *names, "concept", "top probes"),
        [
            (
                f"{row.unit}{' (lower side)' if row.flipped else ''}",
                *(f"{number(s)} (q {number(q)})" for s, q in zip(row.score, row.q, strict=True)),
                str(row.concept) if row.HasField("concept") else "-",
                ", ".join(map(str, row.top_probes)),
            )
            for row in layer.units[:_MOST_UNITS]
        ],
        "q is the unit's p among random directions after Benjamini and Hochberg's correction.",
        METHOD,
        folded=True,
    )
