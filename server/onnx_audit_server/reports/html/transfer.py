"""The section of `transfer` as a part of a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from onnx_audit import v1
from onnx_audit_server.reports.html import charts, svg
from onnx_audit_server.reports.html.blocks import Block, Cell, Chart, Facts, Heat, Section, Table
from onnx_audit_server.reports.html.charts import Curve
from onnx_audit_server.reports.words import (
    attack_name,
    count,
    figure,
    given,
    interval,
    number,
    percent,
    short,
)

METHOD: Final = "transfer"
_EVERYBODY: Final = -1
_LEVEL: Final = 0.05
_TREE_LEAVES: Final = 2


def section(report: v1.Report) -> Section:
    """Matrices, their nulls, and how models group together."""
    found = report.transfer
    lead = (
        "Whom the adversarial examples of one model fool besides itself, among "
        f"{count(len(found.models), 'model')} and on {count(found.probe_count, 'probe')}. "
        "Errors count only where the target answers the unchanged probe rightly."
    )
    attacks = list(dict.fromkeys(cell.attack for cell in found.cells))
    blocks: list[Block] = [_models(found)]
    blocks += [_matrix(found, attack) for attack in attacks]
    blocks += _noise(found)
    blocks += _curves(found, attacks)
    blocks += _tree(found)
    blocks += _kinds(found)
    blocks += _fooling(found)
    return Section(METHOD, "Transfer to other models", lead, tuple(blocks))


def _name(found: v1.TransferSection, source: int) -> str:
    return "all others" if source == _EVERYBODY else found.models[source]


def _order(found: v1.TransferSection) -> list[int]:
    return list(found.order) or list(range(len(found.models)))


def _models(found: v1.TransferSection) -> Table:
    return Table(
        "The models",
        ("model", "tags", "classes", "clean accuracy", "parity"),
        [
            (
                model.name,
                ", ".join(f"{key}={value}" for key, value in sorted(model.tags.items())),
                f"{model.classes:,}",
                figure(model.clean_accuracy, share=True),
                f"{number(model.parity_difference)} (allowed {number(model.parity_tolerance)})",
            )
            for model in found.details
        ],
        "The audited model comes first; all look at the same probes.",
        METHOD,
    )


def _matrix(found: v1.TransferSection, attack: v1.TransferAttack.ValueType) -> Heat:
    cells = {(c.source, c.target): c for c in found.cells if c.attack == attack}
    order = _order(found)
    sources = [s for s in [*order, _EVERYBODY] if any(source == s for source, _ in cells)]
    targeted = any(cell.HasField("match_rate") for cell in cells.values())
    return Heat(
        f"Error rates on {attack_name(attack)} examples",
        "source ↓ target →",
        [short(found.models[target], 24) for target in order],
        [
            (short(_name(found, s), 24), [_cell(cells.get((s, t)), s == t) for t in order])
            for s in sources
        ],
        "How often examples that were made for the source (row) fool the target (column), with the "
        "95 % interval and what noise of the same size does; a star marks errors beyond noise "
        "(Holm's p below 5 %)."
        + (" Aimed: answers that are the class aimed at." if targeted else ""),
        METHOD,
    )


def _cell(cell: v1.TransferCell | None, own: bool) -> Cell:
    if cell is None or not cell.error_rate.count:
        return Cell("")
    rate = cell.error_rate
    beyond = cell.HasField("corrected_p_value") and cell.corrected_p_value < _LEVEL
    notes = [interval(rate, share=True)]
    if given(cell.noise_error_rate):
        notes.append(f"noise {percent(cell.noise_error_rate.value)}")
    if cell.HasField("match_rate"):
        notes.append(f"aimed {percent(cell.match_rate.value)}")
    text = percent(rate.value) + (" *" if beyond else "")
    return Cell(text, notes, rate.value, strong=own)


def _noise(found: v1.TransferSection) -> list[Block]:
    """Errors under noise of fixed size: a row for each size."""
    sizes = [noise.sigma for noise in found.details[0].noise] if found.details else []
    if not sizes:
        return []
    order = _order(found)

    def cell(model: v1.TransferModel, place: int) -> Cell:
        rate = model.noise[place].error_rate
        return Cell(percent(rate.value), [interval(rate, share=True)], rate.value)

    return [
        Heat(
            "Error rates on Gaussian noise of fixed size",
            "standard deviation ↓ model →",
            [short(found.models[target], 24) for target in order],
            [
                (number(sigma), [cell(found.details[target], place) for target in order])
                for place, sigma in enumerate(sizes)
            ],
            "What plain noise does to each model: errors by examples count for something only "
            "where they exceed these.",
            METHOD,
        )
    ]


def _curves(
    found: v1.TransferSection, attacks: Sequence[v1.TransferAttack.ValueType]
) -> Iterator[Block]:
    levels = np.array(list(found.config.rms_levels))
    lines: list[Curve] = []
    noises: list[Curve] = []
    for attack, colour in zip(attacks, svg.SERIES * 2, strict=False):
        others = [
            cell
            for cell in found.cells
            if cell.attack == attack
            and cell.source != cell.target
            and cell.error_rate.count
            and len(cell.curve) == len(levels)
        ]
        if not others:
            continue
        for into, field in ((lines, "error_rate"), (noises, "noise_error_rate")):
            rates = np.array([[getattr(p, field).value for p in cell.curve] for cell in others])
            mean = rates.mean(axis=0)
            name = attack_name(attack) + (", noise" if into is noises else "")
            into.append(Curve(name, levels, mean, mean, mean, colour, dashed=into is noises))
    if not lines or not len(levels):
        return
    last = ", ".join(f"{line.name} {percent(float(line.y[-1]))}" for line in lines)
    yield Chart(
        "Error rate over the size of the changes",
        charts.curves(
            "transfer-sizes",
            f"Mean error rate of other models at rms {number(float(levels[-1]))}: {last}.",
            [*lines, *noises],
            "rms of the change in probe space",
            "mean error rate",
        ),
        "All changes brought to one size, mean over all pairs of different models, beside noise of "
        "that size: here attacks of different strength can be compared.",
        METHOD,
    )


def _tree(found: v1.TransferSection) -> list[Block]:
    if len(found.models) <= _TREE_LEAVES or not found.merges:
        return []
    first = found.merges[0]
    names = list(found.models)
    alt = f"The models group in {count(len(found.merges), 'step')}"
    if max(first.left, first.right) < len(names):
        alt += f"; {names[first.left]} and {names[first.right]} are nearest"
    return [
        Chart(
            "Which models are alike",
            charts.tree(
                "transfer-tree",
                f"{alt}.",
                names,
                _order(found),
                [(merge.left, merge.right, merge.distance) for merge in found.merges],
            ),
            "Models that join further left fool each other more often: they share more of their "
            "weaknesses.",
            METHOD,
        )
    ]


def _kinds(found: v1.TransferSection) -> list[Block]:
    if not found.kinds:
        return []
    return [
        Table(
            "Models that differ in one respect",
            ("differ in", "examples", "pairs", "error rate", "noise", "excess"),
            [
                (
                    _difference(kind),
                    attack_name(kind.attack),
                    str(kind.pairs),
                    figure(kind.error_rate, share=True),
                    figure(kind.noise_error_rate, share=True),
                    figure(kind.excess, share=True),
                )
                for kind in found.kinds
            ],
            "Whether examples survive another architecture, training set or release: excess is "
            "the error rate less that of noise.",
            METHOD,
        )
    ]


def _difference(kind: v1.TransferKind) -> str:
    if kind.source_value or kind.target_value:
        return f"{kind.tag}: {kind.source_value} to {kind.target_value}"
    return f"{kind.tag} alone" if kind.alone else kind.tag


def _fooling(found: v1.TransferSection) -> list[Block]:
    fooling = found.fooling
    if not fooling.examples:
        return []
    by = ", ".join(f"{n:,} fool {i}" for i, n in enumerate(fooling.by_models_fooled) if n)
    proof = "" if fooling.proved else " (perhaps not the fewest)"
    rows = [
        ("examples of single sources", f"{fooling.examples:,}: {by} of {len(found.models)} models"),
        ("fool every model", f"{fooling.fool_all:,}"),
        ("fewest that together fool all that can be fooled", f"{len(fooling.smallest)}{proof}"),
    ]
    rows += [
        (
            f"probe {example.probe}",
            f"{attack_name(example.attack)}, made for {_name(found, example.source)}, fools "
            + ", ".join(found.models[i] for i in example.fooled),
        )
        for example in fooling.smallest
    ]
    return [Facts(rows, "Examples that fool several models")]
