"""What stands beside distortions in a terminal: whole levels, proofs, noise and hidden values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console

from onnx_audit import v1
from onnx_audit.cli.figures import estimate_text, norm_name
from onnx_audit.cli.tables import print_table

_LONGEST_NAME: Final = 24


def median(quantiles: Iterable[v1.Quantile]) -> v1.Estimate:
    """The estimate of the median; an empty one if there is none."""
    for row in quantiles:
        if math.isclose(row.probability, 0.5):
            return row.estimate
    return v1.Estimate()


def noise_name(kind: v1.NoiseKind.ValueType) -> str:
    """The name of a kind of noise, such as "salt and pepper"."""
    return v1.NoiseKind.Name(kind).removeprefix("NOISE_KIND_").lower().replace("_", " ")


def print_beside(console: Console, section: v1.DistortionSection) -> None:
    """Prints what a section has of them."""
    _print_rounded(console, section)
    _print_certified(console, section)
    _print_noise(console, section.noise)
    _print_hidden(console, section.hidden)


def _print_rounded(console: Console, section: v1.DistortionSection) -> None:
    norms = [norm for norm in section.norms if norm.HasField("rounded")]
    if norms:
        print_table(
            console,
            f"Examples that an image file can hold ({section.levels:g} levels per unit)",
            ("norm", "found", "median", "mean", "over nearest"),
            (
                (
                    norm_name(norm.norm),
                    str(norm.rounded.confirmed),
                    estimate_text(norm.rounded.median),
                    estimate_text(norm.rounded.mean),
                    estimate_text(norm.rounded.mean_ratio),
                )
                for norm in norms
            ),
        )


def _print_certified(console: Console, section: v1.DistortionSection) -> None:
    norms = [norm for norm in section.norms if norm.HasField("certified")]
    if norms:
        print_table(
            console,
            "Proved lower bounds and exact optima, and the found distance over them",
            ("norm", "bounds", "found / bound", "optima", "found / optimum"),
            (
                (
                    norm_name(norm.norm),
                    str(norm.certified.certified),
                    estimate_text(norm.certified.found_over_lower),
                    str(norm.certified.exact),
                    estimate_text(norm.certified.found_over_optimum),
                )
                for norm in norms
            ),
        )


def _print_noise(console: Console, kinds: Sequence[v1.NoiseDistortion]) -> None:
    if kinds:
        print_table(
            console,
            "Random noise that changes half of the answers; size in times the distortion",
            ("noise", "median scale", "norm", "median size", "times"),
            (
                (
                    noise_name(kind.kind) if first else "",
                    estimate_text(median(kind.scale)) if first else "",
                    norm_name(size.norm),
                    estimate_text(size.size),
                    estimate_text(size.ratio),
                )
                for kind in kinds
                for first, size in zip([True] + [False] * len(kind.sizes), kind.sizes, strict=False)
            ),
        )
        for kind in kinds:
            if kind.unmoved:
                console.print(
                    f"{noise_name(kind.kind)}: probes that no scale of it moves: {kind.unmoved}",
                    highlight=False,
                )


def _print_hidden(console: Console, entries: Sequence[v1.HiddenDistortion]) -> None:
    if entries:
        print_table(
            console,
            "Hidden values: smallest change that changes the answer, and its share of the norm",
            ("value", "depth", "norm", "found", "median", "of norm"),
            (
                (
                    shortened(entry.value),
                    f"{entry.depth:.2f}",
                    norm_name(entry.norm),
                    f"{entry.found}/{entry.found + entry.not_found}",
                    estimate_text(median(entry.quantiles)),
                    estimate_text(median(entry.relative_quantiles)),
                )
                for entry in entries
            ),
        )


def shortened(name: str) -> str:
    """A name of at most 24 characters; a longer one keeps its end, which tells values apart."""
    return name if len(name) <= _LONGEST_NAME else "…" + name[-_LONGEST_NAME + 1 :]
