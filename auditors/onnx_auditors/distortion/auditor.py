"""The auditor `distortion`: how far the probes are from a wrong answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnx_audit import v1
from onnx_auditors import configs
from onnx_auditors.auditor import Plan, Progress, SaveArtefact
from onnx_auditors.context import Context
from onnx_auditors.distortion import drawing, inside, section, timing
from onnx_auditors.distortion.batch import squashed
from onnx_auditors.distortion.memory import batch_rows
from onnx_auditors.distortion.noise_level import DRAWS
from onnx_auditors.distortion.projected import ANCHORED_BUDGET
from onnx_auditors.distortion.section import warnings
from onnx_auditors.distortion.shard import Rows, Shard
from onnx_auditors.errors import InvalidConfig

_DEFAULT_BUDGET, _DEFAULT_RUNS, _EXACT_PROBES = 500, 1000, 32
_SHARDS, _FEWEST_TO_SPLIT = 4, 32
_SHARD_PROBES = {"cpu": 128, "cuda": 4096}
_MOST_REPEATED, _REPEATED_SHARE = 32, 4
_REPEATED_SEED, _PROVED_SEED = 5, 9
_MOST_CLASSES = 100
"""Beyond it, a search towards every other class would take longer than anybody waits."""


class DistortionAuditor:
    """Looks for the smallest change of each probe that changes ONNX Runtime's answer."""

    kind = v1.AUDITOR_DISTORTION
    partial_type = v1.DistortionPartial

    def resolve(self, config: v1.DistortionConfig, context: Context) -> v1.DistortionConfig:
        """Returns a copy with every default filled in.

        Raises:
            InvalidConfig: Something that this version lacks, a number out of range, a target or a
                hidden value that the model does not have, more classes than can all be aimed at, or
                less time than the smallest budget takes.
        """
        configs.check(config)
        classes = context.network.classes
        if config.HasField("target_class") and config.target_class >= classes:
            raise InvalidConfig(
                f"class {config.target_class} is aimed at, but the model has {classes} classes; "
                "they count from 0",
                field="target_class",
            )
        if config.target_mode == v1.TARGET_MODE_EVERY_OTHER_CLASS and classes > _MOST_CLASSES:
            raise InvalidConfig(
                f"the model has {classes} classes; every other class can be aimed at with at most "
                f"{_MOST_CLASSES}: use TARGET_MODE_LEAST_LIKELY or TARGET_MODE_GIVEN",
                field="target_mode",
            )
        resolved = v1.DistortionConfig(
            norms=list(config.norms) or [v1.NORM_L2],
            budget=config.budget,
            budget_seconds=config.budget_seconds,
            max_probes=config.max_probes,
            target_mode=config.target_mode or v1.TARGET_MODE_UNTARGETED,
            target_class=config.target_class if config.HasField("target_class") else None,
            methods=list(config.methods) or [v1.SEARCH_METHOD_PROJECTED],
            black_box_runs=config.black_box_runs or _DEFAULT_RUNS,
            hidden_values=inside.choose(context, config),
            noise=list(config.noise),
            noise_draws=config.noise_draws or DRAWS,
            exact_probes=config.exact_probes if config.HasField("exact_probes") else _EXACT_PROBES,
        )
        if config.budget_seconds and not config.budget:
            count = drawing.probe_count(context, config.max_probes)
            resolved.budget = timing.budget_of(
                resolved, context, repeated=_repeated(count) / max(count, 1)
            )
        resolved.budget = resolved.budget or _DEFAULT_BUDGET
        return resolved

    def plan(self, config: v1.DistortionConfig, context: Context) -> Plan:
        """Cuts the probes into shards, which are searched at once where the memory allows it."""
        count = drawing.probe_count(context, config.max_probes)
        return Plan(shards=-(-count // _shard_size(context, count)), items=count, unit="probes")

    def run(
        self, config: v1.DistortionConfig, context: Context, shard: int, progress: Progress
    ) -> v1.DistortionPartial:
        """Audits the probes of one shard.

        Raises:
            ModelFailed: ONNX Runtime could not run the model.
            BoundsCrossed: An example contradicts a proof.
        """
        rows = _audited(config, context)
        size = _shard_size(context, len(rows.probes))
        begin, end = shard * size, min((shard + 1) * size, len(rows.probes))
        step = batch_rows(context)
        anchors = drawing.anchors(context, step) if config.budget >= ANCHORED_BUDGET else None
        partial = Shard(config, context, anchors, step, progress).run(rows.part(slice(begin, end)))
        partial.begin, partial.end = begin, end
        return partial

    def merge(
        self,
        config: v1.DistortionConfig,
        context: Context,
        partials: Sequence[v1.DistortionPartial],
        save: SaveArtefact,
    ) -> v1.DistortionSection:
        """Joins the partials of all shards, in their order, into the section."""
        return section.merge(config, context, partials, save)

    def warnings(self, section: v1.DistortionSection, context: Context) -> list[v1.ReportWarning]:
        """Says what a reader must know: errors without a change, no gradients, no classes."""
        found = warnings(section, context.network.classes)
        entries = math.prod(context.input_map.probe_shape)
        if context.network.classes == entries and not squashed(context):
            found.append(
                v1.ReportWarning(
                    code="OUTPUT_LIKE_INPUT",
                    message=(
                        f"output '{context.network.output}' has as many entries as a probe "
                        f"({entries}), and each was taken for a class. If the model gives its "
                        "input back (an autoencoder), the figures say nothing about it: audit it "
                        "with a linear head on one of its values"
                    ),
                )
            )
        return found


def _shard_size(context: Context, count: int) -> int:
    """Returns the probes of a shard: a GPU has most to do with many at once."""
    device = context.device.type
    if device == "cpu" and count >= _FEWEST_TO_SPLIT:
        count = -(-count // _SHARDS)
    return min(_SHARD_PROBES[device], count)


def _repeated(count: int) -> int:
    """Returns how many of the audited probes are searched a second time."""
    return min(_MOST_REPEATED, -(-count // _REPEATED_SHARE))


def _audited(config: v1.DistortionConfig, context: Context) -> Rows:
    """Returns the audited probes, rising, and which of them get more work than the others."""
    rows = drawing.probes(context, config.max_probes)
    count = len(rows)
    return Rows(
        rows,
        twice=drawing.some(context, _REPEATED_SEED, count, _repeated(count)),
        proved=drawing.some(context, _PROVED_SEED, count, min(count, config.exact_probes)),
    )
