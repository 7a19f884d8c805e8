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
_COPIES = STRUCTURAL - names_in(
    "Add Sum Mean AveragePool GlobalAveragePool ReduceMean ReduceSum CumSum Resize Upsample"
)
_EXACT = names_in("Identity Dropout Reshape Flatten Squeeze Unsqueeze Transpose")
"""Maps that put every entry to one place as it is."""
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
        terms: Roundings on the way to one entry, at most, in any order of summation; 0 where
            entries only move.
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
    pull = torch.func.vjp(linear, *origin)[1]
    pull_absolute = None
    if absolute is not None:
        # Not at the origin, where an absolute value has no derivative.
        pull_absolute = torch.func.vjp(absolute, *(torch.ones_like(x) for x in origin))[1]
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


def of_step(step: Step, plan: Plan, output: int, device: torch.device) -> Affine | str:
    """Returns the affine map of a step of a plan in float64, or why it has none."""
    op = step.node.op_type
    varying = [i for i, name in enumerate(step.inputs) if name and _constant(plan, name) is None]
    constants = {
        i: value
        for i, name in enumerate(step.inputs)
        if name and (value := _constant(plan, name)) is not None
    }
    shapes = [plan.shape(step.inputs[i]) for i in varying]

    def call(*given: Tensor, fixed: dict[int, Tensor] = constants) -> Tensor:
        arguments: list[Tensor | None] = [fixed.get(i) for i in range(len(step.inputs))]
        for i, x in zip(varying, given, strict=True):
            arguments[i] = x
        result = step.function(*arguments)
        chosen: Tensor = result[output] if step.several else result
        return chosen

    if not _is_linear(op, varying):
        return f"{op} is not linear in what depends on the input"
    zeros = [torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes]
    bias = call(*zeros).detach()
    if bias.dtype != torch.float64:
        return "its result is not of a floating type"
    if op in WEIGHTED:
        return _weighted(op, call, constants, shapes, bias)
    if op in _SUMS or op == "BatchNormalization":
        made = _sum if op in _SUMS else _batch_normalization
        return made(op, call, constants, shapes, bias)
    if op in {"Mul", "Div", "Neg"}:
        fixed = {i: c.abs() for i, c in constants.items()}
        return affine(
            call, shapes, absolute=lambda x: call(x, fixed=fixed).abs(), bias=bias,
            magnitude=bias.abs(), terms=1,
        )  # fmt: skip
    return _structural(step, call, shapes, bias)


def _structural(
    step: Step, call: Function, shapes: Sequence[tuple[int, ...]], bias: Tensor
) -> Affine | str:
    """Maps that copy, average or resample."""
    op = step.node.op_type
    if op not in STRUCTURAL:
        return f"{op} is not known to be linear"
    mode = next((a.s.decode() for a in step.node.attribute if a.name == "mode"), "")
    shifted = bool(bias.count_nonzero())
    linear = (lambda *xs: call(*xs) - bias) if shifted else call
    taken = math.prod(shapes[0])
    terms = 1 if op in _COPIES else _summands(step, taken, math.prod(bias.shape)) + 2
    terms = 0 if op in _EXACT and not shifted else terms
    return affine(
        linear, shapes, absolute=None if mode in _SIGNED else linear, bias=bias,
        magnitude=bias.abs(), terms=terms,
    )  # fmt: skip


def _is_linear(op: str, varying: list[int]) -> bool:
    """Whether an operator is linear in its inputs at `varying` together, the others constant."""
    if op in _SUMS or op == "Concat":
        return True
    if op in {"Mul", "MatMul", "Gemm"}:
        return varying in ([0], [1])
    if op == "Einsum":
        return len(varying) == 1
    return varying == [0]


def _summands(step: Step, taken: int, given: int) -> int:
    """Returns how many entries an average or a sum takes, at most."""
    op = step.node.op_type
    if op == "AveragePool":
        kernel = next(a.ints for a in step.node.attribute if a.name == "kernel_shape")
        return math.prod(kernel)
    if op in {"GlobalAveragePool", "ReduceMean", "ReduceSum"}:
        return taken // max(given, 1)
    return taken


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
    summands = () if op == "Einsum" else (2,)
    factors = {i: c for i, c in constants.items() if i not in summands}
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
    _: str,
    call: Function,
    constants: dict[int, Tensor],
    shapes: Sequence[tuple[int, ...]],
    bias: Tensor,
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
        bias=bias,
        magnitude=call(bias.new_zeros(shapes[0]), fixed=parts).detach(),
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
