"""An attack of fixed size that aims at transfer to models that it does not know.

Gradient steps with momentum (Dong et al. 2018, "Boosting adversarial attacks with momentum", with
its ensembles) in the L2 ball, on dimmed inputs (after Lin et al. 2020, "Nesterov accelerated
gradient and scale invariance for adversarial attacks"), with smoothed gradients (Dong et al. 2019,
"Evading defenses to transferable adversarial examples by translation-invariant attacks").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.distortion import noise
from onnx_auditors.distortion.search import Logits
from onnx_auditors.transfer.resizing import Separable

_DECAY = 1.0
_PATH = 2.5
"""Length of all steps together over the radius."""
_DIMMINGS = (1.0, 0.9, 0.8, 0.7)
"""Factors of the distance from the box's lower end, drawn with equal chances."""
_SMOOTHING, _MOST_SMOOTHING = 1 / 32, 3.0
"""Standard deviation of the smoothing: a share of the side, and its most in pixels."""
_FEWEST_PIXELS = 8
"""Smaller images are taken as they are."""
_TINY = 1e-30


@dataclass(frozen=True)
class Surrogate:
    """A model to attack.

    Attributes:
        logits: From probe space [n, ...] to logits [n, classes], differentiable.
        labels: Right classes in its own numbers, int64 [n]; -1 where it has none.
        targets: Classes to reach, likewise; None for any but the label.
    """

    logits: Logits
    labels: Tensor
    targets: Tensor | None


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
        """Returns the axes of probes of a shape; None for others than images of some size."""
        if layout not in {v1.LAYOUT_CHW, v1.LAYOUT_HWC} or len(shape) < 2:  # noqa: PLR2004
            return None
        last = layout == v1.LAYOUT_HWC and len(shape) > 2  # noqa: PLR2004 - height, width
        height, width = shape[:2] if last else shape[-2:]
        return cls(layout, height, width) if min(height, width) >= _FEWEST_PIXELS else None


def momentum(
    surrogates: Sequence[Callable[[], Surrogate]],
    inputs: Tensor,
    box: tuple[Tensor, Tensor],
    radius: float,
    steps: int,
    seeds: Tensor,
    seed: Sequence[int],
    images: Images | None,
    progress: Callable[[float], object] = lambda _: None,
) -> Tensor:
    """Returns examples within an L2 distance of inputs and inside the box, like inputs.

    Args:
        surrogates: Models whose answers are to change all at once; each is asked for when it is
            its turn, so that not all need be in memory.
        inputs: Float32 [n, ...] inside the box.
        box: Lower and upper end; broadcast to an input.
        radius: The distance.
        steps: Steps, one gradient of each surrogate each.
        seeds: Int64 [n], of directions where there is no gradient.
        seed: Of the dimming, which all rows of a step share.
        images: How inputs are images; None where they are not.
        progress: Told which share of the steps is done.
    """
    rng = np.random.default_rng(list(seed))
    smooth = _smoothing(images, inputs.device)
    x, slope = inputs.clone(), torch.zeros_like(inputs)
    for step in range(steps):
        light = float(rng.choice(_DIMMINGS))
        total = torch.zeros_like(inputs)
        for surrogate in surrogates:
            total += _unit(_gradient(surrogate(), x, box[0], light))
        if smooth is not None:
            total = smooth(total)
        size = total.flatten(1).abs().mean(1)
        lost = size <= _TINY
        if step == 0 and bool(lost.any()):
            random = noise.gaussian(seeds, 0, inputs[0].numel()).reshape(inputs.shape)
            total = torch.where(_like(lost, inputs), random, total)
            size = total.flatten(1).abs().mean(1)
        slope = _DECAY * slope + total / _like(size.clamp_min(_TINY), inputs)
        moved = x + radius * _PATH / steps * _unit(slope) - inputs
        length = moved.flatten(1).norm(dim=1)
        moved = moved * _like((radius / length.clamp_min(_TINY)).clamp_max(1.0), inputs)
        x = torch.minimum(torch.maximum(inputs + moved, box[0]), box[1])
        progress((step + 1) / steps)
    return x


def _gradient(surrogate: Surrogate, x: Tensor, lower: Tensor, light: float) -> Tensor:
    """Returns the gradient of what is to grow, at dimmed inputs; 0 without a class.

    That is the margin of the wanted class, or by how much another than the label leads.
    """
    leaf = x.detach().requires_grad_()
    scores = surrogate.logits(lower + light * (leaf - lower))
    wanted = surrogate.labels if surrogate.targets is None else surrogate.targets
    known = wanted >= 0
    own = wanted.clamp_min(0)[:, None]
    margin = scores.gather(1, own)[:, 0] - scores.scatter(1, own, -math.inf).amax(1)
    if surrogate.targets is None:
        margin = -margin
    (gradient,) = torch.autograd.grad(torch.where(known, margin, 0.0).sum(), leaf)
    return torch.where(gradient.isfinite(), gradient, 0.0)


def _unit(x: Tensor) -> Tensor:
    return x / _like(x.flatten(1).norm(dim=1).clamp_min(_TINY), x)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    return rows.reshape(-1, *(1,) * (x.dim() - 1))


def _smoothing(images: Images | None, device: torch.device) -> Separable | None:
    if images is None:
        return None

    def kernel(side: int) -> Tensor:
        deviation = min(_SMOOTHING * side, _MOST_SMOOTHING)
        distance = torch.arange(side)[:, None] - torch.arange(side)[None, :]
        matrix = (-0.5 * (distance / deviation) ** 2).exp()
        return (matrix / matrix.sum(1, keepdim=True)).to(device)

    return Separable(kernel(images.height), kernel(images.width), images.layout)
