"""Operators on quantised integers, held as floats so that gradients pass through them.

Rounding and clipping pass the gradient on where nothing was clipped (a clipped straight-through
estimator), so that a quantised model has the gradients of the model it was made from.
"""

from __future__ import annotations

import math

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional

from onnx_auditors.network.node import Node
from onnx_auditors.network.ops.casting import FLOAT8, to_float4, to_float8
from onnx_auditors.network.registry import Function, operator
from onnx_auditors.network.surrogate import straight_through
from onnx_auditors.network.windows import pad_amounts, read_window

RANGES: dict[int, tuple[int, int]] = {
    TensorProto.INT2: (-2, 1), TensorProto.UINT2: (0, 3),
    TensorProto.INT4: (-8, 7), TensorProto.UINT4: (0, 15),
    TensorProto.INT8: (-(2**7), 2**7 - 1), TensorProto.UINT8: (0, 2**8 - 1),
    TensorProto.INT16: (-(2**15), 2**15 - 1), TensorProto.UINT16: (0, 2**16 - 1),
}  # fmt: skip
"""Smallest and largest number of the types that values are quantised to."""

_EXACT_PRODUCTS = 2**24 // 2**16
"""Terms of which a sum of products of 8-bit numbers is exact in single precision."""


def quantize(x: Tensor, scale: Tensor, zero: Tensor | None, limits: tuple[int, int]) -> Tensor:
    """Returns round(x / scale) + zero, within the limits; ties go to the even integer."""
    shift = x.new_zeros(()) if zero is None else zero.to(x.dtype)
    clipped = torch.clamp(x / scale, limits[0] - shift, limits[1] - shift)
    return straight_through(clipped, torch.round(clipped)) + shift


