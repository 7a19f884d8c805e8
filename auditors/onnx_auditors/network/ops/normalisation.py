"""Normalisation, as it works outside training."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from onnx_auditors.network.node import Node
from onnx_auditors.network.registry import Function, operator


@operator("BatchNormalization", since=9)
def batch_normalization(node: Node) -> Function:
    """Normalises each channel with stored statistics."""
    node.ignore("momentum")  # for training alone
    if node.integer("training_mode", 0):
        node.refuse("training_mode is on; export the model for inference")
    epsilon = node.number("epsilon", 1e-5)

    def function(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        mean, variance, scale, bias = (p.to(x.dtype) for p in (mean, variance, scale, bias))
        return functional.batch_norm(x, mean, variance, scale, bias, eps=epsilon)

    return function


@operator("InstanceNormalization", since=6)
def instance_normalization(node: Node) -> Function:
    """Normalises each channel of each sample with its own statistics."""
    epsilon = node.number("epsilon", 1e-5)
    axes = list(range(2, len(node.shape())))
    shape = [1, -1] + [1] * len(axes)

    def function(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        centred = x - x.mean(axes, keepdim=True)
        variance = centred.square().mean(axes, keepdim=True)
        return centred / torch.sqrt(variance + epsilon) * scale.reshape(shape) + bias.reshape(shape)

    return function


@operator("LayerNormalization", since=17)
def layer_normalization(node: Node) -> Function:
    """Normalises over the last axes; can also return mean and inverse standard deviation."""
    node.ignore("stash_type")  # statistics are in the network's floating type in any case
    epsilon = node.number("epsilon", 1e-5)
    rank = len(node.shape())
    axes = list(range(node.integer("axis", -1) % rank, rank))
    statistics = node.wants(1) or node.wants(2)
    last = node.shape()[axes[0] :]
    if not statistics and all(node.shape(i) == last for i in (1, 2) if node.present(i)):
        # One call in the place of eight, and one pass over the values each way.
        return lambda x, scale, bias=None: functional.layer_norm(x, last, scale, bias, epsilon)

    def function(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:  # noqa: ANN401 - one tensor or three
        mean = x.mean(axes, keepdim=True)
        centred = x - mean
        inverse = torch.rsqrt(centred.square().mean(axes, keepdim=True) + epsilon)
        y = centred * inverse * scale
        y = y if bias is None else y + bias
        return (y, mean, inverse) if statistics else y

    return function


@operator("RMSNormalization", since=23)
def rms_normalization(node: Node) -> Function:
    """Divides by the root mean square over the last axes."""
    node.ignore("stash_type")
    epsilon = node.number("epsilon", 1e-5)
    rank = len(node.shape())
    axes = list(range(node.integer("axis", -1) % rank, rank))

    def function(x: Tensor, scale: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale

    return function


@operator("GroupNormalization", since=21)
def group_normalization(node: Node) -> Function:
    """Normalises groups of channels, then scales each channel."""
    node.ignore("stash_type")
    groups, epsilon = node.integer("num_groups"), node.number("epsilon", 1e-5)
    shape = [1, -1] + [1] * (len(node.shape()) - 2)

    def function(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        grouped = x.reshape(x.shape[0], groups, -1)
        centred = grouped - grouped.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        y = (centred * torch.rsqrt(variance + epsilon)).reshape(x.shape)
        return y * scale.reshape(shape) + bias.reshape(shape)

    return function


@operator("LpNormalization")
def lp_normalization(node: Node) -> Function:
    """Divides by the norm along an axis; 0 where that is 0."""
    axis, power = node.integer("axis", -1), node.integer("p", 2)

    def function(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, power, axis, keepdim=True)
        return x / torch.where(norm == 0, 1, norm)

    return function


@operator("MeanVarianceNormalization", since=9)
def mean_variance_normalization(node: Node) -> Function:
    """Subtracts the mean and divides by the standard deviation."""
    axes = node.integers("axes", [0, 2, 3])

    def function(x: Tensor) -> Tensor:
        centred = x - x.mean(axes, keepdim=True)
        # The constant is that of ONNX's definition.
        return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)

    return function


@operator("LRN")
def local_response_normalization(node: Node) -> Function:
    """Divides by a power of the energy in neighbouring channels; ONNX's window, not torch's."""
    size = node.integer("size")
    alpha, beta = node.number("alpha", 1e-4), node.number("beta", 0.75)
    bias = node.number("bias", 1.0)
    before, after = (size - 1) // 2, math.ceil((size - 1) / 2)

    def function(x: Tensor) -> Tensor:
        squares = x.square().flatten(2).transpose(1, 2)
        energy = functional.pad(squares, [before, after]).unfold(-1, size, 1).sum(-1)
        return x / (bias + alpha / size * energy.transpose(1, 2).reshape(x.shape)) ** beta

    return function
