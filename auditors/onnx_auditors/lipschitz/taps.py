"""Convolutions in float64 as sums of matrix products, one for each shift of the coarse map.

Beside their speed this keeps sums short: a sum of n products over c channels and t taps errs by
gamma_(c t) as one long sum, and by gamma_(c + t) as t sums of c.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor

from onnx_auditors.lipschitz.spec import OperatorSpec

_LEAST = 16
"""Channels, in and out, below which products are slower than torch's convolution."""


@dataclass(frozen=True, eq=False)
class Taps:
    """A convolution without groups, "conv", by shifts of its coarse map.

    A tap at offset tau = d t reads phase tau mod s at shift floor(tau / s).

    Attributes:
        conv: The layer.
        phases: Phases that are read, by axis.
        products: For each shift its place in the flattened coarse map, the first column that it
            reads, and its matrix [out, columns]; columns are numbered by phase, then channel.
        lengths: Sides of the padded coarse map.
    """

    conv: OperatorSpec
    phases: tuple[tuple[int, ...], ...]
    products: tuple[tuple[int, int, Tensor], ...]
    lengths: tuple[int, ...]

    @property
    def terms(self) -> int:
        """Upper bound on the roundings that a product goes through, forward or adjoint."""
        out, taken = self.conv.w.shape[:2]
        return max(out, taken * len(self.phases)) + len(self.products)

    @property
    def _reach(self) -> int:
        return max(at for at, _, _ in self.products)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer, [m, *input_shape] -> [m, *output_shape]."""
        m, out = len(x), self.conv.w.shape[0]
        padded = F.pad(x, self._margins()).transpose(0, 1)
        columns = torch.stack([padded[self._every(f)] for f in self.phases])
        columns = columns.reshape(len(self.phases) * len(padded), -1)
        count = columns.shape[1] - self._reach
        rows = x.new_zeros(out, columns.shape[1])
        for at, first, matrix in self.products:
            read = columns[first : first + matrix.shape[1], at : at + count]
            rows[:, :count].addmm_(matrix, read)
        inner = (slice(n) for n in self.conv.output_shape[1:])
        kept = rows.reshape(out, m, *self.lengths)[(slice(None), slice(None), *inner)]
        return kept.transpose(0, 1).contiguous()

    def adjoint(self, y: Tensor) -> Tensor:
        """Applies the transpose, [m, *output_shape] -> [m, *input_shape]."""
        m, taken = len(y), self.conv.w.shape[1]
        ends = zip(self.lengths, y.shape[2:], strict=True)
        margins = [side for n, k in reversed(list(ends)) for side in (0, n - k)]
        rows = F.pad(F.pad(y, margins).transpose(0, 1).reshape(y.shape[1], -1), [self._reach, 0])
        count = rows.shape[1] - self._reach
        columns = y.new_zeros(len(self.phases) * taken, count)
        for at, first, matrix in self.products:
            read = rows[:, self._reach - at : self._reach - at + count]
            columns[first : first + matrix.shape[1]].addmm_(matrix.T, read)
        sides = (n * s for n, s in zip(self.lengths, self.conv.stride, strict=True))
        padded = y.new_zeros(taken, m, *sides)
        parts = columns.reshape(len(self.phases), taken, m, *self.lengths)
        for phase, part in zip(self.phases, parts, strict=True):
            padded[self._every(phase)] = part
        return F.pad(padded, [-n for n in self._margins()]).transpose(0, 1).contiguous()

    def _every(self, phase: tuple[int, ...]) -> tuple[slice, ...]:
        steps = (slice(p, None, s) for p, s in zip(phase, self.conv.stride, strict=True))
        return (slice(None), slice(None), *steps)

    def _margins(self) -> list[int]:
        """How much to pad the input (negative: to crop), in the order of torch."""
        conv, margins = self.conv, []
        for a in reversed(range(conv.map_rank)):
            end = self.lengths[a] * conv.stride[a] - conv.input_shape[1 + a] - conv.pads[a]
            margins += [conv.pads[a], end]
        return margins


def taps(conv: OperatorSpec) -> Taps | None:
    """Returns a convolution as matrix products; None for what is better off as it is.

    Args:
        conv: A layer of any kind.
    """
    if conv.kind != "conv" or conv.groups > 1:
        return None
    kernel = conv.w.shape[2:]
    offsets = [
        tuple(d * t for d, t in zip(conv.dilations, tap, strict=True))
        for tap in itertools.product(*(range(k) for k in kernel))
    ]
    split = [
        tuple(zip(*(divmod(o, s) for o, s in zip(offset, conv.stride, strict=True)), strict=True))
        for offset in offsets
    ]
    phases = tuple(sorted({phase for _, phase in split}))
    if len(split) == 1 or min(conv.w.shape[:2]) < _LEAST:
        return None
    degrees = [max(shift[a] for shift, _ in split) for a in range(conv.map_rank)]
    lengths = tuple(n + d for n, d in zip(conv.output_shape[1:], degrees, strict=True))
    flat = conv.w.flatten(2)
    products = []
    for shift in sorted({shift for shift, _ in split}):
        read = {phases.index(f): i for i, (at, f) in enumerate(split) if at == shift}
        first, last = min(read), max(read)
        # Taps that are not there are zeros between those that are.
        none = torch.zeros_like(flat[..., 0])
        blocks = [flat[..., read[f]] if f in read else none for f in range(first, last + 1)]
        place = sum(n * math.prod(lengths[a + 1 :]) for a, n in enumerate(shift))
        products.append((place, first * flat.shape[1], torch.cat(blocks, 1)))
    return Taps(conv, phases, tuple(products), lengths)
