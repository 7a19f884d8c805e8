"""Both ends of an operator's norm: the smallest upper bound of the methods that fit."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from onnx_auditors.lipschitz import chebyshev, dense, symbol
from onnx_auditors.lipschitz.bound import Bound, Norm
from onnx_auditors.lipschitz.exact import largest_line
from onnx_auditors.lipschitz.folding import fold, prescaled, reduced
from onnx_auditors.lipschitz.lanczos import attained, lower_of
from onnx_auditors.lipschitz.operator import UNIT, LinearOperator, from_spec
from onnx_auditors.lipschitz.spec import OperatorSpec

TARGET = 5e-4
"""Gap between the ends at which no further method is tried."""
_DENSE_FIRST = 1024
"""Side of a Gram matrix up to which it is cheaper than anything else."""


def operator_bounds(
    spec_or_operator: OperatorSpec | LinearOperator,
    norm: Norm = "l2",
    *,
    delta: float = 1e-12,
    entropy: int | None = None,
    target: float = TARGET,
    device: torch.device | str = "cpu",
) -> Bound:
    """Returns a certified upper and an attained lower bound on an operator norm.

    Args:
        spec_or_operator: The layer, without bias.
        norm: "l1", "l2" or "linf", of input and output alike.
        delta: Probability with which a bound of kind "probability" may be wrong.
        entropy: Seed of the random starts of such a bound; drawn afresh where None. Who audits
            the same thing twice passes the one that was recorded.
        target: Relative gap at which methods in order of cost stop being tried.
        device: Where to compute, for a spec; an operator stays where it is.

    Raises:
        ValueError: If `norm` is another, or `delta` not between 0 and 1.
    """
    if norm not in {"l1", "l2", "linf"}:
        raise ValueError(f"norm must be l1, l2 or linf, found {norm!r}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must be between 0 and 1, found {delta}")
    started = time.perf_counter()
    entropy = secrets.randbits(63) if entropy is None else entropy
    operator = (
        from_spec(spec_or_operator, device)
        if isinstance(spec_or_operator, OperatorSpec)
        else fold(spec_or_operator)
    )
    with torch.no_grad():
        if norm == "l2":
            bound = _l2(operator, delta, entropy, target)
        else:
            lower, upper, witness = largest_line(operator, columns=norm == "l1")
            bound = Bound(lower, upper, "deterministic", "absolute sums", norm, witness=witness)
    return replace(bound, seconds=time.perf_counter() - started)


def _l2(operator: LinearOperator, delta: float, entropy: int, target: float) -> Bound:
    spec = operator.spec
    if spec is None:
        return _by_methods(operator, delta, entropy, target)
    if spec.kind == "diagonal":
        return _diagonal(spec)
    bounds = [_reduced(part, delta, entropy, target) for part in reduced(spec)]
    if len(bounds) == 1 and bounds[0].witness is not None:
        bound = bounds[0]
        if bound.witness is not None and bound.witness.shape == torch.Size(operator.input_shape):
            return bound
    upper = math.prod(b.upper for b in bounds) * (1 + 2 * len(bounds) * UNIT)
    widest = max(bounds, key=lambda b: b.upper)
    lower, witness = attained(operator)
    return Bound(lower, upper, widest.proof, widest.method, witness=witness, tried={})


def _diagonal(spec: OperatorSpec) -> Bound:
    full = spec.w.expand(spec.input_shape)
    largest = float(full.abs().max())
    witness = torch.zeros_like(full).contiguous()
    witness.view(-1)[full.abs().argmax()] = 1.0
    return Bound(largest, largest, "deterministic", "largest entry", witness=witness)
