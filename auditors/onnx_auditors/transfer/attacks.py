"""Attacks of a fixed size that aim at transfer to models that they do not know.

Each is a direction of `ascent.ascend`. The loss is a margin of logits: by how much another class
than the label leads, or the class aimed at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from onnx_auditors import effort
from onnx_auditors.distortion.search import Logits
from onnx_auditors.transfer.ascent import DECAY, Images, Task, ascend, unit
from onnx_auditors.transfer.resizing import Separable, weights

_DIMMINGS = (1.0, 0.9, 0.8, 0.7)
"""Factors of the distance from the box's lower end, drawn with equal chances."""
SMOOTHING, _MOST_SMOOTHING = 1 / 64, 3.0
"""Standard deviation of the smoothing: a share of the side, and its most in pixels."""
_FEWEST_PIXELS = 8
"""Gradients of smaller images are not smoothed."""
_DIVERSITY, _SMALLEST = 0.5, 0.9
"""Chance that a step looks at resized images, and their least side over that of the images."""
_COPIES = 5
"""Copies of an image, each half as bright as the one before."""


@dataclass(frozen=True)
class Surrogate:
    """A model to attack.

    Attributes:
        logits: From probe space [n, ...] to logits [n, classes], differentiable.
        features: From probe space to a hidden value [n, k], differentiable.
        labels: Right classes in its own numbers, int64 [n]; -1 where it has none.
        targets: Classes to reach, likewise; None for any but the label.
    """

    logits: Logits
    features: Logits
    labels: Tensor
    targets: Tensor | None


def momentum(surrogates: Sequence[Callable[[], Surrogate]], task: Task) -> Tensor:
    """Returns examples for all surrogates at once, like the task's inputs.

    Sums of gradients of length 1 (ensembles as in Dong et al. 2018), at dimmed inputs (one factor a
    step, after Lin et al. 2020), smoothed by a Gaussian where inputs are images (Dong et al. 2019,
    "Evading defenses to transferable adversarial examples by translation-invariant attacks").

    Args:
        surrogates: Models whose answers are to change; each is asked for when it is its turn, so
            that not all need be in memory.
        task: The probes.
    """
    rng = np.random.default_rng(list(task.seed))
    smooth = _smoothing(task)

    def direction(x: Tensor, _: Tensor) -> Tensor:
        factor = float(rng.choice(_DIMMINGS))
        total = torch.zeros_like(x)
        for surrogate in surrogates:
            total += unit(_gradient(surrogate(), x, _dimmed(task, factor)))
        return total if smooth is None else smooth(total)

    return ascend(task, direction)


def diverse(surrogate: Surrogate, task: Task) -> Tensor:
    """Returns examples from gradients at images that are resized and padded at random.

    Xie et al. 2019, "Improving transferability of adversarial examples with input diversity"
    (M-DI2-FGSM): with a chance of 0.5 a step looks at images shrunk to at least 0.9 of their side,
    at a random place of a dark frame of the first size.

    Args:
        surrogate: The model whose answers are to change.
        task: The probes, which are images.
    """
    rng = np.random.default_rng(list(task.seed))

    def direction(x: Tensor, _: Tensor) -> Tensor:
        if task.images is None or rng.random() >= _DIVERSITY:
            return _gradient(surrogate, x)
        framed = shrunk(task.images, rng, x.device)
        return _gradient(surrogate, x, lambda z: task.lower + framed(z - task.lower))

    return ascend(task, direction)


def scale_invariant(surrogate: Surrogate, task: Task) -> Tensor:
    """Returns examples from gradients at darker copies of where the momentum leads.

    Lin et al. 2020, "Nesterov accelerated gradient and scale invariance for adversarial attacks"
    (SI-NI-FGSM, algorithm 1): the mean gradient over copies i = 0 to 4, whose distance from the
    box's lower end is divided by 2^i, a step ahead along the momentum.

    Args:
        surrogate: The model whose answers are to change.
        task: The probes.
    """

    def direction(x: Tensor, so_far: Tensor) -> Tensor:
        ahead = x + DECAY * task.step * unit(so_far)
        copies = [_gradient(surrogate, ahead, _dimmed(task, 2.0**-i)) for i in range(_COPIES)]
        return torch.stack(copies).mean(0)

    return ascend(task, direction)


def intermediate(surrogate: Surrogate, task: Task) -> Tensor:
    """Returns examples that go as far in a hidden layer as they can where another attack went.

    Huang et al. 2019, "Enhancing adversarial example transferability with an intermediate level
    attack" (ILAP, algorithm 1): half of the steps find a guide, here with momentum; the others
    start from it and raise the projection of the layer's change on that of the guide.

    Args:
        surrogate: The model whose answers are to change.
        task: The probes.
    """
    steps = task.steps // 2

    def told(begin: int, count: int) -> Callable[[float], object]:
        return lambda share: task.progress((begin + share * count) / task.steps)

    first = task.steps - steps
    guide = momentum([lambda: surrogate], replace(task, steps=first, progress=told(0, first)))
    with torch.no_grad():
        clean = surrogate.features(task.inputs)
        aim = surrogate.features(guide) - clean

    def direction(x: Tensor, _: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        return _slope(((surrogate.features(leaf) - clean) * aim).sum(1), leaf)

    second = replace(task, steps=steps, progress=told(first, steps))
    return ascend(second, direction, start=guide, decay=0.0)


def shrunk(images: Images, rng: np.random.Generator, device: torch.device) -> Separable:
    """Returns a map of images to smaller ones at a random place of a frame of zeros."""
    size = rng.uniform(_SMALLEST, 1)

    def axis(side: int) -> Tensor:
        new = max(1, int(size * side))
        place = int(rng.integers(side - new + 1))
        matrix = torch.zeros(side, side)
        matrix[place : place + new] = weights(side, new)
        return matrix.to(device)

    return Separable(axis(images.height), axis(images.width), images.layout)


def _dimmed(task: Task, factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: task.lower + factor * (x - task.lower)


def _gradient(
    surrogate: Surrogate, x: Tensor, view: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    """Returns the gradient of the margin at what a view makes of x; 0 without a class."""
    leaf = x.detach().requires_grad_()
    scores = surrogate.logits(view(leaf))
    wanted = surrogate.labels if surrogate.targets is None else surrogate.targets
    known = wanted >= 0
    own = wanted.clamp_min(0)[:, None]
    margin = scores.gather(1, own)[:, 0] - scores.scatter(1, own, -math.inf).amax(1)
    if surrogate.targets is None:
        margin = -margin
    return _slope(torch.where(known, margin, 0.0), leaf)


def _slope(loss: Tensor, leaf: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    effort.add(len(leaf))
    return torch.where(gradient.isfinite(), gradient, 0.0)


def _smoothing(task: Task) -> Separable | None:
    images = task.images
    if images is None or min(images.height, images.width) < _FEWEST_PIXELS:
        return None

    def kernel(side: int) -> Tensor:
        deviation = min(SMOOTHING * side, _MOST_SMOOTHING)
        distance = torch.arange(side)[:, None] - torch.arange(side)[None, :]
        matrix = (-0.5 * (distance / deviation) ** 2).exp()
        return (matrix / matrix.sum(1, keepdim=True)).to(task.inputs.device)

    return Separable(kernel(images.height), kernel(images.width), images.layout)
