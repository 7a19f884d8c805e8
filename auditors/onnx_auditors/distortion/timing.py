"""A budget from seconds: how many gradient evaluations fit, as short trials on this machine tell.

What it comes to is part of the resolved configuration, so that the figures depend on the number of
evaluations alone, and an audit with that number gives the same report.
"""

from __future__ import annotations

import time

import numpy as np

from onnx_audit import v1
from onnx_auditors import configs
from onnx_auditors.context import Context
from onnx_auditors.distortion import drawing
from onnx_auditors.distortion.attempts import Attempts, Tasks
from onnx_auditors.distortion.batch import Batch, look
from onnx_auditors.distortion.memory import batch_rows
from onnx_auditors.distortion.searching import name_of, tasks_of
from onnx_auditors.errors import InvalidConfig

_WARM, _TRIAL = 4, 40
"""Evaluations of the trials; the first takes the cost of what is set up once."""


def budget_of(config: v1.DistortionConfig, context: Context, *, repeated: float) -> int:
    """Returns the gradient evaluations per probe, norm and class that `budget_seconds` allows.

    That is 0 where the model errs on the whole batch that is tried, so that nothing tells.

    Args:
        config: A configuration whose other defaults are filled in.
        context: What the audit works on.
        repeated: Share of the probes that are searched a second time, 0 to 1.

    Raises:
        InvalidConfig: Not even the smallest budget fits.
        ModelFailed: ONNX Runtime could not run the model.
    """
    rows = drawing.probes(context, config.max_probes)
    batch = look(context, config, rows[: batch_rows(context)])
    every = config.target_mode == v1.TARGET_MODE_EVERY_OTHER_CLASS
    tasks = tasks_of(context, batch, np.zeros(len(batch.rows), dtype=bool), every=every)
    searches = len(rows) / len(batch.rows) * (1 + len(config.hidden_values)) * (1 + repeated)
    # Tasks that are searched together take as long as they do in the search itself.
    part = tasks.part(slice(0, batch_rows(context)))
    searches *= len(tasks.places) / max(len(part.places), 1)
    each = 0.0
    for norm in config.norms:
        _trial(config, context, batch, norm, part, _WARM)
        each += searches * _trial(config, context, batch, norm, part, _TRIAL) / _TRIAL
    if not each:
        return 0
    found = config.budget_seconds / each
    if found < configs.LEAST_BUDGET:
        raise InvalidConfig(
            f"{config.budget_seconds:g} s are too short for {len(rows)} probes: about "
            f"{each * configs.LEAST_BUDGET:.2g} s are the least on this machine; allow more, or "
            "set max_probes",
            field="budget_seconds",
        )
    return int(min(found, configs.LARGEST_BUDGET))


def _trial(
    config: v1.DistortionConfig,
    context: Context,
    batch: Batch,
    norm: v1.Norm.ValueType,
    tasks: Tasks,
    budget: int,
) -> float:
    """Returns the seconds that one search by gradients takes."""
    trial = v1.DistortionConfig()
    trial.CopyFrom(config)
    trial.budget = budget
    attempts = Attempts(context, trial, batch, name_of(norm), tasks)
    start = time.perf_counter()
    if len(tasks.places):
        attempts.by_gradients(None, lambda _share: None)
    return time.perf_counter() - start
