"""The figures that a reader sees first, whatever the form of the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx_audit import v1
from onnx_audit_server.reports.words import (
    attack_name,
    count,
    given,
    interval,
    norm_name,
    number,
    percent,
    shape_text,
)


@dataclass(frozen=True)
class KeyFigure:
    """A figure with what it says.

    Attributes:
        name: What it is.
        value: As text.
        interval: Its interval as text; empty where there is none.
        baseline: The same figure of the baseline; empty where there is none.
        meaning: What it says, in half a sentence.
        anchor: Section of the page that has more.
    """

    name: str
    value: str
    interval: str
    baseline: str
    meaning: str
    anchor: str


@dataclass(frozen=True)
class _Source:
    name: str
    estimate: v1.Estimate
    meaning: str
    anchor: str
    share: bool = False


def key_figures(report: v1.Report, baseline: v1.Report | None) -> list[KeyFigure]:
    """The figures of all sections, those that the report has."""
    before = {source.name: source.estimate for source in _sources(baseline)} if baseline else {}

    def text(source: _Source, estimate: v1.Estimate) -> str:
        return percent(estimate.value) if source.share else number(estimate.value)

    return [
        KeyFigure(
            source.name,
            text(source, source.estimate),
            interval(source.estimate, share=source.share),
            text(source, before[source.name]) if source.name in before else "",
            source.meaning,
            source.anchor,
        )
        for source in _sources(report)
    ]


def probes_text(report: v1.Report) -> str:
    """The probes in a line."""
    probes = report.probes
    labels = "with labels" if probes.has_labels else "without labels"
    return f"{count(probes.count, 'probe')} of {shape_text(probes.shape)}, {labels}"


def _sources(report: v1.Report) -> Iterator[_Source]:
    yield from (s for s in _distortion(report.distortion) if given(s.estimate))
    yield from (s for s in _lipschitz(report.lipschitz) if given(s.estimate))
    yield from (s for s in _transfer(report.transfer) if given(s.estimate))
    yield from (s for s in _units(report.units) if given(s.estimate))


def _distortion(section: v1.DistortionSection) -> Iterator[_Source]:
    yield _Source(
        "clean accuracy", section.clean_accuracy, "of the probes without any change",
        "distortion", share=True,
    )  # fmt: skip
    for norm in section.norms:
        for quantile in norm.quantiles:
            if quantile.probability == 0.5:  # noqa: PLR2004 - the median
                yield _Source(
                    f"median {norm_name(norm.norm)} distortion",
                    quantile.estimate,
                    "the change that fools half of the probes",
                    "distortion",
                )


def _lipschitz(section: v1.LipschitzSection) -> Iterator[_Source]:
    for row in section.certificates:
        yield _Source(
            f"mean certified {norm_name(row.norm)} radius",
            row.mean,
            "no smaller change fools",
            "lipschitz",
        )
    for network in section.network[:1]:
        bound = network.bound
        yield _Source(
            f"{norm_name(bound.norm)} Lipschitz bound",
            v1.Estimate(value=bound.upper),
            "certified upper bound"
            + (f"; at least {number(bound.lower)}" if bound.lower > 0 else ""),
            "lipschitz",
        )


def _transfer(section: v1.TransferSection) -> Iterator[_Source]:
    """The audited model's worst error rate by examples of others, for each attack."""
    for attack in dict.fromkeys(cell.attack for cell in section.cells):
        cells = [
            cell
            for cell in section.cells
            if cell.attack == attack
            and cell.target == 0
            and cell.source != 0
            and cell.error_rate.count
        ]
        if cells:
            worst = max(cells, key=lambda cell: cell.error_rate.value)
            source = "all others" if worst.source < 0 else section.models[worst.source]
            yield _Source(
                f"errors by {attack_name(attack)} transfer",
                worst.error_rate,
                f"by examples made for {source}; noise: {percent(worst.noise_error_rate.value)}",
                "transfer",
                share=True,
            )


def _units(section: v1.UnitsSection) -> Iterator[_Source]:
    for layer in section.layers[-1:]:
        for score in layer.scores[:1]:
            kind = v1.UnitScoreKind.Name(score.kind).removeprefix("UNIT_SCORE_KIND_").lower()
            yield _Source(
                f"index of units by {kind}",
                score.index_auc,
                f"in {layer.value}; 0.5: no more meaningful than random",
                "units",
            )
