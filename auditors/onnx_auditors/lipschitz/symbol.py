"""Bounds on a convolution's norm in L2 from its symbol, for maps too large to write out.

With stride s and dilation d a tap at offset tau = d t reads phase tau mod s at shift
floor(tau / s). Columns by phase, the convolution is block Toeplitz with the symbol
F(w) = sum_t W_t exp(i w . floor(tau / s)), [out, in * phases], per group.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from onnx_auditors.lipschitz.gram import certified, largest_eigenvalue, roundings, square_sums
from onnx_auditors.lipschitz.operator import UNIT
from onnx_auditors.lipschitz.spec import OperatorSpec

_ENTRIES = 2**24
"""Complex numbers per batch."""
_CACHED = 2**19
"""The same where each is read many times."""
TORUS_POINTS = 2**15
"""Grid points of a torus up to which it is worth its time."""
_CELLS = 2**17
_LOOSE, _STRIP = 1e-2, 1024
"""Gap above which a torus is made exact in one axis, and the side of its matrices that is worth it.
"""


@dataclass(frozen=True, eq=False)
class Symbol:
    """The polyphase symbol of a convolution.

    Attributes:
        blocks: Taps by shift, real, [shifts, groups, rows, columns].
        degrees: Largest shift per axis.
        shifts: [shifts, axes], int64.
        sizes: Smallest circulant per axis of which the zero-padded convolution is a part.
        weight: Bound on the Frobenius norm of the sum of |blocks|, of the worst group.
    """

    blocks: Tensor
    degrees: tuple[int, ...]
    shifts: Tensor
    sizes: tuple[int, ...]
    weight: float

    def at(self, w: Tensor) -> Tensor:
        """Returns F at frequencies [points, axes], complex [points * groups, rows, columns]."""
        angles = w @ self.shifts.to(w.dtype).T
        waves = torch.polar(torch.ones_like(angles), angles)
        flat = self.blocks.flatten(1)
        values = torch.complex(waves.real @ flat, waves.imag @ flat)
        return values.reshape(-1, *self.blocks.shape[2:])

    @property
    def error(self) -> float:
        """Bound on ||computed F - F||_2 for frequencies up to 2 pi.

        The wave of an angle a errs by at most 4 u (1 + |a|), a sum of n complex products by
        gamma_4n.
        """
        angle = 2 * math.pi * sum(self.degrees)
        terms = len(self.shifts)
        return self.weight * 2 * UNIT * (4 * terms + 4 * (1 + angle))

    @property
    def cost(self) -> int:
        """Numbers per frequency."""
        return self.blocks[0].numel()


def symbol(conv: OperatorSpec) -> Symbol:
    """Returns the symbol of a "conv" spec."""
    weight, rank = conv.w, conv.map_rank
    kernel = weight.shape[2:]
    taps = torch.tensor(list(itertools.product(*(range(k) for k in kernel))))
    offsets = taps * torch.tensor(conv.dilations)
    stride = torch.tensor(conv.stride)
    shifts, by_shift = torch.unique(offsets // stride, dim=0, return_inverse=True)
    phases, by_phase = torch.unique(offsets % stride, dim=0, return_inverse=True)
    rows, columns = weight.shape[0] // conv.groups, weight.shape[1]
    blocks = weight.new_zeros(conv.groups, rows, columns, len(phases), len(shifts))
    blocks[..., by_phase, by_shift] = weight.reshape(conv.groups, rows, columns, -1)
    blocks = blocks.flatten(2, 3).movedim(-1, 0).contiguous()
    coarse = conv.output_shape[1:]
    degrees = tuple(int(d) for d in shifts.max(0).values)
    sizes = []
    for a in range(rank):
        # Rows i < m read columns first..last; no row may reach around the circulant into them.
        first = conv.pads[a] // conv.stride[a]
        last = (conv.pads[a] + conv.input_shape[1 + a] - 1) // conv.stride[a]
        sizes.append(max(coarse[a] + degrees[a] - first, last + 1))
    weight_norm = float(square_sums(blocks.abs().sum(0)).max()) ** 0.5
    return Symbol(blocks, degrees, shifts.to(weight.device), tuple(sizes), weight_norm)


def points(conv: OperatorSpec) -> int:
    """Returns the number of points of a torus' grid."""
    found = symbol(conv)
    return math.prod(s for s, d in zip(found.sizes, found.degrees, strict=True) if d)


