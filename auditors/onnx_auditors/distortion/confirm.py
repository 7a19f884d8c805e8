"""ONNX Runtime's word on adversarial examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_auditors.context import Context

PUSHES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Shares of the change by which an example is pushed past the boundary, tried in turn."""


@dataclass(frozen=True)
class Confirmed:
    """What ONNX Runtime says.

    Attributes:
        examples: Float32 [n, ...]; the probe itself where no example was confirmed.
        predictions: Its answer to the examples, int64 [n].
        confirmed: Whether the answer is not the label, bool [n].
    """

    examples: npt.NDArray[np.float32]
    predictions: npt.NDArray[np.int64]
    confirmed: npt.NDArray[np.bool_]


def confirm(
    context: Context,
    inputs: npt.NDArray[np.float32],
    examples: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    clean: npt.NDArray[np.int64],
) -> Confirmed:
    """Asks ONNX Runtime; pushes what it does not confirm a little further, and asks again.

    Args:
        context: Session and map.
        inputs: The probes in probe space, [n, ...].
        examples: Candidates, likewise.
        labels: The classes that count as right, [n].
        clean: ONNX Runtime's answers to the probes, [n].
    """
    lower, upper = (end.cpu().numpy() for end in (context.input_map.lower, context.input_map.upper))
    kept, predictions = inputs.copy(), clean.copy()
    open_rows = np.arange(len(inputs))
    for push in PUSHES:
        if not len(open_rows):
            break
        start = inputs[open_rows]
        change = examples[open_rows].astype(np.float64) - start
        pushed = np.clip((start + (1 + push) * change).astype(np.float32), lower, upper)
        answers = context.scores(pushed).argmax(axis=1)
        fooled = answers != labels[open_rows]
        kept[open_rows[fooled]] = pushed[fooled]
        predictions[open_rows[fooled]] = answers[fooled]
        open_rows = open_rows[~fooled]
    confirmed = np.ones(len(inputs), dtype=bool)
    confirmed[open_rows] = False
    return Confirmed(kept, predictions, confirmed)


def sizes(
    inputs: npt.NDArray[np.float32], examples: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Returns the L2 distance of float32 rows, computed in float64."""
    change: npt.NDArray[Any] = examples.astype(np.float64) - inputs.astype(np.float64)
    norms: npt.NDArray[np.float64] = np.linalg.norm(change.reshape(len(change), -1), axis=1)
    return norms
