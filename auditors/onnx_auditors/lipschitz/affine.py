"""Affine maps of a graph: forward, adjoint, absolute values, and how many roundings they take.

Each is made from the torch function that the network itself computes with, so that strides, padding
and layouts are what they are there. Values have the shape that they have in the file at batch 1,
with one axis more in front for a batch of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnx_auditors.network.plan import Plan, Step
from onnx_auditors.network.reading import names_in

WEIGHTED = names_in("Conv ConvTranspose Gemm MatMul Einsum")
"""Products with a constant: the absolute map has the constant's absolute values."""
STRUCTURAL = names_in(
    "Add Sum Mean AveragePool GlobalAveragePool ReduceMean ReduceSum Identity Cast Dropout Reshape "
    "Flatten Squeeze Unsqueeze Transpose Concat Split Slice Gather GatherElements Expand Tile Pad "
    "DepthToSpace SpaceToDepth CumSum Trilu Resize Upsample"
)
"""Maps without negative coefficients, which are their own absolute map; but see `_SIGNED`."""
_SUMS = names_in("Add Sub Sum Mean")
_SIGNED = ("cubic",)
"""Modes of resampling with negative coefficients."""

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Affine:
    """x_1, ..., x_p -> sum_i W_i x_i + bias, in float64.

    Attributes:
        linear: The linear part: tensors [b, *shape of parent i] to [b, *shape].
        adjoint: Its adjoint: [b, *shape] to one tensor per parent.
        absolute: sum_i |W_i| x_i of x_i >= 0; None where the signs of W are not known.
        absolute_adjoint: Its adjoint.
        bias: Float64 [*shape].
        magnitude: Float64 [*shape], at least the sum of absolute values of all parts of the bias.
        terms: Roundings on the way to one entry, at most, in any order of summation.
        weight: The constant that it multiplies with, where there is one.
    """

    linear: Function
    adjoint: Callable[[Tensor], tuple[Tensor, ...]]
    absolute: Function | None
    absolute_adjoint: Callable[[Tensor], tuple[Tensor, ...]] | None
    bias: Tensor
    magnitude: Tensor
    terms: int
    weight: Tensor | None = None


def affine(
    linear: Function,
    shapes: Sequence[tuple[int, ...]],
    *,
    absolute: Function | None,
    bias: Tensor,
    magnitude: Tensor,
    terms: int,
    weight: Tensor | None = None,
) -> Affine:
    """Returns the affine map of functions of single values, without the axis of the batch.

    Args:
        linear: The linear part, of one value per parent.
        shapes: Shapes of the parents.
        absolute: The absolute map.
        bias: As in `Affine`, and so are the others.
        magnitude: See there.
        terms: See there.
        weight: See there.
    """
    origin = [torch.zeros(shape, dtype=torch.float64, device=bias.device) for shape in shapes]
    _, pull = torch.func.vjp(linear, *origin)
    pull_absolute = None
    if absolute is not None:
        # Not at the origin, where an absolute value has no derivative.
        _, pull_absolute = torch.func.vjp(absolute, *(torch.ones_like(x) for x in origin))
    return Affine(
        torch.func.vmap(linear),
        torch.func.vmap(pull),
        None if absolute is None else torch.func.vmap(absolute),
        None if pull_absolute is None else torch.func.vmap(pull_absolute),
        bias,
        magnitude,
        terms,
        weight,
    )


