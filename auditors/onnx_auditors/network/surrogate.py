"""Gradients for functions in steps, whose true gradient is 0 wherever it exists."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    """Returns the second tensor; gradients go to the first."""

    generate_vmap_rule = True

    @staticmethod
    def forward(smooth: Tensor, stepped: Tensor) -> Tensor:  # noqa: ARG004 - for its gradient
        return stepped.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ANN401 - torch leaves it untyped
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override] # noqa: ANN401, ARG004 - torch's base is looser
        return gradient, None


def straight_through(smooth: Tensor, stepped: Tensor) -> Tensor:
    """Returns `stepped` with the gradient of `smooth`.

    The straight-through estimator of Bengio, Leonard and Courville 2013, section 3.1; clipped
    where `smooth` is clipped.

    Args:
        smooth: What the gradient is taken of, [...].
        stepped: The value, of the same shape and dtype.
    """
    result: Tensor = _StraightThrough.apply(smooth, stepped)  # type: ignore[no-untyped-call] # torch leaves it untyped
    return result
