"""The section of `transfer` for reading in a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from rich.console import Console
from rich.text import Text

from onnx_audit import v1
from onnx_audit.cli.figures import estimate_text, number
from onnx_audit.cli.tables import print_section, print_table
from onnx_audit.cli.tree import drawn

_EVERYBODY: Final = -1
_SHADES: Final = ((0.75, "white on red3"), (0.5, "black on orange3"), (0.25, "black on yellow3"))
_SHOWN_PARTNERS: Final = 3
_TREE_WIDTH: Final = 40


def attack_name(attack: v1.TransferAttack.ValueType) -> str:
    """What people call an attack, such as "minimal targeted"."""
    name = v1.TransferAttack.Name(attack).removeprefix("TRANSFER_ATTACK_")
    return name.lower().replace("_", " ")


def print_transfer(console: Console, section: v1.TransferSection) -> None:
    """Prints matrices in the order of similarity, their nulls, kinds and the fooling set."""
    print_section(console, "Transfer: errors that one model's examples induce in another", [
        ("probes", f"{section.probe_count}"),
        ("smallest changes", f"{section.config.budget} gradient evaluations per probe"),
        ("changes of fixed size", f"rms {number(section.config.attack_rms)}"),
        ("cells", "error rate in per cent among probes that the target answers rightly, and that "
                  "of noise of the same size; * above noise at 5 % after Holm's correction"),
    ])  # fmt: skip
    _print_models(console, section)
    for attack in dict.fromkeys(cell.attack for cell in section.cells):
        _print_matrix(console, section, attack)
    _print_curve(console, section)
    _print_kinds(console, section)
    _print_groups(console, section)
    _print_fooling(console, section)


def _name(section: v1.TransferSection, source: int) -> str:
    return "all others" if source == _EVERYBODY else section.models[source]


def _print_models(console: Console, section: v1.TransferSection) -> None:
    levels = [noise.sigma for noise in section.details[0].noise] if section.details else []

    def size(model: v1.TransferModel) -> str:
        if not model.resized_height:
            return "as they are"
        return f"{model.resized_height} x {model.resized_width}"

    print_table(
        console,
        "",
        ("model", "tags", "probes", "clean accuracy", *(f"noise {number(s)}" for s in levels)),
        (
            (
                model.name,
                ", ".join(f"{key}={value}" for key, value in sorted(model.tags.items())),
                size(model),
                estimate_text(model.clean_accuracy),
                *(estimate_text(noise.error_rate) for noise in model.noise),
            )
            for model in section.details
        ),
    )


def _print_matrix(
    console: Console, section: v1.TransferSection, attack: v1.TransferAttack.ValueType
) -> None:
    cells = {(c.source, c.target): c for c in section.cells if c.attack == attack}
    order = list(section.order) or list(range(len(section.models)))
    sources = [source for source in [*order, _EVERYBODY] if any(s == source for s, _ in cells)]
    targeted = any(cell.HasField("match_rate") for cell in cells.values())
    note = "; in brackets: answers that are the class aimed at" if targeted else ""
    print_table(
        console,
        f"{attack_name(attack)}: source (row) to target (column){note}",
        ("", *(section.models[target] for target in order), "rms", "L2", "not found"),
        (
            (
                _name(section, source),
                *(_cell(cells.get((source, target))) for target in order),
                *_lengths(section, attack, source),
            )
            for source in sources
        ),
    )


def _cell(cell: v1.TransferCell | None) -> Text:
    if cell is None or not cell.error_rate.count:
        return Text("-")
    rate = cell.error_rate.value
    text = f"{100 * rate:.1f}"
    if cell.HasField("match_rate"):
        text += f" ({100 * cell.match_rate.value:.1f})"
    marked = cell.HasField("corrected_p_value") and cell.corrected_p_value < 0.05
    noise = cell.noise_error_rate
    text += f"{'*' if marked else ''} | {f'{100 * noise.value:.1f}' if noise.count else '-'}"
    style = next((shade for least, shade in _SHADES if rate >= least), "")
    return Text(text, style=style)


def _lengths(
    section: v1.TransferSection, attack: v1.TransferAttack.ValueType, source: int
) -> tuple[str, str, str]:
    rows = [row for row in section.rows if row.attack == attack and row.source == source]
    examples = sum(row.examples for row in rows)
    if not examples:
        return "-", "-", str(sum(row.not_found for row in rows))
    means = [
        sum(estimate.value * row.examples for row, estimate in pairs) / examples
        for pairs in (
            [(row, row.mean_rms) for row in rows if row.examples],
            [(row, row.mean_l2) for row in rows if row.examples],
        )
    ]
    return number(means[0]), number(means[1]), str(sum(row.not_found for row in rows))


def _print_curve(console: Console, section: v1.TransferSection) -> None:
    """Prints what the changes of each attack do to other models at equal sizes."""
    levels = list(section.config.rms_levels)

    def rows() -> Iterator[tuple[str, ...]]:
        for attack in dict.fromkeys(cell.attack for cell in section.cells):
            others = [
                cell
                for cell in section.cells
                if cell.attack == attack and cell.source != cell.target and cell.error_rate.count
            ]
            for label, field in (("", "error_rate"), (", noise", "noise_error_rate")):
                means = [
                    sum(getattr(cell.curve[i], field).value for cell in others) / len(others)
                    if others
                    else math.nan
                    for i in range(len(levels))
                ]
                yield f"{attack_name(attack)}{label}", *(f"{100 * mean:.1f}" for mean in means)

    if levels:
        print_table(
            console,
            "Error rate in per cent with all changes brought to one rms, mean over other models",
            ("", *(number(level) for level in levels)),
            rows(),
        )


def _print_kinds(console: Console, section: v1.TransferSection) -> None:
    if section.kinds:
        print_table(
            console,
            "Pairs of models that differ in one respect",
            ("differ in", "examples", "pairs", "error rate", "noise", "excess"),
            (
                (
                    _difference(kind),
                    attack_name(kind.attack),
                    str(kind.pairs),
                    estimate_text(kind.error_rate),
                    estimate_text(kind.noise_error_rate),
                    estimate_text(kind.excess),
                )
                for kind in section.kinds
            ),
        )


def _difference(kind: v1.TransferKind) -> str:
    if kind.source_value or kind.target_value:
        return f"{kind.tag}: {kind.source_value} to {kind.target_value}"
    return f"{kind.tag} alone" if kind.alone else kind.tag


def _print_groups(console: Console, section: v1.TransferSection) -> None:
    """Prints which models group together, as a tree and in numbers; far-off groups last."""
    members = {i: [name] for i, name in enumerate(section.models)}
    rows = []
    for i, merge in enumerate(section.merges):
        left, right = members[merge.left], members[merge.right]
        members[len(section.models) + i] = left + right
        rows.append((number(merge.distance), _listed(left), _listed(right)))
    if not rows:
        return
    print_table(
        console,
        f"Similar models ({attack_name(section.grouped_by)}): groups that join, at 1 less their "
        "mean transfer rate",
        ("distance", "group", "joins"),
        rows,
    )
    tree = drawn(list(section.order), list(section.merges), _TREE_WIDTH)
    farthest = number(max(merge.distance for merge in section.merges))
    print_table(
        console,
        "",
        ("model", f"0 to {farthest}"),
        ((section.models[model], line) for model, line in zip(section.order, tree, strict=True)),
    )


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN_PARTNERS
    return ", ".join(names[:_SHOWN_PARTNERS]) + (f" and {more} more" if more > 0 else "")


def _print_fooling(console: Console, section: v1.TransferSection) -> None:
    fooling = section.fooling
    if not fooling.examples:
        return
    counts = ", ".join(f"{n} fool {i}" for i, n in enumerate(fooling.by_models_fooled))
    proof = "" if fooling.proved else " (perhaps not the smallest)"
    print_section(console, "Examples that fool several models", [
        ("examples", f"{fooling.examples} of single sources: {counts} of "
                     f"{len(section.models)} models"),
        ("fool all", str(fooling.fool_all)),
        ("smallest set", f"{len(fooling.smallest)} that together fool every model that any "
                         f"fools{proof}"),
        *(("", f"probe {e.probe}, {attack_name(e.attack)}, made for {_name(section, e.source)}: "
               f"fools {', '.join(section.models[i] for i in e.fooled)}")
          for e in fooling.smallest),
    ])  # fmt: skip
