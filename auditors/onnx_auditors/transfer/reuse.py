"""Smallest changes of the audited model that `distortion` has found in the same audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_audit import v1
from onnx_auditors.context import Searched
from onnx_auditors.sandwich import SEARCHED


@dataclass(frozen=True)
class Found:
    """What was found for some probes.

    Attributes:
        rows: Their indices, rising, int64 [n].
        confirmed: Whether there is an example, bool [n].
        lacking: Whether a probe that was searched has none, bool [n].
        examples: Float32 [n, ...].
    """

    rows: npt.NDArray[np.int64]
    confirmed: npt.NDArray[np.bool_]
    lacking: npt.NDArray[np.bool_]
    examples: npt.NDArray[np.float32]


def found(
    searched: Searched | None, asked: v1.DistortionConfig, shape: Sequence[int]
) -> Found | None:
    """Returns what was found in L2 for probes; None unless they were searched as is asked now.

    Args:
        searched: What `distortion` has found on the model.
        asked: What the search would be: aim, methods and budgets have to be the same.
        shape: Shape of a probe.
    """
    if searched is None or not _alike(searched.config, asked):
        return None
    number = list(searched.config.norms).index(v1.NORM_L2)
    rows, outcomes, examples = [], [], []
    for path in searched.partials:
        part = v1.DistortionPartial.FromString(path.read_bytes()).norms[number]
        rows += [probe.probe for probe in part.probes]
        outcomes += [probe.outcome for probe in part.probes]
        examples.append(np.frombuffer(part.examples, dtype="<f4").reshape(-1, *shape))
    outcome = np.array(outcomes, dtype=np.int64)
    confirmed = np.equal(outcome, v1.PROBE_OUTCOME_CONFIRMED)
    return Found(
        rows=np.array(rows, dtype=np.int64),
        confirmed=confirmed,
        lacking=np.isin(outcome, SEARCHED) & ~confirmed,
        examples=np.concatenate(examples),
    )


def _alike(config: v1.DistortionConfig, asked: v1.DistortionConfig) -> bool:
    """Whether a search that was done is the one that is asked for."""
    fields = ("budget", "target_mode", "methods", "black_box_runs")
    same = all(getattr(config, name) == getattr(asked, name) for name in fields)
    return v1.NORM_L2 in config.norms and same
