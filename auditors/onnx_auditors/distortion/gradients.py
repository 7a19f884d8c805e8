"""What gradients there are at all: where they vanish, and graphs that have none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnx_auditors.context import Context
from onnx_auditors.distortion.search import Logits


def differentiable(logits: Logits) -> Logits:
    """Returns a function whose gradient is 0 where that of `logits` does not exist at all.

    Graphs that pick, compare and gather on all ways from the input leave nothing to differentiate.
    """

    def function(x: Tensor) -> Tensor:
        scores = logits(x)
        if x.requires_grad and not scores.requires_grad:
            scores = scores + (0 * x).flatten(1).sum(1, keepdim=True)
        return scores

    return function


def vanishing(
    context: Context, inputs: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Returns whether the gradient of the margin is all zero or not finite at inputs, bool [n].

    The margin is the score of the label less the largest other.
    """
    leaf = torch.from_numpy(inputs).to(context.device).requires_grad_()
    own = torch.from_numpy(labels).to(context.device)[:, None]
    scores = differentiable(context.logits)(leaf)
    others = scores.scatter(1, own, -torch.inf).amax(1)
    (gradient,) = torch.autograd.grad((scores.gather(1, own)[:, 0] - others).sum(), leaf)
    flat = gradient.flatten(1)
    useless = (flat == 0).all(1) | ~flat.isfinite().all(1)
    found: npt.NDArray[np.bool_] = useless.cpu().numpy()
    return found
