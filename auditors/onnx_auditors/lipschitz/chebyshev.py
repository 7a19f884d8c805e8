"""Upper bound on the norm of anything with a forward and an adjoint, from random starts."""

from __future__ import annotations

import math

import torch

from onnx_auditors.lipschitz.gram import gamma
from onnx_auditors.lipschitz.operator import UNIT, LinearOperator

_STARTS = 4
_DEGREE = 320


def certificate(
    operator: LinearOperator,
    lower: float,
    *,
    delta: float,
    entropy: int,
    target: float = 5e-4,
    starts: int = _STARTS,
    degree: int = _DEGREE,
) -> float:
    """Returns an upper bound on ||A||_2 that holds with probability at least 1 - delta.

    With b = lower^2, B = 2 A'A / b - I and y_j = T_d(B) z_j, z_j standard Gaussian: if
    ||A||^2 >= b, its eigenvector v of A'A has the eigenvalue x >= 1 of B, and ||y_j|| >=
    T_d(x) |<v, z_j>|. All |<v, z_j>| stay below g = sqrt(pi / 2) delta^(1/s) with probability at
    most delta, as P(|N| < g) <= g sqrt(2 / pi). Hence T_d(x) <= max_j ||y_j|| / g, for every d
    at once, so that the recurrence may stop when the bound is good enough.

    Rounding: a step errs by at most (x + 1) eta (||y_k|| + ||y_(k-1)||), eta = 2 eps + 16 u with
    eps the relative error of A'A, and reaches the end multiplied by U_(d-k-1)(x). As (x + 1)
    U_(m-1)(x) <= 2 m T_m(x) <= 2 m T_d(x) for m <= d and x >= 1, g loses at most
    sum_k 2 (d - k) eta (||y_k|| + ||y_(k-1)||).

    Args:
        operator: The map A.
        lower: A lower bound on ||A||_2, above 0; of one that is far too low the bound is loose,
            because rounding ends the recurrence early: 10 % low makes it 10 % high.
        delta: Probability of a wrong bound.
        entropy: Seed of the starts.
        target: Relative gap to `lower` at which to stop.
        starts: Number of starts, s.
        degree: Largest degree.
    """
    shape = min(operator.input_shape, operator.output_shape, key=math.prod)
    narrow = shape == operator.output_shape
    first, second = (
        (operator.adjoint, operator.forward) if narrow else (operator.forward, operator.adjoint)
    )
    if operator.error > lower / 100 or operator.rounding > 1 / 100:
        return math.inf
    eta = 2 * 2.02 * (operator.error / lower + operator.rounding) + 16 * UNIT
    up = 1 + 2 * gamma(math.prod(shape) + 4)
    generator = torch.Generator().manual_seed(entropy)
    # The recurrence needs A'A / b only; dividing between the two keeps scales apart from 1 safe.
    before = torch.randn(starts, *shape, dtype=torch.float64, generator=generator)
    before = before.to(operator.device)
    now = second(first(before) / lower) / lower * 2 - before
    likely = math.sqrt(math.pi / 2) * delta ** (1 / starts)
    norms = up * before.flatten(1).norm(dim=1)
    single = norms.clone()
    double = norms.clone()
    best = math.inf
    for d in range(1, degree + 1):
        norms, previous = up * now.flatten(1).norm(dim=1), norms
        reached = likely - 2 * eta * double
        bounds = torch.where(reached > 0, norms / reached, math.inf)
        ratio = max(float(bounds.max()), 1.0)
        if math.isfinite(ratio):
            best = min(best, (1 + math.cosh(math.acosh(ratio) / d)) / 2)
        # Once rounding has used up what is likely of a start, no degree gets it back.
        if best <= (1 + target) ** 2 or not math.isfinite(ratio):
            break
        single = single + norms + previous
        double = double + single
        before, now = now, (second(first(now) / lower) / lower - now / 2) * 4 - before
    return lower * math.sqrt(best) * (1 + 1e-13)
