"""The directions of a layer, family by family, made chunk by chunk from seeds."""

from __future__ import annotations

import enum
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from onnx_audit import v1

_CHUNK = 256
_RANDOM_SEED, _ROTATION_SEED, _ROWS_SEED, _BASIS_SEED = 31, 32, 33, 34
_WELL_CONDITIONED = 4
"""Columns of Gaussian frames are near enough to orthogonal for Cholesky in single precision where
there are so many times as many rows."""
_ICA_STEPS, _ICA_TOLERANCE, _LARGEST_ICA = 60, 1e-4, 256
_LARGEST_PCA = 2048
_KEPT_BYTES = 2**26
"""Directions that need no more are kept from block to block; more are made anew."""


class Family(enum.IntEnum):
    """Kinds of directions."""

    NATURAL = 0
    RANDOM = 1
    ROTATED = 2
    NATURAL_AFTER = 3
    RANDOM_AFTER = 4
    BASES = 5
    """First of the further bases; basis b of `v1.UnitBasis` is family BASES + b."""


@dataclass(frozen=True, eq=False)
class Directions:
    """The directions of one layer with d live units.

    Attributes:
        name: Name of the value, which takes part in the seed.
        seed: The audit's seed.
        size: d.
        random: Number of isotropic directions.
        rotations: Number of rotated bases.
        rows: Rows of each that are scored.
        sign: Signs of the units, float32 [d].
        bases: Further bases, float32 [m, d] each, on the device.
        device: Where to compute.
    """

    name: str
    seed: int
    size: int
    random: int
    rotations: int
    rows: int
    sign: Tensor
    bases: dict[int, Tensor]
    device: torch.device
    _made: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def count(self, family: int) -> int:
        """Returns the number of directions of a family."""
        if family in {Family.NATURAL, Family.NATURAL_AFTER}:
            return self.size
        if family in {Family.RANDOM, Family.RANDOM_AFTER}:
            return self.random
        if family == Family.ROTATED:
            return self.rotations * self.rows
        return len(self.bases[family])

    def chunks(self, family: int) -> Iterator[tuple[int, int]]:
        """Yields begin and end of the chunks of a family."""
        size = self.rows if family == Family.ROTATED else _CHUNK
        for begin in range(0, self.count(family), size):
            yield begin, min(begin + size, self.count(family))

    def matrix(self, family: int, begin: int, end: int) -> Tensor | None:
        """Returns a chunk as columns, float32 [d, end - begin]; None for the units themselves."""
        if family in {Family.NATURAL, Family.NATURAL_AFTER}:
            return None
        if family >= Family.BASES:
            return self.bases[family][begin:end].T
        tag = _ROTATION_SEED if family == Family.ROTATED else _RANDOM_SEED
        if (kept := self._made.get((tag, begin))) is not None:
            return kept
        made = self._normal(tag, begin, end - begin)
        if tag == _ROTATION_SEED:
            made = haar_frame(made)
        if 4 * self.size * self.count(family) <= _KEPT_BYTES:
            self._made[tag, begin] = made
        return made

    def project(self, units: Tensor, family: int, begin: int, end: int) -> Tensor:
        """Returns the largest value over positions of each direction, [directions, n].

        Args:
            units: Standardised live units, [n, p, d].
            family: The family.
            begin: First direction.
            end: One past the last.
        """
        columns = self.matrix(family, begin, end)
        if columns is None:
            sign = self.sign[begin:end].to(units.device)
            return (units[:, :, begin:end] * sign).amax(1).T.contiguous()
        rows, places, size = units.shape
        if places == 1:
            return columns.T @ units[:, 0].T
        step = max(1, 2**22 // (places * (end - begin)))
        found = torch.empty(end - begin, rows, device=units.device)
        for i in range(0, rows, step):
            block = units[i : i + step]
            values = block.reshape(-1, size) @ columns
            found[:, i : i + step] = values.view(len(block), places, -1).amax(1).T
        return found

    def tested_rows(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Returns the units that stand against the rotated rows: as many as those, rising."""
        rng = np.random.default_rng([self.seed, _ROWS_SEED, self._name])
        return np.sort(rng.choice(self.size, self.rows, replace=False))

    @property
    def _name(self) -> int:
        return zlib.crc32(self.name.encode())

    def _normal(self, tag: int, begin: int, count: int) -> Tensor:
        rng = np.random.default_rng([self.seed, tag, self._name, begin])
        drawn = rng.standard_normal((self.size, count), dtype=np.float32)
        return torch.from_numpy(drawn).to(self.device)


def haar_frame(normal: Tensor) -> Tensor:
    """Returns rows of a Haar-distributed rotation, as orthonormal columns [d, m], m at most d.

    The Q of a Gaussian matrix is Haar-distributed once R has a positive diagonal (Mezzadri 2007,
    "How to generate random matrices from the classical compact groups"). Tall frames are
    orthonormalised by Cholesky, whose factor has a positive diagonal by itself.
    """
    rows, columns = normal.shape
    if rows >= _WELL_CONDITIONED * columns:
        factor = torch.linalg.cholesky(normal.T @ normal)
        frame: Tensor = torch.linalg.solve_triangular(factor, normal.T, upper=False).T
        return frame
    q, r = torch.linalg.qr(normal.double())
    turned: Tensor = q * torch.sign(torch.diagonal(r))
    return turned.float()


def basis(kind: v1.UnitBasis.ValueType, units: Tensor, count: int, seed: int) -> Tensor | None:
    """Returns further directions from a sample of standardised units.

    Args:
        kind: Which.
        units: The sample, [m, d].
        count: Directions to draw, for random ones.
        seed: Seed.

    Returns:
        Float32 [any, d]; None where the layer is too large for that basis.
    """
    size = units.shape[1]
    rng = np.random.default_rng([seed, _BASIS_SEED, kind])
    if kind == v1.UNIT_BASIS_NONNEGATIVE:
        drawn = np.abs(rng.standard_normal((count, size), dtype=np.float32))
        return torch.from_numpy(drawn).to(units.device)
    if size > _LARGEST_PCA:
        return None
    values, vectors = _principal(units)
    if kind == v1.UNIT_BASIS_PCA:
        return vectors.T.float().to(units.device)
    if kind == v1.UNIT_BASIS_WHITENED:
        normal = torch.from_numpy(rng.standard_normal((count, len(values))))
        return ((normal / values.sqrt()) @ vectors.T).float().to(units.device)
    kept = min(len(values), _LARGEST_ICA)
    white = vectors[:, :kept] / values[:kept].sqrt()
    centred = units.double().cpu()
    turned = _fast_ica((centred - centred.mean(0)) @ white, rng)
    directions = turned @ white.T
    # Sources have no sign of their own: the side with the longer tail speaks.
    sources = (centred - centred.mean(0)) @ directions.T
    skew = (sources**3).mean(0)
    return (directions * torch.where(skew < 0, -1.0, 1.0)[:, None]).float().to(units.device)


def _principal(units: Tensor) -> tuple[Tensor, Tensor]:
    """Returns variances, falling, and directions as columns, float64; empty ones are left out."""
    centred = units.double().cpu()
    centred = centred - centred.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    values, vectors = values.flip(0), vectors.flip(1)
    kept = values > 1e-8 * values[0]
    values, vectors = values[kept], vectors[:, kept]
    # A sign that does not depend on the solver: the longer tail points up.
    skew = ((centred @ vectors) ** 3).mean(0)
    return values, vectors * torch.where(skew < 0, -1.0, 1.0)


def _fast_ica(white: Tensor, rng: np.random.Generator) -> Tensor:
    """Returns the unmixing rotation [c, c] of whitened data [m, c].

    Symmetric FastICA with the nonlinearity tanh (Hyvarinen 1999, "Fast and robust fixed-point
    algorithms for independent component analysis").
    """
    rows, size = white.shape
    weights = _symmetric(torch.from_numpy(rng.standard_normal((size, size))))
    for _ in range(_ICA_STEPS):
        slope = torch.tanh(white @ weights.T)
        fresh = _symmetric(slope.T @ white / rows - (1 - slope**2).mean(0)[:, None] * weights)
        moved = (1 - (fresh * weights).sum(1).abs()).max()
        weights = fresh
        if float(moved) < _ICA_TOLERANCE:
            break
    return weights


def _symmetric(weights: Tensor) -> Tensor:
    """Returns the nearest orthogonal matrix."""
    u, _, v = torch.linalg.svd(weights)
    nearest: Tensor = u @ v
    return nearest
