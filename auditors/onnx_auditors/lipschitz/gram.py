"""Verified largest eigenvalue of Gram matrices: a Cholesky factor and what it leaves over."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onnx_auditors.lipschitz.operator import UNIT

_TRIALS = 12
_EIGENVALUES_UP_TO = 1024
"""Side of a matrix up to which a trial that fails is followed by its eigenvalues."""


def gamma(terms: float) -> float:
    """Returns n u / (1 - n u), the bound on the relative error of n roundings.

    Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    return terms * UNIT / (1 - terms * UNIT)


def roundings(matrices: Tensor, terms: int) -> float:
    """Returns gamma for a sum of products, four times as many where they are complex.

    The real and the imaginary part are sums of 2 n products, and together they err by at most
    sqrt(2) gamma_2n times the sum of the absolute values.
    """
    return gamma(terms * (4 if matrices.is_complex() else 1))


def square_sums(matrices: Tensor) -> Tensor:
    """Returns an upper bound on the squared Frobenius norm of each matrix, [..., p, q] -> [...]."""
    real = not matrices.is_complex()
    parts = matrices[..., None] if real else torch.view_as_real(matrices.resolve_conj())
    terms = parts.shape[-1] * parts.shape[-2] * parts.shape[-3]
    return parts.square().sum((-1, -2, -3)) * (1 + 2 * gamma(terms + 2))


def largest_eigenvalue(grams: Tensor, guess: float = 0.0) -> float:
    """Returns a number that no eigenvalue of the Hermitian parts of `grams` exceeds.

    For a t above the eigenvalues, t I - G = R R* + E with R the computed Cholesky factor.
    R R* has no negative eigenvalue whatever rounding did to R, so the eigenvalues of G are at
    most t + ||E||_F. E is computed and its own rounding, gamma_p ||R||_F^2, is added. (Rump 2006,
    "Verification of positive definiteness", bounds ||E|| beforehand instead, which is a statement
    on one algorithm; what is left over is checked here, on any device.)

    Args:
        grams: Positive semidefinite up to rounding, real or complex double, [batch, p, p].
        guess: About the largest eigenvalue, from below, where one is known.
    """
    p = grams.shape[-1]
    if not bool(torch.isfinite(grams).all()):
        return math.inf
    if p == 1:
        return max(float(grams.real.max()), 0.0)
    ratios = rayleigh(grams)
    level = max(guess, float(ratios.max())) or math.sqrt(float(square_sums(grams).max()))
    if level == 0:
        return 0.0
    slack = 1e-8
    pending = torch.arange(len(grams), device=grams.device)
    found = 0.0
    for _ in range(_TRIALS):
        t = level * (1 + slack)
        bounds = certified(grams[pending], t)
        failed = torch.isinf(bounds)
        if not bool(failed.all()):
            found = max(found, float(bounds[~failed].max()))
        pending, ratios = pending[failed], ratios[failed]
        if not len(pending):
            return found
        if p <= _EIGENVALUES_UP_TO:
            worst = pending[ratios.topk(min(8, len(ratios))).indices]
            level = max(t, float(torch.linalg.eigvalsh(_hermitian(grams[worst])).max()))
        else:
            slack *= 10
    return max(found, math.sqrt(float(square_sums(grams[pending]).max())) * (1 + 4 * UNIT))


def certified(grams: Tensor, t: float) -> Tensor:
    """Returns what no eigenvalue of each Hermitian part exceeds, about t; infinity where unproved.

    Args:
        grams: Real or complex double, [batch, p, p].
        t: Level to prove.
    """
    p = grams.shape[-1]
    rest = t * torch.eye(p, dtype=grams.dtype, device=grams.device) - grams
    factor, info = torch.linalg.cholesky_ex(_hermitian(rest))
    # A comparison with a number that is none would pass it over.
    proved = (info == 0) & torch.isfinite(factor).flatten(1).all(1)
    bounds = torch.full((len(grams),), math.inf, dtype=torch.float64, device=grams.device)
    if bool(proved.any()):
        rest, factor = rest[proved], factor[proved]
        diagonal = UNIT * float(torch.diagonal(rest, dim1=-2, dim2=-1).abs().max()) * p**0.5
        error = square_sums(rest - factor @ factor.mH).sqrt()
        error = error * (1 + 8 * UNIT) + 1.01 * roundings(factor, p) * square_sums(factor)
        bounds[proved] = (t + 1.01 * diagonal + error) * (1 + 8 * UNIT)
    return bounds


def rayleigh(grams: Tensor, steps: int = 24) -> Tensor:
    """Returns Rayleigh quotients after some power steps, [batch, p, p] -> [batch]."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(grams.shape[-1], 1, dtype=torch.float64, generator=generator)
    v = start.to(grams).expand(len(grams), -1, -1)
    tiny = torch.finfo(torch.float64).tiny
    for _ in range(steps):
        v = v / v.norm(dim=1, keepdim=True).clamp(min=tiny)
        v = grams @ v
    v = v / v.norm(dim=1, keepdim=True).clamp(min=tiny)
    quotients: Tensor = (v.conj() * (grams @ v)).real.sum((1, 2))
    return quotients.clamp(min=0)


def _hermitian(matrices: Tensor) -> Tensor:
    return (matrices + matrices.mH) / 2
