"""Reports with known rows, and what follows from them by definition."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnx_audit import v1
from onnx_audit_server.reports import assemble
from onnx_auditors import estimates

PROBES = "a" * 64


def report(
    distances: npt.ArrayLike,
    right: Sequence[bool] | None = None,
    *,
    probes: str = PROBES,
    model: str = "b" * 64,
    name: str = "scorer 1",
) -> v1.Report:
    """A report of `distortion` in L2 over labelled probes.

    Args:
        distances: Distance of each probe, [n]; Infinity where no example was found.
        right: Whether the model answers each probe rightly; all by default.
        probes: Digest of the probe set.
        model: Digest of the model.
        name: What people call it.
    """
    sizes = np.asarray(distances, np.float64)
    answered = np.ones(len(sizes), bool) if right is None else np.asarray(right, bool)
    made = v1.Report(
        model=v1.ModelSummary(sha256=model),
        probes=v1.ProbeSummary(sha256=probes, count=len(sizes), has_labels=True),
        input_spec=v1.InputSpec(lower=[0], upper=[1]),
        parity=v1.Parity(passed=True),
        execution=v1.Execution(model_display_name=name),
    )
    section = made.distortion
    section.probe_count = len(sizes)
    section.clean_accuracy.CopyFrom(estimates.proportion(int(answered.sum()), len(sizes)))
    norm = section.norms.add(norm=v1.NORM_L2)
    for index, (size, good) in enumerate(zip(sizes.tolist(), answered.tolist(), strict=True)):
        found = v1.PROBE_OUTCOME_CONFIRMED if size < math.inf else v1.PROBE_OUTCOME_NOT_FOUND
        norm.probes.add(
            probe=index,
            outcome=found if good else v1.PROBE_OUTCOME_MISCLASSIFIED,
            clean_prediction=0 if good else 1,
            distance=size if good else 0.0,
            rms=size / 2 if good else 0.0,
        )
    searched = sizes[answered]
    confirmed = searched[np.isfinite(searched)]
    norm.confirmed = len(confirmed)
    norm.mean.CopyFrom(estimates.mean(confirmed, "L2", 0))
    norm.mean_rms.CopyFrom(estimates.mean(confirmed / 2, "rms", 0))
    norm.quantiles.add(probability=0.5, estimate=estimates.quantile(searched, 0.5, "L2"))
    norm.robust_accuracy.extend(estimates.curve(sizes, answered))
    made.digest = assemble.digest(made)
    return made
