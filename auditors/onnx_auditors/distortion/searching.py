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
from onnx_auditors.distortion.batch import Batch, Indices, confidence, squashed
from onnx_auditors.distortion.confirm import confirm
from onnx_auditors.distortion.minimal import minimal
from onnx_auditors.distortion.norms import NORMS

_FIRST_SEED, _SECOND_SEED = 2, 4

Floats = npt.NDArray[np.float64]
Anchors = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Tasks:
    """What is to be searched.

    Attributes:
        places: Positions of the probes in the batch, int64 [m].
        targets: Classes to reach, int64 [m]; -1 for any but the label.
        seeds: Seeds of the noise, int64 [m].
        again: Whether it is the second search of a probe, bool [m].
    """

    places: Indices
    targets: Indices
    seeds: Indices
    again: npt.NDArray[np.bool_]


@dataclass
class Found:
    """What was found for the probes of a batch.

    Attributes:
        examples: Nearest confirmed examples, float32 [n, ...]; the probe where there is none.
        predictions: ONNX Runtime's answers to them, int64 [n].
        confidence: Probability of the label on them, float64 [n].
        outcome: `v1.ProbeOutcome`, int64 [n].
        distance: In the norm, float64 [n]; see `v1.ProbeDistortion`.
        rms: Float64 [n], likewise.
        spent: Evaluations, int64 [n]; those of second searches are not in it.
        by_class: Distances to each class, float64 [n, classes]; NaN where it was not aimed at.
            None unless every other class was aimed at.
        again: Distances of the second search, float64 [n]; NaN where there was none.
    """

    examples: npt.NDArray[np.float32]
    predictions: Indices
    confidence: Floats
    outcome: Indices
    distance: Floats
    rms: Floats
    spent: Indices
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
            progress((begin + share * count) / total)

        _search_part(context, config, batch, norm, _part(tasks, part), anchors, tell, found)
    _measure(batch, found)
    if np.isfinite(found.distance[batch.searched]).any():
        scores = context.scores(found.examples)
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


def _part(tasks: Tasks, part: slice) -> Tasks:
    return Tasks(tasks.places[part], tasks.targets[part], tasks.seeds[part], tasks.again[part])


def _nothing(context: Context, batch: Batch, *, every: bool) -> Found:
    outcome = np.full(len(batch.rows), v1.PROBE_OUTCOME_NOT_FOUND, dtype=np.int64)
    outcome[batch.clean != batch.labels] = v1.PROBE_OUTCOME_MISCLASSIFIED
    outcome[batch.targets == batch.labels] = v1.PROBE_OUTCOME_TARGET_IS_LABEL
    missing = np.full(len(batch.rows), np.nan)
    return Found(
        examples=batch.inputs.copy(),
        predictions=batch.clean.copy(),
        confidence=batch.confidence.copy(),
        outcome=outcome,
        distance=np.full(len(batch.rows), math.inf),
        rms=missing.copy(),
        spent=np.zeros(len(batch.rows), dtype=np.int64),
        by_class=np.tile(missing[:, None], (1, context.network.classes)) if every else None,
        again=missing,
    )


def _search_part(
    context: Context,
    config: v1.DistortionConfig,
    batch: Batch,
    norm: v1.Norm.ValueType,
    tasks: Tasks,
    anchors: Anchors | None,
    progress: Callable[[float], None],
    found: Found,
) -> None:
    """Searches some tasks and keeps what ONNX Runtime confirms."""
    places, aimed = tasks.places, config.target_mode != v1.TARGET_MODE_UNTARGETED
    inputs, labels, clean = batch.inputs[places], batch.labels[places], batch.clean[places]
    result = minimal(
        context.logits,
        torch.from_numpy(inputs).to(context.device),
        torch.from_numpy(labels).to(context.device),
        norm=name_of(norm),
        budget=config.budget,
        box=(context.input_map.lower, context.input_map.upper),
        targets=torch.from_numpy(tasks.targets).to(context.device) if aimed else None,
        seed=tasks.seeds.tolist(),
        methods=[
            v1.SearchMethod.Name(method).removeprefix("SEARCH_METHOD_").lower()
            for method in config.methods
        ],
        anchors=_useful(anchors, labels, tasks.targets if aimed else None),
        progress=progress,
    )
    examples, predictions = inputs.copy(), clean.copy()
    confirmed = np.zeros(len(places), dtype=bool)
    tried = np.flatnonzero(result.distance.isfinite().cpu().numpy())
    if len(tried):
        candidates = result.examples[torch.from_numpy(tried).to(context.device)].cpu().numpy()
        told = confirm(
            context,
            inputs[tried],
            candidates,
            labels[tried],
            clean[tried],
            norm=name_of(norm),
            targets=tasks.targets[tried] if aimed else None,
        )
        examples[tried], predictions[tried] = told.examples, told.predictions
        confirmed[tried] = told.confirmed
    distance = np.where(confirmed, sizes(norm, inputs, examples), math.inf)
    np.minimum.at(found.again, places[tasks.again], distance[tasks.again])
    first = ~tasks.again
    np.add.at(found.spent, places[first], result.evaluations.cpu().numpy()[first])
    if found.by_class is not None:
        found.by_class[places[first], tasks.targets[first]] = distance[first]
    unconfirmed = places[tried[first[tried] & ~confirmed[tried]]]
    open_rows = unconfirmed[found.outcome[unconfirmed] == v1.PROBE_OUTCOME_NOT_FOUND]
    found.outcome[open_rows] = v1.PROBE_OUTCOME_UNCONFIRMED
    # Of several examples for a probe the nearest stays: the last of equal indices is assigned.
    nearer = np.flatnonzero(first & (distance < found.distance[places]))
    nearer = nearer[np.argsort(-distance[nearer], kind="stable")]
    found.outcome[places[nearer]] = v1.PROBE_OUTCOME_CONFIRMED
    found.distance[places[nearer]] = distance[nearer]
    found.examples[places[nearer]] = examples[nearer]
    found.predictions[places[nearer]] = predictions[nearer]


def _useful(anchors: Anchors | None, labels: Indices, targets: Indices | None) -> Anchors | None:
    """Returns the anchors; None where they hold no start for any of the tasks."""
    if anchors is None:
        return None
    answers = np.unique(anchors[1].cpu().numpy())
    if targets is None:
        useful = len(answers) > 1 or bool((labels != answers[0]).any())
    else:
        useful = bool(np.isin(targets, answers).any())
    return anchors if useful else None


def _measure(batch: Batch, found: Found) -> None:
    """Fills in the distances of probes that were not searched, and rms."""
    found.distance[found.outcome == v1.PROBE_OUTCOME_MISCLASSIFIED] = 0.0
    found.distance[found.outcome == v1.PROBE_OUTCOME_TARGET_IS_LABEL] = np.nan
    root = math.sqrt(math.prod(batch.inputs.shape[1:]))
    changes = sizes(v1.NORM_L2, batch.inputs, found.examples) / root
    confirmed = found.outcome == v1.PROBE_OUTCOME_CONFIRMED
    found.rms = np.where(confirmed, changes, found.distance)
