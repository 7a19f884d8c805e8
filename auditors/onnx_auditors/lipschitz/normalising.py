"""Lipschitz constants of operators that divide by a statistic of their input."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onnx_auditors.lipschitz.gram import largest_eigenvalue, square_sums

_UP = 1 + 1e-12
"""More than a few roundings of closed forms."""
_SIDE = 2048
_CELLS = 64
_MANY_CELLS = 2**20
_TOLERANCE = 1e-4


def response(size: int, beta: float, bias: float, norm: str, *, symmetric: bool = True) -> float:
    """Returns a bound on the constant of local response normalisation.

    y_i = x_i (k + a sum_W x_j^2)^-beta over a window W of n channels. With p = a x_i^2 / k, t the
    window's sum of p and r = t / (1 + t), row i of the Jacobian has the sum of absolute values
    k^-beta (1 - r)^beta (|1 - 2 beta s^2 r| + 2 beta sqrt(n - 1) s c r), s^2 = p / t and
    c^2 = 1 - s^2, by Cauchy-Schwarz, attained. Its maximum over s is 1 + beta r (sqrt(n) - 1), or
    beta r (sqrt(n) + 1) - 1 where the first term is negative. Columns: `_columns`, or
    `_lopsided_columns`. In L2 the square root of the product of both (Riesz-Thorin). `alpha` only
    sets the scale of x.

    Args:
        size: Channels in a window, n; no more than there are.
        beta: Exponent, not negative.
        bias: k, above 0.
        norm: "l1", "l2" or "linf".
        symmetric: Whether windows reach as far to both sides, as those of odd sizes do.
    """
    if norm == "l2":
        rows, columns = (
            response(size, beta, bias, other, symmetric=symmetric) for other in ("linf", "l1")
        )
        return math.sqrt(rows * columns) * _UP
    scale = math.pow(bias, -beta) * _UP
    if beta == 0 or size == 0:
        return scale
    if norm == "l1":
        return scale * (_columns(size, beta) if symmetric else _lopsided_columns(size, beta))
    root = math.sqrt(size)
    return scale * max(
        _largest(beta, 1.0, beta * (root - 1)), _largest(beta, -1.0, beta * (root + 1))
    )


def _largest(power: float, a: float, b: float) -> float:
    """Maximum over r in [0, 1] of (1 - r)^power (a + b r)."""
    at = min(max((b - power * a) / (b * (1 + power)), 0.0), 1.0) if b > 0 else 0.0
    return max(math.pow(1 - at, power) * (a + b * at), a)


def _lopsided_columns(size: int, beta: float) -> float:
    """The same as `_columns` where the rows that read an entry are not those in its window.

    Term by term: the first is at most max(1, 2 beta - 1), each other one at most beta (p + v)
    (1 + p + v)^(-beta - 1), as 2 sqrt(p v) <= p + v. ONNX allows any size; the nets that have LRN
    use odd ones.
    """
    return max(1.0, 2 * beta - 1) + (size - 1) * beta * _largest(beta, 0.0, 1.0)


def _columns(size: int, beta: float) -> float:
    """Largest sum of absolute values of a column of LRN's Jacobian at k = a = 1.

    With p = x_j^2 and v_i the squares of the neighbours it is at most T^-beta |1 - 2 beta p / T| +
    sum_i h(v_i), T = 1 + p + V, V = sum v_i, h(v) = 2 beta sqrt(p v) (1 + p + v)^(-beta - 1), as
    the window of row i holds the entries i and j at least. h grows and is concave up to
    v* = (1 + p) / (2 beta + 1), so that sum h(v_i) <= (n - 1) h(min(V / (n - 1), v*)). The
    supremum over p and V is enclosed by branch and bound, both axes mapped to [0, 1] by
    x / (1 + x).
    """
    others = max(size - 1, 0)
    line = torch.linspace(0, 1, _CELLS + 1, dtype=torch.float64)
    corners = torch.cartesian_prod(line[:-1], line[:-1])
    width = 1 / _CELLS
    best = 0.0
    while len(corners) < _MANY_CELLS:
        above = _column_cells(corners, width, others, beta)
        best = max(best, float(_column_cells(corners, 0.0, others, beta).max()))
        if float(above.max()) <= best * (1 + _TOLERANCE):
            break
        corners, width = corners[above >= best * (1 - 1e-12)], width / 2
        moves = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64) * width
        corners = (corners[:, None] + moves).flatten(0, 1)
    return float(_column_cells(corners, width, others, beta).max()) * _UP


def _column_cells(corners: Tensor, width: float, others: int, beta: float) -> Tensor:
    """Upper bound on the column sum in each cell, [cells]; the value at its corner for width 0."""
    low, high = corners, (corners + width).clamp(max=1)
    (p0, v0), (p1, v1) = (low / (1 - low)).T, (high / (1 - high)).T
    t0, t1 = 1 + p0 + v0, 1 + p1 + v1
    positive = t0**-beta * (1 - 2 * beta * p0 / t1)
    negative = torch.where(torch.isinf(p1), math.inf, t0**-beta * (2 * beta * p1 / t0 - 1))
    # p / T is below 1.
    own = torch.maximum(positive, torch.minimum(negative, t0**-beta * (2 * beta - 1)))
    if not others:
        return own
    peak0, peak1 = (1 + p0) / (2 * beta + 1), (1 + p1) / (2 * beta + 1)
    u0, u1 = torch.minimum(v0 / others, peak0), torch.minimum(v1 / others, peak1)
    rest = 1 + p0 + u0
    product = torch.where(torch.isinf(p1) | torch.isinf(u1), math.inf, (p1 * u1).sqrt())
    # sqrt(p v) is at most half of p + v.
    side = torch.minimum(2 * beta * product * rest ** (-beta - 1), beta * rest**-beta)
    return own + others * side


def centred(scale: Tensor, size: int, epsilon: float, norm: str) -> float:
    """Returns the constant of (x - mean) / sqrt(variance + epsilon) * scale over `size` entries.

    The Jacobian is diag(scale) (P - y y' / n) / sigma with P = I - 1 1' / n and y the normalised
    input, 0 <= P - y y' / n <= P: in L2 ||diag(scale) P|| / sqrt(epsilon), attained by constant
    inputs. Rows: |1 - 1/n - y_i^2/n| + sum_j |1/n + y_i y_j / n| <= 2 - 2/n + r (sqrt(n) - 1) / 2
    with r = variance / sigma^2 (Cauchy-Schwarz), and 1 / sigma = sqrt((1 - r) / epsilon).

    Args:
        scale: Factors, [size] or such that one repeats over the entries.
        size: Entries that share their statistics, n.
        epsilon: What is added to the variance; 0 gives infinity.
        norm: "l1", "l2" or "linf".
    """
    if size == 1:
        return 0.0
    if epsilon <= 0:
        return math.inf
    largest = float(scale.double().abs().max())
    if norm != "l2":
        return largest * _rows(2 - 2 / size, size) / math.sqrt(epsilon) * _UP
    if scale.numel() == size <= _SIDE:
        squares = scale.double().flatten()[:, None] * (
            torch.eye(size, dtype=torch.float64) - 1 / size
        )
        gram = (squares @ squares.T)[None]
        rounding = 8 * size * 2.0**-53 * float(square_sums(squares))
        largest = min(largest, math.sqrt(largest_eigenvalue(gram) + rounding))
    return largest / math.sqrt(epsilon) * _UP


def scaled_by_rms(scale: Tensor, size: int, epsilon: float, norm: str) -> float:
    """Returns the constant of x / sqrt(mean(x^2) + epsilon) * scale over `size` entries.

    As `centred`, with I in place of P: in L2 max |scale| / sqrt(epsilon), attained at 0; rows at
    most 1 + r (sqrt(n) - 1) / 2.
    """
    if epsilon <= 0:
        return math.inf
    rows = 1.0 if norm == "l2" else _rows(1.0, size)
    return float(scale.double().abs().max()) * rows / math.sqrt(epsilon) * _UP


def _rows(a: float, size: int) -> float:
    return _largest(0.5, a, (math.sqrt(size) - 1) / 2)
