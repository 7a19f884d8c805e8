"""Changes of the element type."""

from __future__ import annotations

import torch
from onnx import TensorProto
from torch import Tensor

from onnx_auditors.network.node import NARROW, Node
from onnx_auditors.network.registry import Function, operator

FLOAT8: dict[int, torch.dtype] = {
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}
_BITS: dict[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
}
_SIGNED = frozenset({TensorProto.INT4, TensorProto.INT2})
_FLOAT4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
"""The non-negative numbers of float4 e2m1, by code."""


@operator("Cast", since=6, carries=True)
def cast(node: Node) -> Function:
    """Changes the element type; half precision is computed in the network's floating type."""
    return _cast(node, node.integer("to"))


@operator("CastLike", since=15, carries=True)
def cast_like(node: Node) -> Function:
    """Changes the element type to that of another tensor."""
    cast_to = _cast(node, node.element_type(1))
    return lambda x, _: cast_to(x)


def _cast(node: Node, to: int) -> Function:  # noqa: PLR0911 - one for each kind of type
    saturate = bool(node.integer("saturate", 1))
    mode = node.text("round_mode", "up")
    node.declare(to)
    value = node.inputs[0]
    if value is None:
        node.refuse("input 0 is missing")
    if to in FLOAT8:
        return lambda x: to_float8(x, FLOAT8[to], saturate=saturate)
    if to == TensorProto.FLOAT8E8M0:
        return _to_exponent(node, mode, saturate=saturate)
    if to == TensorProto.FLOAT4E2M1:
        return to_float4
    if to in _BITS:
        return lambda x: wrap(x, to)
    dtype = node.dtype(to)
    if value.is_carried and dtype.is_floating_point:
        return lambda x: x.to(dtype)
    source = value.materialised().meta.dtype
    if source.is_floating_point and dtype in {torch.uint16, torch.uint32, torch.uint64}:
        return lambda x: x.to(torch.int64).to(dtype)
    return lambda x: x.to(source).to(dtype)


def to_float8(x: Tensor, dtype: torch.dtype, *, saturate: bool) -> Tensor:
    """Rounds to an 8-bit float; what is too large becomes the largest number, or else infinite.

    Types without infinity have NaN in its place. Infinity itself saturates too, as ONNX says.
    """
    x = x.float()
    largest = torch.finfo(dtype).max
    if saturate:
        return x.clamp(-largest, largest).to(dtype)
    rounded = x.to(torch.float64)
    exponent = torch.frexp(torch.tensor(largest, dtype=torch.float64))[1].item() - 1
    half_step = 2.0 ** (exponent - _MANTISSA[dtype] - 1)
    # The largest number has an odd or even last digit; a tie rounds away where it is odd.
    odd = largest / 2.0 ** (exponent - _MANTISSA[dtype]) % 2 == 1
    limit = largest + half_step
    over = rounded.abs() >= limit if odd else rounded.abs() > limit
    beyond = torch.inf if dtype == torch.float8_e5m2 else torch.nan
    narrowed = x.clamp(-largest, largest).to(dtype).to(torch.float32)
    lost = torch.copysign(torch.full_like(x, beyond), x)
    return torch.where(over, lost, narrowed).to(dtype)


_MANTISSA = {torch.float8_e4m3fn: 3, torch.float8_e4m3fnuz: 3, torch.float8_e5m2: 2,
             torch.float8_e5m2fnuz: 2}  # fmt: skip


def to_float4(x: Tensor) -> Tensor:
    """Rounds to float4 e2m1, ties to the even code; what is too large becomes 6, NaN -0."""
    codes = _FLOAT4.to(x.device)
    middles = (codes[1:] + codes[:-1]) / 2
    size = x.float().abs()
    # Codes are even and odd in turn: a tie goes down from an odd code's lower side.
    below = torch.bucketize(size, middles)
    above = torch.bucketize(size, middles, right=True)
    code = torch.where(below % 2 == 0, below, above)
    value = torch.copysign(codes[code], x.float())
    return torch.where(torch.isnan(x), -torch.zeros_like(value), value)


def wrap(x: Tensor, to: int) -> Tensor:
    """Keeps the lowest bits of an integer."""
    bits = _BITS[to]
    low = x.to(torch.int32) & ((1 << bits) - 1)
    if to in _SIGNED:
        low = torch.where(low >= 1 << (bits - 1), low - (1 << bits), low)
    return low.to(NARROW[to])


def _to_exponent(node: Node, mode: str, *, saturate: bool) -> Function:
    """Rounds to a power of two, as e8m0 holds nothing else."""
    if mode != "up" or not saturate:
        node.refuse(f"round_mode {mode} with saturate {int(saturate)} is not covered")

    def function(x: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(x.float())
        power = exponent - 1 + (2 * mantissa.abs() > 1).to(torch.int32)
        code = torch.where(x == 0, 0, (power + 127).clamp(0, 254))
        code = torch.where(torch.isnan(x), 255, code).to(torch.uint8)
        return code.view(torch.float8_e8m0fnu)

    return function
