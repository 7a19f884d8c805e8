"""What an attack hands on, and the box that it keeps to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_auditors.context import Context
from onnx_auditors.transfer.sizes import Doubles, Floats

Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """What one attack gives for n probes.

    Attributes:
        exists: Whether there is an example, [n].
        lacking: Whether a probe that the source answers rightly has none, [n].
        examples: Float32 [n, ...]; the probe where there is none.
        l2: Lengths of the changes, float64 [n].
        aimed: Classes aimed at, in the audited model's numbers, int64 [n]; None if untargeted.
    """

    exists: Bools
    lacking: Bools
    examples: Floats
    l2: Doubles
    aimed: Indices | None


def box_of(context: Context) -> tuple[Floats, Floats]:
    """Returns the lower and upper end of probe space; they broadcast to a probe."""
    return context.input_map.lower.cpu().numpy(), context.input_map.upper.cpu().numpy()
