"""Balls around probes, inside the box, and the least value of a linear form on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onnx_auditors.lipschitz.activations import UNIT64

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

    def width(self, size: Tensor, terms: int) -> tuple[Tensor, Tensor]:
        """Returns how far forms in L2 get from their value at the probe, without the box.

        Args:
            size: Norms of the forms, float64 [n, k].
            terms: Number of their coefficients.

        Returns:
            Distances, the rounding of both included, and rates as those of `least`, [n, k].
        """
        radius = self.radius[:, None]
        share = (1 + _OUT) * (1 + 4 * (terms + 64) * UNIT64)
        rate = size / (2 * radius.clamp(min=1e-100)) * (1 - _OUT)
        return size * radius * share + self._rounding(size, terms), rate

    def _rounding(self, size: Tensor, terms: int) -> Tensor:
        room = (self.reach + self.center.abs() + self.high - self.low).norm(dim=1)[:, None]
        rounding: Tensor = 8 * (terms + 64) * UNIT64 * size * room
        return rounding

    def enclose(
        self, forms: Tensor, places: Tensor | None, goal: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns bounds of linear forms on the balls from below, with rates, and from above.

        In L2 the box is left out where the bound from below reaches its goal without it, and from
        above.

        Args:
            forms: As for `least`, and so are the places.
            places: See there.
            goal: Float64 [n, k].

        Returns:
            Lower bounds, their rates, upper bounds, their rates, [n, k].
        """
        if self.norm == "linf":
            both = self.least(torch.cat([forms, -forms], 1), _twice(places))
            (least, most), (rate, other) = (t.chunk(2, 1) for t in both)
            return least, rate, -most, other
        at = _dot(forms, self._at(self.center, places))
        width, rate = self.width(torch.linalg.vector_norm(forms, dim=-1), forms.shape[-1])
        least, most, other = at - width, at + width, rate
        short = least < goal
        count = int(short.sum(1).max())
        if count:
            chosen = short.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
            taken = None if places is None else _rows(places, chosen)
            found, rates = self.least(_rows(forms, chosen), taken)
            better = found > least.gather(1, chosen)
            found = torch.where(better, found, least.gather(1, chosen))
            rates = torch.where(better, rates, rate.gather(1, chosen))
            least, rate = least.scatter(1, chosen, found), rate.scatter(1, chosen, rates)
        return least, rate, most, other

    def _at(self, values: Tensor, places: Tensor | None) -> Tensor:
        """Returns values [n, d] at some places [n, k, w]; without places [n, 1, d]."""
        if places is None:
            return values[:, None]
        n, k, w = places.shape
        return values.gather(1, places.reshape(n, -1)).reshape(n, k, w)

    def least(
        self, forms: Tensor, places: Tensor | None = None, *, centered: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Returns lower bounds of linear forms on the balls, and how they rise where balls shrink.

        In L2 the dual bound: for every multiplier t >= 0 the least a.z + t/2 (|z|^2 - r^2) over the
        box is a lower bound, and the best t makes it exact; z is clip(-a / t). In a smaller ball
        the same t gives t/2 (R^2 - r^2) more.

        Args:
            forms: Float64 [n, k, d], or [n, k, w] at some places.
            places: Int64 [n, k, w], distinct in each row; the others' coefficients are 0.
            centered: Whether to bound the forms of the difference from the probe.

        Returns:
            Bounds and rates, float64 [n, k]: at a smaller ball add the rate times `shrunk`.
        """

        def at(values: Tensor) -> Tensor:
            return self._at(values, places)

        below, above = at(self.low - self.center), at(self.high - self.center)
        size = torch.linalg.vector_norm(forms, dim=-1)
        rounding = self._rounding(size, forms.shape[-1])
        start = -rounding if centered else _dot(forms, at(self.center)) - rounding
        if self.norm == "linf":
            free = [at(side).to(forms) for side in self._free]
            both = forms.abs()
            value = _dot(forms, below + above) - _dot(both, above - below)
            rate = _dot(forms, free[0] - free[1]) + _dot(both, free[0] + free[1])
            return start + value / 2, (rate / 2 * (1 - _OUT)).clamp(min=0)
        square = (self.radius[:, None].square() * (1 + _OUT)).clamp(min=1e-200)
        multiplier = (size / square.sqrt()).clamp(min=1e-150)
        wish = forms / -multiplier[..., None]
        step = torch.clamp(wish, below, above)
        free_square = (wish * (wish == step)).square_().sum(-1)
        rest = square - (_square(step) - free_square)
        share = (free_square / rest.clamp(min=1e-300)).sqrt().clamp(1e-9, 1)
        step = torch.clamp(wish.div_(share[..., None]), below, above, out=step)
        multiplier = multiplier * share
        value = _dot(forms, step) + multiplier / 2 * (_square(step) - square)
        slack = 8 * (forms.shape[-1] + 64) * UNIT64 * multiplier * square
        return start + value - slack, multiplier / 2

    @property
    def _free(self) -> tuple[Tensor, Tensor]:
        """Whether the ball and not the box ends each entry below, and above, [n, d]."""
        inner = self.radius[:, None]
        return self.center - self.low >= inner, self.high - self.center >= inner

    def shrunk(self, smaller: Tensor, rows: Tensor) -> Tensor:
        """Returns by how much radii [m] of some balls have shrunk, as `least` counts it, [m]."""
        radius = self.radius[rows]
        gain = radius - smaller
        if self.norm == "l2":
            gain = gain * (radius + smaller)
        return gain.clamp(min=0) * (1 - 4 * _OUT)


def _rows(a: Tensor, chosen: Tensor) -> Tensor:
    """Returns rows [n, m] of [n, k, w]."""
    return a.gather(1, chosen[..., None].expand(-1, -1, a.shape[2]))


def _twice(places: Tensor | None) -> Tensor | None:
    return None if places is None else places.repeat(1, 2, 1)


def _square(a: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(a, dim=-1)
    return size.square_()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products over the last axis of [n, k, d] and [n, 1 or k, d]."""
    if b.shape[1] == 1:
        return (a @ b.transpose(1, 2))[..., 0]
    products: Tensor = torch.linalg.vecdot(a, b)
    return products


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
