"""Layers to bound, random and adversarial, and their matrices written out entry by entry."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from onnx_auditors.lipschitz import OperatorSpec

Matrix = npt.NDArray[np.float64]
Named = tuple[str, OperatorSpec]


def matrix_of(spec: OperatorSpec) -> Matrix:
    """Returns the layer as a matrix [outputs, inputs], from the definition, with numpy alone."""
    if spec.kind == "dense":
        lead = math.prod(spec.input_shape[:-1])
        return np.kron(np.eye(lead), spec.w.numpy())
    if spec.kind == "diagonal":
        return np.diag(np.broadcast_to(spec.w.numpy(), spec.input_shape).ravel())
    if spec.kind == "separable":
        lead = math.prod(spec.input_shape[: -len(spec.factors)])
        whole: Matrix = np.eye(lead)
        for factor in spec.factors:
            whole = np.kron(whole, factor.numpy())
        return whole
    forward = spec.kind == "conv"
    fine, coarse = (
        (spec.input_shape, spec.output_shape) if forward else (spec.output_shape, spec.input_shape)
    )
    found = np.zeros((*coarse, *fine))
    weight = spec.w.numpy()
    per_group = weight.shape[0] // spec.groups
    for tap in itertools.product(*(range(k) for k in weight.shape[2:])):
        for at in itertools.product(*(range(m) for m in coarse[1:])):
            read = [
                s * i + d * t - p
                for s, i, d, t, p in zip(
                    spec.stride, at, spec.dilations, tap, spec.pads, strict=False
                )
            ]
            if not all(0 <= f < n for f, n in zip(read, fine[1:], strict=True)):
                continue
            for g in range(spec.groups):
                rows = slice(g * per_group, (g + 1) * per_group)
                columns = slice(g * weight.shape[1], (g + 1) * weight.shape[1])
                place: Any = (rows, *at, columns, *read)
                chosen: Any = (rows, slice(None), *tap)
                found[place] += weight[chosen]
    flat = found.reshape(math.prod(coarse), math.prod(fine))
    return flat if forward else flat.T


def largest_singular_value(spec: OperatorSpec) -> float:
    """Returns the norm in L2, scaled so that no scale of the layer is lost on the way."""
    matrix = matrix_of(spec)
    scale = float(np.abs(matrix).max()) or 1.0
    return float(np.linalg.svd(matrix / scale, compute_uv=False)[0]) * scale


def random_convolution(seed: int) -> OperatorSpec:
    """Returns a random convolution, transposed or not, small enough to write out."""
    rng = np.random.default_rng(seed)
    rank = int(rng.choice([1, 2, 2, 2, 3]))
    kernel = tuple(int(k) for k in rng.integers(1, 5, rank))
    groups = int(rng.choice([1, 1, 1, 2, 3]))
    taken, given = (groups * int(rng.integers(1, 5 if rank < 3 else 3)) for _ in range(2))
    stride = tuple(int(s) for s in rng.integers(1, 4, rank))
    dilations = tuple(int(d) for d in rng.integers(1, 4, rank))
    pads = tuple(int(p) for p in rng.integers(0, 3, 2 * rank))
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    side = tuple(r + int(rng.integers(1, {1: 20, 2: 7, 3: 3}[rank])) for r in reach)
    weight = torch.from_numpy(rng.standard_normal((given, taken // groups, *kernel)))
    if rng.random() < 0.4:  # All of one sign, as of a blur: the peak lies at frequency 0.
        weight = weight.abs()
    if rng.random() < 0.3:
        shape = (given, *(n // (2 * s) + 1 for n, s in zip(side, stride, strict=True)))
        most = [s - 1 for s in stride]
        padding = tuple(int(rng.integers(0, m + 1)) for m in most)
        # Cropping must leave something over.
        begins = [min(p, r) for p, r in zip(pads[:rank], reach, strict=True)]
        ends = [min(p, r - b) for p, r, b in zip(pads[rank:], reach, begins, strict=True)]
        spared = (*begins, *ends)
        return OperatorSpec(
            "conv_transpose", shape, weight, stride, spared, dilations, groups, padding
        )
    return OperatorSpec("conv", (taken, *side), weight, stride, pads, dilations, groups)


def random_layers(count: int) -> Iterator[Named]:
    """Returns random layers: convolutions, and a matrix now and then."""
    for seed in range(count):
        if seed % 8:
            yield f"random {seed}", random_convolution(seed)
            continue
        rng = np.random.default_rng(seed)
        taken, given = (int(n) for n in rng.integers(1, 150, 2))
        weight = rng.standard_normal((given, taken)) * rng.random(taken) ** 4
        yield f"random matrix {seed}", OperatorSpec("dense", (taken,), torch.from_numpy(weight))


def adversarial_layers() -> list[Named]:
    """Returns layers made to break bounds."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    def conv(
        weight: torch.Tensor, side: tuple[int, ...], stride: int = 1, pad: int = 0, groups: int = 1
    ) -> OperatorSpec:
        rank = len(side)
        shape = (weight.shape[1] * groups, *side)
        return OperatorSpec(
            "conv", shape, weight, (stride,) * rank, (pad,) * (2 * rank), groups=groups
        )

    def product(shape: tuple[int, ...], *factors: torch.Tensor) -> OperatorSpec:
        return OperatorSpec("separable", shape, factors=factors)

    found: list[Named] = []
    kernel = normal(4, 3, 3, 3)
    matrix = normal(40, 60)
    for exponent in (-300, -150, -12, -6, 6, 12, 150, 300):
        found.append((f"conv of scale 1e{exponent}", conv(kernel * 10.0**exponent, (6, 6), 1, 1)))
        dense = OperatorSpec("dense", (60,), matrix * 10.0**exponent)
        found.append((f"matrix of scale 1e{exponent}", dense))
    for gap in (0.0, 1e-15, 1e-12, 1e-8, 1e-5, 1e-3):
        u, v = (torch.linalg.qr(normal(80, 80)).Q for _ in range(2))
        values = torch.cat(
            [1 - gap * torch.linspace(0, 1, 20, dtype=torch.float64), u.new_full((60,), 0.5)]
        )
        found.append(
            (f"twenty values within {gap}", OperatorSpec("dense", (80,), u * values @ v.T))
        )
        spread = torch.linalg.qr(normal(9, 9)).Q.reshape(9, 9, 1, 1) * (
            1 + gap * normal(9, 9, 1, 1)
        )
        found.append((f"1x1 within {gap}", conv(spread, (5, 5))))
    unlike = normal(6, 1, 3, 3) * torch.logspace(-9, 0, 6)[:, None, None, None]
    wave = torch.cos(torch.arange(5.0) * 1.234).reshape(1, 1, 5)
    orders = 10.0 ** torch.linspace(-300, 0, 30, dtype=torch.float64)
    count = torch.arange(40.0)
    delta = torch.zeros(3, 3, 3, 3, dtype=torch.float64)
    delta[range(3), range(3), 1, 1] = 1
    found += [
        ("zero convolution", conv(torch.zeros(2, 2, 3, 3), (5, 5), 1, 1)),
        ("zero matrix", OperatorSpec("dense", (7,), torch.zeros(5, 7))),
        ("identity", conv(delta, (7, 7), 1, 1)),
        ("identity, all strides", conv(delta, (7, 7), 2, 1)),
        ("rank one matrix", OperatorSpec("dense", (50,), normal(30, 1) @ normal(1, 50))),
        ("rank one convolution", conv(torch.ones(3, 2, 3, 3), (8, 8), 1, 1)),
        ("one entry", OperatorSpec("dense", (1,), torch.tensor([[-3.0]]))),
        ("1x1", conv(normal(8, 5, 1, 1), (6, 6))),
        ("1x1 stride 2", conv(normal(8, 5, 1, 1), (7, 7), 2)),
        ("1x1 padded", conv(normal(4, 3, 1, 1), (3, 3), 1, 4)),
        ("16x16 stride 16", conv(normal(12, 3, 16, 16), (32, 32), 16)),
        ("11x11 stride 4", conv(normal(4, 2, 11, 11), (23, 23), 4)),
        ("depthwise", conv(normal(6, 1, 3, 3), (9, 9), 1, 1, groups=6)),
        ("depthwise of unlike scales", conv(unlike, (8, 8), 1, 1, groups=6)),
        ("depth multiplier 2", conv(normal(8, 1, 3, 3), (8, 8), 2, 1, groups=4)),
        ("blur on a small map", conv(torch.ones(1, 1, 5, 5), (4, 4), 1, 2)),
        ("kernel larger than the map", conv(normal(3, 3, 7, 7), (3, 3), 1, 3)),
        ("kernel reads padding alone", conv(normal(2, 2, 1, 1), (2, 2), 5, 3)),
        ("peak off the grid", conv(wave, (40,), 1, 2)),
        ("long filter", conv(normal(1, 1, 64), (64,), 1, 32)),
        ("entries over 300 orders", OperatorSpec("dense", (30,), normal(30, 30) * orders)),
        ("Hilbert matrix", OperatorSpec("dense", (40,), 1 / (count[:, None] + count + 1))),
        ("nilpotent", OperatorSpec("dense", (60,), torch.diag(torch.ones(59), 1))),
        ("matrix on rows", OperatorSpec("dense", (3, 4, 10), normal(7, 10))),
        ("diagonal", OperatorSpec("diagonal", (3, 4, 4), normal(3, 1, 1))),
        ("product over axes", product((2, 5, 6), normal(3, 5), normal(7, 6))),
        ("product with a zero", product((5, 6), normal(3, 5), torch.zeros(2, 6))),
        ("float32 weights", conv(normal(3, 3, 3, 3).float(), (6, 6), 1, 1)),
    ]  # fmt: skip
    return found
