"""The auditor `distortion`: how far the probes are from a wrong answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from onnx_audit import v1
from onnx_auditors import configs
from onnx_auditors.auditor import Plan, Progress, SaveArtefact
from onnx_auditors.context import Context
from onnx_auditors.distortion import section
from onnx_auditors.distortion.confirm import confirm, sizes
from onnx_auditors.distortion.minimal import minimal
from onnx_auditors.distortion.section import warnings
from onnx_auditors.estimates import quantile

_DEFAULT_BUDGET = 500
_SHARD_PROBES, _SHARDS, _FEWEST_TO_SPLIT = 128, 4, 32
_BATCH = 32
_ANCHORS = 512
_PROBE_SEED, _NOISE_SEED, _ANCHOR_SEED = 1, 2, 3

Rows = npt.NDArray[np.int64]


class DistortionAuditor:
    """Looks for the smallest change of each probe that changes ONNX Runtime's answer."""

    kind = v1.AUDITOR_DISTORTION
    partial_type = v1.DistortionPartial

    def resolve(self, config: v1.DistortionConfig, context: Context) -> v1.DistortionConfig:  # noqa: ARG002 - the contract's signature
        """Returns a copy with every default filled in.

        Raises:
            InvalidConfig: A norm that this version lacks, or a number out of range.
        """
        configs.check(config)
        return v1.DistortionConfig(
            norms=list(config.norms) or [v1.NORM_L2],
            budget=config.budget or _DEFAULT_BUDGET,
            max_probes=config.max_probes,
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
        rows = _audited(config, context)
        size = _shard_size(len(rows))
        begin, end = shard * size, min((shard + 1) * size, len(rows))
        norm = v1.DistortionPartial.NormPartial(norm=v1.NORM_L2)
        anchors = _anchors(context)
        running: v1.Estimate | None = None
        for first in range(begin, end, _BATCH):
            batch = rows[first : min(first + _BATCH, end)]

            def tell(
                share: float,
                before: int = first - begin,
                count: int = len(batch),
                running: v1.Estimate | None = running,
            ) -> None:
                progress(before + share * count, end - begin, running, "median L2")

            probes, examples = _audit(context, batch, config.budget, anchors, tell)
            norm.probes.extend(probes)
            norm.examples += examples.tobytes()
            running = running_median(norm.probes)
            progress(first + len(batch) - begin, end - begin, running, "median L2")
        return v1.DistortionPartial(
            begin=begin, end=end, norms=[norm], dimension=math.prod(context.input_map.probe_shape)
        )

    def merge(
        self,
        config: v1.DistortionConfig,
        context: Context,
        partials: Sequence[v1.DistortionPartial],
        save: SaveArtefact,
    ) -> v1.DistortionSection:
        """Joins the partials of all shards, in their order, into the section."""
        return section.merge(
            config,
            partials,
            context.input_map.probe_shape,
            labelled=context.probes.labels is not None,
            seed=context.seed,
            save=save,
        )

    def warnings(self, section: v1.DistortionSection, context: Context) -> list[v1.ReportWarning]:
        """Says whether the model's errors on the probes themselves look like a wrong input spec."""
        return warnings(section, context.network.classes)


def running_median(probes: Sequence[v1.ProbeDistortion]) -> v1.Estimate:
    """Returns the median distance of the probes so far that are answered rightly."""
    right = [p.distance for p in probes if p.outcome != v1.PROBE_OUTCOME_MISCLASSIFIED]
    return quantile(np.array(right, dtype=np.float64), 0.5, "L2")


def _probe_count(config: v1.DistortionConfig, context: Context) -> int:
    count = context.summary.count
    return min(count, config.max_probes) if config.max_probes else count


def _shard_size(count: int) -> int:
    if count < _FEWEST_TO_SPLIT:
        return count
    return min(_SHARD_PROBES, -(-count // _SHARDS))


def _audited(config: v1.DistortionConfig, context: Context) -> Rows:
    """Returns the indices of the audited probes, rising."""
    total, count = context.summary.count, _probe_count(config, context)
    if count == total:
        return np.arange(total)
    rng = np.random.default_rng([context.seed, _PROBE_SEED])
    return np.sort(rng.choice(total, size=count, replace=False))


def _noise_seeds(context: Context, rows: Rows) -> list[int]:
    """Returns a seed for each probe that depends on the audit's seed and its index alone."""
    return [
        int(
            np.random.SeedSequence([context.seed, _NOISE_SEED, int(row)])
            .generate_state(1, np.uint64)
            .view(np.int64)[0]
        )
        for row in rows
    ]


def _anchors(context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns some probes, the same for every shard, and the network's answers to them."""
    total = context.summary.count
    rng = np.random.default_rng([context.seed, _ANCHOR_SEED])
    rows = np.sort(rng.choice(total, size=min(total, _ANCHORS), replace=False))
    points = torch.from_numpy(context.inputs(rows)).to(context.device)
    with torch.no_grad():
        answers = [context.logits(block).argmax(1) for block in torch.split(points, _BATCH)]
    return points, torch.cat(answers)


def _audit(
    context: Context,
    rows: Rows,
    budget: int,
    anchors: tuple[torch.Tensor, torch.Tensor],
    progress: Callable[[float], None],
) -> tuple[list[v1.ProbeDistortion], npt.NDArray[np.float32]]:
    """Returns results and examples of some probes."""
    inputs = context.inputs(rows)
    clean = context.scores(inputs).argmax(axis=1).astype(np.int64)
    given = context.labels(rows)
    labels = clean if given is None else given
    right = np.flatnonzero(clean == labels)
    found, spent = inputs.copy(), np.zeros(len(rows), dtype=np.int64)
    has_example = np.zeros(len(rows), dtype=bool)
    if len(right):
        result = minimal(
            context.logits,
            torch.from_numpy(inputs[right]).to(context.device),
            torch.from_numpy(labels[right]).to(context.device),
            budget=budget,
            box=(context.input_map.lower, context.input_map.upper),
            seed=_noise_seeds(context, rows[right]),
            anchors=anchors,
            progress=progress,
        )
        found[right] = result.examples.cpu().numpy()
        spent[right] = result.evaluations.cpu().numpy()
        has_example[right] = result.distance.isfinite().cpu().numpy()
    tried = np.flatnonzero(has_example)
    examples, adversarial = inputs.copy(), clean.copy()
    outcome = np.full(len(rows), v1.PROBE_OUTCOME_NOT_FOUND)
    outcome[clean != labels] = v1.PROBE_OUTCOME_MISCLASSIFIED
    if len(tried):
        told = confirm(context, inputs[tried], found[tried], labels[tried], clean[tried])
        examples[tried], adversarial[tried] = told.examples, told.predictions
        outcome[tried] = np.where(
            told.confirmed, v1.PROBE_OUTCOME_CONFIRMED, v1.PROBE_OUTCOME_UNCONFIRMED
        )
    distance = np.where(np.isin(outcome, _WITH_DISTANCE), sizes(inputs, examples), np.inf)
    root = math.sqrt(math.prod(inputs.shape[1:]))
    probes = [
        v1.ProbeDistortion(
            probe=int(rows[i]),
            outcome=v1.ProbeOutcome.ValueType(outcome[i]),
            label=int(labels[i]),
            clean_prediction=int(clean[i]),
            adversarial_prediction=int(adversarial[i]),
            distance=float(distance[i]),
            rms=float(distance[i]) / root,
            evaluations=int(spent[i]),
        )
        for i in range(len(rows))
    ]
    return probes, examples


_WITH_DISTANCE = (v1.PROBE_OUTCOME_CONFIRMED, v1.PROBE_OUTCOME_MISCLASSIFIED)
