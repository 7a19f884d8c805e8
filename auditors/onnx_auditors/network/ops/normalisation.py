"""Normalisation, as it works outside training."""

from __future__ import annotations

import math

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
    shape = [1, -1] + [1] * (len(node.shape()) - 2)

    def function(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        factor = scale / torch.sqrt(variance + epsilon)
        return x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)

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
    """Normalises over the last axes."""
    node.ignore("stash_type")  # statistics are in the network's floating type in any case
    epsilon = node.number("epsilon", 1e-5)
    rank = len(node.shape())
    axes = list(range(node.integer("axis", -1) % rank, rank))

    def function(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        centred = x - x.mean(axes, keepdim=True)
        variance = centred.square().mean(axes, keepdim=True)
        scaled = centred / torch.sqrt(variance + epsilon) * scale
        return scaled if bias is None else scaled + bias

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
