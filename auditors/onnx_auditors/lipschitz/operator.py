"""Linear maps in float64 with their adjoints: what every bound on a layer is a bound of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from onnx_auditors.lipschitz.spec import OperatorSpec
from onnx_auditors.lipschitz.taps import taps

UNIT = 2.0**-53
"""Unit roundoff of float64."""
_FUNCTION_ROUNDING = 2.0**-40
"""Relative error that a function without known structure is taken to be evaluated with."""


@dataclass(frozen=True, eq=False)
class LinearOperator:
    """One linear map in float64, without bias.

    Attributes:
        input_shape: Shape of one input, without the batch axis.
        output_shape: Shape of one output, without the batch axis.
        forward: Applies the map A, [m, *input_shape] -> [m, *output_shape].
        adjoint: Applies its transpose, [m, *output_shape] -> [m, *input_shape].
        spec: Its structure, where it is a convolution, a matrix or the like.
        parts: What it is the composition of, first applied first; empty where it is none.
        error: Bound on ||computed - exact||_2 / ||x||_2 of `forward` and of `adjoint`, in the
            units of the map itself.
        rounding: The same relative to ||A||_2; both add up.
        device: Where its tensors live.
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    spec: OperatorSpec | None = None
    parts: tuple[LinearOperator, ...] = ()
    error: float = 0.0
    rounding: float = 0.0
    device: torch.device = torch.device("cpu")  # noqa: RUF009  # immutable


def from_spec(spec: OperatorSpec, device: torch.device | str = "cpu") -> LinearOperator:
    """Returns the operator that a spec describes, with a bound on its rounding.

    The error of a sum of p products is at most gamma_p |W| |x| for any order of summation
    (Higham 2002, section 3.1), and || |W| ||_2 <= sqrt(|| |W| ||_1 || |W| ||_inf).
    """
    spec = spec.to(device)
    applied = taps(spec) or spec
    return LinearOperator(
        spec.input_shape,
        spec.output_shape,
        applied.forward,
        applied.adjoint,
        spec=spec,
        error=2.0 * (applied.terms + 8) * UNIT * spec.absolute_norm(),
        device=torch.device(device),
    )


def from_function(
    function: Callable[[Tensor], Tensor],
    input_shape: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    rounding: float = _FUNCTION_ROUNDING,
) -> LinearOperator:
    """Returns the linear part of an affine function, its adjoint by automatic differentiation.

    Args:
        function: Affine and twice differentiable by autograd, float64 [m, *input_shape] ->
            [m, *output_shape], each sample by itself.
        input_shape: Shape of one sample.
        device: Where `function` expects its input.
        rounding: Bound on the error of its evaluation relative to ||A||_2.
    """
    shape = tuple(input_shape)

    def zeros(count: int) -> Tensor:
        zero = torch.zeros(count, *shape, dtype=torch.float64, device=device)
        return zero.requires_grad_()

    def adjoint(y: Tensor) -> Tensor:
        with torch.enable_grad():
            at = zeros(len(y))
            return _gradient(function(at), at, y)

    def forward(x: Tensor) -> Tensor:
        # The vjp is linear in its cotangent; its own vjp is the map without the bias, so that
        # no large bias cancels.
        with torch.enable_grad():
            at = zeros(len(x))
            value = function(at)
            cotangent = torch.zeros_like(value, requires_grad=True)
            back = _gradient(value, at, cotangent, create_graph=True)
            return _gradient(back, cotangent, x) if back.requires_grad else torch.zeros_like(value)

    with torch.no_grad():
        output_shape = tuple(function(zeros(1)).shape[1:])
    return LinearOperator(
        shape, output_shape, forward, adjoint, rounding=rounding, device=torch.device(device)
    )


def compose(*operators: LinearOperator) -> LinearOperator:
    """Returns the operator that applies `operators` one after the other, the first one first.

    Raises:
        ValueError: If there is none, or if shapes do not follow one another.
    """
    parts = tuple(part for operator in operators for part in (operator.parts or (operator,)))
    if not parts:
        raise ValueError("compose needs at least one operator")
    for first, second in pairwise(parts):
        if first.output_shape != second.input_shape:
            raise ValueError(
                f"cannot compose: output shape {first.output_shape} is followed by input shape "
                f"{second.input_shape}"
            )
    if len(parts) == 1:
        return parts[0]

    def forward(x: Tensor) -> Tensor:
        for part in parts:
            x = part.forward(x)
        return x

    def adjoint(y: Tensor) -> Tensor:
        for part in reversed(parts):
            y = part.adjoint(y)
        return y

    error, rounding = _composed_error(parts)
    return LinearOperator(
        parts[0].input_shape,
        parts[-1].output_shape,
        forward,
        adjoint,
        parts=parts,
        error=error,
        rounding=rounding,
        device=parts[0].device,
    )


def _composed_error(parts: tuple[LinearOperator, ...]) -> tuple[float, float]:
    """Absolute error where every part's norm is known, else the parts' relative errors summed."""
    if any(part.spec is None for part in parts):
        relative = [part.error / _scale(part) + part.rounding for part in parts]
        return 0.0, 2.0 * sum(relative) + _FUNCTION_ROUNDING
    error, norm = 0.0, 1.0
    for part in parts:
        own = part.spec.absolute_norm() if part.spec else 1.0
        error = error * (own + part.error) + norm * part.error
        norm *= own
    return error * (1 + 64 * UNIT * len(parts)), 0.0


def _scale(part: LinearOperator) -> float:
    return (part.spec.absolute_norm() if part.spec else 1.0) or 1.0


def _gradient(y: Tensor, x: Tensor, cotangent: Tensor, *, create_graph: bool = False) -> Tensor:
    if not y.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(
        y, x, cotangent, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return found
