"""What is known of some probes before anything is searched: answers, confidence, targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_audit import v1
from onnx_auditors.context import Context
from onnx_auditors.distortion.gradients import vanishing
from onnx_auditors.network.outputs import Column

_SUMS_TO_ONE = 1e-2
"""How far probabilities in half precision may add up to something else than 1."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Some probes.

    Attributes:
        rows: Their indices in the probe set, [n].
        inputs: The probes in probe space, float32 [n, ...].
        labels: Classes that count as right, int64 [n].
        clean: ONNX Runtime's answers, int64 [n].
        targets: Classes that are aimed at, int64 [n]; -1 where there is no single one.
        confidence: Probability of the label, float64 [n].
        vanishes: Whether the margin has no usable gradient, bool [n].
    """

    rows: Indices
    inputs: npt.NDArray[np.float32]
    labels: Indices
    clean: Indices
    targets: Indices
    confidence: npt.NDArray[np.float64]
    vanishes: npt.NDArray[np.bool_]

    @property
    def searched(self) -> npt.NDArray[np.bool_]:
        """Whether a probe is answered rightly and has a class other than its label to go to."""
        right = np.equal(self.clean, self.labels)
        return right & np.not_equal(self.targets, self.labels)


def look(context: Context, config: v1.DistortionConfig, rows: Indices) -> Batch:
    """Asks ONNX Runtime and the network about some probes.

    Raises:
        ModelFailed: ONNX Runtime could not run the model.
    """
    inputs = context.inputs(rows)
    scores = context.scores(inputs)
    clean = scores.argmax(axis=1).astype(np.int64)
    given = context.labels(rows)
    labels = clean if given is None else given
    return Batch(
        rows=rows,
        inputs=inputs,
        labels=labels,
        clean=clean,
        targets=_targets(config, scores),
        confidence=confidence(scores, labels, squashed=squashed(context)),
        vanishes=vanishing(context, inputs, labels),
    )


def squashed(context: Context) -> bool:
    """Returns whether the file itself turns logits into what it gives as scores."""
    network = context.network
    return network.column is Column.PROBABILITY or network.logits != network.output


def confidence(
    scores: npt.NDArray[np.float32], labels: Indices, *, squashed: bool
) -> npt.NDArray[np.float64]:
    """Returns the probability of each row's label, float64 [n]; NaN where a score is infinite.

    Scores go through a softmax, which leaves log-probabilities what they are. Only rows of squashed
    scores without negative entries that add up to 1 are taken as they are: logits may look so too.

    Args:
        scores: Class scores [n, classes].
        labels: Classes, [n].
        squashed: Whether the scores are no logits.
    """
    wide = scores.astype(np.float64)
    with np.errstate(invalid="ignore"):
        powers = np.exp(wide - wide.max(axis=1, keepdims=True))
        given = (wide.min(axis=1) >= 0) & (np.abs(wide.sum(axis=1) - 1) <= _SUMS_TO_ONE)
    given &= squashed
    chances = np.where(given[:, None], wide, powers / powers.sum(axis=1, keepdims=True))
    picked: npt.NDArray[np.float64] = chances[np.arange(len(labels)), labels]
    return picked


def _targets(config: v1.DistortionConfig, scores: npt.NDArray[np.float32]) -> Indices:
    if config.target_mode == v1.TARGET_MODE_LEAST_LIKELY:
        return np.asarray(scores.argmin(axis=1), dtype=np.int64)
    given = config.target_class if config.target_mode == v1.TARGET_MODE_GIVEN else -1
    return np.full(len(scores), given, dtype=np.int64)
