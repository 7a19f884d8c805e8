"""The section of `distortion` for reading in a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console
from rich.text import Text

from onnx_audit import v1
from onnx_audit.cli.beside_view import print_beside
from onnx_audit.cli.figures import estimate_text, norm_name, number
from onnx_audit.cli.tables import print_section, print_table

_BAR_WIDTH: Final = 40
_CURVE_ROWS: Final = 12
_FRAGILE_ROWS: Final = 10
_CLASS_ROWS: Final = 20
_MATRIX_CLASSES: Final = 12
_PAIR_ROWS: Final = 10


def print_distortion(console: Console, section: v1.DistortionSection) -> None:
    """Prints a section: all norms side by side first, then norm by norm."""
    print_section(
        console, "Distortion: the smallest changes that change the answer", _summary(section)
    )
    print_table(
        console,
        "",
        ("norm", "median", "mean", "mean rms", "repeats to"),
        (
            (
                norm_name(norm.norm),
                estimate_text(quantile(norm, 0.5)),
                estimate_text(norm.mean),
                estimate_text(norm.mean_rms),
                _repeats(norm.stability),
            )
            for norm in section.norms
        ),
    )
    print_beside(console, section)
    _print_classes(console, section)
    for norm in section.norms:
        _print_pairs(console, norm)
        _print_curve(console, norm)
        _print_fragile(console, norm)


def quantile(norm: v1.NormDistortion, probability: float) -> v1.Estimate:
    """The estimate of a quantile of the distance; an empty one if the section does not have it."""
    for row in norm.quantiles:
        if math.isclose(row.probability, probability):
            return row.estimate
    return v1.Estimate()


def thinned(points: Sequence[v1.CurvePoint], rows: int) -> list[v1.CurvePoint]:
    """At most so many points of a curve, evenly spread, both ends among them."""
    if len(points) <= rows:
        return list(points)
    return [points[round(index * (len(points) - 1) / (rows - 1))] for index in range(rows)]


def target_text(config: v1.DistortionConfig) -> str:
    """What the answer had to become, in words."""
    return {
        v1.TARGET_MODE_LEAST_LIKELY: "the class with the lowest score",
        v1.TARGET_MODE_EVERY_OTHER_CLASS: "each other class in turn, the nearest counts",
        v1.TARGET_MODE_GIVEN: f"class {config.target_class}",
    }.get(config.target_mode, "any other class")


def _summary(section: v1.DistortionSection) -> list[tuple[str, str]]:
    config, accuracy = section.config, section.clean_accuracy
    methods = ", ".join(
        v1.SearchMethod.Name(method).removeprefix("SEARCH_METHOD_").lower()
        for method in config.methods
    )
    allowed = f", what {config.budget_seconds:g} s allow" if config.budget_seconds else ""
    each = "probe, norm and class" if _every(section) else "probe and norm"
    facts = [
        ("clean accuracy", estimate_text(accuracy)),
        ("probes", f"{section.probe_count}, of which {section.misclassified} misclassified"),
        ("search", f"{methods}: {config.budget} gradient evaluations per {each}{allowed}"),
        ("aim", target_text(config)),
    ]
    if section.HasField("vanishing_gradients"):
        facts.append(("no gradient at", estimate_text(section.vanishing_gradients) + " of probes"))
    for norm in section.norms:
        text = (
            f"{norm.confirmed} confirmed by ONNX Runtime, {norm.unconfirmed} not confirmed, "
            f"none found for {norm.not_found}"
        )
        if norm.target_is_label:
            text += f"; {norm.target_is_label} left out, whose label is the target"
        facts.append((f"{norm_name(norm.norm)} examples", text))
        if norm.black_box_searches:
            text = (
                f"by answers alone: {norm.black_box_searches} probes, "
                f"{norm.black_box_runs:,} model runs, nearest for {norm.found_by_black_box}"
            )
            facts.append(("", text))
    if accuracy.HasField("interval"):
        facts.append(("[low, high]", f"{accuracy.interval.confidence:.0%} confidence intervals"))
    return facts


def _every(section: v1.DistortionSection) -> bool:
    return section.config.target_mode == v1.TARGET_MODE_EVERY_OTHER_CLASS


def _repeats(stability: v1.SearchStability) -> str:
    """How far two searches of the same probes differ, such as "3.10% (32 probes)"."""
    difference = stability.mean_relative_difference
    if not difference.count:
        return "-"
    return f"{difference.value:.2%} ({difference.count} probes)"


def _print_classes(console: Console, section: v1.DistortionSection) -> None:
    """Prints the figures of each label, the most fragile labels first where there are many."""
    if not section.norms or not section.norms[0].by_class:
        return
    medians = [{row.label: row.median for row in norm.by_class} for norm in section.norms]
    rows = list(section.norms[0].by_class)
    title = "By label"
    if len(rows) > _CLASS_ROWS:
        rows = sorted(rows, key=lambda row: (math.isnan(row.median.value), row.median.value))
        rows = rows[:_CLASS_ROWS]
        title = f"The {_CLASS_ROWS} most fragile of {len(section.norms[0].by_class)} labels"
    print_table(
        console,
        title,
        ("label", "probes", "accuracy", *(f"median {norm_name(n.norm)}" for n in section.norms)),
        (
            (
                str(row.label),
                str(row.count),
                estimate_text(row.accuracy),
                *(estimate_text(median[row.label]) for median in medians),
            )
            for row in rows
        ),
    )


def _print_pairs(console: Console, norm: v1.NormDistortion) -> None:
    """Prints what labels become, as a matrix where it fits the screen."""
    pairs = list(norm.class_pairs)
    classes = sorted({c for pair in pairs for c in (pair.label, pair.adversarial_class)})
    if not pairs:
        return
    name = norm_name(norm.norm)
    if len(classes) > _MATRIX_CLASSES:
        pairs = [pair for pair in pairs if pair.confirmed]
        pairs.sort(key=lambda pair: (pair.median.value, pair.label, pair.adversarial_class))
        print_table(
            console,
            f"{name}: the nearest pairs of classes",
            ("label", "becomes", "examples", "median"),
            (
                (
                    str(pair.label),
                    str(pair.adversarial_class),
                    str(pair.confirmed),
                    estimate_text(pair.median),
                )
                for pair in pairs[:_PAIR_ROWS]
            ),
        )
        return
    cells = {
        (pair.label, pair.adversarial_class): f"{number(pair.median.value)}\n({pair.confirmed})"
        for pair in pairs
    }
    print_table(
        console,
        f"{name}: median distance from label (row) to class (column), and number of examples",
        ("", *map(str, classes)),
        (
            (str(label), *(cells.get((label, other), "") for other in classes))
            for label in sorted({pair.label for pair in pairs})
        ),
    )


def _print_curve(console: Console, norm: v1.NormDistortion) -> None:
    if not norm.robust_accuracy:
        return

    def bar(share: float) -> Text:
        filled = round(max(0.0, min(1.0, share)) * _BAR_WIDTH)
        return Text("█" * filled + "·" * (_BAR_WIDTH - filled))

    print_table(
        console,
        f"{norm_name(norm.norm)}: share of probes answered rightly and without an example within "
        "the radius; an attack's figure, the true robust accuracy is at most this",
        ("radius", "", "robust accuracy"),
        (
            (number(point.x), bar(point.y.value), estimate_text(point.y))
            for point in thinned(norm.robust_accuracy, _CURVE_ROWS)
        ),
    )


def _print_fragile(console: Console, norm: v1.NormDistortion) -> None:
    rows = {probe.probe: probe for probe in norm.probes}
    shown = [rows[index] for index in norm.most_fragile if index in rows][:_FRAGILE_ROWS]
    if shown:
        print_table(
            console,
            f"{norm_name(norm.norm)}: most fragile probes, and the probability of their label",
            ("probe", "label", "becomes", "distance", "before", "after"),
            _fragile_rows(shown),
        )


def _fragile_rows(probes: Iterable[v1.ProbeDistortion]) -> Iterable[tuple[str, ...]]:
    return (
        (
            str(probe.probe),
            str(probe.label),
            str(probe.adversarial_prediction),
            number(probe.distance),
            number(probe.clean_confidence),
            number(probe.adversarial_confidence),
        )
        for probe in probes
    )
