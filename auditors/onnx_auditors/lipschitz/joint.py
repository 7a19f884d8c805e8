"""Nonlinear functions that mix entries: max pooling with its windows, and those with a constant."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnx_auditors.network.layers import Layer
from onnx_auditors.network.plan import Plan, Step


@dataclass(frozen=True)
class Opaque:
    """A function of which only a Lipschitz constant is known, per norm.

    Attributes:
        function: Tensors [n, *shape of parent] to [n, *shape], float64.
        constants: Lipschitz constant by norm; a norm that is missing has none.
    """

    function: Callable[..., Tensor]
    constants: dict[str, float]


@dataclass(frozen=True)
class MaxPool:
    """The largest entry of each window.

    Attributes:
        function: Float64, [n, *shape of parent] to [n, *shape].
        constants: Lipschitz constant by norm.
        windows: For each entry of the result the flat indices of its window, int64 [size, k]; an
            index is repeated where a window hangs over the edge.
    """

    function: Callable[..., Tensor]
    constants: dict[str, float]
    windows: Tensor


def joint(step: Step, plan: Plan, layer: Layer | None) -> Opaque | MaxPool | None:
    """Returns the function of a step that mixes entries and has a constant; None if it has none."""
    del layer
    if step.node.op_type == "MaxPool" and not step.several:
        shape = plan.shape(step.inputs[0])
        windows = _windows(step, shape, plan.shape(step.outputs[0]))
        if windows is None:
            return None
        often = windows.sort(1).values
        fresh = torch.ones_like(often, dtype=torch.bool)
        fresh[:, 1:] = often[:, 1:] != often[:, :-1]
        overlap = float(torch.bincount(often[fresh], minlength=math.prod(shape)).max())
        # d_out of a window is at most its largest d_in: each entry counts once per window.
        constants = {"l2": math.sqrt(overlap) * (1 + 1e-15), "linf": 1.0, "l1": overlap}
        return MaxPool(torch.func.vmap(step.function), constants, windows)
    return None


def _windows(step: Step, shape: tuple[int, ...], out: tuple[int, ...]) -> Tensor | None:
    """Returns the windows of a pooling as a table; None where they are not as ONNX's attributes say."""
    attributes = {a.name: a for a in step.node.attribute}
    axes = len(shape) - 2

    def ints(name: str, default: list[int]) -> list[int]:
        return list(attributes[name].ints) if name in attributes else default

    kernel = ints("kernel_shape", [1] * axes)
    strides, dilations = ints("strides", [1] * axes), ints("dilations", [1] * axes)
    begins = ints("pads", [0] * 2 * axes)[:axes]
    lines = []
    for axis in range(axes):
        places = (
            np.arange(out[2 + axis])[:, None] * strides[axis]
            + np.arange(kernel[axis])[None] * dilations[axis]
            - begins[axis]
        )
        inside = (places >= 0) & (places < shape[2 + axis])
        if not inside.any(1).all():
            return None
        first = np.take_along_axis(places, inside.argmax(1)[:, None], 1)
        lines.append(np.where(inside, places, first))
    flat = np.zeros((1, 1), dtype=np.int64)
    for axis, places in enumerate(lines):
        flat = flat[:, None, :, None] * shape[2 + axis] + places[None, :, None, :]
        flat = flat.reshape(flat.shape[0] * flat.shape[1], -1)
    maps = np.arange(shape[0] * shape[1])[:, None, None] * math.prod(shape[2:])
    table = torch.from_numpy((maps + flat[None]).reshape(-1, flat.shape[1]))
    trial = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = step.function(trial).reshape(-1)
    same = table.shape[0] == len(expected) and torch.equal(
        trial.reshape(-1)[table].amax(1), expected
    )
    return table if same else None
