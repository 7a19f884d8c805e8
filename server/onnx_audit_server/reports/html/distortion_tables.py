"""Tables of the section of `distortion`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from onnx_audit import v1
from onnx_audit_server.reports.html.blocks import Block, Cell, Facts, Heat, Table
from onnx_audit_server.reports.words import count, figure, given, norm_name, number, percent

METHOD: Final = "distortion"
_MOST_CLASSES: Final = 20
_MOST_ROWS: Final = 25
_MOST_LABELS: Final = 50


def facts(norm: v1.NormDistortion) -> Facts:
    """The figures of one norm."""
    rows = [
        ("nearest example, median", quantile(norm, 0.5)),
        ("nearest example, 5 % of probes below", quantile(norm, 0.05)),
        ("mean", figure(norm.mean)),
        ("mean rms, sqrt(sum(r²) / n)", figure(norm.mean_rms)),
        (
            "probes",
            f"{count(norm.confirmed, 'example')} confirmed by ONNX Runtime, {norm.not_found:,} "
            f"not found, {norm.unconfirmed:,} unconfirmed",
        ),
        ("searched again with another seed", stability(norm)),
        ("most fragile probes", ", ".join(map(str, norm.most_fragile[:10]))),
    ]
    if norm.HasField("rounded"):
        rows.append((
            "examples that an image file can hold",
            f"{norm.rounded.confirmed:,}, median {figure(norm.rounded.median)}, "
            f"{figure(norm.rounded.mean_ratio)} times as far",
        ))  # fmt: skip
    if norm.HasField("certified"):
        rows += certified(norm.certified)
    if norm.black_box_searches:
        rows.append((
            "searched by answers alone",
            f"{count(norm.black_box_searches, 'probe')}, {norm.black_box_runs:,} runs, "
            f"{count(norm.found_by_black_box, 'example')}",
        ))  # fmt: skip
    return Facts(rows, wide=True)


def quantile(norm: v1.NormDistortion, probability: float) -> str:
    """A quantile of the distances with its interval; empty where it is not listed."""
    found = (q.estimate for q in norm.quantiles if math.isclose(q.probability, probability))
    return next((figure(estimate) for estimate in found), "")


def stability(norm: v1.NormDistortion) -> str:
    """How far the search repeats itself, in words."""
    again = norm.stability
    if not again.repeated:
        return ""
    return (
        f"{count(again.repeated, 'probe')}: distances differ by "
        f"{percent(again.mean_relative_difference.value)} on average, "
        f"{again.found_once:,} found only once"
    )


def certified(beside: v1.CertifiedDistortion) -> list[tuple[str, str]]:
    """Found distances beside what is proved."""
    return [
        ("proved", f"a radius for {count(beside.certified, 'probe')}, the exact optimum for "
                   f"{beside.exact:,}; for {beside.none_exists:,} no example exists"),
        ("found over proved radius", figure(beside.found_over_lower)),
        ("found over exact optimum", figure(beside.found_over_optimum) if beside.exact else ""),
    ]  # fmt: skip


def tables(norm: v1.NormDistortion) -> Iterator[Block]:
    """What becomes of which class."""
    labels = sorted({pair.label for pair in norm.class_pairs})
    answers = sorted({pair.adversarial_class for pair in norm.class_pairs})
    if norm.class_pairs and max(len(labels), len(answers)) <= _MOST_CLASSES:
        yield _pair_matrix(norm, labels, answers)
    elif norm.class_pairs:
        yield _pair_list(norm)
    if norm.by_class:
        yield _by_class(norm)


def _pair_matrix(norm: v1.NormDistortion, labels: Sequence[int], answers: Sequence[int]) -> Heat:
    pairs = {(pair.label, pair.adversarial_class): pair for pair in norm.class_pairs}
    most = max(pair.confirmed for pair in norm.class_pairs) or 1

    def cell(label: int, other: int) -> Cell:
        pair = pairs.get((label, other))
        if pair is None or not pair.confirmed:
            return Cell("")
        return Cell(str(pair.confirmed), (number(pair.median.value),), pair.confirmed / most)

    return Heat(
        f"What the examples become, {norm_name(norm.norm)}",
        "label ↓ answer →",
        [str(name) for name in answers],
        [(str(label), [cell(label, other) for other in answers]) for label in labels],
        "How many examples of a label (row) get the answer of a class (column), with the median "
        "distance below: the classes that the model confuses most easily are dark.",
        METHOD,
    )


def _pair_list(norm: v1.NormDistortion) -> Table:
    pairs = sorted(norm.class_pairs, key=lambda pair: (-pair.confirmed, pair.median.value))
    return Table(
        f"What the examples become, {norm_name(norm.norm)}: the "
        f"{min(_MOST_ROWS, len(pairs))} most frequent of {len(pairs):,} pairs",
        ("label", "answer", "examples", "median distance"),
        [
            (str(p.label), str(p.adversarial_class), str(p.confirmed), figure(p.median))
            for p in pairs[:_MOST_ROWS]
        ],
        "The classes that the model confuses most easily.",
        METHOD,
        folded=True,
    )


def _by_class(norm: v1.NormDistortion) -> Table:
    rows = sorted(norm.by_class, key=lambda row: row.median.value)
    shown = rows[:_MOST_LABELS]
    title = f"Label by label, {norm_name(norm.norm)}, most fragile first"
    if len(rows) > len(shown):
        title += f": {len(shown)} of {len(rows):,}"
    return Table(
        title,
        ("label", "probes", "accuracy", "median distance"),
        [
            (str(r.label), str(r.count), figure(r.accuracy, share=True), figure(r.median))
            for r in shown
        ],
        "How far the probes of a label are from the nearest example.",
        METHOD,
        folded=True,
    )


def whole_section(section: v1.DistortionSection) -> Iterator[Block]:
    """Random noise and hidden values, where they were asked for."""
    if section.noise:
        yield _noise(section)
    if section.hidden:
        yield _hidden(section)


def _noise(section: v1.DistortionSection) -> Table:
    kinds = {
        kind: v1.NoiseKind.Name(kind).removeprefix("NOISE_KIND_").lower().replace("_", " ")
        for kind in v1.NoiseKind.values()
    }
    rows = [
        (kinds[noise.kind], norm_name(size.norm), figure(size.size), figure(size.ratio))
        for noise in section.noise
        for size in noise.sizes
    ]
    return Table(
        "Beside random noise",
        ("noise", "norm", "size that changes half of the answers", "times the distortion"),
        rows,
        "How much larger random noise must be than the nearest example to change the answer as "
        "often as not: the larger, the rarer are the directions that fool.",
        METHOD,
    )


def _hidden(section: v1.DistortionSection) -> Table:
    def median(quantiles: Sequence[v1.Quantile]) -> str:
        found = [q.estimate for q in quantiles if math.isclose(q.probability, 0.5)]
        return figure(found[0]) if found and given(found[0]) else "-"

    return Table(
        "Changes of hidden values",
        ("value", "operator", "depth", "norm", "median", "as a share of the value", "found"),
        [
            (
                row.value,
                row.op_type,
                percent(row.depth),
                norm_name(row.norm),
                median(row.quantiles),
                median(row.relative_quantiles),
                f"{row.found:,} of {row.found + row.not_found:,}",
            )
            for row in section.hidden
        ],
        "The smallest change of a value inside the network that changes its answer; shares of the "
        "value's own norm compare layers.",
        METHOD,
    )
