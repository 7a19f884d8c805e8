"""Upper bound on a norm in L2 from the whole Gram matrix, where its side allows it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onnx_auditors.lipschitz.gram import gamma, largest_eigenvalue
from onnx_auditors.lipschitz.operator import UNIT, LinearOperator

_ENTRIES = 2**26
"""Numbers per batch of unit vectors."""
SIDE_CPU, SIDE_CUDA = 8192, 50_000


def side_limit(device: torch.device) -> int:
    """Returns the largest side of a Gram matrix that fits."""
    return SIDE_CUDA if device.type == "cuda" else SIDE_CPU


def groups_of(operator: LinearOperator) -> int:
    """Returns into how many independent blocks of channels the operator falls."""
    return operator.spec.groups if operator.spec is not None else 1


def side(operator: LinearOperator) -> int:
    """Returns the side of the Gram matrix of one group."""
    sizes = math.prod(operator.input_shape), math.prod(operator.output_shape)
    return min(sizes) // groups_of(operator)


def certificate(operator: LinearOperator, lower: float) -> float:
    """Returns an upper bound on ||A||_2 from A A' or A' A, whichever is smaller.

    A matrix W is multiplied as it is, with an error of at most gamma_n || |W| ||^2, n the longer
    side. Else column i of the Gram matrix is the operator and its adjoint applied to a unit
    vector; in a grouped operator one unit vector per group at a time, because groups do not mix.
    With e the error of one application, a column errs by at most e (2 x + e) in L2, x = ||A||_2,
    and the matrix of p columns by sqrt(p) as much in the Frobenius norm. With G the bound on the
    computed matrix' eigenvalues, x^2 <= G + 2.02 sqrt(p) (error x + rounding x^2), solved for x.

    Args:
        operator: The map A; its smaller side squared must fit into memory.
        lower: A lower bound on ||A||_2.
    """
    spec = operator.spec
    if spec is not None and spec.kind == "dense" and len(spec.input_shape) == 1:
        narrow = spec.w if spec.w.shape[0] <= spec.w.shape[1] else spec.w.T
        level = largest_eigenvalue((narrow @ narrow.T)[None], lower * lower)
        error = 2 * gamma(spec.terms + 8) * spec.absolute_norm() ** 2
        return math.sqrt(level + error) * (1 + 16 * UNIT)
    level = largest_eigenvalue(_grams(operator), lower * lower)
    scale = 2.02 * math.sqrt(side(operator))
    linear, square = scale * operator.error, 1 - scale * operator.rounding
    if square <= 0 or operator.error > lower / 100 or operator.rounding > 1 / 100:
        return math.inf
    root = math.sqrt(linear * linear + 4 * square * level)
    return (linear + root) / (2 * square) * (1 + 16 * UNIT)


def _grams(operator: LinearOperator) -> Tensor:
    """Gram matrices of the groups, [groups, p, p]."""
    groups, p = groups_of(operator), side(operator)
    narrow = math.prod(operator.output_shape) <= math.prod(operator.input_shape)
    shape = operator.output_shape if narrow else operator.input_shape
    grams = torch.empty(p, groups, p, dtype=torch.float64, device=operator.device)
    widest = max(math.prod(operator.output_shape), math.prod(operator.input_shape))
    for rows in torch.split(torch.arange(p, device=operator.device), max(1, _ENTRIES // widest)):
        units = grams.new_zeros(len(rows), groups, p)
        units[torch.arange(len(rows)), :, rows] = 1.0
        x = units.reshape(len(rows), *shape)
        y = (
            operator.forward(operator.adjoint(x))
            if narrow
            else operator.adjoint(operator.forward(x))
        )
        grams[rows] = y.reshape(len(rows), groups, p)
    return grams.transpose(0, 1)
