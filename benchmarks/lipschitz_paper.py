"""The paper's bounds on AlexNet (Szegedy et al. 2013, section 4.3, table 5) beside proved ones.

    python benchmarks/lipschitz_paper.py

Layers of the paper's shapes with random weights, by three ways: the formula for convolutions as
printed, the formula with the right power of the stride, and bounds with proof and witness. Then the
two layers that the paper takes to be contractive, by the inputs that they do amplify.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lipschitz_layers import alexnet

from onnx_auditors.lipschitz import OperatorSpec, operator_bounds
from onnx_auditors.lipschitz.normalising import response

PAPER = {
    "conv1": 2.75, "conv2": 10.0, "conv3": 7.0, "conv4": 7.5, "conv5": 11.0,
    "fc1": 3.12, "fc2": 4.0, "fc3": 4.0,
}  # fmt: skip
_LRN_SIZE, _LRN_BETA = 5, 0.75


def by_frequency(spec: OperatorSpec, power: float) -> float:
    """Returns the largest norm over frequencies of stride^power times the matrix of the paper.

    Row d holds the transforms of the kernels of output d at all frequencies that the stride
    folds onto one: [out, in * stride^2], on a grid finer than the map. Printed: power -2.
    """
    stride, side = spec.stride[0], spec.output_shape[1] + 3
    spectrum = torch.fft.fft2(spec.w, (stride * side, stride * side))
    folded = spectrum.unflatten(3, (stride, side)).unflatten(2, (stride, side))
    matrices = folded.permute(3, 5, 0, 1, 2, 4).flatten(3)
    # The other half of the plane has the conjugates.
    matrices = matrices[: side // 2 + 1].flatten(0, 1) * stride**power
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.mH
    grams = (m @ m.mH for m in torch.split(matrices, 64))
    return math.sqrt(max(float(torch.linalg.eigvalsh(g)[:, -1].max()) for g in grams))


def layers() -> None:
    print("| layer | table 5 | random weights: as printed | corrected | proved lower | upper |")
    print("|---|---|---|---|---|---|")
    totals = [1.0] * 5
    for name, spec in alexnet():
        bound = operator_bounds(spec, entropy=0)
        printed = corrected = bound.upper
        if spec.kind == "conv":
            printed, corrected = by_frequency(spec, -2), by_frequency(spec, -1)
        row = [PAPER[name], printed, corrected, bound.lower, bound.upper]
        totals = [t * r for t, r in zip(totals, row, strict=True)]
        print(f"| {name} | " + " | ".join(f"{r:.4g}" for r in row) + " |", flush=True)
    print("| product | " + " | ".join(f"{t:.4g}" for t in totals) + " |")


def pooling() -> None:
    print("\n| max pooling | bound | attained by one entry |")
    print("|---|---|---|")
    for kernel, stride in ((2, 2), (3, 2), (3, 1)):
        x = torch.zeros(1, 1, 9, 9)
        moved = x.clone()
        moved[0, 0, 4, 4] = 1.0
        pool = nn.MaxPool2d(kernel, stride)
        attained = float((pool(moved) - pool(x)).norm())
        print(f"| {kernel}x{kernel}, stride {stride} | {-(-kernel // stride)} | {attained:.6g} |")


def normalisation(norm: str, channels: int = 15, starts: int = 64, steps: int = 300) -> float:
    """Returns the largest norm of an LRN Jacobian that gradient ascent finds, k = 1."""
    torch.manual_seed(0)
    layer = nn.LocalResponseNorm(_LRN_SIZE, alpha=float(_LRN_SIZE), beta=_LRN_BETA, k=1.0)
    x = torch.randn(starts, channels, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.02)

    def one(point: Tensor) -> Tensor:
        value: Tensor = layer(point[None, :, None])
        return value.flatten()

    best = 0.0
    for _ in range(steps):
        jacobians = torch.func.vmap(torch.func.jacrev(one))(x)
        if norm == "l2":
            values = torch.linalg.svdvals(jacobians)[:, 0]
        else:
            values = jacobians.abs().sum(1 if norm == "l1" else 2).amax(1)
        best = max(best, float(values.detach().max()))
        optimizer.zero_grad()
        (-values.sum()).backward()
        optimizer.step()
    return best


def main() -> None:
    torch.manual_seed(0)
    layers()
    pooling()
    print(f"\n| LRN, size {_LRN_SIZE}, beta {_LRN_BETA}, k = 1 | bound | found by ascent |")
    print("|---|---|---|")
    for norm in ("linf", "l1", "l2"):
        bound = response(_LRN_SIZE, _LRN_BETA, 1.0, norm)
        print(f"| {norm} | {bound:.6g} | {normalisation(norm):.6g} |")
    print(f"\nWith AlexNet's k = 2 all of them are {math.pow(2, -_LRN_BETA):.4f} times as large.")


if __name__ == "__main__":
    main()
