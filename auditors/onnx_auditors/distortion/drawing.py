"""What of the probes is drawn with the audit's seed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from onnx_auditors.context import Context
from onnx_auditors.distortion.attempts import Anchors
from onnx_auditors.distortion.batch import Indices

_ANCHORS = 512
_PROBE_SEED, _ANCHOR_SEED = 1, 3


def probe_count(context: Context, most: int) -> int:
    """Returns how many probes are audited; `most` of 0 means all."""
    count = context.summary.count
    return min(count, most) if most else count


def probes(context: Context, most: int) -> Indices:
    """Returns the audited probes, rising."""
    total, count = context.summary.count, probe_count(context, most)
    if count == total:
        return np.arange(total)
    rng = np.random.default_rng([context.seed, _PROBE_SEED])
    return np.sort(rng.choice(total, size=count, replace=False))


def some(context: Context, purpose: int, count: int, chosen: int) -> npt.NDArray[np.bool_]:
    """Marks some of the audited probes."""
    rng = np.random.default_rng([context.seed, purpose])
    marked = np.zeros(count, dtype=bool)
    marked[rng.choice(count, size=chosen, replace=False)] = True
    return marked


def anchors(context: Context, step: int) -> Anchors:
    """Returns some probes, the same for every shard, and the network's answers to them."""
    total = context.summary.count
    rng = np.random.default_rng([context.seed, _ANCHOR_SEED])
    rows = np.sort(rng.choice(total, size=min(total, _ANCHORS), replace=False))
    points = torch.from_numpy(context.inputs(rows)).to(context.device)
    with torch.no_grad():
        answers = [context.logits(block).argmax(1) for block in torch.split(points, step)]
    return points, torch.cat(answers)
