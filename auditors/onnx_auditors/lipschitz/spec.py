"""Structure of a linear layer: a matrix, a convolution, a diagonal, or a product over axes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F  # noqa: N812  # the field's name for it
from torch import Tensor

Kind = Literal["dense", "conv", "conv_transpose", "diagonal", "separable"]
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True, eq=False)
class OperatorSpec:
    """One linear layer, without bias. Fields are named as in ONNX.

    Attributes:
        kind: "dense" acts on the last axis, weight [out, in]; "conv", weight
            [out, in / groups, *kernel]; "conv_transpose", weight [in, out / groups, *kernel];
            "diagonal", weight that broadcasts to `input_shape`; "separable", one matrix per
            trailing axis in `factors`, the same for all leading axes (pooling, resizing).
        input_shape: Shape of one sample; [channels, *map] for convolutions.
        weight: See `kind`; any floating dtype, used as float64.
        stride: Per axis of the map; 1 where empty.
        pads: Begins, then ends, not negative; 0 where empty.
        dilations: Per axis of the map; 1 where empty.
        groups: Number of groups.
        output_padding: Per axis, for "conv_transpose"; 0 where empty.
        factors: For "separable", matrices [out, in], one per trailing axis.

    Raises:
        ValueError: If a field does not fit the others.
    """

    kind: Kind
    input_shape: tuple[int, ...]
    weight: Tensor | None = None
    stride: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1
    output_padding: tuple[int, ...] = ()
    factors: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        rank = len(self.input_shape) - 1
        fill = {
            "stride": (1,) * rank,
            "pads": (0,) * (2 * rank),
            "dilations": (1,) * rank,
            "output_padding": (0,) * rank,
        }
        if self.kind in {"conv", "conv_transpose"}:
            for name, default in fill.items():
                object.__setattr__(self, name, tuple(getattr(self, name)) or default)
                if len(getattr(self, name)) != len(default):
                    raise ValueError(
                        f"{name} needs {len(default)} numbers, found {getattr(self, name)}"
                    )
        if self.weight is not None:
            object.__setattr__(self, "weight", self.weight.detach().to(torch.float64))
        factors = tuple(f.detach().to(torch.float64) for f in self.factors)
        object.__setattr__(self, "factors", factors)
        self._check()

    def _check(self) -> None:
        if self.kind == "separable":
            if not self.factors or len(self.factors) > len(self.input_shape):
                raise ValueError("factors needs one matrix per trailing axis of input_shape")
            sides = tuple(f.shape[1] for f in self.factors)
            if sides != self.input_shape[-len(sides) :]:
                raise ValueError(f"factors take sides {sides}, input_shape is {self.input_shape}")
        elif self.weight is None:
            raise ValueError(f"weight is missing for kind {self.kind!r}")
        elif not bool(torch.isfinite(self.weight).all()):
            raise ValueError("weight holds values that are not finite")
        elif self.kind == "dense":
            if self.weight.ndim != 2 or self.weight.shape[1] != self.input_shape[-1]:  # noqa: PLR2004
                raise ValueError(
                    f"weight {tuple(self.weight.shape)} does not act on the last axis of "
                    f"{self.input_shape}"
                )
        elif self.kind in {"conv", "conv_transpose"}:
            self._check_conv()

    def _check_conv(self) -> None:
        channels, *side = self.input_shape
        weight = self.w
        if len(side) not in _CONV or weight.ndim != len(side) + 2:
            raise ValueError(
                f"weight {tuple(weight.shape)} does not fit input_shape {self.input_shape}: "
                "1 to 3 axes of a map are allowed"
            )
        taken = weight.shape[1] * self.groups if self.kind == "conv" else weight.shape[0]
        if taken != channels or weight.shape[0] % self.groups:
            raise ValueError(
                f"weight {tuple(weight.shape)} with groups {self.groups} does not take "
                f"{channels} channels"
            )
        if min(self.pads) < 0 or min(self.stride) < 1 or min(self.dilations) < 1:
            raise ValueError("pads must not be negative; stride and dilations are at least 1")
        if min(self.output_shape) < 1:
            raise ValueError(f"output_shape {self.output_shape} is empty")

    @property
    def w(self) -> Tensor:
        """The weight, float64."""
        return cast("Tensor", self.weight)

    @property
    def map_rank(self) -> int:
        """Number of axes of a convolution's map."""
        return len(self.input_shape) - 1

    @property
    def reach(self) -> tuple[int, ...]:
        """Extent of the dilated kernel per axis, minus 1."""
        return tuple((k - 1) * d for k, d in zip(self.w.shape[2:], self.dilations, strict=True))

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one output."""
        rank, side = self.map_rank, self.input_shape[1:]
        if self.kind == "dense":
            return (*self.input_shape[:-1], self.w.shape[0])
        if self.kind == "diagonal":
            return self.input_shape
        if self.kind == "separable":
            lead = self.input_shape[: len(self.input_shape) - len(self.factors)]
            return (*lead, *(f.shape[0] for f in self.factors))
        padding = [self.pads[a] + self.pads[rank + a] for a in range(rank)]
        if self.kind == "conv":
            sides = tuple(
                (n + p - r - 1) // s + 1
                for n, p, r, s in zip(side, padding, self.reach, self.stride, strict=True)
            )
            return (self.w.shape[0], *sides)
        sides = tuple(
            s * (n - 1) + o + r + 1 - p
            for n, p, r, s, o in zip(
                side, padding, self.reach, self.stride, self.output_padding, strict=True
            )
        )
        return (self.w.shape[1] * self.groups, *sides)

    @property
    def terms(self) -> int:
        """Upper bound on the number of products summed in one entry, forward or adjoint."""
        if self.kind == "diagonal":
            return 1
        if self.kind == "separable":
            return sum(max(f.shape) for f in self.factors)
        if self.kind == "dense":
            return max(self.w.shape)
        per_group = self.w.shape[0] // self.groups
        return max(per_group, self.w.shape[1]) * math.prod(self.w.shape[2:])

    def to(self, device: torch.device | str) -> OperatorSpec:
        """Returns the same layer with its tensors on a device."""
        return replace(
            self,
            weight=None if self.weight is None else self.weight.to(device),
            factors=tuple(f.to(device) for f in self.factors),
        )

    def absolute(self) -> OperatorSpec:
        """Returns the layer with the absolute values of its entries."""
        return replace(
            self,
            weight=None if self.weight is None else self.weight.abs(),
            factors=tuple(f.abs() for f in self.factors),
        )

    def absolute_norm(self) -> float:
        """Returns sqrt(||A||_1 ||A||_inf), which bounds || |A| ||_2, up to rounding."""
        size = self.absolute()
        tensor = self.w if self.weight is not None else self.factors[0]
        ones = tensor.new_ones(1, *self.input_shape)
        rows = size.forward(ones).max().item()
        columns = size.adjoint(tensor.new_ones(1, *self.output_shape)).max().item()
        return math.sqrt(rows) * math.sqrt(columns)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer, [m, *input_shape] -> [m, *output_shape]."""
        if self.kind == "dense":
            return x @ self.w.T
        if self.kind == "diagonal":
            return x * self.w
        if self.kind == "separable":
            return _along_axes(x, self.factors)
        return self._to_coarse(x) if self.kind == "conv" else self._to_fine(x, self.output_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        """Applies the transpose, [m, *output_shape] -> [m, *input_shape]."""
        if self.kind == "dense":
            return y @ self.w
        if self.kind == "diagonal":
            return y * self.w
        if self.kind == "separable":
            return _along_axes(y, tuple(f.T for f in self.factors))
        return self._to_fine(y, self.input_shape) if self.kind == "conv" else self._to_coarse(y)

    def as_conv(self) -> OperatorSpec:
        """Returns a "conv" whose norm in L2 is the same: of a transposed one, the adjoint."""
        if self.kind != "conv_transpose":
            return self
        rank = self.map_rank
        full = tuple(
            s * (n - 1) + r + 1
            for s, n, r in zip(self.stride, self.input_shape[1:], self.reach, strict=True)
        )
        channels, *sides = self.output_shape
        begins = self.pads[:rank]
        # What output padding adds beyond the last window is always 0, and is left out.
        fine = [min(m, f - p) for m, f, p in zip(sides, full, begins, strict=True)]
        ends = (f - m - p for f, m, p in zip(full, fine, begins, strict=True))
        return replace(
            self,
            kind="conv",
            input_shape=(channels, *fine),
            pads=(*begins, *ends),
            output_padding=(),
        )

    def _to_coarse(self, x: Tensor) -> Tensor:
        coarse = self.output_shape if self.kind == "conv" else self.input_shape
        padded = F.pad(x, self._margins(x.shape[2:], coarse[1:]))
        convolve = _CONV[self.map_rank]
        return convolve(
            padded, self.w, stride=self.stride, dilation=self.dilations, groups=self.groups
        )

    def _to_fine(self, y: Tensor, fine: tuple[int, ...]) -> Tensor:
        transpose = _TRANSPOSE[self.map_rank]
        full = transpose(y, self.w, stride=self.stride, dilation=self.dilations, groups=self.groups)
        return F.pad(full, [-p for p in self._margins(fine[1:], y.shape[2:])])

    def _margins(self, fine: tuple[int, ...], coarse: tuple[int, ...]) -> list[int]:
        """How much to pad the finer map (negative: to crop) so that the windows just fit it.

        In the order of torch: last axis first, begin and end.
        """
        margins: list[int] = []
        for a in reversed(range(self.map_rank)):
            full = self.stride[a] * (coarse[a] - 1) + self.reach[a] + 1
            margins += [self.pads[a], full - fine[a] - self.pads[a]]
        return margins


def _along_axes(x: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    for axis, factor in zip(range(-len(factors), 0), factors, strict=True):
        x = torch.movedim(torch.movedim(x, axis, -1) @ factor.T, -1, axis)
    return x


def average_pool(
    input_shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    *,
    dilations: tuple[int, ...] = (),
    count_include_pad: bool = False,
    ceil_mode: bool = False,
) -> OperatorSpec:
    """Returns average pooling as a product over the axes, as ONNX defines AveragePool.

    Each axis averages by itself, also where windows hang over the edge, because the number of
    values in a window is the product of the numbers per axis.

    Args:
        input_shape: [channels, *map].
        kernel: Window per axis of the map.
        stride: Per axis; 1 where empty, as in ONNX.
        pads: Begins, then ends; 0 where empty.
        dilations: Per axis; 1 where empty.
        count_include_pad: Whether pads count as values of a window.
        ceil_mode: Whether the number of windows is rounded up.
    """
    rank = len(kernel)
    stride, dilations = stride or (1,) * rank, dilations or (1,) * rank
    pads = pads or (0,) * (2 * rank)
    factors = []
    for a, n in enumerate(input_shape[1:]):
        begin, end = pads[a], pads[rank + a]
        span = n + begin + end - dilations[a] * (kernel[a] - 1) - 1
        count = (-(-span // stride[a]) if ceil_mode else span // stride[a]) + 1
        if ceil_mode and (count - 1) * stride[a] >= n + begin:
            count -= 1  # A window that starts in the padding at the end is left out.
        at = (
            torch.arange(count)[:, None] * stride[a]
            + torch.arange(kernel[a])[None] * dilations[a]
            - begin
        )
        inside = (at >= 0) & (at < n)
        counted = ((at >= -begin) & (at < n + end)) if count_include_pad else inside
        factor = torch.zeros(count, n + 1, dtype=torch.float64)
        factor.scatter_add_(1, torch.where(inside, at, n), torch.ones_like(at, dtype=torch.float64))
        factors.append(factor[:, :n] / counted.sum(1, keepdim=True).clamp(min=1))
    return OperatorSpec("separable", input_shape, factors=tuple(factors))
