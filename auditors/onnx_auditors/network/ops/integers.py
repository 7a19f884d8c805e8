"""Operators on bits, and arithmetic on unsigned integers, of which torch has little."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from onnx_auditors.network.node import Node
from onnx_auditors.network.registry import Function, operator, plain

_UNSIGNED = frozenset({torch.uint16, torch.uint32, torch.uint64})
_SIGN = -(2**63)

plain(
    {"BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or,
     "BitwiseXor": torch.bitwise_xor, "BitwiseNot": torch.bitwise_not},
    since=18,
)  # fmt: skip


def is_unsigned(node: Node) -> bool:
    """Says whether the first input is of an unsigned type of more than 8 bits."""
    return (
        bool(node.inputs) and node.inputs[0] is not None and node.inputs[0].meta.dtype in _UNSIGNED
    )


def on_unsigned(
    node: Node, function: Callable[[Tensor, Tensor], Tensor], *, ordered: bool | None = None
) -> Function:
    """Returns the function, computed in int64 where the inputs are unsigned.

    Args:
        node: The node.
        function: A function of two tensors.
        ordered: For 64 bits: True where the function follows from the order of its inputs alone;
            False where it is the same for signed and unsigned; None where it is neither, and then
            refused.
    """
    if not is_unsigned(node):
        return function
    first = node.inputs[0]
    wide = first is not None and first.meta.dtype == torch.uint64
    if wide and ordered is None:
        node.refuse("unsigned integers of 64 bits are not covered")
    flip = _SIGN if wide and ordered else 0

    def on_integers(a: Tensor, b: Tensor) -> Tensor:
        result = function(a.to(torch.int64) ^ flip, b.to(torch.int64) ^ flip)
        return result if result.dtype == torch.bool else (result ^ flip).to(a.dtype)

    return on_integers


@operator("BitShift", since=11)
def bit_shift(node: Node) -> Function:
    """Shifts bits, filling with zeros; torch shifts by the width or more differently."""
    left = node.text("direction") == "LEFT"
    first = node.inputs[0]
    if first is None or first.meta.is_floating_point():
        node.refuse("only integers are covered")
    dtype = first.meta.dtype
    bits = 8 * dtype.itemsize
    mask = (1 << bits) - 1

    def function(x: Tensor, by: Tensor) -> Tensor:
        wide, amount = x.to(torch.int64), by.to(torch.int64)
        within = amount.clamp(0, bits - 1)
        if left:
            shifted = wide << within
        elif dtype == torch.uint64:
            # A first step by one clears the sign bit, so that no copies of it are shifted in.
            rest = ((wide >> 1) & (2**63 - 1)) >> (within - 1).clamp(min=0)
            shifted = torch.where(within == 0, wide, rest)
        else:
            shifted = (wide & mask if dtype in _UNSIGNED else wide) >> within
        none_left = -(wide < 0).to(torch.int64) if not left and dtype.is_signed else 0
        inside = (amount >= 0) & (amount < bits)
        return torch.where(inside, shifted, none_left).to(dtype)

    return function


_WIDTHS = {torch.float64: 8, torch.int64: 8, torch.uint64: 8, torch.int32: 4, torch.uint32: 4,
           torch.int16: 2, torch.uint16: 2, torch.int8: 1, torch.uint8: 1}  # fmt: skip


@operator("BitCast", since=26)
def bit_cast(node: Node) -> Function:
    """Reads the same bits as another type."""
    to = node.dtype(node.integer("to"))
    return lambda x: x.view(to)
