"""Balls around probes, inside the box, and the least value of a linear form on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onnx_auditors.lipschitz.activations import UNIT64

_TURNS = 1
"""Steps towards the multiplier of the L2 ball; every multiplier gives a bound."""
_OUT = 1e-12


@dataclass(frozen=True)
class Ball:
    """The points of the box within a radius of each probe.

    Attributes:
        center: Probes, float64 [n, d].
        radius: Float64 [n].
        norm: "l2" or "linf".
        low: Least value of each entry, float64 [n, d].
        high: Largest, likewise.
    """

    center: Tensor
    radius: Tensor
    norm: str
    low: Tensor
    high: Tensor

    @property
    def reach(self) -> Tensor:
        """Largest absolute value of each entry, float64 [n, d]."""
        return torch.maximum(self.low.abs(), self.high.abs())

    def least(
        self, forms: Tensor, places: Tensor | None = None, *, centered: bool = False
    ) -> Tensor:
        """Returns lower bounds of linear forms on the balls.

        In L2 the dual bound: for every multiplier t >= 0 the least a.z + t/2 (|z|^2 - r^2) over the
        box is a lower bound, and the best t makes it exact; z is clip(-a / t).

        Args:
            forms: Float64 [n, k, d], or [n, k, w] at some places.
            places: Int64 [n, k, w], distinct in each row; the others' coefficients are 0.
            centered: Whether to bound the forms of the difference from the probe.

        Returns:
            Float64 [n, k].
        """
        size = forms.shape[-1]

        def at(values: Tensor) -> Tensor:
            if places is None:
                return values[:, None]
            n, k, w = places.shape
            return values.gather(1, places.reshape(n, -1)).reshape(n, k, w)

        room = at(self.reach + self.center.abs() + self.high - self.low)
        rounding = 8 * (size + 64) * UNIT64 * _dot(forms.abs(), room)
        below, above = at(self.low - self.center), at(self.high - self.center)
        start = 0.0 if centered else _dot(forms, at(self.center))
        corner = torch.where(forms > 0, below, above)
        plain = _dot(forms, corner)
        if self.norm == "linf":
            return start + plain - rounding
        radius = self.radius[:, None]
        square = (radius.square() * (1 + _OUT)).clamp(min=1e-200)
        first = (forms.square().sum(-1) / square).sqrt().clamp(min=1e-150)
        multiplier = first
        for _ in range(_TURNS):
            step = torch.maximum(torch.minimum(forms / -multiplier[..., None], above), below)
            stuck = step == corner
            rest = square - (step.square() * stuck).sum(-1)
            free = (forms.square() * ~stuck).sum(-1)
            better = (free / rest.clamp(min=1e-300)).sqrt()
            multiplier = torch.minimum(multiplier, torch.maximum(better, first * 1e-9))
        step = torch.maximum(torch.minimum(forms / -multiplier[..., None], above), below)
        value = _dot(forms, step) + multiplier / 2 * (step.square().sum(-1) - square)
        slack = 8 * (size + 64) * UNIT64 * multiplier * square
        return start + torch.maximum(plain, value - slack) - rounding


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products over the last axis of [n, k, d] and [n, 1 or k, d]."""
    if b.shape[1] == 1:
        return (a @ b.transpose(1, 2))[..., 0]
    return (a * b).sum(-1)


def ball(center: Tensor, radius: Tensor, norm: str, box: tuple[Tensor, Tensor]) -> Ball:
    """Returns the balls of some radii around probes.

    Args:
        center: Probes, [n, ...] float64.
        radius: Float64 [n].
        norm: "l2" or "linf".
        box: Ends of the box, float64, broadcasting to the probes.
    """
    r = radius.reshape(-1, *[1] * (center.dim() - 1)) * (1 + _OUT)
    tiny = _OUT * center.abs()
    low = torch.maximum(center - r - tiny, torch.minimum(box[0], center))
    high = torch.minimum(center + r + tiny, torch.maximum(box[1], center))
    return Ball(center.flatten(1), radius, norm, low.flatten(1), high.flatten(1))
