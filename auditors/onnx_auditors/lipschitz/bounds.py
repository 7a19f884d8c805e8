"""Both ends of an operator's norm: the smallest upper bound of the methods that fit."""

from __future__ import annotations

import math
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from onnx_auditors.lipschitz import dense, krylov, symbol
from onnx_auditors.lipschitz.bound import Bound, Norm
from onnx_auditors.lipschitz.exact import largest_line
from onnx_auditors.lipschitz.folding import fold, lifted, prescaled, reduced
from onnx_auditors.lipschitz.lanczos import attained, lower_of
from onnx_auditors.lipschitz.operator import UNIT, LinearOperator, from_spec
from onnx_auditors.lipschitz.spec import OperatorSpec

TARGET = 1e-3
"""Gap between the ends at which no further method is tried."""
_TINY = math.ulp(0.0)
_DENSE_FIRST = 1024
"""Side of a Gram matrix up to which it is cheaper than anything else."""
_DENSE_FREE = 2048
"""The same for operators without structure, whose columns cost an application each."""


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
    operator, exponent = prescaled(operator)
    # Of cuDNN's algorithms some go through a Fourier transform, whose error is another.
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
        if norm == "l2":
            bound = _l2(operator, delta, entropy, target)
        else:
            lower, upper, witness = largest_line(operator, columns=norm == "l1")
            bound = Bound(lower, upper, "deterministic", "absolute sums", norm, witness=witness)
    return replace(_times(bound, exponent), seconds=time.perf_counter() - started)


def _times(bound: Bound, exponent: int) -> Bound:
    """The bound of 2^exponent times the map; rounded outwards where float64 ends."""
    return replace(
        bound,
        lower=max(min(_shifted(bound.lower, exponent), sys.float_info.max) - _TINY, 0.0),
        upper=_shifted(bound.upper, exponent) + (_TINY if bound.upper > 0 else 0.0),
        tried={name: _shifted(value, exponent) for name, value in bound.tried.items()},
    )


def _shifted(value: float, exponent: int) -> float:
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.inf


def _l2(operator: LinearOperator, delta: float, entropy: int, target: float) -> Bound:
    spec = operator.spec
    if spec is None:
        return _by_methods(operator, delta, entropy, target)
    if spec.kind == "diagonal":
        return _diagonal(spec)
    layers = reduced(spec)
    if any(not bool(layer.w.any()) for layer in layers):
        return Bound(0.0, 0.0, "deterministic", "zero")
    bounds = [
        _by_methods(from_spec(layer, operator.device), delta, entropy, target) for layer in layers
    ]
    witness = lifted(operator, spec, [b.witness for b in bounds if b.witness is not None])
    unsure = [b for b in bounds if b.delta]
    shown = unsure[0] if unsure else bounds[0]
    return replace(
        shown,
        lower=lower_of(operator, witness),
        upper=math.prod(b.upper for b in bounds) * (1 + 2 * len(bounds) * UNIT),
        witness=witness[0],
        tried=bounds[0].tried if len(bounds) == 1 else {},
        delta=sum(b.delta for b in bounds),
    )


def _by_methods(operator: LinearOperator, delta: float, entropy: int, target: float) -> Bound:
    """Tries methods in order of cost until the ends are close."""
    matrix = operator.spec is not None and operator.spec.kind == "dense"
    fine = 1e-9 if matrix or dense.side(operator) <= _DENSE_FIRST else 1e-6
    lower, witness = attained(operator, tolerance=fine)
    tried: dict[str, float] = {}
    for name, method in _methods(operator, lower, delta, entropy, target):
        tried[name] = method()
        if min(tried.values()) <= lower * (1 + target):
            break
    if all(math.isinf(upper) for upper in tried.values()) and operator.parts:
        parts = [_l2(part, delta, entropy, target) for part in operator.parts]
        tried["product of parts"] = math.prod(b.upper for b in parts) * (1 + 2 * len(parts) * UNIT)
        unsure = sum(b.delta for b in parts)
    else:
        unsure = delta
    tried = tried or {"none": math.inf}
    name = min(tried, key=lambda n: tried[n])
    unsure = unsure if name in {"Krylov", "product of parts"} else 0.0
    return Bound(
        lower,
        tried[name],
        "probability" if unsure else "deterministic",
        name,
        delta=unsure,
        entropy=entropy if unsure else None,
        witness=witness,
        tried=tried,
    )


def _methods(
    operator: LinearOperator, lower: float, delta: float, entropy: int, target: float
) -> list[tuple[str, Callable[[], float]]]:
    """The methods that fit an operator, in order of cost."""
    spec, size = operator.spec, dense.side(operator)
    written_out = ("Cholesky", lambda: dense.certificate(operator, lower))
    methods: list[tuple[str, Callable[[], float]]] = []
    if size <= _DENSE_FIRST:
        methods.append(written_out)
    if spec is not None and spec.kind == "conv":
        methods.append(
            ("twisted torus", lambda: symbol.torus(spec, lower))
            if symbol.points(spec) <= symbol.TORUS_POINTS
            else ("symbol supremum", lambda: symbol.supremum(spec, lower))
        )
    limit = dense.side_limit(operator.device) if spec is not None else _DENSE_FREE
    if _DENSE_FIRST < size <= limit:
        methods.append(written_out)
    if lower > 0:
        certificate = krylov.certificate
        methods.append(
            (
                "Krylov",
                lambda: certificate(
                    operator, lower, delta=delta, entropy=entropy, target=0.8 * target
                ),
            )
        )
    return methods


def _diagonal(spec: OperatorSpec) -> Bound:
    full = spec.w.expand(spec.input_shape)
    largest = float(full.abs().max())
    # The entries of folded diagonals are rounded products.
    margin = 4 * UNIT * largest
    witness = torch.zeros_like(full).contiguous()
    witness.view(-1)[full.abs().argmax()] = 1.0
    return Bound(
        largest - margin, largest + margin, "deterministic", "largest entry", witness=witness
    )
