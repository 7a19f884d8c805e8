"""Simpler forms of an operator with the same norm: diagonals folded, axes split off, prescaled."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from onnx_auditors.lipschitz.operator import LinearOperator, compose, from_spec
from onnx_auditors.lipschitz.spec import OperatorSpec


def exponent_of(tensor: Tensor) -> int:
    """Returns e where the largest absolute entry is in [2^e, 2^(e + 1)); 0 without any."""
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    return math.frexp(largest)[1] - 1 if largest > 0 else 0


def _divided(tensor: Tensor, exponent: int) -> Tensor:
    # In two steps, as 2^-e of the smallest numbers has no float64.
    half = exponent // 2
    return tensor * math.ldexp(1.0, -half) * math.ldexp(1.0, half - exponent)


def prescaled(operator: LinearOperator) -> tuple[LinearOperator, int]:
    """Returns the map with every layer divided by a power of two, which is exact.

    Returns:
        The map with its largest entries in [1, 2), and the exponent of what it was divided by.
    """
    if operator.parts:
        scaled = [prescaled(part) for part in operator.parts]
        return compose(*(part for part, _ in scaled)), sum(exponent for _, exponent in scaled)
    spec = operator.spec
    if spec is None:
        return operator, 0
    if spec.kind == "separable":
        exponents = [exponent_of(f) for f in spec.factors]
        pairs = zip(spec.factors, exponents, strict=True)
        small = replace(spec, factors=tuple(_divided(f, e) for f, e in pairs))
    else:
        exponents = [exponent_of(spec.w)]
        small = replace(spec, weight=_divided(spec.w, exponents[0]))
    return from_spec(small, operator.device), sum(exponents)


def fold(operator: LinearOperator) -> LinearOperator:
    """Returns the same map with diagonals folded into the convolutions and matrices beside them.

    Only such diagonals as have one factor per channel (or per output of a matrix) fold: those of
    a batch normalisation. Zero padding stays zero under them.
    """
    if not operator.parts:
        return operator
    parts: list[LinearOperator] = []
    for part in operator.parts:
        parts.append(part)
        while len(parts) > 1:
            merged = _merge(parts[-2].spec, parts[-1].spec)
            if merged is None:
                break
            parts[-2:] = [from_spec(merged, operator.device)]
    return compose(*parts)


def _merge(first: OperatorSpec | None, second: OperatorSpec | None) -> OperatorSpec | None:
    if first is None or second is None:
        return None
    if first.kind == second.kind == "diagonal":
        return replace(first, weight=(first.w * second.w).expand(first.input_shape))
    if second.kind == "diagonal":
        return _scaled_outputs(first, second)
    return _scaled_inputs(first, second) if first.kind == "diagonal" else None


def _scaled_outputs(layer: OperatorSpec, diagonal: OperatorSpec) -> OperatorSpec | None:
    factors = _per_channel(diagonal, -1 if layer.kind == "dense" else 0)
    if factors is None or layer.kind == "separable":
        return None
    weight, groups = layer.w, layer.groups
    if layer.kind == "conv_transpose":
        by_group = weight.reshape(groups, -1, *weight.shape[1:])
        scale = factors.reshape(groups, 1, -1, *[1] * layer.map_rank)
        return replace(layer, weight=(by_group * scale).reshape(weight.shape))
    return replace(layer, weight=weight * factors.reshape(-1, *[1] * (weight.ndim - 1)))


def _scaled_inputs(diagonal: OperatorSpec, layer: OperatorSpec) -> OperatorSpec | None:
    factors = _per_channel(diagonal, -1 if layer.kind == "dense" else 0)
    if factors is None or layer.kind == "separable":
        return None
    weight, groups = layer.w, layer.groups
    if layer.kind == "dense":
        return replace(layer, weight=weight * factors)
    if layer.kind == "conv_transpose":
        return replace(layer, weight=weight * factors.reshape(-1, *[1] * (weight.ndim - 1)))
    by_group = weight.reshape(groups, -1, *weight.shape[1:])
    scale = factors.reshape(groups, 1, -1, *[1] * layer.map_rank)
    return replace(layer, weight=(by_group * scale).reshape(weight.shape))


def _per_channel(diagonal: OperatorSpec, axis: int) -> Tensor | None:
    """One factor per position of an axis, where the diagonal is constant along all others."""
    full = diagonal.w.expand(diagonal.input_shape).movedim(axis, 0).flatten(1)
    same = bool((full == full[:, :1]).all())
    return full[:, 0] if same else None


def reduced(spec: OperatorSpec) -> list[OperatorSpec]:
    """Returns layers the product of whose L2 norms is the norm of `spec`.

    A Kronecker product has the product of the norms; axes that a layer leaves alone do not count;
    the transpose has the same norm.
    """
    if spec.kind == "separable":
        return [OperatorSpec("dense", (f.shape[1],), weight=f) for f in spec.factors]
    if spec.kind == "dense":
        return [replace(spec, input_shape=spec.input_shape[-1:])]
    if spec.kind == "diagonal":
        return [spec]
    return [_without_idle_axes(spec.as_conv())]


def _without_idle_axes(conv: OperatorSpec) -> OperatorSpec:
    """A 1x1 convolution without padding is one matrix, however large the map."""
    if any(conv.reach) or any(conv.pads):
        return conv
    groups = conv.groups
    if groups == 1:
        return OperatorSpec("dense", (conv.w.shape[1],), weight=conv.w.flatten(1))
    ones = (1,) * conv.map_rank
    return replace(conv, input_shape=(conv.input_shape[0], *ones), stride=ones)


def lifted(operator: LinearOperator, spec: OperatorSpec, witnesses: list[Tensor]) -> Tensor:
    """Returns the input of `operator` that attains what `witnesses` attain in `reduced(spec)`.

    Args:
        operator: The operator of `spec`.
        spec: The layer.
        witnesses: Inputs of the reduced layers.

    Returns:
        [1, *input_shape].
    """
    if spec.kind == "conv_transpose":
        conv = spec.as_conv()
        output = torch.zeros(1, *spec.output_shape, dtype=torch.float64, device=operator.device)
        inner = tuple(slice(n) for n in conv.input_shape)
        output[0][inner] = lifted(operator, conv, witnesses)[0]
        return operator.adjoint(output)
    full = torch.zeros(1, *spec.input_shape, dtype=torch.float64, device=operator.device)
    if spec.kind == "separable":
        product = witnesses[0]
        for w in witnesses[1:]:
            product = product[..., None] * w
        full[(0,) * (full.ndim - len(witnesses))] = product
    elif spec.kind == "dense":
        full[(0,) * (full.ndim - 1)] = witnesses[0]
    elif witnesses[0].numel() == spec.input_shape[0] != full.numel():
        full[0].flatten(1)[:, 0] = witnesses[0].flatten()
    else:
        full[0] = witnesses[0].reshape(spec.input_shape)
    return full