def dequantize(x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Returns (x - zero) scale."""
    return _centred(x, zero, scale.dtype) * scale


def _centred(x: Tensor, zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if zero is None else x.to(dtype) - zero.to(dtype)


def _limits(node: Node, element_type: int) -> tuple[int, int]:
    if element_type not in RANGES:
        node.refuse(f"quantising to {TensorProto.DataType.Name(element_type)} is not covered")
    node.declare(element_type)
    return RANGES[element_type]


def _spread(node: Node) -> Function:
    """Returns the function that brings scale and zero point into the shape of the input.

    They are one for all, one for each index along an axis, or one for each block along it.
    """
    shape, given = node.shape(), node.shape(1)
    axis, block = node.integer("axis", 1), node.integer("block_size", 0)
    if math.prod(given) == 1 and not block:
        return lambda p: None if p is None else p.reshape(())
    if axis < -len(shape) or axis >= len(shape):
        node.refuse(f"axis {axis} is out of range")
    axis %= len(shape)
    if block:
        size = shape[axis]
        return lambda p: (
            None if p is None else _plain(p).repeat_interleave(block, axis).narrow(axis, 0, size)
        )
    target = [-1 if i == axis else 1 for i in range(len(shape))]
    return lambda p: None if p is None else p.reshape(target)


def _plain(x: Tensor) -> Tensor:
    """Widens types that torch cannot move around."""
    return x.to(torch.int64) if x.dtype in {torch.uint16, torch.uint32, torch.uint64} else x


@operator("QuantizeLinear", since=10, surrogate=True, carries=True)
def quantize_linear(node: Node) -> Function:
    """Divides by a scale, rounds, shifts and clips."""
    given = node.integer("output_dtype", 0) or TensorProto.UINT8
    to = node.element_type(2) if node.present(2) else given
    saturate = bool(node.integer("saturate", 1))
    if node.integer("precision", 0) not in {0, TensorProto.FLOAT}:
        node.refuse("only single precision is covered")
    spread = _spread(node)
    if to in FLOAT8 or to == TensorProto.FLOAT4E2M1:
        node.declare(to)

        def narrow(x: Tensor, scale: Tensor, _: Tensor | None = None) -> Tensor:
            scaled = x.to(scale.dtype) / spread(scale)
            if to == TensorProto.FLOAT4E2M1:
                return to_float4(scaled)
            return to_float8(scaled, FLOAT8[to], saturate=saturate)

        return narrow
    limits = _limits(node, to)
    floating = node.floating

    def function(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        x = x if x.is_floating_point() else x.to(floating)
        return quantize(x, spread(scale).to(x.dtype), spread(zero), limits)

    return function


@operator("DequantizeLinear", since=10, carries=True)
def dequantize_linear(node: Node) -> Function:
    """Subtracts the zero point and multiplies by the scale."""
    dtype = node.dtype(node.integer("output_dtype", 0) or TensorProto.FLOAT)
    node.declare(TensorProto.FLOAT)
    spread = _spread(node)

    def function(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        scale = scale if scale.itemsize > 1 else scale.to(dtype)
        if zero is not None and zero.itemsize == 1 and zero.is_floating_point():
            zero = zero.to(dtype)
        return dequantize(x, spread(scale), spread(zero)).to(dtype)

    return function


@operator("DynamicQuantizeLinear", since=11, surrogate=True, carries=True)
def dynamic_quantize_linear(node: Node) -> Function:
    """Quantises to uint8 by the range of the values, which includes 0."""
    low, high = RANGES[TensorProto.UINT8]
    node.declare(TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8)

    def function(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = x.detach()
        smallest, largest = values.amin().clamp(max=0), values.amax().clamp(min=0)
        scale = (largest - smallest) / (high - low)
        scale = torch.where(scale == 0, 1.0, scale)
        zero = torch.round(torch.clamp(-smallest / scale, low, high))
        return quantize(x, scale, zero, (low, high)), scale, zero

    return function


def _exact(node: Node, terms: int) -> torch.dtype:
    """Returns a dtype in which sums of that many products of 8-bit integers are exact."""
    return node.floating if terms <= _EXACT_PRODUCTS else torch.float64


def _per_row(zero: Tensor | None) -> Tensor | None:
    return zero if zero is None or zero.dim() != 1 or zero.numel() == 1 else zero.unsqueeze(-1)


@operator("MatMulInteger", since=10, carries=True)
def matmul_integer(node: Node) -> Function:
    """Matrix product of integers less their zero points; one per row or column."""
    dtype = _exact(node, node.shape()[-1])
    node.declare(TensorProto.INT32)

    def function(
        a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
    ) -> Tensor:
        return _centred(a, _per_row(a_zero), dtype) @ _centred(b, b_zero, dtype)

    return function


def _convolution(node: Node, weight: int) -> Function:
    """Returns the function from centred inputs and weights to their convolution."""
    window = read_window(node, node.shape(weight)[2:])
    groups = node.integer("group", 1)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[len(window.kernel) - 1]
    amounts = pad_amounts(window.begin, window.end)
    return lambda x, w: convolve(
        functional.pad(x, amounts), w, None, window.strides, 0, window.dilations, groups
    )


def _per_channel(p: Tensor | None, rank: int) -> Tensor | None:
    """One for each output channel, in the shape of the weights."""
    return p if p is None or p.numel() == 1 else p.reshape(-1, *[1] * (rank - 1))


@operator("ConvInteger", since=10, carries=True)
def conv_integer(node: Node) -> Function:
    """Convolution of integers less their zero points."""
    convolve = _convolution(node, weight=1)
    rank = len(node.shape(1))
    dtype = _exact(node, math.prod(node.shape(1)[1:]))
    node.declare(TensorProto.INT32)

    def function(
        x: Tensor, w: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
    ) -> Tensor:
        centred = _centred(w, _per_channel(w_zero, rank), dtype)
        total: Tensor = convolve(_centred(x, x_zero, dtype), centred)
        return total

    return function


@operator("QLinearConv", since=10, surrogate=True, carries=True)
def qlinear_conv(node: Node) -> Function:
    """Convolution of quantised values, quantised again."""
    convolve = _convolution(node, weight=3)
    rank = len(node.shape(3))
    limits = _limits(node, node.element_type(7))
    channel = [-1] + [1] * (rank - 2)

    def function(
        x: Tensor, x_scale: Tensor, x_zero: Tensor, w: Tensor, w_scale: Tensor, w_zero: Tensor,
        y_scale: Tensor, y_zero: Tensor, bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        dtype = x_scale.dtype
        total = convolve(_centred(x, x_zero, dtype), _centred(w, _per_channel(w_zero, rank), dtype))
        if bias is not None:
            total = total + bias.to(dtype).reshape(channel)
        factor = (x_scale * w_scale / y_scale).reshape(channel)
        return quantize(total * factor, torch.ones_like(y_scale), y_zero, limits)

    return function


@operator("QLinearMatMul", since=10, surrogate=True, carries=True)
def qlinear_matmul(node: Node) -> Function:
    """Matrix product of quantised values, quantised again."""
    limits = _limits(node, node.element_type(7))

    def function(
        a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor,
        y_scale: Tensor, y_zero: Tensor,
    ) -> Tensor:  # fmt: skip
        dtype = a_scale.dtype
        rows_scale = a_scale.unsqueeze(-1) if a_scale.numel() > 1 else a_scale
        total = _centred(a, _per_row(a_zero), dtype) @ _centred(b, b_zero, dtype)
        factor = rows_scale * b_scale / y_scale
        return quantize(total * factor, torch.ones_like(y_scale), y_zero, limits)

    return function
