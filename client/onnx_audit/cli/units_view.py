"""The section of `units` for reading in a terminal."""

from __future__ import annotations

from typing import Final

from rich.console import Console

from onnx_audit import v1
from onnx_audit.cli.figures import estimate_text, number
from onnx_audit.cli.tables import print_section, print_table

_UNIT_ROWS: Final = 8


def print_units(console: Console, section: v1.UnitsSection) -> None:
    """Prints a section: what the layers say, their figures, wiring, and the best units."""
    print_section(
        console,
        "Units: is a unit more meaningful than a random direction?",
        [*_summary(section), *((layer.value, layer.summary) for layer in section.layers)],
    )
    print_table(
        console,
        "Index: P(unit > random direction) by score; 0.5 is no distinction",
        ("value", "units", "dead", "score", "index", "rotated bases", "p (Holm)", "mean", "random"),
        (
            (
                layer.value,
                f"{layer.live} of {layer.dimension}",
                str(layer.dead),
                score_name(score.kind),
                estimate_text(score.index_auc),
                estimate_text(score.rotated_index),
                number(score.p_holm) if score.verdict else "secondary",
                number(score.natural_mean.value),
                number(score.random_mean.value),
            )
            for layer in section.layers
            for score in (*layer.scores, *layer.secondary)
        ),
    )
    _print_bases(console, section)
    _print_wiring(console, section)
    for layer in section.layers:
        _print_best(console, layer)


def score_name(kind: v1.UnitScoreKind.ValueType) -> str:
    """A score's name, such as "label"."""
    return v1.UnitScoreKind.Name(kind).removeprefix("UNIT_SCORE_KIND_").lower().replace("_", "-")


def _summary(section: v1.UnitsSection) -> list[tuple[str, str]]:
    seen = section.embedding
    facts = [
        ("probes", f"{section.probe_count}, {section.near_duplicates} near-duplicates left out"),
        (
            "compared with",
            f"{section.config.directions} random directions, {section.config.rotations} rotated "
            f"bases; top {section.config.top} inputs",
        ),
        ("embedding", f"{seen.source}, {seen.dimension} dimensions"),
    ]
    if seen.HasField("sees_labels"):
        text = "sees the labels" if seen.sees_labels else "does NOT see the labels"
        facts.append(("", f"{text}: neighbours agree {estimate_text(seen.neighbours_agree)}"))
    return facts


def _print_bases(console: Console, section: v1.UnitsSection) -> None:
    rows = [
        (
            layer.value,
            v1.UnitBasis.Name(basis.basis).removeprefix("UNIT_BASIS_").lower()
            + (" (descriptive)" if basis.descriptive else ""),
            str(basis.count),
            ", ".join(
                f"{score_name(score.kind)} {number(index)}"
                for score, index in zip(layer.scores, basis.index_auc, strict=False)
            ),
        )
        for layer in section.layers
        for basis in layer.bases
    ]
    if rows:
        print_table(console, "Other directions", ("value", "directions", "count", "index"), rows)


def _print_wiring(console: Console, section: v1.UnitsSection) -> None:
    def cell(measure: v1.ConnectivityMeasure) -> str:
        return f"{number(measure.value)} (z {number(measure.z)})"

    rows = [
        (
            wiring.value,
            f"{wiring.rows} x {wiring.fan_in}",
            cell(wiring.gini),
            cell(wiring.hoyer),
            cell(wiring.fan_in_fraction),
            cell(wiring.below_eps),
        )
        for wiring in {
            wiring.value: wiring
            for layer in section.layers
            for wiring in (layer.connectivity, layer.reading)
            if wiring.value
        }.values()
    ]
    if rows:
        print_table(
            console,
            "Wiring: weights times what they carry; z against a Gaussian of the same shape",
            ("made", "weights", "Gini", "Hoyer", "effective fan-in", "below 5 % of the largest"),
            rows,
        )


def _print_best(console: Console, layer: v1.UnitsLayer) -> None:
    if not layer.units or not layer.scores:
        return
    print_table(
        console,
        f"{layer.value}: the units with the best {score_name(layer.scores[0].kind)}",
        ("unit", *(score_name(score.kind) for score in layer.scores), "concept", "top probes"),
        (
            (
                f"{row.unit}{' (lower side)' if row.flipped else ''}",
                *(
                    f"{number(value)} (q {number(q)})"
                    for value, q in zip(row.score, row.q, strict=True)
                ),
                str(row.concept) if row.HasField("concept") else "-",
                ", ".join(map(str, row.top_probes)),
            )
            for row in layer.units[:_UNIT_ROWS]
        ),
    )
