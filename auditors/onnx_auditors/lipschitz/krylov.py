"""Upper bound on the norm of anything with a forward and an adjoint, from random starts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, localcontext

import torch
from torch import Tensor

from onnx_auditors.lipschitz.gram import gamma
from onnx_auditors.lipschitz.lanczos import tridiagonal
from onnx_auditors.lipschitz.operator import UNIT, LinearOperator

_STARTS = (2, 3, 4)
_DEGREE = 320
_DIGITS = 60
_ROOM = 100
"""How far the rounding of one step has to stay below what is likely of a start."""
_COEFFICIENTS, _NEGATIVE = 1.05, 0.005
"""Largest coefficient and least eigenvalue, relative to the squared norm, that the proof covers."""
_FARTHEST, _HALVINGS = 1e6, 40
"""Largest squared norm that is tried, over that of the lower end; steps of the search for it."""


@dataclass
class Start:
    """What the recurrence of one start gave.

    Attributes:
        likely: Least share of the start that the top eigenvector has, but for the chance of error.
        norms: Upper bounds on ||y_1||, ||y_2||, ...
        alphas: Coefficients a_0, a_1, ...
        betas: Coefficients b_0, b_1, ...
    """

    likely: float
    norms: list[float] = field(default_factory=list)
    alphas: list[float] = field(default_factory=list)
    betas: list[float] = field(default_factory=list)


def certificate(
    operator: LinearOperator,
    lower: float,
    *,
    delta: float,
    entropy: int,
    target: float = 5e-4,
    starts: int | None = None,
    degree: int = _DEGREE,
) -> float:
    """Returns an upper bound on ||A||_2 that holds with probability at least 1 - delta.

    Of M = A'A / lower^2 and y_0 = z / ||z||, z standard Gaussian, Lanczos' recurrence gives
    b_k y_(k+1) = M y_k - a_k y_k - b_(k-1) y_(k-1) - e_k, ||e_k|| <= phi, without any claim that
    the y_k are orthogonal. The top eigenvector v of M, of eigenvalue x, has in them the shares
    c_k = <v, y_k>, and so b_k c_(k+1) = (x - a_k) c_k - b_(k-1) c_(k-1) - <v, e_k>. With p and w
    the solutions of that recurrence for p_0 = 1 without errors and for w_0 = 0 with phi for
    -<v, e_k>, and x above the eigenvalues of the tridiagonal matrix (p_1, p_2, ... > 0),
    |c_k| >= p_k |c_0| - w_k: a contradiction where that exceeds ||y_k||. All |<v, z_j>| of s starts
    stay below g = sqrt(pi / 2) delta^(1/s) with probability at most delta, as P(|N| < g) <=
    g sqrt(2 / pi). Hence x is below the largest of the starts' least numbers with a contradiction.

    An x with a contradiction has none above it without: w_k / p_k is a sum of products of phi with
    det(x - T'') / det(x - T), T'' a trailing block of the tridiagonal matrix T, whose eigenvalues
    interlace those of T, so that each of them falls with x at least as fast as 1 / (x - t) rises,
    t the least eigenvalue of T. phi grows no faster than x, and 1 % on top makes up for t < 0.

    Compare Kuczynski and Wozniakowski 1992 (SIAM J. Matrix Anal. Appl. 13), who bound the error in
    exact arithmetic; the recurrence adapts to the spectrum, so that its degree is about half of
    that of Chebyshev's polynomials.

    Rounding: with h = error + rounding ||A|| each application errs by at most h, both together by
    2.02 h ||A||, and the recurrence by 40 u x for coefficients up to 1.05 x. The recurrences of p
    and w are taken with 60 digits.

    Args:
        operator: The map A.
        lower: A lower bound on ||A||_2, above 0, the scale of everything.
        delta: Probability of a wrong bound.
        entropy: Seed of the starts.
        target: Relative gap to `lower` at which to stop.
        starts: Number of starts, s; by default the least that rounding leaves room for.
        degree: Largest degree.
    """
    if operator.error > lower / 100 or operator.rounding > 1 / 100:
        return math.inf
    shape = min(operator.input_shape, operator.output_shape, key=math.prod)
    size, errors = math.prod(shape), (operator.error / lower, operator.rounding)
    count = starts or _enough(delta, size, _phi(errors, 1.0))
    generator = torch.Generator().manual_seed(entropy)
    before = torch.randn(count, *shape, dtype=torch.float64, generator=generator)
    lengths = before.flatten(1).norm(dim=1) * (1 + 2 * gamma(size + 4))
    found = [Start(_likely(delta, count) / r - 4 * UNIT) for r in lengths.tolist()]
    wanted = [Proof(s, (1 + target) ** 2, errors) for s in found]
    for _ in _recurrence(operator, lower, before, found, degree):
        if all([proof.advance() for proof in wanted]):  # noqa: C419  # each has to advance
            break
    return lower * math.sqrt(_least(found, (1 + target) ** 2, errors)) * (1 + 1e-13)


def _likely(delta: float, starts: int) -> float:
    return math.sqrt(math.pi / 2) * float(delta ** (1 / starts))


def _phi(errors: tuple[float, float], x: float) -> float:
    """Returns the bound on the error of a step for a squared norm x in units of lower^2."""
    return 1.01 * (2.02 * (errors[0] * math.sqrt(x) + errors[1] * x) + 40 * UNIT * x)


def _enough(delta: float, size: int, phi: float) -> int:
    for count in _STARTS:
        if _ROOM * phi <= _likely(delta, count) / math.sqrt(size):
            return count
    return _STARTS[-1]


def _recurrence(
    operator: LinearOperator, lower: float, start: Tensor, found: Sequence[Start], degree: int
) -> Iterator[None]:
    """Goes on step by step with what is found of each start, until it has nothing left."""
    narrow = tuple(start.shape[1:]) == operator.output_shape
    first, second = (
        (operator.adjoint, operator.forward) if narrow else (operator.forward, operator.adjoint)
    )

    def column(values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (start.dim() - 1))

    up = 1 + 2 * gamma(start[0].numel() + 4)
    now = start.to(operator.device)
    now = now / column(now.flatten(1).norm(dim=1))
    before, beta = torch.zeros_like(now), now.new_zeros(len(now))
    for _ in range(degree):
        # Dividing between the two keeps scales apart from 1 safe.
        new = second(first(now) / lower) / lower - column(beta) * before
        alpha = torch.linalg.vecdot(new.flatten(1), now.flatten(1))
        new = new - column(alpha) * now
        beta = new.flatten(1).norm(dim=1)
        before, now = now, new / column(beta.clamp(min=1e-300))
        norms = now.flatten(1).norm(dim=1) * up
        for s, a, b, r in zip(found, alpha.tolist(), beta.tolist(), norms.tolist(), strict=True):
            s.alphas.append(a)
            s.betas.append(b)
            s.norms.append(r)
        yield
        if bool((beta <= 1e-14 * alpha.abs()).any()):
            return


class Proof:
    """The recurrences of p and w for one start at one squared norm, in units of lower^2."""

    def __init__(self, start: Start, x: float, errors: tuple[float, float]) -> None:
        self.start, self.x, self.phi = start, x, _phi(errors, x)
        self.step, self.proved, self.possible = 0, False, start.likely > 0
        self._p, self._w = (Decimal(0), Decimal(1)), (Decimal(0), Decimal(0))

    def advance(self) -> bool:
        """Takes in all steps that the start has; returns whether one of them is a contradiction."""
        while self.possible and not self.proved and self.step < len(self.start.alphas):
            with localcontext() as context:
                context.prec = _DIGITS
                self._step(self.step)
            self.step += 1
        return self.proved

    def _step(self, k: int) -> None:
        a, b = self.start.alphas[k], self.start.betas[k]
        if not max(abs(a), b) <= _COEFFICIENTS * self.x:
            self.possible = False
            return
        across, below = Decimal(self.x) - Decimal(a), Decimal(self.start.betas[k - 1] if k else 0)
        # b_k times the next of both.
        p = across * self._p[1] - below * self._p[0]
        w = across * self._w[1] - below * self._w[0] + Decimal(self.phi)
        if p <= 0:
            self.possible = False
            return
        length = Decimal(b) * Decimal(self.start.norms[k]) * (1 + Decimal("1e-9"))
        self.proved = p * Decimal(self.start.likely) - w > length
        if b > 0:
            self._p, self._w = (self._p[1], p / Decimal(b)), (self._w[1], w / Decimal(b))
        else:
            self.possible = self.proved


def _least(found: Sequence[Start], guess: float, errors: tuple[float, float]) -> float:
    """Returns about the least squared norm that is proved, in units of lower^2."""
    for start in found:
        values = torch.linalg.eigvalsh(tridiagonal(start.alphas, start.betas[:-1]))
        if not float(values[0]) >= -_NEGATIVE:
            return math.inf

    def proved(x: float) -> bool:
        return all(Proof(start, x, errors).advance() for start in found)

    low, high = 1.0, max(guess, 1 + 1e-6)
    while not proved(high):
        low, high = high, 1 + 4 * (high - 1)
        if high > _FARTHEST:
            return math.inf
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if high - low <= 1e-9 * (high - 1):
            break
        low, high = (low, middle) if proved(middle) else (middle, high)
    return high
