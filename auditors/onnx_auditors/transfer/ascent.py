"""Gradient steps with momentum to the rim of an L2 ball: what attacks of a fixed size share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.distortion import noise

DECAY = 1.0
"""Weight of the momentum so far; that of Dong et al. 2018."""
_PATH = 2.5
"""Length of all steps together over the radius."""
_TINY = 1e-30

Direction = Callable[[Tensor, Tensor], Tensor]
"""From points and momentum so far to where the loss grows, all [n, ...]."""


@dataclass(frozen=True)
class Images:
    """The order of a probe's axes, where probes are images.

    Attributes:
        layout: CHW or HWC.
        height: Rows.
        width: Columns.
    """

    layout: v1.Layout.ValueType
    height: int
    width: int

    @classmethod
    def of(cls, layout: v1.Layout.ValueType, shape: Sequence[int]) -> Images | None:
        """Returns the axes of probes of a shape; None for others than images."""
        if layout not in {v1.LAYOUT_CHW, v1.LAYOUT_HWC} or len(shape) < 2:  # noqa: PLR2004
            return None
        last = layout == v1.LAYOUT_HWC and len(shape) > 2  # noqa: PLR2004 - height, width
        height, width = shape[:2] if last else shape[-2:]
        return cls(layout, height, width)


@dataclass(frozen=True)
class Task:
    """Probes to change by a fixed size.

    Attributes:
        inputs: Float32 [n, ...] inside the box.
        lower: Lower end of the box; broadcasts to an input.
        upper: Upper end, likewise.
        radius: The size, an L2 distance.
        steps: Gradient steps.
        seeds: Int64 [n], of directions where there is no gradient.
        seed: Of what all rows of a step share.
        images: How inputs are images; None where they are not.
        progress: Told which share of the steps is done.
    """

    inputs: Tensor
    lower: Tensor
    upper: Tensor
    radius: float
    steps: int
    seeds: Tensor
    seed: Sequence[int]
    images: Images | None = None
    progress: Callable[[float], object] = lambda _: None

    @property
    def step(self) -> float:
        """Length of a step."""
        return self.radius * _PATH / self.steps

    def nearest(self, x: Tensor) -> Tensor:
        """Returns points brought into the ball and then into the box."""
        change = x - self.inputs
        length = change.flatten(1).norm(dim=1)
        change = change * _like((self.radius / length.clamp_min(_TINY)).clamp_max(1.0), x)
        return torch.minimum(torch.maximum(self.inputs + change, self.lower), self.upper)


def ascend(
    task: Task, direction: Direction, *, start: Tensor | None = None, decay: float = DECAY
) -> Tensor:
    """Returns examples within the ball and the box, like the inputs.

    The momentum iteration of Dong et al. 2018 ("Boosting adversarial attacks with momentum",
    algorithm 1), with steps of one L2 length in the place of signs.

    Args:
        task: The probes.
        direction: Where the loss grows.
        start: Where steps begin; at the inputs if None. There, a row whose first gradient is zero
            goes in a random direction.
        decay: Weight of the momentum so far; 0 for none.
    """
    x = task.inputs if start is None else start
    momentum = torch.zeros_like(x)
    for step in range(task.steps):
        slope = direction(x, momentum)
        if step == 0 and start is None:
            slope = _somewhere(task, slope)
        size = slope.flatten(1).abs().mean(1)
        momentum = decay * momentum + slope / _like(size.clamp_min(_TINY), x)
        x = task.nearest(x + task.step * unit(momentum))
        task.progress((step + 1) / task.steps)
    return x


def unit(x: Tensor) -> Tensor:
    """Returns rows [n, ...] of L2 length 1; those of zeros as they are."""
    # Squares of entries below 1e-19 are 0 in float32.
    scaled = x / _like(x.flatten(1).abs().amax(1).clamp_min(_TINY), x)
    return scaled / _like(scaled.flatten(1).norm(dim=1).clamp_min(_TINY), x)


def _somewhere(task: Task, slope: Tensor) -> Tensor:
    """Returns slopes with random directions where they are zero."""
    lost = slope.flatten(1).abs().mean(1) <= _TINY
    if not bool(lost.any()):
        return slope
    random = noise.gaussian(task.seeds, 0, task.inputs[0].numel()).reshape(slope.shape)
    return torch.where(_like(lost, slope), random, slope)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    return rows.reshape(-1, *(1,) * (x.dim() - 1))
