"""Linear classifiers, fitted in closed form or by L-BFGS."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.errors import ProbesDoNotFit

_ITERATIONS = 200
_SPREAD = 1e-2
_LEAST_CLASSES = 2
_LISTED = 8


@dataclass(frozen=True)
class Head:
    """A linear layer on a value.

    Attributes:
        value: Name of the value.
        weight: Float32 [features, classes].
        bias: Float32 [classes].
    """

    value: str
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]

    def __call__(self, features: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns the class scores [n, classes] of features [n, features], by way of float64."""
        scores = features.astype(np.float64) @ self.weight.astype(np.float64) + self.bias
        return scores.astype(np.float32)

    def spread(self, features: npt.NDArray[Any]) -> float:
        """Returns how much of the scores' size an error of the features may move them.

        For independent errors of each entry of up to a share e of the largest feature, a score
        moves by e times this at three standard deviations, as a share of the largest score.
        """
        largest = float(np.abs(self(features)).max()) or 1.0
        steepest = float(np.linalg.norm(self.weight.astype(np.float64), axis=0).max())
        return math.sqrt(3) * steepest * float(np.abs(features).max()) / largest

    @property
    def sha256(self) -> str:
        """Digest of the weights and the bias, as `v1.LinearHead` says."""
        parts = (np.ascontiguousarray(part, "<f4") for part in (self.weight, self.bias))
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def fit_head(
    value: str,
    features: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    classes: int,
    *,
    method: v1.HeadMethod.ValueType = v1.HEAD_METHOD_RIDGE,
    l2: float = 1e-3,
    seed: int = 0,
) -> Head:
    """Fits a linear classifier in float64.

    Features are centred and scaled as a whole, which the weights then undo. Ridge solves least
    squares on one-hot labels in closed form; softmax minimises the cross-entropy by L-BFGS from
    small seeded weights.

    Args:
        value: Name of the value that the features are.
        features: [n, features].
        labels: [n], 0 to classes - 1; at least two different ones.
        classes: Number of classes; those without samples get no score worth having.
        method: Ridge or softmax.
        l2: Weight of the squared norm of the layer's weights, per sample; above 0.
        seed: Seed of the first weights.

    Raises:
        ProbesDoNotFit: Fewer than two different labels, or some out of range.
        ValueError: `l2` or `method` is out of range.
    """
    solvers = {v1.HEAD_METHOD_RIDGE: _ridge, v1.HEAD_METHOD_SOFTMAX: _softmax}
    if l2 <= 0 or method not in solvers:
        raise ValueError(f"l2 is {l2} and method {method}; expected above 0, ridge or softmax")
    found = np.unique(labels).tolist()
    within = bool(found) and found[0] >= 0 and found[-1] < classes
    if len(found) < _LEAST_CLASSES or not within or len(labels) != len(features):
        raise ProbesDoNotFit(
            f"a linear head needs a label from 0 to {classes - 1} for each probe, and at least two "
            f"different ones; given are {len(labels)} for {len(features)} probes, with "
            f"{len(found)} different: {found[:_LISTED]}",
            field="linear_head",
        )
    x = torch.from_numpy(features.astype(np.float64))
    targets = torch.nn.functional.one_hot(torch.from_numpy(labels), classes).double()
    mean, scale = x.mean(0), x.std().clamp_min(1e-12)
    weight, bias = solvers[method]((x - mean) / scale, targets, l2, seed)
    weight = weight / scale
    bias = bias - mean @ weight
    return Head(value, weight.numpy().astype(np.float32), bias.numpy().astype(np.float32))


def _ridge(x: Tensor, targets: Tensor, l2: float, _: int) -> tuple[Tensor, Tensor]:
    """Returns argmin |x w + b - targets|^2 + n l2 |w|^2, in the smaller of its two forms."""
    bias = targets.mean(0)
    rows, width = x.shape
    if width <= rows:
        gram = x.T @ x + rows * l2 * torch.eye(width, dtype=x.dtype)
        return torch.linalg.solve(gram, x.T @ (targets - bias)), bias
    gram = x @ x.T + rows * l2 * torch.eye(rows, dtype=x.dtype)
    return x.T @ torch.linalg.solve(gram, targets - bias), bias


def _softmax(x: Tensor, targets: Tensor, l2: float, seed: int) -> tuple[Tensor, Tensor]:
    """Returns argmin of the mean cross-entropy + l2 / 2 |w|^2."""
    generator = np.random.Generator(np.random.Philox(seed))
    shape = (x.shape[1], targets.shape[1])
    weight = torch.from_numpy(_SPREAD * generator.standard_normal(shape)).requires_grad_()
    bias = torch.zeros(shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_ITERATIONS, tolerance_grad=1e-9, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        entropy = -(targets * torch.log_softmax(x @ weight + bias, 1)).sum(1).mean()
        total = entropy + l2 / 2 * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call] # torch leaves it untyped
    return weight.detach(), bias.detach()
