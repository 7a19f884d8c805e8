"""The search of a batch of probes in one norm, and ONNX Runtime's word on what it finds.

The work is a flat list of tasks, a task being a probe and a class to reach: one for each probe as a
rule, one for each other class where all are aimed at, and again as many for the probes that are
searched a second time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from onnx_audit import v1
from onnx_auditors.context import Context
from onnx_auditors.distortion.attempts import Anchors, Attempts, Nearest, Tasks
from onnx_auditors.distortion.batch import Batch, Indices, confidence, squashed
from onnx_auditors.distortion.confirm import levels_of
from onnx_auditors.distortion.norms import NORMS

_FIRST_SEED, _SECOND_SEED = 2, 4
_GRADIENT_SHARE = 0.9
"""Share of the work that is reported as done once the search by gradients is."""

Floats = npt.NDArray[np.float64]


@dataclass
class Found:
    """What was found for the probes of a batch.

    Attributes:
        best: Nearest confirmed examples; their distances are as `v1.ProbeDistortion` has them.
        confidence: Probability of the label on them, float64 [n].
        outcome: `v1.ProbeOutcome`, int64 [n].
        source: `v1.ExampleSource`, int64 [n].
        rms: Float64 [n]; see `v1.ProbeDistortion`.
        spent: Gradient evaluations, int64 [n]; those of second searches are not in it.
        runs: Answers of ONNX Runtime that the search by answers asked for, int64 [n]; likewise.
        rounded: Nearest confirmed examples of whole levels; None where inputs have no levels.
        by_class: Distances to each class, float64 [n, classes]; NaN where it was not aimed at.
            None unless every other class was aimed at.
        again: Distances of the second search, float64 [n]; NaN where there was none.
    """

    best: Nearest
    confidence: Floats
    outcome: Indices
    source: Indices
    rms: Floats
    spent: Indices
    runs: Indices
    rounded: Nearest | None
    by_class: Floats | None
    again: Floats


def search(
    context: Context,
    config: v1.DistortionConfig,
    batch: Batch,
    norm: v1.Norm.ValueType,
    *,
    twice: npt.NDArray[np.bool_],
    anchors: Anchors | None,
    size: int,
    progress: Callable[[float], object],
) -> Found:
    """Looks for the smallest changes of the probes of a batch.

    Args:
        context: Network, session and map.
        config: The resolved configuration.
        batch: The probes.
        norm: What is made small.
        twice: Whether a probe is searched a second time with another seed, bool [n].
        anchors: Further starts; see `minimal`.
        size: Number of tasks that are searched together.
        progress: Told which share of the work is done.

    Raises:
        ModelFailed: ONNX Runtime could not run the model.
    """
    every = config.target_mode == v1.TARGET_MODE_EVERY_OTHER_CLASS
    tasks = tasks_of(context, batch, twice, every=every)
    found = _nothing(context, batch, every=every)
    found.again[batch.searched & twice] = math.inf
    total = len(tasks.places)
    for begin in range(0, total, size):
        part = slice(begin, begin + size)
        count = len(tasks.places[part])

        def tell(share: float, begin: int = begin, count: int = count) -> None:
            progress((begin + _GRADIENT_SHARE * share * count) / total)

        attempts = Attempts(context, config, batch, name_of(norm), tasks.part(part))
        attempts.by_gradients(anchors, tell)
        attempts.by_answers(anchors)
        progress((begin + count) / total)
        _keep(attempts, found)
    _measure(batch, found)
    if np.isfinite(found.best.distance[batch.searched]).any():
        scores = context.scores(found.best.examples)
        changed = found.outcome == v1.PROBE_OUTCOME_CONFIRMED
        after = confidence(scores, batch.labels, squashed=squashed(context))
        found.confidence = np.where(changed, after, batch.confidence)
    return found


def tasks_of(context: Context, batch: Batch, twice: npt.NDArray[np.bool_], *, every: bool) -> Tasks:
    """Returns what is to be searched; what a task's seed is depends on its probe and class alone.

    Args:
        context: Holds the audit's seed.
        batch: The probes.
        twice: Whether a probe is searched a second time, bool [n].
        every: Whether each class but the label is aimed at.
    """
    classes = context.network.classes
    if every:
        wanted = batch.searched[:, None] & (np.arange(classes) != batch.labels[:, None])
        places, targets = np.nonzero(wanted)
    else:
        places = np.flatnonzero(batch.searched)
        targets = batch.targets[places]
    second = twice[places]
    numbers = batch.rows[places] * (classes + 1) + targets + 1
    seeds = [
        _start(context, purpose) + numbers[chosen].astype(np.uint64)
        for purpose, chosen in ((_FIRST_SEED, slice(None)), (_SECOND_SEED, second))
    ]
    return Tasks(
        places=np.concatenate([places, places[second]]),
        targets=np.concatenate([targets, targets[second]]),
        seeds=np.concatenate(seeds).view(np.int64),
        again=np.arange(len(places) + int(second.sum())) >= len(places),
    )


def sizes(
    norm: v1.Norm.ValueType,
    inputs: npt.NDArray[np.float32],
    examples: npt.NDArray[np.float32],
) -> Floats:
    """Returns the sizes of changes of float32 rows in a norm, computed in float64."""
    change = examples.astype(np.float64) - inputs.astype(np.float64)
    return NORMS[name_of(norm)].size(torch.from_numpy(change).flatten(1)).numpy()


def name_of(norm: v1.Norm.ValueType) -> str:
    """Returns the name of a norm that the search knows it by, such as "linf"."""
    return v1.Norm.Name(norm).removeprefix("NORM_").lower()


def _start(context: Context, purpose: int) -> npt.NDArray[np.uint64]:
    state = np.random.SeedSequence([context.seed, purpose]).generate_state(1, np.uint64)
    return state.astype(np.uint64)


def _nothing(context: Context, batch: Batch, *, every: bool) -> Found:
    outcome = np.full(len(batch.rows), v1.PROBE_OUTCOME_NOT_FOUND, dtype=np.int64)
    outcome[batch.clean != batch.labels] = v1.PROBE_OUTCOME_MISCLASSIFIED
    outcome[batch.targets == batch.labels] = v1.PROBE_OUTCOME_TARGET_IS_LABEL
    missing = np.full(len(batch.rows), np.nan)
    nothing = np.zeros(len(batch.rows), dtype=np.int64)
    rounded = levels_of(context) is not None
    return Found(
        best=Nearest.none(batch.inputs, batch.clean),
        confidence=batch.confidence.copy(),
        outcome=outcome,
        source=nothing.copy(),
        rms=missing.copy(),
        spent=nothing.copy(),
        runs=nothing.copy(),
        rounded=Nearest.none(batch.inputs, batch.clean) if rounded else None,
        by_class=np.tile(missing[:, None], (1, context.network.classes)) if every else None,
        again=missing,
    )


def _keep(attempts: Attempts, found: Found) -> None:
    """Keeps the nearest examples of some tasks, and books what was spent."""
    tasks, distance = attempts.tasks, attempts.best.distance
    np.minimum.at(found.again, tasks.places[tasks.again], distance[tasks.again])
    first = np.flatnonzero(~tasks.again)
    places = tasks.places[first]
    np.add.at(found.spent, places, attempts.evaluations[first])
    np.add.at(found.runs, places, attempts.runs[first])
    if found.by_class is not None:
        found.by_class[places, tasks.targets[first]] = distance[first]
    unconfirmed = places[attempts.offered[first] & np.isinf(distance[first])]
    open_rows = unconfirmed[found.outcome[unconfirmed] == v1.PROBE_OUTCOME_NOT_FOUND]
    found.outcome[open_rows] = v1.PROBE_OUTCOME_UNCONFIRMED
    nearer = found.best.take(places, attempts.best.rows(first))
    found.outcome[places[nearer]] = v1.PROBE_OUTCOME_CONFIRMED
    found.source[places[nearer]] = attempts.source[first[nearer]]
    if found.rounded is not None and attempts.rounded is not None:
        found.rounded.take(places, attempts.rounded.rows(first))


def _measure(batch: Batch, found: Found) -> None:
    """Fills in the distances of probes that were not searched, and rms."""
    for nearest in (found.best, found.rounded):
        if nearest is not None:
            nearest.distance[found.outcome == v1.PROBE_OUTCOME_MISCLASSIFIED] = 0.0
            nearest.distance[found.outcome == v1.PROBE_OUTCOME_TARGET_IS_LABEL] = np.nan
    root = math.sqrt(math.prod(batch.inputs.shape[1:]))
    changes = sizes(v1.NORM_L2, batch.inputs, found.best.examples) / root
    confirmed = found.outcome == v1.PROBE_OUTCOME_CONFIRMED
    found.rms = np.where(confirmed, changes, found.best.distance)
