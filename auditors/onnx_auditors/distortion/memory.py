"""How many probes are searched at once: as many as a fixed share of the memory holds.

The number depends on the model, the probes and the kind of machine alone, never on what is free at
the moment: it takes part in the rounding of sums, and so in the figures.
"""

from __future__ import annotations

import torch

from onnx_auditors.context import Context
from onnx_auditors.network.plan import UnknownShape

LARGEST_BATCH = {"cpu": 256, "cuda": 4096}
"""By the type of the device; larger ones gain nothing."""
_CPU_BYTES = 2 * 2**30
_CUDA_SHARE = 4
_POINTS_PER_PROBE = 9
"""Points of one probe that go through the network together at most: a search starts with that many
rival classes."""
_ARRAYS = 16
"""Arrays of the size of a point that a search keeps for each of its points, at most."""
_UNKNOWN_BATCH = 32
"""Where the shapes of a model depend on the content of its input."""


def batch_rows(context: Context) -> int:
    """Returns the number of searches that go on together, 1 to `LARGEST_BATCH`."""
    try:
        activations = activation_bytes(context)
    except UnknownShape:
        return _UNKNOWN_BATCH
    point = 4 * torch.Size(context.input_map.probe_shape).numel()
    points = min(_POINTS_PER_PROBE, context.network.classes - 1)
    needed = points * (activations + _ARRAYS * point)
    return int(max(1, min(LARGEST_BATCH[context.device.type], _allowed(context.device) // needed)))


def activation_bytes(context: Context) -> int:
    """Returns the size of everything that the network computes for one probe.

    Raises:
        UnknownShape: The shapes depend on the content of the input.
    """
    shape = context.input_map.model_shape
    plan = context.network.plan(torch.zeros(1, *shape, device=context.device))
    rows = context.network.batch or 1
    values = (value.meta for value in plan.values.values() if value.constant is None)
    return sum(meta.numel() * meta.element_size() for meta in values) // rows


def _allowed(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // _CUDA_SHARE
    return _CPU_BYTES
