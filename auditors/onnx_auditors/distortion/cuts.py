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

SLOTS = 6
"""Half-spaces remembered per pair."""
OLDEST = 12
"""Steps after which a half-space that was not renewed is forgotten."""
SWEEPS = 6
NEWTON_STEPS = 2
_LEAST_SLOPE = 1e-3
_TINY = 1e-30


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
        slot = torch.where(known.any(1), known.int().argmax(1), self.ages.argmax(1))
        each = torch.arange(len(slot), device=slot.device)
        old = known.any(1)[:, None]
        normal = torch.where(
            old, average * self.normals[each, slot] + (1 - average) * gradient, gradient
        )
        normal = normal / normal.norm(dim=1, keepdim=True).clamp_min(_TINY)
        self.multipliers[each, slot] *= old.squeeze(1)
        self.classes[each, slot] = against
        self.normals[each, slot] = normal
        self.ages += 1
        self.ages[each, slot] = 0
        stale = self.ages > OLDEST
        self.classes[stale] = -1
        self.multipliers[stale] = 0
        return slot, normal

    def nearest(self, beyond: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """Returns about the shortest L2 step inside the box, `beyond` [m] all half-spaces."""
        used = self.classes >= 0
        needed = self.needed + beyond[:, None]
        for _ in range(NEWTON_STEPS):
            wish = -_combined(self.multipliers, self.normals)
            step = torch.clamp(wish, lower, upper)
            missing = (self.normals @ step[:, :, None])[:, :, 0] + needed
            free = self.normals * (step == wish)[:, None]
            gram = free @ self.normals.transpose(1, 2)
            self.multipliers.copy_(_ascended(self.multipliers, missing, gram, used))
        return torch.clamp(-_combined(self.multipliers, self.normals), lower, upper)


def _combined(multipliers: Tensor, normals: Tensor) -> Tensor:
    return (multipliers[:, None] @ normals)[:, 0]


def _ascended(multipliers: Tensor, missing: Tensor, gram: Tensor, used: Tensor) -> Tensor:
    """Returns the multipliers, none negative, that are best for the dual's quadratic form here.

    Args:
        multipliers: Where the form was taken, [m, slots].
        missing: Its gradient there, [m, slots].
        gram: Minus its second derivative, [m, slots, slots].
        used: Slots that count, [m, slots].
    """
    inverse = used / gram.diagonal(dim1=1, dim2=2).clamp_min(_LEAST_SLOPE)
    found = multipliers.clone()
    for sweep in range(SWEEPS * SLOTS):
        slot = sweep % SLOTS
        grown = found[:, slot] + missing[:, slot] * inverse[:, slot]
        change = grown.clamp_min(0) - found[:, slot]
        found[:, slot] += change
        missing = missing - change[:, None] * gram[:, :, slot]
    return found
