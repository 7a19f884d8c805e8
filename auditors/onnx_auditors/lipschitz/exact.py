"""Operator norms in L1 and Linf: largest column sum and largest row sum of |A|."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onnx_auditors.lipschitz.operator import UNIT, LinearOperator

_LINES = 16_384
"""Lines of a composition that are written out before its bound stays a bound."""
_ENTRIES = 2**24


def largest_line(operator: LinearOperator, *, columns: bool) -> tuple[float, float, Tensor]:
    """Returns both ends of ||A||_inf (rows) or ||A||_1 (columns) and the input that attains it.

    For one layer the sums are |A|, or its adjoint, applied to ones. For a composition the product
    of the |A_i| applied to ones bounds them from above; lines are written out in falling order of
    that bound until the largest sum so far is no smaller than any bound that is left.

    Args:
        operator: The map A.
        columns: Whether to look at columns, for L1.

    Returns:
        Lower end, upper end, and the witness, [*input_shape].
    """
    above, slack = _bounds(operator, columns=columns)
    if operator.spec is not None:
        # Sums of positive numbers err by a relative amount, however small they are.
        line, top = _lines(operator, above.argmax()[None], columns=columns)[0], float(above.max())
        witness = _witness(operator, line, int(above.argmax()), columns=columns)
        return top * (1 - slack), top * (1 + slack), witness
    order = above.argsort(descending=True, stable=True)
    length = math.prod(operator.output_shape if columns else operator.input_shape)
    best, rest, chosen, seen = -1.0, math.inf, 0, 0
    step = max(1, min(_ENTRIES // max(length, len(above)), 1024))
    for batch in torch.split(order[:_LINES], step):
        sums = _lines(operator, batch, columns=columns).abs().sum(1)
        if float(sums.max()) > best:
            best, chosen = float(sums.max()), int(batch[sums.argmax()])
        seen += len(batch)
        rest = float(above[order[seen]]) if seen < len(order) else 0.0
        if rest * (1 + slack) <= best:
            break
    line = _lines(operator, torch.tensor([chosen], device=operator.device), columns=columns)[0]
    # An error e of a line in L2 is one of at most sqrt(n) e in L1, and ||A||_2 is at most
    # sqrt(m) as large as the largest of the sums of m lines.
    error = math.sqrt(length) * operator.error
    relative = 4 * (length + 4) * UNIT + 2 * math.sqrt(length * len(above)) * operator.rounding
    upper = max(best * (1 + relative) + error, rest * (1 + slack))
    lower = max(best * (1 - relative) - error, 0.0)
    return lower, upper, _witness(operator, line, chosen, columns=columns)


def _lines(operator: LinearOperator, numbers: Tensor, *, columns: bool) -> Tensor:
    """Rows or columns of A by number, [lines, length]."""
    shape = operator.input_shape if columns else operator.output_shape
    units = torch.zeros(len(numbers), math.prod(shape), dtype=torch.float64, device=operator.device)
    units[torch.arange(len(numbers)), numbers] = 1.0
    apply = operator.forward if columns else operator.adjoint
    return apply(units.reshape(len(numbers), *shape)).flatten(1)


def _witness(operator: LinearOperator, line: Tensor, number: int, *, columns: bool) -> Tensor:
    """The unit input of a column, or the signs of a row."""
    if not columns:
        return torch.where(line < 0, -torch.ones_like(line), 1.0).reshape(operator.input_shape)
    unit = torch.zeros(math.prod(operator.input_shape), dtype=torch.float64, device=line.device)
    unit[number] = 1.0
    return unit.reshape(operator.input_shape)


def _bounds(operator: LinearOperator, *, columns: bool) -> tuple[Tensor, float]:
    """Upper bounds on the sums of all lines, [lines], and their relative rounding."""
    parts = operator.parts or (operator,)
    shape = operator.output_shape if columns else operator.input_shape
    sums = torch.ones(1, *shape, dtype=torch.float64, device=operator.device)
    terms = 0
    for part in reversed(parts) if columns else parts:
        if part.spec is None:
            lines = math.prod(operator.input_shape if columns else operator.output_shape)
            return torch.full((lines,), math.inf, dtype=torch.float64, device=sums.device), 0.0
        size = part.spec.absolute()
        sums = size.adjoint(sums) if columns else size.forward(sums)
        terms += part.spec.terms + 8
    return sums.flatten(), 4 * terms * UNIT
