"""Functions of torch whose backward pass on a GPU does not give the same bits twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

from torch import Tensor

P = ParamSpec("P")


def on_the_cpu(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Returns a function that computes on the CPU and gives its result back on the GPU.

    Torch refuses these functions where results have to be repeatable. They are rare in networks, so
    that the way there and back costs little on the whole.

    Args:
        function: Takes tensors, the first of which says the device, and other values.
    """

    def moved(*arguments: P.args, **settings: P.kwargs) -> Tensor:
        device = next(a.device for a in arguments if isinstance(a, Tensor))
        if device.type != "cuda":
            return function(*arguments, **settings)
        near = [a.cpu() if isinstance(a, Tensor) else a for a in arguments]
        return function(*near, **settings).to(device)  # type: ignore[arg-type] # as it was given

    return moved
