"""Searches for what bounds must not cross: steep points, and other answers in a ball."""

from __future__ import annotations

import math
from typing import Literal

import torch

from onnx_auditors.network import Network, load

Norm = Literal["l1", "l2", "linf"]


def points(network: Network, count: int, seed: int = 0) -> torch.Tensor:
    """Draws points in [0, 1], [count, *sample shape]."""
    draws = torch.Generator().manual_seed(seed)
    shape = tuple(network.input.shape[1:])
    return torch.rand(count, *shape, generator=draws, dtype=torch.float64)


def jacobian_norms(network: Network, x: torch.Tensor, norm: Norm) -> tuple[float, torch.Tensor]:
    """Largest norm of Jacobians at points, by dense matrices, and of pairs' gradients."""
    wide = load(network.original, floating=torch.float64)

    def one(p: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = wide(p[None])[0].reshape(-1)
        return scores

    jacobian = torch.autograd.functional.jacobian
    dense = torch.stack([jacobian(one, p).flatten(1) for p in x])  # type: ignore[no-untyped-call]
    if norm == "l2":
        largest = torch.linalg.matrix_norm(dense, 2).max()
    else:
        largest = dense.abs().sum(2 if norm == "linf" else 1).max()
    dual = {"l1": math.inf, "l2": 2.0, "linf": 1.0}[norm]
    apart = dense[:, :, None] - dense[:, None]
    return float(largest), torch.linalg.vector_norm(apart, dual, dim=-1).amax(0)


def attack(
    network: Network, x: torch.Tensor, labels: torch.Tensor, radius: torch.Tensor, norm: str
) -> torch.Tensor:
    """Least margin that projected gradient descent finds in balls inside the box [0, 1]."""
    wide = load(network.original, floating=torch.float64)
    least = torch.full((len(x),), math.inf, dtype=torch.float64)
    size = radius.reshape(-1, *[1] * (x.dim() - 1))
    draws = torch.Generator().manual_seed(0)
    for _ in range(2):
        move = size * (2 * torch.rand(x.shape, generator=draws, dtype=torch.float64) - 1)
        for step in range(20):
            at = inside(x, move, size, norm).requires_grad_()
            scores = torch.cat([wide(p[None]).reshape(1, -1) for p in at])
            own = scores.gather(1, labels[:, None])[:, 0]
            margin = own - scores.scatter(1, labels[:, None], -math.inf).amax(1)
            least = torch.minimum(least, margin.detach())
            (slope,) = torch.autograd.grad(margin.sum(), at)
            flat = slope.flatten(1).norm(dim=1).clamp(min=1e-12).reshape(size.shape)
            way = slope.sign() if norm == "linf" else slope / flat
            move = at.detach() - x - size * way * (0.5 if step < 10 else 0.1)
    return least


def inside(x: torch.Tensor, move: torch.Tensor, size: torch.Tensor, norm: str) -> torch.Tensor:
    """Returns points moved inside balls of some sizes and the box [0, 1]."""
    if norm == "linf":
        move = torch.maximum(torch.minimum(move, size), -size)
    else:
        length = move.flatten(1).norm(dim=1).clamp(min=1e-12).reshape(size.shape)
        move = move * (size / length).clamp(max=1)
    return (x + move).clamp(0, 1)
