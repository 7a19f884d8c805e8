"""How much a function is seen to amplify: gradient ascent on the ratio of two changes.

What is returned is a ratio of differences between two points, which no Lipschitz constant can be
below, and not a derivative, which at a kink may be one that the function has nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from onnx_auditors.lipschitz.bound import Norm

_STEPS = (1e-1, 1e-2, 1e-3, 1e-4)
"""Distances of the two points, relative to the size of the first."""
_LOOK = 6
"""Steps between looks at what is seen."""
_ROUNDING = 1e-11
"""Error of a value in float64 relative to the largest one: far above what is seen."""


@dataclass(frozen=True)
class Seen:
    """The largest amplification that was seen.

    Attributes:
        ratio: ||f(x + change) - f(x)|| / ||change||, rounded down.
        start: Index of the point that the ascent started from; -1 if nothing was seen.
        point: x, [*shape].
        change: The change, [*shape].
    """

    ratio: float
    start: int
    point: Tensor | None = None
    change: Tensor | None = None


def ascend(
    function: Callable[[Tensor], Tensor], starts: Tensor, norm: Norm, *, steps: int = 24
) -> Seen:
    """Climbs from each start to where the function amplifies some small change most.

    Args:
        function: [n, *shape] to [n, ...], float64, differentiable almost everywhere.
        starts: Points [n, *shape], float64.
        norm: "l1", "l2" or "linf", of input and output.
        steps: Steps of the ascent; each costs a few passes forward and backward.
    """
    x, best = starts.clone(), Seen(0.0, -1)
    if not len(starts):
        return best
    change = _first_change(function, x, norm)
    rate = 0.05 * x.abs().flatten(1).amax(1).clamp(min=0.1).reshape(-1, *[1] * (x.dim() - 1))
    for step in range(steps):
        if step % _LOOK == 0:
            best = _better(best, function, x, change, norm)
        change = _sharper(function, x, change, norm)
        x = x + rate * _direction(_uphill(function, x, change, norm), "l2") * _root(x)
    return _better(best, function, x, change, norm)


def _root(x: Tensor) -> float:
    return math.sqrt(x[0].numel())


def _size(x: Tensor, norm: Norm) -> Tensor:
    order = {"l1": 1.0, "l2": 2.0, "linf": math.inf}[norm]
    size: Tensor = torch.linalg.vector_norm(x.flatten(1), order, dim=1)
    return size


def _column(x: Tensor, like: Tensor) -> Tensor:
    return x.reshape(-1, *[1] * (like.dim() - 1))


def _first_change(function: Callable[[Tensor], Tensor], x: Tensor, norm: Norm) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    change = torch.randn(x.shape, generator=draws, dtype=torch.float64).to(x.device)
    for _ in range(4):
        change = _sharper(function, x, change, norm)
    return change


def _sharper(function: Callable[[Tensor], Tensor], x: Tensor, change: Tensor, norm: Norm) -> Tensor:
    """One step of the power method for ||J|| (Higham 1992, "Estimating the matrix p-norm")."""
    moved = _difference(function, x, change)
    if norm == "linf":
        flat = moved.flatten(1)
        peak = flat.abs().argmax(1, keepdim=True)
        dual = torch.zeros_like(flat).scatter_(1, peak, flat.gather(1, peak).sign())
        dual = dual.reshape(moved.shape)
    else:
        dual = moved if norm == "l2" else moved.sign()
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        (pulled,) = torch.autograd.grad((function(at) * dual).sum(), at)
    found = _direction(pulled, norm)
    return torch.where(_column(_size(found, norm) > 0, x), found, change)


def _direction(slope: Tensor, norm: Norm) -> Tensor:
    """Returns the change of norm 1 along which a linear form grows fastest."""
    if norm == "linf":
        return torch.where(slope < 0, -torch.ones_like(slope), 1.0)
    if norm == "l2":
        return slope / _column(_size(slope, "l2").clamp(min=1e-300), slope)
    flat = slope.flatten(1)
    peak = flat.abs().argmax(1, keepdim=True)
    unit = torch.zeros_like(flat).scatter_(1, peak, flat.gather(1, peak).sign())
    return unit.reshape(slope.shape)


def _difference(function: Callable[[Tensor], Tensor], x: Tensor, change: Tensor) -> Tensor:
    with torch.no_grad():
        small = 1e-4 * x.abs().flatten(1).amax(1).clamp(min=1)
        moved = function(x + _column(small, x) * change) - function(x)
        return moved / _column(small, moved)


def _uphill(function: Callable[[Tensor], Tensor], x: Tensor, change: Tensor, norm: Norm) -> Tensor:
    """Returns the gradient in x of the ratio over a long change, beyond one linear piece."""
    far = 0.2 * _column(x.abs().flatten(1).amax(1).clamp(min=0.1), x)
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        ratio = _size(function(at + far * change) - function(at), norm)
        (slope,) = torch.autograd.grad(ratio.sum(), at)
    return slope


def _better(
    best: Seen, function: Callable[[Tensor], Tensor], x: Tensor, change: Tensor, norm: Norm
) -> Seen:
    count = len(x)
    start = x.repeat(len(_STEPS), *[1] * (x.dim() - 1))
    shares = torch.tensor(_STEPS, dtype=x.dtype, device=x.device).repeat_interleave(count)
    length = shares * start.abs().flatten(1).amax(1).clamp(min=1)
    moved = start + _column(length, x) * change.repeat(len(_STEPS), *[1] * (x.dim() - 1))
    with torch.no_grad():
        values = function(torch.cat([x, moved]))
    before, after = values[:count].repeat(len(_STEPS), *[1] * (values.dim() - 1)), values[count:]
    error = _ROUNDING * (before.abs() + after.abs() + 1e-30).flatten(1).amax(1)
    if norm != "linf":
        error = error * before[0].numel()
    # The change that is really made, after rounding.
    taken = _size(moved - start, norm)
    rise = (_size(after - before, norm) - error).clamp(min=0)
    ratios = torch.where(taken > 0, rise / taken.clamp(min=1e-300), 0) * (1 - 1e-12)
    ratios = torch.nan_to_num(ratios, nan=0.0, posinf=0.0)
    place = int(ratios.argmax())
    if float(ratios[place]) <= best.ratio:
        return best
    change_made = (moved - start)[place]
    return Seen(float(ratios[place]), place % count, start[place].clone(), change_made)
