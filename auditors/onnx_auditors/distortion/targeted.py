"""ONNX Runtime's word on examples that have to get a certain answer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnx_auditors.context import Context
from onnx_auditors.distortion.confirm import PUSHES, Confirmed


def confirm_targets(
    context: Context,
    inputs: npt.NDArray[np.float32],
    examples: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int64],
    clean: npt.NDArray[np.int64],
) -> Confirmed:
    """Asks ONNX Runtime; pushes what does not get its target a little further, and asks again.

    Args:
        context: Session and map.
        inputs: The probes in probe space, [n, ...].
        examples: Candidates, likewise.
        targets: The classes that the answers have to be, [n].
        clean: ONNX Runtime's answers to the probes, [n].

    Returns:
        What it says; `confirmed` where the answer is the target.
    """
    lower, upper = (end.cpu().numpy() for end in (context.input_map.lower, context.input_map.upper))
    kept, predictions = inputs.copy(), clean.copy()
    confirmed = np.zeros(len(inputs), dtype=bool)
    for push in PUSHES:
        rows = np.flatnonzero(~confirmed)
        if not len(rows):
            break
        change = examples[rows].astype(np.float64) - inputs[rows]
        pushed = np.clip((inputs[rows] + (1 + push) * change).astype(np.float32), lower, upper)
        answers = context.scores(pushed).argmax(axis=1)
        reached = answers == targets[rows]
        kept[rows[reached]] = pushed[reached]
        predictions[rows[reached]] = answers[reached]
        confirmed[rows[reached]] = True
    return Confirmed(kept, predictions, confirmed)
