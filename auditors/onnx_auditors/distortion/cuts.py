"""Several half-spaces at once: a targeted example must beat every other class, not the best alone.

Near the optimum of a targeted search some other classes tie, and the boundary has an edge there.
Each pair keeps the linear margins to the last few classes that stood in the way, and the step is
the nearest point in L2 that meets them all inside the box. Its dual has one multiplier for each
half-space. As long as the same entries are at the box's ends it is a quadratic form in them.
Newton's method takes one form after another, from the multipliers of the step before on, and climbs
each by coordinate ascent (Hildreth 1957, "A quadratic programming procedure").
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from onnx_auditors.distortion.norms import rows_together

SLOTS = 6
"""Half-spaces remembered per pair."""
OLDEST = 12
"""Steps after which a half-space that was not renewed is forgotten."""
SWEEPS = 6
NEWTON_STEPS = 2
_CLOSE = 1e-4
"""Share of a step that may be missing without another one of Newton's method."""
_LEAST_SLOPE = 1e-3
_TINY, _FAR = 1e-30, 1e15


class Cuts:
    """The half-spaces of a batch of pairs, <normal, d> <= -needed, with their multipliers.

    Attributes:
        classes: The class that each stands for, int64 [m, slots]; -1 where there is none.
        normals: Unit normals, [m, slots, d].
        needed: [m, slots].
        multipliers: [m, slots].
        ages: Steps since a half-space was last renewed, [m, slots].
    """

    def __init__(self, pairs: int, like: Tensor) -> None:
        self.classes = torch.full((pairs, SLOTS), -1, dtype=torch.int64, device=like.device)
        self.normals = like.new_zeros(pairs, SLOTS, like.shape[1])
        self.needed = like.new_zeros(pairs, SLOTS)
        self.multipliers = like.new_zeros(pairs, SLOTS)
        self.ages = like.new_full((pairs, SLOTS), float(SLOTS))

    def each(self, taken: Callable[[Tensor], Tensor]) -> Cuts:
        """Returns those of some pairs, as `taken` picks them from a value of all."""
        picked = object.__new__(Cuts)
        for name, value in vars(self).items():
            setattr(picked, name, taken(value))
        return picked

    def renew(self, against: Tensor, gradient: Tensor, average: float) -> tuple[Tensor, Tensor]:
        """Averages a margin's gradient into the half-space of its class, the oldest if it is new.

        Args:
            against: The class in the way of each pair, int64 [m].
            gradient: Normalised gradient of the margin, [m, d].
            average: Weight of the past.

        Returns:
            The slot of each pair [m], and its unit normal [m, d].
        """
        known = self.classes == against[:, None]
        old = known.any(1)
        slot = torch.where(old, known.int().argmax(1), self.ages.argmax(1))
        each = torch.arange(len(slot), device=slot.device)
        normals, places = self.normals.flatten(0, 1), each * SLOTS + slot
        past = (average * old)[:, None]
        normal = torch.lerp(gradient, normals.index_select(0, places), past)
        normal /= normal.norm(dim=1, keepdim=True).clamp_min(_TINY)
        self.multipliers[each, slot] *= old
        self.classes[each, slot] = against
        normals.index_copy_(0, places, normal)
        self.ages += 1
        self.ages[each, slot] = 0
        stale = self.ages > OLDEST
        self.classes[stale] = -1
        self.multipliers[stale] = 0
        return slot, normal

    def nearest(self, beyond: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """Returns about the shortest L2 step inside the box, `beyond` [m] all half-spaces."""
        used = self.classes >= 0
        count = used.sum(1)
        # Pairs with equally many half-spaces are worked on together, without the empty slots.
        order = count.argsort()
        filled = used[order].int().argsort(dim=1, descending=True, stable=True)
        places = order[:, None] * SLOTS + filled
        needed = torch.where(used, self.needed + beyond[:, None], -_FAR).flatten()[places]
        multipliers = self.multipliers.flatten()[places]
        dual = _Dual(
            self.normals.flatten(0, 1), order, places, count[order], needed, lower, upper,
            multipliers,
        )  # fmt: skip
        self.multipliers.flatten()[places] = dual.solved()
        return dual.step


class _Dual:
    """The dual problem of pairs, sorted by the number of their half-spaces.

    Attributes:
        normals: Unit normals, [n, d].
        order: The pairs, int64 [m].
        places: Which of them each pair has, [m, slots]; those in use come first.
        count: Number of half-spaces, int64 [m].
        needed: [m, slots]; far below 0 where there is none.
        lower: Lower end of the box, [m, d], unsorted.
        upper: Upper end of the box, [m, d], unsorted.
        multipliers: [m, slots].
        step: The step that they stand for, [m, d], unsorted.
        missing: What it leaves of `needed`: the slope of the dual, [m, slots].
        gram: Minus the second derivative of the dual, [m, slots, slots].
    """

    def __init__(
        self, normals: Tensor, order: Tensor, places: Tensor, count: Tensor, needed: Tensor,
        lower: Tensor, upper: Tensor, multipliers: Tensor,
    ) -> None:  # fmt: skip
        self.normals, self.order, self.places, self.count = normals, order, places, count
        self.needed = needed
        self.lower, self.upper, self.multipliers = lower, upper, multipliers
        self.step = torch.empty_like(lower)
        self.missing = needed.clone()
        self.gram = needed.new_zeros(*needed.shape, SLOTS)

    def solved(self) -> Tensor:
        """Returns the multipliers after a few steps of Newton's method."""
        rows = torch.arange(len(self.count), device=self.count.device)
        for turn in range(NEWTON_STEPS + 1):
            last = turn == NEWTON_STEPS
            rows = torch.cat([self._look(part, last=last) for part in self._parts(rows)])
            if not len(rows):
                break
            width = int(self.count[rows[-1]])
            missing, gram = self.missing[rows, :width], self.gram[rows, :width, :width]
            found = _ascended(self.multipliers[rows, :width], missing, gram)
            self.multipliers[rows, :width] = found
        return self.multipliers

    def _parts(self, rows: Tensor) -> list[Tensor]:
        """Returns pairs with equally many half-spaces, on the CPU few that stay in the cache."""
        if rows.device.type != "cpu":
            return [rows]
        alike = torch.split(rows, self.count[rows].bincount().tolist())
        size = rows_together(self.lower)
        return [part for each in alike for part in torch.split(each, size) if len(part)]

    def _look(self, rows: Tensor, *, last: bool) -> Tensor:
        """Brings some pairs' step up to date; returns those whose multipliers are not good yet."""
        width = int(self.count[rows[-1]])
        places, multipliers = self.places[rows, :width], self.multipliers[rows, :width]
        normals = self.normals.index_select(0, places.flatten()).reshape(*places.shape, -1)
        wish = (-multipliers[:, None] @ normals)[:, 0]
        order = self.order[rows]
        lower, upper = (end.index_select(0, order) for end in (self.lower, self.upper))
        step = torch.clamp(wish, lower, upper)
        self.step.index_copy_(0, order, step)
        if last:
            return rows[:0]
        # On the CPU this is several times as fast as a batch of matrix products.
        missing = (normals * step[:, None]).sum(2) + self.needed[rows, :width]
        self.missing[rows, :width] = missing
        change = (multipliers + missing).clamp_min(0) - multipliers
        places = (change.abs().amax(1) > _CLOSE * multipliers.sum(1)).nonzero().squeeze(1)
        if len(places) < len(rows):
            rows, normals = rows[places], normals.index_select(0, places)
            wish, step = wish.index_select(0, places), step.index_select(0, places)
        gram = (normals * wish.eq_(step)[:, None]) @ normals.transpose(1, 2)
        self.gram[rows, :width, :width] = gram
        return rows


def _ascended(multipliers: Tensor, missing: Tensor, gram: Tensor) -> Tensor:
    """Returns the multipliers, none negative, that are best for the dual's quadratic form here.

    Args:
        multipliers: Where the form was taken, [m, slots].
        missing: Its gradient there, [m, slots].
        gram: Minus its second derivative, [m, slots, slots].
    """
    inverse = 1 / gram.diagonal(dim1=1, dim2=2).clamp_min(_LEAST_SLOPE)
    least, missing = _columns(-multipliers), _columns(missing)
    columns = _columns(gram.flatten(1)).reshape(*gram.shape[1:], -1)
    slots = list(zip(least, missing, _columns(inverse), columns, strict=True))
    for left, own, step, column in slots * SWEEPS:
        change = torch.maximum(own * step, left)
        left.sub_(change)
        missing.addcmul_(change, column, value=-1)
    return -least.T


def _columns(values: Tensor) -> Tensor:
    """Returns a copy of [m, k] as [k, m], where columns are contiguous."""
    return values.T.clone(memory_format=torch.contiguous_format)
