"""The auditor `distortion`: how far the probes are from a wrong answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from onnx_audit import v1
from onnx_auditors import configs
from onnx_auditors.auditor import Plan, Progress, SaveArtefact
from onnx_auditors.context import Context
from onnx_auditors.distortion import section
from onnx_auditors.distortion.batch import Batch, Indices, look
from onnx_auditors.distortion.memory import batch_rows
from onnx_auditors.distortion.projected import ANCHORED_BUDGET
from onnx_auditors.distortion.searching import Anchors, Found, search
from onnx_auditors.distortion.section import UNITS, warnings
from onnx_auditors.distortion.table import SEARCHED
from onnx_auditors.errors import InvalidConfig
from onnx_auditors.estimates import quantile

_DEFAULT_BUDGET = 500
_SHARD_PROBES, _SHARDS, _FEWEST_TO_SPLIT = 128, 4, 32
_ANCHORS = 512
_MOST_REPEATED, _REPEATED_SHARE = 32, 4
_PROBE_SEED, _ANCHOR_SEED, _REPEATED_SEED = 1, 3, 5
_MOST_CLASSES = 100
"""Beyond it, a search towards every other class would take longer than anybody waits."""


class DistortionAuditor:
    """Looks for the smallest change of each probe that changes ONNX Runtime's answer."""

    kind = v1.AUDITOR_DISTORTION
    partial_type = v1.DistortionPartial

    def resolve(self, config: v1.DistortionConfig, context: Context) -> v1.DistortionConfig:
        """Returns a copy with every default filled in.

        Raises:
            InvalidConfig: Something that this version lacks, a number out of range, a target that
                the model does not have, or more classes than can all be aimed at.
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
        return v1.DistortionConfig(
            norms=list(config.norms) or [v1.NORM_L2],
            budget=config.budget or _DEFAULT_BUDGET,
            max_probes=config.max_probes,
            target_mode=config.target_mode or v1.TARGET_MODE_UNTARGETED,
            target_class=config.target_class if config.HasField("target_class") else None,
            methods=list(config.methods) or [v1.SEARCH_METHOD_PROJECTED],
        )

    def plan(self, config: v1.DistortionConfig, context: Context) -> Plan:
        """Cuts the probes into shards of at most 128, into at least 4 from 32 probes on."""
        count = _probe_count(config, context)
        return Plan(shards=-(-count // _shard_size(count)), items=count, unit="probes")

    def run(
        self, config: v1.DistortionConfig, context: Context, shard: int, progress: Progress
    ) -> v1.DistortionPartial:
        """Audits the probes of one shard.

        Raises:
            ModelFailed: ONNX Runtime could not run the model.
        """
        rows, twice = _audited(config, context)
        size = _shard_size(len(rows))
        begin, end = shard * size, min((shard + 1) * size, len(rows))
        rows, twice = rows[begin:end], twice[begin:end]
        step = batch_rows(context)
        anchors = _anchors(context, step) if config.budget >= ANCHORED_BUDGET else None
        parts = [v1.DistortionPartial.NormPartial(norm=norm) for norm in config.norms]
        examples: list[list[bytes]] = [[] for _ in parts]
        for first in range(0, len(rows), step):
            chosen = slice(first, first + step)
            batch = look(context, config, rows[chosen])
            for i, part in enumerate(parts):
                label, running = f"median {UNITS[part.norm]}", _running_median(part)

                def tell(
                    share: float,
                    begun: float = first + i / len(parts) * len(batch.rows),
                    length: float = len(batch.rows) / len(parts),
                    running: v1.Estimate | None = running,
                    label: str = label,
                ) -> None:
                    # The whole is only reported done once its last figure is there.
                    done = min(begun + share * length, math.nextafter(len(rows), 0))
                    progress(done, len(rows), running, label)

                found = search(
                    context,
                    config,
                    batch,
                    part.norm,
                    twice=twice[chosen],
                    anchors=anchors,
                    size=step,
                    progress=tell,
                )
                _add(part, batch, found, first)
                examples[i].append(found.examples.tobytes())
                done = first + len(batch.rows) * (i + 1) / len(parts)
                progress(done, len(rows), _running_median(part), label)
        for part, blocks in zip(parts, examples, strict=True):
            part.examples = b"".join(blocks)
        dimension = math.prod(context.input_map.probe_shape)
        return v1.DistortionPartial(begin=begin, end=end, norms=parts, dimension=dimension)

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
        """Says whether the model's errors on the probes themselves look like a wrong input spec."""
        return warnings(section, context.network.classes)


def _running_median(part: v1.DistortionPartial.NormPartial) -> v1.Estimate | None:
    """Returns the median distance of the probes that were searched so far; None before any."""
    if not part.probes:
        return None
    right = [p.distance for p in part.probes if p.outcome in SEARCHED]
    return quantile(np.array(right, dtype=np.float64), 0.5, UNITS[part.norm])


def _probe_count(config: v1.DistortionConfig, context: Context) -> int:
    count = context.summary.count
    return min(count, config.max_probes) if config.max_probes else count


def _shard_size(count: int) -> int:
    if count < _FEWEST_TO_SPLIT:
        return count
    return min(_SHARD_PROBES, -(-count // _SHARDS))


def _audited(
    config: v1.DistortionConfig, context: Context
) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Returns the indices of the audited probes, rising, and which are searched twice."""
    total, count = context.summary.count, _probe_count(config, context)
    rows = np.arange(total)
    if count < total:
        rng = np.random.default_rng([context.seed, _PROBE_SEED])
        rows = np.sort(rng.choice(total, size=count, replace=False))
    repeated = min(_MOST_REPEATED, -(-count // _REPEATED_SHARE))
    rng = np.random.default_rng([context.seed, _REPEATED_SEED])
    twice = np.zeros(count, dtype=bool)
    twice[rng.choice(count, size=repeated, replace=False)] = True
    return rows, twice


def _anchors(context: Context, step: int) -> Anchors:
    """Returns some probes, the same for every shard, and the network's answers to them."""
    total = context.summary.count
    rng = np.random.default_rng([context.seed, _ANCHOR_SEED])
    rows = np.sort(rng.choice(total, size=min(total, _ANCHORS), replace=False))
    points = torch.from_numpy(context.inputs(rows)).to(context.device)
    with torch.no_grad():
        answers = [context.logits(block).argmax(1) for block in torch.split(points, step)]
    return points, torch.cat(answers)


def _add(part: v1.DistortionPartial.NormPartial, batch: Batch, found: Found, first: int) -> None:
    """Adds what was found for a batch, which begins at a position of the shard."""
    part.probes.extend(
        v1.ProbeDistortion(
            probe=int(batch.rows[i]),
            outcome=v1.ProbeOutcome.ValueType(int(found.outcome[i])),
            label=int(batch.labels[i]),
            clean_prediction=int(batch.clean[i]),
            adversarial_prediction=int(found.predictions[i]),
            distance=float(found.distance[i]),
            rms=float(found.rms[i]),
            evaluations=int(found.spent[i]),
            target=int(batch.targets[i]) if batch.targets[i] >= 0 else None,
            clean_confidence=float(batch.confidence[i]),
            adversarial_confidence=float(found.confidence[i]),
            gradient_vanishes=bool(batch.vanishes[i]),
        )
        for i in range(len(batch.rows))
    )
    if found.by_class is not None:
        part.class_distances += found.by_class.tobytes()
    again = np.flatnonzero(~np.isnan(found.again))
    part.repeated_positions.extend((again + first).tolist())
    part.repeated_distances.extend(found.again[again].tolist())
