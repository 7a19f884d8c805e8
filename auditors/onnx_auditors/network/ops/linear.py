"""Operators that are linear in their input: products and convolutions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from onnx_auditors.network.node import Node
from onnx_auditors.network.registry import Function, operator, plain
from onnx_auditors.network.windows import pad_amounts, read_window

plain({"MatMul": torch.matmul})


@operator("Gemm", since=11)
def gemm(node: Node) -> Function:
    """Computes alpha A B + beta C with either matrix transposed."""
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    left, right = node.integer("transA", 0), node.integer("transB", 0)
    vector = not node.present(2) or (len(node.shape(2)) == 1 and node.shape(2)[0] > 1)
    if alpha == 1 and beta == 1 and not left and right and vector:
        return functional.linear

    def function(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        product = alpha * ((a.mT if left else a) @ (b.mT if right else b))
        return product if c is None else product + beta * c

    return function


@operator("Conv", since=11)
def conv(node: Node) -> Function:
    """Convolution over one to three axes, with any padding."""
    weight = node.shape(1)
    window = read_window(node, kernel=weight[2:])
    axes = len(window.kernel)
    groups = node.integer("group", 1)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[axes - 1]
    symmetric = window.begin == window.end
    padding = window.begin if symmetric else [0] * axes
    amounts = pad_amounts(window.begin, window.end)

    def function(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        if not symmetric:
            x = functional.pad(x, amounts)
        return convolve(x, w, b, window.strides, padding, window.dilations, groups)

    return function
