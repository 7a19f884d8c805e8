"""Nonlinear functions that mix entries: max pooling with its windows, and those with a constant."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnx_auditors.lipschitz.bound import Norm
from onnx_auditors.lipschitz.constants import constant
from onnx_auditors.lipschitz.moving import Moving, moving
from onnx_auditors.network.layers import Layer
from onnx_auditors.network.plan import Plan, Step

NORMS: tuple[Norm, ...] = ("l1", "l2", "linf")


@dataclass(frozen=True)
class Opaque:
    """A function of which only a Lipschitz constant is known, per norm.

    Attributes:
        function: Tensors [n, *shape of parent] to [n, *shape], float64.
        constants: Lipschitz constant of all parents together by norm; infinite where there is none.
        reason: Where the constants come from, or why there are none.
        moving: What bounds it in balls, where something does.
    """

    function: Callable[..., Tensor]
    constants: dict[Norm, float]
    reason: str
    moving: Moving | None = None


@dataclass(frozen=True)
class MaxPool:
    """The largest entry of each window.

    Attributes:
        function: Float64, [n, *shape of parent] to [n, *shape].
        constants: Lipschitz constant by norm.
        reason: Where the constants come from.
        windows: For each entry of the result the flat indices of its window, int64 [size, k]; an
            index is repeated where a window hangs over the edge.
    """

    function: Callable[..., Tensor]
    constants: dict[Norm, float]
    reason: str
    windows: Tensor


def joint(step: Step, plan: Plan, layer: Layer) -> Opaque | MaxPool:
    """Returns the function of a step that mixes entries, or of whose slope nothing is known."""
    found = {norm: constant(layer, norm) for norm in NORMS}
    constants = {norm: c.value for norm, c in found.items()}
    reason = found["l2"].reason
    function = _one_by_one(step, plan)
    if step.node.op_type == "MaxPool" and math.isfinite(constants["l2"]):
        windows = _windows(step, plan.shape(step.inputs[0]), plan.shape(step.outputs[0]))
        if windows is not None:
            return MaxPool(function, constants, reason, windows)
    return Opaque(function, constants, reason, moving(step, plan))


def product(step: Step, plan: Plan, reason: str) -> Opaque:
    """Returns the function of a step without a global constant."""
    nowhere: dict[Norm, float] = dict.fromkeys(NORMS, math.inf)
    return Opaque(_one_by_one(step, plan), nowhere, reason, moving(step, plan))


def _one_by_one(step: Step, plan: Plan) -> Callable[..., Tensor]:
    """Returns a step's function of a batch of values, each of which has the file's batch of 1."""
    fixed = [plan.values[name].constant if name else None for name in step.inputs]
    varying = [
        i for i, name in enumerate(step.inputs) if name and plan.values[name].constant is None
    ]

    def call(*values: Tensor) -> Tensor:
        given: list[Tensor | None] = list(fixed)
        for i, value in zip(varying, values, strict=True):
            given[i] = value
        result = step.function(*given)
        first: Tensor = result[0] if step.several else result
        return first

    return lambda *batches: torch.stack([call(*values) for values in zip(*batches, strict=True)])


def _windows(step: Step, shape: tuple[int, ...], out: tuple[int, ...]) -> Tensor | None:
    """Returns the windows of a pooling as a table; None where the attributes do not give them."""
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
