"""Operators that are linear in their input: products and convolutions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from onnx_auditors.network.node import Node
from onnx_auditors.network.registry import Function, operator, plain
from onnx_auditors.network.windows import (
    pad_amounts,
    read_transposed_window,
    read_window,
)

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


@operator("ConvTranspose")
def conv_transpose(node: Node) -> Function:
    """The adjoint of a convolution; padding crops its output, output_padding extends it."""
    window = read_transposed_window(node)
    groups = node.integer("group", 1)
    axes = len(window.kernel)
    convolve = (
        functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d
    )[axes - 1]  # fmt: skip
    native = window.begin == window.end and min(window.begin) >= 0
    cropped = pad_amounts([-b for b in window.begin], [-e for e in window.end])
    shape = [1, -1] + [1] * axes

    def function(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        if native:
            return convolve(
                x, w, b, window.strides, window.begin, groups=groups, dilation=window.dilations
            )
        full = convolve(x, w, None, window.strides, groups=groups, dilation=window.dilations)
        y = functional.pad(full, cropped)
        return y if b is None else y + b.reshape(shape)

    return function


@operator("Einsum", since=12)
def einsum(node: Node) -> Function:
    """Sums products along the axes that an equation names."""
    equation = node.text("equation").replace(" ", "")
    return lambda *tensors: torch.einsum(equation, *tensors)


plain({"Det": torch.det})


@operator("Col2Im", since=18)
def columns_to_image(node: Node) -> Function:
    """Adds blocks, given as columns, up to an image; the adjoint of cutting it into blocks."""
    image, kernel = node.constant_ints(1), node.constant_ints(2)
    window = read_window(node, kernel, sizes=image)
    sizes = [b + n + e for b, n, e in zip(window.begin, image, window.end, strict=True)]
    places = torch.from_numpy(window.places(sizes))
    cropped = pad_amounts([-b for b in window.begin], [-e for e in window.end])
    channels = node.shape()[1] // math.prod(kernel)

    def function(x: Tensor) -> Tensor:
        blocks = x.reshape(x.shape[0], channels, -1)
        plane = x.new_zeros(x.shape[0], channels, math.prod(sizes))
        plane = plane.index_add(2, places.reshape(-1).to(x.device), blocks)
        return functional.pad(plane.reshape(x.shape[0], channels, *sizes), cropped)

    return function
