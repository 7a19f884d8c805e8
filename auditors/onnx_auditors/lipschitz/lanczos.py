"""Lower end of a norm in L2: Lanczos, with the input that attains it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from onnx_auditors.lipschitz.gram import gamma
from onnx_auditors.lipschitz.operator import LinearOperator

_STORED = 2**27
"""Numbers that the basis may hold."""


def attained(
    operator: LinearOperator, *, tolerance: float = 1e-9, steps: int = 80, restarts: int = 6
) -> tuple[float, Tensor]:
    """Returns a lower bound on ||A||_2 and the unit input that attains it.

    Args:
        operator: The map A.
        tolerance: Relative progress of the squared norm at which to stop.
        steps: Size of the Krylov space.
        restarts: How often to start anew from the best vector.

    Returns:
        ||A v|| / ||v||, rounded down, and v, [*input_shape].
    """
    n, m = math.prod(operator.input_shape), math.prod(operator.output_shape)
    narrow = m < n
    size, shape = (m, operator.output_shape) if narrow else (n, operator.input_shape)

    def normal(x: Tensor) -> Tensor:
        x = x.reshape(1, *shape)
        y = (
            operator.forward(operator.adjoint(x))
            if narrow
            else operator.adjoint(operator.forward(x))
        )
        return y.reshape(-1)

    generator = torch.Generator().manual_seed(0)
    v = torch.randn(size, dtype=torch.float64, generator=generator).to(operator.device)
    steps = max(2, min(steps, size, _STORED // size))
    best = -1.0
    for _ in range(restarts):
        value, v, done = _krylov(normal, v / v.norm(), steps, tolerance)
        if done or value <= best * (1 + tolerance):
            break
        best = value
    witness = v.reshape(1, *shape)
    if narrow:
        witness = operator.adjoint(witness)
    norm = witness.norm()
    # The zero map has no better witness than any.
    witness = witness / norm if norm > 0 else torch.ones_like(witness) / math.sqrt(n)
    return lower_of(operator, witness), witness[0]


def lower_of(operator: LinearOperator, witness: Tensor) -> float:
    """Returns ||A v|| / ||v|| for v [1, *input_shape], rounded down; 0 where rounding hides it."""
    image = operator.forward(witness)
    slack = 2 * gamma(image.numel() + 4) + 2 * gamma(witness.numel() + 4)
    ratio = float(image.norm()) / float(witness.norm()) * (1 - slack)
    return max((ratio - operator.error) / (1 + operator.rounding), 0.0)


def _krylov(
    normal: Callable[[Tensor], Tensor], start: Tensor, steps: int, tolerance: float
) -> tuple[float, Tensor, bool]:
    """Largest Ritz value of A'A, its vector, and whether it stands still.

    Lanczos with full reorthogonalisation (Golub and Van Loan, section 10.3).
    """
    basis = start.new_zeros(steps, len(start))
    basis[0] = start
    alphas: list[float] = []
    betas: list[float] = []
    value, done = -1.0, False
    ritz = torch.ones(1, dtype=torch.float64)
    for k in range(steps):
        w = normal(basis[k])
        alphas.append(float(w @ basis[k]))
        for _ in range(2):
            w = w - basis[: k + 1].T @ (basis[: k + 1] @ w)
        beta = float(w.norm())
        exhausted = beta <= 1e-14 * max(alphas + betas) or k + 1 == steps
        if exhausted or k % 5 == 4:  # noqa: PLR2004  # the small problem only now and then
            values, vectors = torch.linalg.eigh(tridiagonal(alphas, betas))
            done = float(values[-1]) <= value * (1 + tolerance) or k + 1 == len(start)
            value, ritz = float(values[-1]), vectors[:, -1]
        if exhausted or done:
            break
        betas.append(beta)
        basis[k + 1] = w / beta
    return value, basis[: len(ritz)].T @ ritz.to(start.device), done


def tridiagonal(alphas: list[float], betas: list[float]) -> Tensor:
    """Returns the symmetric matrix of a diagonal and the one beside it, one shorter."""
    off = torch.tensor(betas, dtype=torch.float64)
    return (
        torch.diag(torch.tensor(alphas, dtype=torch.float64))
        + torch.diag(off, 1)
        + torch.diag(off, -1)
    )