def torus(conv: OperatorSpec, lower: float) -> float:
    """Returns the bound of `whole_torus`; where that is loose, with one axis of the map exact.

    Args:
        conv: A "conv" spec.
        lower: A lower bound on the norm.
    """
    bound = whole_torus(conv, lower)
    for axis in range(conv.map_rank if conv.map_rank > 1 else 0):
        if bound <= lower * (1 + _LOOSE):
            break
        strip = unrolled(conv, axis)
        if min(strip.w.shape[0] // strip.groups, strip.w.shape[1]) <= _STRIP:
            bound = min(bound, whole_torus(strip, lower))
    return bound


def unrolled(conv: OperatorSpec, axis: int) -> OperatorSpec:
    """Returns the same map, up to order, as a convolution along the other axes alone.

    A channel and a place on `axis` make a channel of the result, whose taps are those matrices
    that the convolution along `axis` is, its zero padding included.

    Args:
        conv: A "conv" spec of two axes or more.
        axis: The axis of the map to write out.
    """
    rank, (out, taken) = conv.map_rank, conv.w.shape[:2]
    weight = conv.w.movedim(2 + axis, 2)
    side, given = conv.input_shape[1 + axis], conv.output_shape[1 + axis]
    taps = weight.new_zeros(out, given, taken, side, *weight.shape[3:])
    at = torch.arange(given, device=weight.device)
    for tap in range(weight.shape[2]):
        read = conv.stride[axis] * at + conv.dilations[axis] * tap - conv.pads[axis]
        inside = (read >= 0) & (read < side)
        taps[:, at[inside], :, read[inside]] = weight[:, :, tap]
    rest = [a for a in range(rank) if a != axis]
    return OperatorSpec(
        "conv",
        (conv.input_shape[0] * side, *(conv.input_shape[1 + a] for a in rest)),
        taps.flatten(2, 3).flatten(0, 1),
        tuple(conv.stride[a] for a in rest),
        tuple(conv.pads[a] for a in (*rest, *(rank + a for a in rest))),
        tuple(conv.dilations[a] for a in rest),
        conv.groups,
    )


def whole_torus(conv: OperatorSpec, lower: float, phases: int = 2) -> float:
    """Returns min over theta of max_j ||F((2 pi j + theta) / M)||, an upper bound on ||A||_2.

    A zero-padded convolution is a compression of the block circulant of size M whose entries
    that reach around carry the phase exp(i theta), which is unitarily similar to the one with
    the symbol's values at the shifted frequencies. Any theta gives a bound.

    Args:
        conv: A "conv" spec.
        lower: A lower bound on the norm, which saves work; 0 where none is known.
        phases: Thetas per axis, spread evenly over [0, 2 pi).

    Returns:
        The bound.
    """
    found = symbol(conv)
    turning = [range(phases) if d else range(1) for d in found.degrees]
    best, chosen = math.inf, torch.zeros(1, len(found.degrees), dtype=torch.float64)
    for theta in itertools.product(*turning):
        grid = _grid(found, [2 * math.pi * t / phases for t in theta])
        estimate = float(_estimates(found, grid).max())
        if estimate < best:
            best, chosen = estimate, grid
    return _certify(found, chosen, max(lower, best * (1 - 1e-12)))


def supremum(conv: OperatorSpec, lower: float, tolerance: float = 2e-4) -> float:
    """Returns an upper bound on sup_w ||F(w)||, and so on ||A||_2 for a map of any size.

    At the supremum S, taken at w*, u* F(w) v has with the best u, v a modulus of at least
    S cos(sum_a D_a |w_a - w*_a| / 2) while that sum is at most pi / 2: along the line from w* to
    w, and centred, it is a sum of waves of frequency at most n = sum_a D_a |w_a - w*_a| / 2 that
    S bounds, and such a function falls from its maximum no faster than S cos(n x) (M. Riesz 1914;
    Duffin and Schaeffer 1938 for frequencies that are not integers). A cell that holds w*
    therefore has at its centre at least S cos(.) >= best cos(.), best any value of ||F||; the
    others are dropped, the rest halved.

    Args:
        conv: A "conv" spec.
        lower: A lower bound on the norm; 0 where none is known.
        tolerance: Relative slack at which to stop.

    Returns:
        The bound; infinity where too many cells remain.
    """
    found = symbol(conv)
    axes = [a for a, d in enumerate(found.degrees) if d]
    degrees = torch.tensor([found.degrees[a] for a in axes], dtype=torch.float64)
    half = torch.tensor([math.pi / (8 * d) for d in degrees.tolist()], dtype=torch.float64)
    centres = torch.zeros(1, len(found.degrees), dtype=torch.float64)
    for axis, d, h in zip(axes, degrees.tolist(), half.tolist(), strict=True):
        line = (2 * torch.arange(8 * int(d)) + 1).to(torch.float64) * h
        centres = centres.repeat_interleave(len(line), 0)
        centres[:, axis] = line.repeat(len(centres) // len(line))
    centres = centres[centres[:, axes[0]] <= math.pi] if axes else centres
    best = lower
    while True:
        # Cells lose a little more than their size, for the rounding of their centres.
        fall = math.cos(min(float((degrees * half).sum()) / 2 + 1e-12, math.pi / 2))
        values = _estimates(found, centres)
        best = max(best, float(values.max()) * (1 - 1e-9) - found.error)
        if fall > 1 - tolerance:
            return _certify(found, centres, best) / fall * (1 + 4 * UNIT)
        keep = _may_hold(found, centres, values, best * fall)
        centres, half = centres[keep], half / 2
        steps = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(axes)))) * half
        moves = torch.zeros(len(steps), len(found.degrees), dtype=torch.float64)
        moves[:, axes] = steps
        centres = (centres[:, None] + moves).flatten(0, 1)
        if len(centres) > _CELLS or not len(centres):
            return math.inf