def of_step(step: Step, plan: Plan, output: int) -> Affine | str:
    """Returns the affine map of a step of a plan in float64, or why it has none."""
    op = step.node.op_type
    varying = [i for i, name in enumerate(step.inputs) if name and _constant(plan, name) is None]
    constants = {
        i: value
        for i, name in enumerate(step.inputs)
        if name and (value := _constant(plan, name)) is not None
    }
    shapes = [plan.shape(step.inputs[i]) for i in varying]
    device = next(iter(constants.values())).device if constants else torch.device("cpu")

    def call(*given: Tensor, fixed: dict[int, Tensor] = constants) -> Tensor:
        arguments: list[Tensor | None] = [fixed.get(i) for i in range(len(step.inputs))]
        for i, x in zip(varying, given, strict=True):
            arguments[i] = x
        result = step.function(*arguments)
        return result[output] if step.several else result

    zeros = [torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes]
    bias = call(*zeros).detach()
    count = math.prod(shapes[0]) if shapes else 1
    if op == "BatchNormalization":
        return _batch_normalization(call, constants, shapes, zeros)
    if op in WEIGHTED:
        return _weighted(op, call, constants, shapes, bias)
    if op in {"Mul", "Div"}:
        fixed = {i: c.abs() for i, c in constants.items()}
        return affine(
            call, shapes, absolute=lambda x: call(x, fixed=fixed), bias=bias, magnitude=bias,
            terms=1,
        )  # fmt: skip
    if op == "Neg":
        return affine(
            call, shapes, absolute=torch.abs, bias=bias, magnitude=bias, terms=0
        )
    if op in _SUMS:
        return _sum(op, call, constants, shapes, bias)
    if op not in STRUCTURAL:
        return f"{op} is not known to be linear"
    if bias.dtype != torch.float64:
        return "its result is not of a floating type"
    mode = next((a.s.decode() for a in step.node.attribute if a.name == "mode"), "")
    shifted = bool(bias.count_nonzero())
    linear = (lambda *xs: call(*xs) - bias) if shifted else call
    known = mode not in _SIGNED
    terms = 1 if count == math.prod(bias.shape) and op not in {"CumSum", "Resize"} else count + 2
    return affine(
        linear, shapes, absolute=linear if known else None, bias=bias, magnitude=bias.abs(),
        terms=terms,
    )  # fmt: skip


def _constant(plan: Plan, name: str) -> Tensor | None:
    return plan.values[name].constant


def _weighted(
    op: str,
    call: Function,
    constants: dict[int, Tensor],
    shapes: Sequence[tuple[int, ...]],
    bias: Tensor,
) -> Affine | str:
    """Products: one factor varies, and a summand, the third input, is the bias."""
    has_bias = op != "Einsum" and 2 in constants
    factors = {i: c for i, c in constants.items() if not (has_bias and i == 2)}  # noqa: PLR2004
    if len(shapes) != 1 or not factors:
        return "it multiplies values that both depend on the input"
    absolutes = {i: c.abs() for i, c in factors.items()}
    weight = next(iter(factors.values()))
    # An entry sums at most as many products as the weight has entries, and as the input has.
    terms = min(math.prod(shapes[0]), _fan_in(op, weight)) + 4
    return affine(
        lambda x: call(x, fixed=factors),
        shapes,
        absolute=lambda x: call(x, fixed=absolutes).abs(),
        bias=bias,
        magnitude=bias.abs(),
        terms=terms,
        weight=weight,
    )


def _fan_in(op: str, weight: Tensor) -> int:
    """Returns how many products one entry sums, at most."""
    if op == "Conv":
        return weight[0].numel()
    if op == "ConvTranspose":
        return weight.numel() // weight.shape[1]
    return weight.numel() if op == "Einsum" else max(weight.shape)


def _batch_normalization(
    call: Function,
    constants: dict[int, Tensor],
    shapes: Sequence[tuple[int, ...]],
    zeros: Sequence[Tensor],
) -> Affine | str:
    scale, shift, mean, variance = (constants.get(i) for i in range(1, 5))
    if scale is None or shift is None or mean is None or variance is None:
        return "its statistics depend on the input"
    none = torch.zeros_like(mean)
    plain = {1: scale, 2: none, 3: none, 4: variance}
    positive = {**plain, 1: scale.abs()}
    parts = {1: scale.abs(), 2: shift.abs(), 3: -mean.abs(), 4: variance}
    return affine(
        lambda x: call(x, fixed=plain),
        shapes,
        absolute=lambda x: call(x, fixed=positive),
        bias=call(*zeros).detach(),
        magnitude=call(*zeros, fixed=parts).detach(),
        terms=8,
    )


def _sum(
    op: str,
    call: Function,
    constants: dict[int, Tensor],
    shapes: Sequence[tuple[int, ...]],
    bias: Tensor,
) -> Affine:
    """Sums and differences; constants become the bias."""
    none = {i: torch.zeros_like(c) for i, c in constants.items()}

    def linear(*xs: Tensor) -> Tensor:
        return call(*xs, fixed=none)

    def absolute(*xs: Tensor) -> Tensor:
        if op != "Sub":
            return linear(*xs)
        if len(xs) == 1:
            return linear(*xs).abs()
        return xs[0] + xs[1]

    return affine(
        linear, shapes, absolute=absolute, bias=bias, magnitude=bias.abs(),
        terms=len(shapes) + len(constants) + 1,
    )  # fmt: skip
