"""From the results of all probes to the section of the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save as to_safetensors

from onnx_audit import v1
from onnx_auditors.auditor import SaveArtefact
from onnx_auditors.estimates import mean, proportion, quantile

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
_CURVE_POINTS = 33
_CURVE_MARGIN = 1.02
_MOST_FRAGILE = 20
_LISTED_PROBES = 4096
_MEDIA_TYPE = "application/vnd.safetensors"
_UNITS = {v1.NORM_L0: "L0", v1.NORM_L1: "L1", v1.NORM_L2: "L2", v1.NORM_LINF: "Linf"}
_BOOTSTRAP_SEED = 3


def merge(
    config: v1.DistortionConfig,
    partials: Sequence[v1.DistortionPartial],
    probe_shape: Sequence[int],
    *,
    labelled: bool,
    seed: int,
    save: SaveArtefact,
) -> v1.DistortionSection:
    """Joins partials, in the order of their shards, into the section.

    Args:
        config: The resolved configuration.
        partials: Results of the shards.
        probe_shape: Shape of one probe.
        labelled: Whether labels were given; without them the clean accuracy is 1 by definition.
        seed: The audit's seed.
        save: Keeps the artefacts.
    """
    norms = [
        _norm(norm, [partial.norms[i] for partial in partials], probe_shape, seed, save)
        for i, norm in enumerate(config.norms)
    ]
    rows = [probe for partial in partials for probe in partial.norms[0].probes]
    wrong = sum(row.outcome == v1.PROBE_OUTCOME_MISCLASSIFIED for row in rows)
    if labelled:
        accuracy = proportion(len(rows) - wrong, len(rows))
    else:
        accuracy = v1.Estimate(value=1.0, count=len(rows), unit="1")
    return v1.DistortionSection(
        config=config,
        clean_accuracy=accuracy,
        probe_count=len(rows),
        misclassified=wrong,
        norms=norms,
        dimension=math.prod(probe_shape),
    )


def warnings(section: v1.DistortionSection, classes: int) -> list[v1.ReportWarning]:
    """Returns what a reader must know to judge the section.

    Args:
        section: The section.
        classes: Number of classes of the model.
    """
    if section.misclassified == section.probe_count:
        return [
            v1.ReportWarning(
                code="NO_PROBE_ANSWERED_RIGHTLY",
                message=(
                    f"the model answers none of the {section.probe_count} probes rightly, so there "
                    "is no distortion to measure: check mean, std, channel order and layout, and "
                    "that the labels are numbered as the model numbers its classes"
                ),
            )
        ]
    accuracy = section.clean_accuracy
    # Twice chance for many classes; halfway between chance and certainty for two or three.
    limit = min(2 / classes, (1 + 1 / classes) / 2)
    if not accuracy.HasField("interval") or accuracy.interval.upper >= limit:
        return []
    return [
        v1.ReportWarning(
            code="CLEAN_ACCURACY_AT_CHANCE",
            message=(
                f"the model answers {accuracy.value:.1%} of the probes rightly, which is close to "
                f"chance ({1 / classes:.1%}): mean, std, channel order, layout or the numbering of "
                "the labels may be wrong, and then the figures say nothing about the model"
            ),
        )
    ]


def _norm(
    norm: v1.Norm.ValueType,
    parts: Sequence[v1.DistortionPartial.NormPartial],
    probe_shape: Sequence[int],
    seed: int,
    save: SaveArtefact,
) -> v1.NormDistortion:
    rows = [probe for part in parts for probe in part.probes]
    outcome = np.array([row.outcome for row in rows])
    distance = np.array([row.distance for row in rows], dtype=np.float64)
    rms = np.array([row.rms for row in rows], dtype=np.float64)
    confirmed = outcome == v1.PROBE_OUTCOME_CONFIRMED
    right = outcome != v1.PROBE_OUTCOME_MISCLASSIFIED
    unit = _UNITS[norm]
    bootstrap = int(np.random.SeedSequence([seed, _BOOTSTRAP_SEED, norm]).generate_state(1)[0])
    return v1.NormDistortion(
        norm=norm,
        mean=mean(distance[confirmed], unit, bootstrap),
        mean_rms=mean(rms[confirmed], "rms", bootstrap),
        quantiles=[
            v1.Quantile(probability=p, estimate=quantile(distance[right], p, unit))
            for p in QUANTILES
        ],
        robust_accuracy=_curve(distance, right),
        confirmed=int(confirmed.sum()),
        unconfirmed=int((outcome == v1.PROBE_OUTCOME_UNCONFIRMED).sum()),
        not_found=int((outcome == v1.PROBE_OUTCOME_NOT_FOUND).sum()),
        evaluations=sum(row.evaluations for row in rows),
        probes=rows if len(rows) <= _LISTED_PROBES else [],
        most_fragile=_most_fragile(rows),
        artefact=save(_artefact(rows, parts, probe_shape), _MEDIA_TYPE),
    )


def _curve(distance: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> list[v1.CurvePoint]:
    """Returns the share answered rightly and without an example within each radius."""
    finite = distance[right & np.isfinite(distance)]
    if len(finite):
        grid = np.linspace(0, _CURVE_MARGIN * finite.max(), _CURVE_POINTS)
    else:
        grid = np.zeros(1)
    return [
        v1.CurvePoint(x=x, y=proportion(int((right & (distance > x)).sum()), len(distance)))
        for x in grid.tolist()
    ]


def _most_fragile(rows: Sequence[v1.ProbeDistortion]) -> list[int]:
    positive = [row for row in rows if 0 < row.distance < math.inf]
    positive.sort(key=lambda row: (row.distance, row.probe))
    return [row.probe for row in positive[:_MOST_FRAGILE]]


def _artefact(
    rows: Sequence[v1.ProbeDistortion],
    parts: Sequence[v1.DistortionPartial.NormPartial],
    probe_shape: Sequence[int],
) -> bytes:
    """Returns the safetensors blob with a row for every audited probe."""
    examples = np.frombuffer(b"".join(part.examples for part in parts), dtype="<f4")
    return to_safetensors(
        {
            "probe": np.array([row.probe for row in rows], dtype=np.int64),
            "label": np.array([row.label for row in rows], dtype=np.int64),
            "clean_prediction": np.array([row.clean_prediction for row in rows], dtype=np.int64),
            "adversarial_prediction": np.array(
                [row.adversarial_prediction for row in rows], dtype=np.int64
            ),
            "outcome": np.array([row.outcome for row in rows], dtype=np.int64),
            "distance": np.array([row.distance for row in rows], dtype=np.float64),
            "rms": np.array([row.rms for row in rows], dtype=np.float64),
            "example": examples.reshape(len(rows), *probe_shape),
        }
    )
