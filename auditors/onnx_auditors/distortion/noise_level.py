"""How much random noise changes the answer: what undirected changes of an input do.

The noise is that of Szegedy et al. 2013, section 4.2 and table 2, cut off at the box. For each
probe and each draw the noise is scaled up until the answer changes; half of the draws have changed
it at the median of those scales. Probes are compared with common random numbers: a draw's noise
depends on the probe's seed and the draw alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnx_auditors.distortion import noise
from onnx_auditors.distortion.norms import NORMS
from onnx_auditors.distortion.search import Logits
from onnx_auditors.distributions import binomial_quantile

LARGEST = {"gaussian": 4.0, "uniform": 4.0, "salt-and-pepper": 1.0}
"""The kinds of noise, and the largest scale of each that is tried."""
OCTAVES = 12
"""Halvings of the largest scale; the smallest of these is the first scale that is tried."""
BISECTIONS = 8
DRAWS = 32
CONFIDENCE = 0.95
_BLOCK_ROWS = 1024

Noisy = Callable[[Tensor], Tensor]
"""From scales [n] to noisy inputs [n, d]."""


@dataclass(frozen=True)
class NoiseLevel:
    """The noise that changes half of the answers, for each probe.

    Attributes:
        scale: Float64 [n], as a share of the box's width: the standard deviation of Gaussian noise,
            the half-width of uniform noise, the share of entries that salt and pepper replaces.
            inf where even the largest scale does not change half of the answers, 0 where the
            input itself is answered otherwise.
        lower: Lower end of its 95 % interval over the draws, float64 [n].
        upper: Upper end, float64 [n]; may be inf.
        sizes: By norm, the median size in probe space of the noise at that scale after clipping,
            float64 [n]; inf where the scale is.
        thresholds: The scale at which each draw changes the answer, float64 [n, draws].
    """

    scale: Tensor
    lower: Tensor
    upper: Tensor
    sizes: dict[str, Tensor]
    thresholds: Tensor

    def ratio(self, norm: str, distance: Tensor) -> Tensor:
        """Returns how many times the adversarial distortion the noise is as large, float64 [n].

        Args:
            norm: "l2", "linf", "l1" or "l0".
            distance: Distortion in that norm, float64 [n]; NaN where this and the noise are both
                inf or both 0.
        """
        return self.sizes[norm] / distance


def noise_level(
    network: Logits,
    inputs: Tensor,
    labels: Tensor,
    kind: str = "gaussian",
    *,
    draws: int = DRAWS,
    box: tuple[float | Tensor, float | Tensor] = (0.0, 1.0),
    seed: int | Sequence[int] = 0,
) -> NoiseLevel:
    """Finds the smallest scale of random noise that changes half of the answers.

    Each draw's noise is first tried at rising scales, a factor of 2 apart, then bisected between
    the last that left the answer and the first that changed it. Forward passes only, at most
    `OCTAVES + 1 + BISECTIONS` per probe and draw. The interval is that of a median by order
    statistics (David & Nagaraja, Order Statistics, 3rd ed., section 7.1).

    Args:
        network: From probe space [n, ...] to logits [n, classes].
        inputs: Float32 [n, ...] inside the box.
        labels: Int64 [n], the classes that count as right.
        kind: One of `LARGEST`.
        draws: Draws of noise per probe, at least 1.
        box: Finite lower and upper end, numbers or tensors that broadcast to an input.
        seed: Seed of the noise; or one for each input, which then do not depend on each other.

    Raises:
        ValueError: A kind that is not offered, fewer than 1 draw, or a box without an end.
    """
    if kind not in LARGEST:
        raise ValueError(f"kind is {kind!r}; available: {', '.join(map(repr, LARGEST))}")
    if draws < 1:
        raise ValueError(f"draws is {draws}; at least 1 is needed")
    seeds = [seed + i for i in range(len(inputs))] if isinstance(seed, int) else list(seed)
    field = _Field(network, inputs, labels, box, kind, seeds)
    thresholds = torch.stack([_threshold(field, draw) for draw in range(draws)], 1)
    ordered = thresholds.sort(dim=1).values
    # As many draws must have changed the answer as make up half of them, rounded up.
    scale = ordered[:, math.ceil(draws / 2) - 1]
    lower, upper = _interval(ordered)
    return NoiseLevel(scale, lower, upper, _sizes(field, scale, draws), thresholds)


class _Field:
    """Probes with the noise around them."""

    def __init__(
        self,
        network: Logits,
        inputs: Tensor,
        labels: Tensor,
        box: tuple[float | Tensor, float | Tensor],
        kind: str,
        seeds: Sequence[int],
    ) -> None:
        ends = (torch.as_tensor(end, dtype=inputs.dtype, device=inputs.device) for end in box)
        self.lower, self.upper = (end.expand_as(inputs).flatten(1) for end in ends)
        if not bool((self.upper - self.lower).isfinite().all()):
            raise ValueError("the box has no end; scales of noise are shares of its width")
        self.origin = inputs.flatten(1)
        self.kind = kind
        self._network, self._labels, self._shape = network, labels, inputs.shape[1:]
        self._seeds = torch.tensor(seeds, dtype=torch.int64, device=inputs.device)

    def draw(self, number: int, rows: Tensor) -> Noisy:
        """Returns one draw of noise for some rows, to be scaled."""
        origin, lower, upper = self.origin[rows], self.lower[rows], self.upper[rows]
        width, seeds = origin.shape[1], self._seeds[rows]
        if self.kind == "salt-and-pepper":
            chance = noise.uniform(seeds, 2 * number, width)
            ends = torch.where(noise.uniform(seeds, 2 * number + 1, width) < 1 / 2, lower, upper)
            return lambda scale: torch.where(chance < scale[:, None], ends, origin)
        if self.kind == "gaussian":
            unit = noise.gaussian(seeds, number, width)
        else:
            unit = 2 * noise.uniform(seeds, number, width) - 1
        step = unit * (upper - lower)
        return lambda scale: (origin + scale[:, None].to(step) * step).clamp(lower, upper)

    def changed(self, x: Tensor, rows: Tensor) -> Tensor:
        """Returns whether the answer to points [m, d] is not the label, bool [m]."""
        with torch.no_grad():
            answers = [
                self._network(block.reshape(-1, *self._shape)).argmax(1)
                for block in torch.split(x, _BLOCK_ROWS)
            ]
        return torch.cat(answers) != self._labels[rows]


def _threshold(field: _Field, number: int) -> Tensor:
    """Returns the scale at which one draw changes each answer, float64 [n]; inf without one."""
    everything = torch.arange(len(field.origin), device=field.origin.device)
    low = field.origin.new_zeros(len(everything), dtype=torch.float64)
    high = torch.full_like(low, math.inf)
    high[field.changed(field.origin, everything)] = 0.0
    for octave in range(OCTAVES, -1, -1):
        rows = high.isinf().nonzero().squeeze(1)
        if not len(rows):
            break
        tried = torch.full_like(low[rows], LARGEST[field.kind] / 2**octave)
        changed = field.changed(field.draw(number, rows)(tried), rows)
        high[rows[changed]] = tried[changed]
        low[rows[~changed]] = tried[~changed]
    rows = (high.isfinite() & (high > 0)).nonzero().squeeze(1)
    if not len(rows):
        return high
    noisy = field.draw(number, rows)
    for _ in range(BISECTIONS):
        middle = (low[rows] + high[rows]) / 2
        changed = field.changed(noisy(middle), rows)
        high[rows] = torch.where(changed, middle, high[rows])
        low[rows] = torch.where(changed, low[rows], middle)
    return high


def _interval(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the order statistics that enclose the median; 0 and inf where there are none."""
    draws = ordered.shape[1]
    tail = (1 - CONFIDENCE) / 2
    below = binomial_quantile(tail, draws, 1 / 2)
    above = binomial_quantile(1 - tail, draws, 1 / 2) + 1
    lower = ordered[:, below - 1] if below >= 1 else torch.zeros_like(ordered[:, 0])
    upper = ordered[:, above - 1] if above <= draws else torch.full_like(lower, math.inf)
    return lower, upper


def _sizes(field: _Field, scale: Tensor, draws: int) -> dict[str, Tensor]:
    """Returns the median sizes of the noise at the probes' scales, by norm."""
    rows = scale.isfinite().nonzero().squeeze(1)
    sizes = {name: torch.full_like(scale, math.inf) for name in NORMS}
    if len(rows):
        seen: dict[str, list[Tensor]] = {name: [] for name in NORMS}
        for number in range(draws):
            change = field.draw(number, rows)(scale[rows]) - field.origin[rows]
            for name, norm in NORMS.items():
                seen[name].append(norm.size(change.double()))
        for name, columns in seen.items():
            sizes[name][rows] = torch.stack(columns, 1).quantile(0.5, dim=1)
    return sizes
