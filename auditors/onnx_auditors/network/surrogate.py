"""Gradients for functions in steps, whose true gradient is 0 wherever it exists."""

from __future__ import annotations

import torch
from torch import Tensor


def straight_through(smooth: Tensor, stepped: Tensor) -> Tensor:
    """Returns `stepped` with the gradient of `smooth`.

    The straight-through estimator of Bengio, Leonard and Courville 2013, section 3.1; clipped
    where `smooth` is clipped or infinite.

    Args:
        smooth: What the gradient is taken of, [...].
        stepped: The value, of the same shape and dtype.
    """
    # What is added is exactly 0, so that the value keeps every digit.
    finite = torch.where(torch.isfinite(smooth), smooth, 0.0)
    return stepped.detach() + (finite - finite.detach())
