"""Seeded noise for each row of a batch, the same whatever else the batch holds.

A counter-based generator: the bits of a number are a mix of its row's seed, the number of the draw
and its position, so that rows are drawn in one go and on any device. The mix is the finaliser of
SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB
_DRAW_BITS = 32
_UNIFORM_BITS = 24


def uniform(seeds: Tensor, draw: int | Tensor, width: int) -> Tensor:
    """Returns numbers in (0, 1), float32 [n, width].

    Args:
        seeds: Int64 [n], one for each row.
        draw: Number of the draw, from 0, of all rows or int64 [n]; each gives new numbers.
        width: Numbers per row, fewer than 2^32.
    """
    row = _mix(seeds) + _GOLDEN * (torch.as_tensor(draw, device=seeds.device) << _DRAW_BITS)
    place = torch.arange(1, width + 1, dtype=torch.int64, device=seeds.device)
    bits = _mix(row[:, None] + _GOLDEN * place)
    top = _shift(bits, 64 - _UNIFORM_BITS).to(torch.float32)
    return (top + 0.5) * 2.0**-_UNIFORM_BITS


def gaussian(seeds: Tensor, draw: int | Tensor, width: int) -> Tensor:
    """Returns standard Gaussian numbers, float32 [n, width] (Box and Muller 1958)."""
    half = -(-width // 2)
    numbers = uniform(seeds, draw, 2 * half)
    radius = (-2 * numbers[:, :half].log()).sqrt()
    angle = 2 * math.pi * numbers[:, half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :width]


def _mix(bits: Tensor) -> Tensor:
    bits = bits.bitwise_xor(_shift(bits, 30)).mul_(_FIRST)
    bits.bitwise_xor_(_shift(bits, 27)).mul_(_SECOND)
    return bits.bitwise_xor_(_shift(bits, 31))


def _shift(bits: Tensor, by: int) -> Tensor:
    """Shifts to the right and fills with zeros, which `>>` on signed integers does not."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)