def _may_hold(found: Symbol, centres: Tensor, values: Tensor, level: float) -> Tensor:
    """Whether cells may have a norm of `level` or more at their centre: proved where not."""
    keep = values >= level
    for chunk in torch.split(torch.nonzero(~keep).flatten(), _batch(found)):
        if not len(chunk):
            continue
        grams, error = _grams(found, centres[chunk])
        square = max(level - found.error, 0.0) ** 2
        # A little below, for what the factor leaves over.
        bounds = certified(grams, square * (1 - 1e-8)) + error
        keep[chunk] = (bounds.reshape(len(chunk), -1) >= square).any(1).to(keep.device)
    return keep


def _certify(found: Symbol, points: Tensor, guess: float) -> float:
    """Bound on ||F|| at all points."""
    top = 0.0
    level = guess * guess
    for chunk in torch.split(points, _batch(found)):
        grams, error = _grams(found, chunk)
        eigenvalue = largest_eigenvalue(grams, level)
        level = max(level, eigenvalue * (1 - 1e-7))
        top = max(top, eigenvalue + error)
    return math.sqrt(top) * (1 + 4 * UNIT) + found.error


def _grams(found: Symbol, points: Tensor) -> tuple[Tensor, float]:
    """Gram matrices of the smaller side, and a bound on the error of their eigenvalues."""
    values = found.at(points.to(found.blocks.device))
    if values.shape[-2] > values.shape[-1]:
        values = values.mH
    error = roundings(values, values.shape[-1]) * float(square_sums(values).max())
    return values @ values.mH, error


def _estimates(found: Symbol, points: Tensor, steps: int = 16) -> Tensor:
    """Lower estimates of ||F|| by power steps, the larger of the groups, [points]."""
    rows = []
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(found.blocks.shape[-1], 1, dtype=torch.float64, generator=generator)
    for chunk in torch.split(points, max(1, _CACHED // found.cost)):
        values = found.at(chunk.to(found.blocks.device))
        v = start.to(values).expand(len(values), -1, -1)
        for _ in range(steps):
            u = values @ (v / v.norm(dim=1, keepdim=True).clamp(min=1e-300))
            v = (u.mH @ values).mH  # Conjugates the short one of the two.
        unit = v / v.norm(dim=1, keepdim=True).clamp(min=1e-300)
        norms = (values @ unit).norm(dim=1)
        rows.append(norms.reshape(len(chunk), -1).amax(1).cpu())
    return torch.cat(rows)


def _grid(found: Symbol, theta: list[float]) -> Tensor:
    """Frequencies (2 pi j + theta) / M; half of them where the other half are conjugates."""
    lines = []
    for size, degree, turn in zip(found.sizes, found.degrees, theta, strict=True):
        j = torch.arange(size if degree else 1, dtype=torch.float64)
        lines.append((2 * math.pi * j + turn) / size if degree else j)
    points = torch.cartesian_prod(*lines).reshape(-1, len(lines))
    axis = next((a for a, d in enumerate(found.degrees) if d), None)
    if axis is not None and all(t in {0.0, math.pi} for t in theta):
        # F(-w) is the conjugate of F(w), and the grid is symmetric.
        points = points[points[:, axis] <= math.pi * (1 + 1e-12)]
    return points


def _batch(found: Symbol) -> int:
    return max(1, _ENTRIES // found.cost)
