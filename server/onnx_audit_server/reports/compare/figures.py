"""The figures of a report that are worth a comparison, by paths that say what they are of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from onnx_audit import v1
from onnx_auditors import estimates

MEDIAN = 0.5

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """What single probes contribute to a figure.

    Attributes:
        probes: Indices in the probe set, int64 [n].
        values: Float64 [n]; NaN for a probe that does not take part.
        probability: Of the quantile that the figure is; None for a mean.
        share: Whether the figure is a share: the mean of zeros and ones.
    """

    probes: npt.NDArray[np.int64]
    values: Floats
    probability: float | None = None
    share: bool = False


@dataclass(frozen=True)
class Figure:
    """A figure of a report.

    Attributes:
        label: What it is.
        estimate: Its value and interval.
        better: 1 where more is better, -1 where less is, 0 where neither is.
        rows: What it is made of, where the report has that.
        exact: Whether it depends on the model alone, so that no choice of probes moves it.
    """

    label: str
    estimate: v1.Estimate
    better: int
    rows: Rows | None = None
    exact: bool = False


Figures = dict[str, Figure]
Row = TypeVar("Row", v1.ProbeDistortion, v1.ProbeCertificate)


def figures(report: v1.Report) -> Figures:
    """The figures of a report by path, in the order of the report."""
    found: Figures = {}
    if report.HasField("distortion"):
        found |= dict(_distortion(report.distortion))
    if report.HasField("lipschitz"):
        found |= dict(_lipschitz(report.lipschitz))
    if report.HasField("transfer"):
        found |= dict(_transfer(report.transfer))
    if report.HasField("units"):
        found |= dict(_units(report.units))
    return {path: figure for path, figure in found.items() if figure.estimate.ByteSize()}


def at_median(baseline: v1.Report) -> dict[str, Callable[[v1.Report, str], Figures]]:
    """Accuracies under changes as large as the baseline's median, by path.

    Reports have curves with radii of their own; at one radius they can be compared.
    """
    found: dict[str, Callable[[v1.Report, str], Figures]] = {}
    for entry in baseline.distortion.norms:
        path = f"distortion.norms[{_norm(entry.norm)}].robust_accuracy_at_baseline_median"
        if (radius := _median(entry.quantiles)) is not None:
            found[path] = partial(_robust_at, entry.norm, radius)
    for certified in baseline.lipschitz.certificates:
        name = _norm(certified.norm)
        path = f"lipschitz.certificates[{name}].certified_accuracy_at_baseline_median"
        if (radius := _median(certified.quantiles)) is not None:
            found[path] = partial(_certified_at, certified.norm, radius)
    return found


def _distortion(section: v1.DistortionSection) -> Iterator[tuple[str, Figure]]:
    rows = section.norms[0].probes if section.norms else []
    yield (
        "distortion.clean_accuracy",
        Figure("accuracy without changes", section.clean_accuracy, 1, _shares(rows, _right)),
    )
    for entry in section.norms:
        name = _norm(entry.norm)
        path = f"distortion.norms[{name}]"
        found = [row.outcome == v1.PROBE_OUTCOME_CONFIRMED for row in entry.probes]
        searched = [
            row.outcome not in {v1.PROBE_OUTCOME_MISCLASSIFIED, v1.PROBE_OUTCOME_TARGET_IS_LABEL}
            for row in entry.probes
        ]
        distance = [row.distance for row in entry.probes]
        rms = [row.rms for row in entry.probes]
        label = f"mean {name} distortion"
        yield f"{path}.mean", Figure(label, entry.mean, 1, _rows(entry.probes, distance, found))
        label = f"mean rms of {name} distortion"
        yield f"{path}.mean_rms", Figure(label, entry.mean_rms, 1, _rows(entry.probes, rms, found))
        yield from _quantiles(
            path, f"{name} distortion", entry.quantiles, _rows(entry.probes, distance, searched)
        )
    for noise in section.noise:
        kind = v1.NoiseKind.Name(noise.kind).removeprefix("NOISE_KIND_")
        for size in noise.sizes:
            yield (
                f"distortion.noise[{kind}].sizes[{_norm(size.norm)}].size",
                Figure(f"median {_norm(size.norm)} of {kind.lower()} noise", size.size, 1),
            )


def _lipschitz(section: v1.LipschitzSection) -> Iterator[tuple[str, Figure]]:
    for entry in section.network:
        name = _norm(entry.bound.norm)
        path = f"lipschitz.network[{name}]"
        upper = v1.Estimate(value=entry.bound.upper, unit="1")
        yield f"{path}.upper", Figure(f"{name} upper bound", upper, -1, exact=True)
        pair = v1.Estimate(value=entry.largest_pair, unit="1")
        label = f"largest {name} upper bound of a pair"
        yield f"{path}.largest_pair", Figure(label, pair, -1, exact=True)
    for certified in section.certificates:
        name = _norm(certified.norm)
        path = f"lipschitz.certificates[{name}]"
        rows = certified.probes
        radii = _rows(rows, [row.radius for row in rows], [_right(row) for row in rows])
        yield f"{path}.mean", Figure(f"mean certified {name} radius", certified.mean, 1, radii)
        yield from _quantiles(path, f"certified {name} radius", certified.quantiles, radii)


def _transfer(section: v1.TransferSection) -> Iterator[tuple[str, Figure]]:
    for model in section.details:
        yield (
            f"transfer.details[{model.name}].clean_accuracy",
            Figure(f"accuracy of {model.name}", model.clean_accuracy, 1),
        )
    for cell in section.cells:
        if cell.source == cell.target:
            continue
        attack = v1.TransferAttack.Name(cell.attack).removeprefix("TRANSFER_ATTACK_")
        source = "ensemble" if cell.source < 0 else section.models[cell.source]
        target = section.models[cell.target]
        path = f"transfer.cells[{attack}:{source}>{target}]"
        # The audited model is the first one: it is better where fewer foreign examples fool it.
        better = -1 if cell.target == 0 else 0
        told = f"of {target} on {attack.lower()} examples of {source}"
        yield f"{path}.error_rate", Figure(f"error rate {told}", cell.error_rate, better)
        yield f"{path}.excess", Figure(f"errors beyond noise {told}", cell.excess, better)


def _units(section: v1.UnitsSection) -> Iterator[tuple[str, Figure]]:
    for layer in section.layers:
        for score in layer.scores:
            kind = v1.UnitScoreKind.Name(score.kind).removeprefix("UNIT_SCORE_KIND_")
            yield (
                f"units.layers[{layer.value}].scores[{kind}].index_auc",
                Figure(f"index of {layer.value} by {kind.lower()}", score.index_auc, 0),
            )


def _quantiles(
    path: str, label: str, quantiles: Sequence[v1.Quantile], rows: Rows | None
) -> Iterator[tuple[str, Figure]]:
    for row in quantiles:
        p = row.probability
        told = f"median {label}" if p == MEDIAN else f"{100 * p:g} % quantile of {label}"
        parts = None if rows is None else Rows(rows.probes, rows.values, probability=p)
        yield f"{path}.quantiles[{p:g}]", Figure(told, row.estimate, 1, parts)


def _robust_at(norm: v1.Norm.ValueType, radius: float, report: v1.Report, path: str) -> Figures:
    entry = next((row for row in report.distortion.norms if row.norm == norm), None)
    rows = [] if entry is None else entry.probes
    part = [row for row in rows if row.outcome != v1.PROBE_OUTCOME_TARGET_IS_LABEL]

    def holds(row: v1.ProbeDistortion) -> bool:
        return row.outcome != v1.PROBE_OUTCOME_MISCLASSIFIED and row.distance > radius

    return _share_figure(path, f"robust accuracy at {_norm(norm)} {radius:.4g}", part, holds)


def _certified_at(norm: v1.Norm.ValueType, radius: float, report: v1.Report, path: str) -> Figures:
    entry = next((row for row in report.lipschitz.certificates if row.norm == norm), None)
    rows = [] if entry is None else list(entry.probes)

    def holds(row: v1.ProbeCertificate) -> bool:
        return _right(row) and row.radius >= radius

    return _share_figure(path, f"certified accuracy at {_norm(norm)} {radius:.4g}", rows, holds)


def _share_figure(
    path: str, label: str, rows: Sequence[Row], holds: Callable[[Row], bool]
) -> Figures:
    parts = _shares(rows, holds)
    if parts is None:
        return {}
    estimate = estimates.proportion(int(parts.values.sum()), len(rows))
    return {path: Figure(label, estimate, 1, parts)}


def _shares(rows: Sequence[Row], holds: Callable[[Row], bool]) -> Rows | None:
    values = [float(holds(row)) for row in rows]
    found = _rows(rows, values, [True] * len(values))
    return None if found is None else replace(found, share=True)


def _rows(rows: Sequence[Row], values: Sequence[float], part: Sequence[bool]) -> Rows | None:
    """The rows of a figure; None where the report does not have them."""
    if not rows:
        return None
    probes = np.array([row.probe for row in rows], dtype=np.int64)
    taken = np.where(np.array(part, dtype=bool), np.array(values, dtype=np.float64), np.nan)
    return Rows(probes, taken)


def _right(row: v1.ProbeDistortion | v1.ProbeCertificate) -> bool:
    return row.clean_prediction == row.label


def _median(quantiles: Sequence[v1.Quantile]) -> float | None:
    """The median's value, None where it is not finite."""
    found = [row.estimate.value for row in quantiles if row.probability == MEDIAN]
    return found[0] if found and math.isfinite(found[0]) else None


def _norm(norm: v1.Norm.ValueType) -> str:
    return v1.Norm.Name(norm).removeprefix("NORM_")
