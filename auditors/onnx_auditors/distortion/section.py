"""From the results of all probes to the section of the report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from onnx_audit import v1
from onnx_auditors import sandwich
from onnx_auditors.auditor import SaveArtefact
from onnx_auditors.context import Context
from onnx_auditors.distortion import artefacts, groups, inside, noisy
from onnx_auditors.distortion.confirm import levels_of
from onnx_auditors.distortion.table import Table, most_fragile
from onnx_auditors.estimates import curve, mean, proportion, quantile
from onnx_auditors.tensor_files import MEDIA_TYPE

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
UNITS = {v1.NORM_L0: "L0", v1.NORM_L1: "L1", v1.NORM_L2: "L2", v1.NORM_LINF: "Linf"}
"""The units of distances."""
_MOST_FRAGILE = 20
_LISTED_PROBES = 4096


def merge(
    config: v1.DistortionConfig,
    context: Context,
    partials: Sequence[v1.DistortionPartial],
    save: SaveArtefact,
) -> v1.DistortionSection:
    """Joins partials, in the order of their shards, into the section.

    Args:
        config: The resolved configuration.
        context: Probes and seed.
        partials: Results of the shards.
        save: Keeps the artefacts.
    """
    parts = [artefacts.NormParts(partials, i) for i in range(len(config.norms))]
    tables = [Table.of(part) for part in parts]
    first = tables[0]
    labelled = context.probes.labels is not None
    count = len(first.rows)
    right = int((first.integers("clean_prediction") == first.label).sum())
    beside = [_beside(partial) for partial in partials]
    return v1.DistortionSection(
        config=config,
        clean_accuracy=groups.accuracy(right, count, labelled=labelled),
        probe_count=count,
        misclassified=count - right,
        norms=[
            _norm(norm, table, artefacts.Files(context, table, part), context.seed, save,
                  labelled=labelled)
            for norm, table, part in zip(config.norms, tables, parts, strict=True)
        ],
        dimension=math.prod(context.input_map.probe_shape),
        vanishing_gradients=proportion(sum(row.gradient_vanishes for row in first.rows), count),
        levels=levels_of(context) or 0.0,
        hidden=inside.summarise(config, context, beside, UNITS, quantiles=QUANTILES,
                                listed=_LISTED_PROBES),
        noise=noisy.summarise(config, beside, tables, UNITS, quantiles=QUANTILES,
                              listed=_LISTED_PROBES),
    )  # fmt: skip


def _beside(partial: v1.DistortionPartial) -> v1.DistortionPartial:
    """Returns what a partial holds beside the norms."""
    return v1.DistortionPartial(hidden=partial.hidden, noise=partial.noise)


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
    return [*_at_chance(section, classes), *_without_gradients(section)]


def _at_chance(section: v1.DistortionSection, classes: int) -> list[v1.ReportWarning]:
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


def _without_gradients(section: v1.DistortionSection) -> list[v1.ReportWarning]:
    """Says that where gradients are useless, nothing found is nothing proved."""
    left = {
        UNITS[norm.norm]: norm.not_found + norm.unconfirmed
        for norm in section.norms
        if norm.not_found + norm.unconfirmed
    }
    share = section.vanishing_gradients.value
    if not left or not share > 0:
        return []
    counts = ", ".join(f"{count} in {unit}" for unit, count in left.items())
    return [
        v1.ReportWarning(
            code="NOT_FOUND_WITHOUT_GRADIENTS",
            message=(
                f"the gradient vanishes at {share:.1%} of the probes, and for some no example was "
                f"found ({counts}), although up to {section.config.black_box_runs} answers of the "
                "model were asked for each. That does not show that the model is robust there: "
                "raise black_box_runs, or check whether its answer depends on the input at all"
            ),
        )
    ]


def _norm(
    norm: v1.Norm.ValueType,
    table: Table,
    files: artefacts.Files,
    seed: int,
    save: SaveArtefact,
    *,
    labelled: bool,
) -> v1.NormDistortion:
    confirmed, searched, unit = table.confirmed, table.searched, UNITS[norm]
    part = table.takes_part
    bootstrap = sandwich.bootstrap_seed(seed, norm)
    return v1.NormDistortion(
        norm=norm,
        mean=mean(table.distance[confirmed], unit, bootstrap),
        mean_rms=mean(table.floats("rms")[confirmed], "rms", bootstrap),
        quantiles=[
            v1.Quantile(probability=p, estimate=quantile(table.distance[searched], p, unit))
            for p in QUANTILES
        ],
        robust_accuracy=curve(table.distance[part], searched[part]),
        confirmed=int(confirmed.sum()),
        unconfirmed=int((table.outcome == v1.PROBE_OUTCOME_UNCONFIRMED).sum()),
        not_found=int((table.outcome == v1.PROBE_OUTCOME_NOT_FOUND).sum()),
        target_is_label=int((~part).sum()),
        evaluations=sum(row.evaluations for row in table.rows),
        probes=table.rows if len(table.rows) <= _LISTED_PROBES else [],
        most_fragile=most_fragile(table, _MOST_FRAGILE),
        by_class=groups.by_class(table, unit, labelled=labelled),
        class_pairs=groups.class_pairs(table, unit),
        stability=groups.stability(table, bootstrap),
        artefact=save(files.examples(), MEDIA_TYPE),
        training_set=_saved(files.training_set(), save),
        black_box_searches=sum(row.black_box_runs > 0 for row in table.rows),
        black_box_runs=sum(row.black_box_runs for row in table.rows),
        found_by_black_box=sum(row.found_by == v1.EXAMPLE_SOURCE_BLACK_BOX for row in table.rows),
        rounded=groups.rounded(table, unit, bootstrap, _saved(files.rounded_training_set(), save)),
        certified=sandwich.certified(table.rows, bootstrap),
    )


def _saved(content: Iterator[bytes] | None, save: SaveArtefact) -> v1.BlobRef | None:
    return None if content is None else save(content, MEDIA_TYPE)
