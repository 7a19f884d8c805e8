"""Operators that read a map at other places than its grid points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from onnx_auditors.network.node import Node
from onnx_auditors.network.registry import Function, operator
from onnx_auditors.network.repeatable import on_the_cpu

_Array = npt.NDArray[np.float64]


@operator("Resize", since=11)
def resize(node: Node) -> Function:
    """Interpolates along axes, one after the other: each is a matrix that is known beforehand."""
    rank = len(node.shape())
    axes = [axis % rank for axis in node.integers("axes", list(range(rank)))]
    roi = _roi(node, axes)
    scales, sizes = _scales_and_sizes(node, axes)
    mode = node.text("mode", "nearest")
    transform = node.text("coordinate_transformation_mode", "half_pixel")
    antialias = bool(node.integer("antialias", 0))
    kernel = _kernel(node, mode)
    exclude = bool(node.integer("exclude_outside", 0))
    outside = node.number("extrapolation_value", 0.0)
    if sizes == [node.shape()[axis] for axis in axes]:
        return lambda x: x  # ONNX Runtime copies what keeps its shape, whatever scales and region
    _check_sizes(node, dict(zip(axes, sizes, strict=True)))
    matrices = []
    for position, axis in enumerate(axes):
        old, new, scale = node.shape()[axis], sizes[position], scales[position]
        region = (roi[position], roi[position + len(axes)])
        if old == new and scale == 1 and region == (0.0, 1.0):
            continue
        x = _coordinates(node, transform, np.arange(new), old, new, scale, region)
        if transform == "half_pixel_symmetric" and np.float32(scale) * np.float32(old) != new:
            _refuse_ties(node, mode, x)
        stretch = min(scale, 1.0) if antialias and mode != "nearest" else 1.0
        matrix = _matrix(x, old, kernel, stretch, exclude=exclude)
        beyond = (
            (x < 0) | (x > old - 1) if transform == "tf_crop_and_resize" else np.zeros(new, bool)
        )
        matrix[beyond] = 0
        matrices.append((axis, torch.from_numpy(matrix), torch.from_numpy(outside * beyond)))
    return _along_axes(node, matrices, nearest=mode == "nearest")


def _check_sizes(node: Node, new: Mapping[int, int]) -> None:
    """Checks the output and the matrices, from the new sizes by axis."""
    old = node.shape()
    node.check_size([new.get(axis, size) for axis, size in enumerate(old)], node.floating)
    for axis, size in new.items():
        node.check_size((size, old[axis]), torch.float64)


def _refuse_ties(node: Node, mode: str, x: _Array) -> None:
    """Refuses to round at ties, where the last digit of what ONNX Runtime computes decides."""
    rounds = mode == "nearest" and node.text("nearest_mode", "round_prefer_floor")[:5] == "round"
    if rounds and bool((np.abs(x - np.floor(x) - 0.5) < _TIE).any()):
        node.refuse("half_pixel_symmetric with a fraction of an entry left over rounds at ties")


_TIE = 1e-5


@operator("Upsample", since=9)
def upsample(node: Node) -> Function:
    """Resize by scales, as it was called before opset 10."""
    scales = [float(s) for s in node.constant(1).tolist()]
    kernel = _linear if node.text("mode", "nearest") == "linear" else _nearest_floor
    matrices = []
    _check_sizes(
        node,
        {axis: _scaled(n, s) for axis, (n, s) in enumerate(zip(node.shape(), scales, strict=True))},
    )
    for axis, (old, scale) in enumerate(zip(node.shape(), scales, strict=True)):
        new = _scaled(old, scale)
        if new != old:
            matrix = _matrix(np.arange(new) / np.float64(scale), old, kernel, 1.0, exclude=False)
            matrices.append((axis, torch.from_numpy(matrix), torch.zeros(new)))
    return _along_axes(node, matrices, nearest=kernel is _nearest_floor)


def _along_axes(
    node: Node, matrices: list[tuple[int, Tensor, Tensor]], *, nearest: bool
) -> Function:
    """Applies a matrix [new, old] and an offset [new] along each axis."""
    value = node.inputs[0]
    integers = value is not None and not value.meta.is_floating_point()
    if integers and not nearest:
        node.refuse("interpolation of integers is not covered")
    picks = [(axis, m.argmax(1), m, offset) for axis, m, offset in matrices]

    def function(x: Tensor) -> Tensor:
        for axis, index, matrix, offset in picks:
            if nearest and not bool(offset.any()):
                x = x.index_select(axis, index.to(x.device))
            else:
                moved = x.movedim(axis, -1) @ matrix.to(x.device, x.dtype).T
                x = (moved + offset.to(x.device, x.dtype)).movedim(-1, axis)
        return x

    return function


def _roi(node: Node, axes: list[int]) -> list[float]:
    whole = [0.0] * len(axes) + [1.0] * len(axes)
    if not node.present(1):
        return whole
    given = [float(r) for r in node.constant(1).reshape(-1).tolist()]
    if node.text("coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize":
        return whole
    return given or whole


def _scales_and_sizes(node: Node, axes: list[int]) -> tuple[list[float], list[int]]:
    old = [node.shape()[axis] for axis in axes]
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    if node.present(2) and 0 not in node.shape(2):
        scales = [float(s) for s in node.constant(2).tolist()]
        return scales, [_scaled(n, s) for n, s in zip(old, scales, strict=True)]
    if node.present(2):
        node.constant(2)
    sizes = node.constant_ints(3)
    scales = [new / n for new, n in zip(sizes, old, strict=True)]
    if policy == "stretch":
        return scales, sizes
    if policy not in {"not_larger", "not_smaller"}:
        node.refuse(f"keep_aspect_ratio_policy {policy} is not covered")
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [scale] * len(old), [math.floor(n * scale + 0.5) for n in old]


def _scaled(size: int, scale: float) -> int:
    """Returns a size times a scale, rounded down, in single precision as ONNX Runtime does."""
    return math.floor(np.float32(size) * np.float32(scale))


def _coordinates(
    node: Node,
    transform: str,
    places: npt.NDArray[np.int64],
    old: int,
    new: int,
    scale: float,
    region: tuple[float, float],
) -> _Array:
    """Returns where in the input each output entry is read.

    ONNX Runtime takes the whole number of entries as the output's length in align_corners, unlike
    the standard's reference.
    """
    y, scale32 = places.astype(np.float32), np.float32(scale)
    start, end = np.float32(region[0]), np.float32(region[1])
    last = np.float32(old - 1)
    # Single precision, in ONNX Runtime's order: a rounding step may hang on the last digit.
    if transform == "align_corners":
        x = y * last / np.float32(new - 1) if new > 1 else np.zeros(new)
    elif transform == "asymmetric":
        x = y / scale32
    elif transform == "tf_crop_and_resize" and new == 1:
        x = np.full(new, np.float32(0.5) * (start + end) * last)
    elif transform == "tf_crop_and_resize":
        x = start * last + y * (end - start) * last / np.float32(new - 1)
    elif transform == "half_pixel" or (transform == "pytorch_half_pixel" and new > 1):
        x = (y + np.float32(0.5)) / scale32 - np.float32(0.5)
    elif transform == "pytorch_half_pixel":
        x = np.zeros(new)
    elif transform == "half_pixel_symmetric":
        adjustment = np.float32(new) / (scale32 * np.float32(old))
        offset = np.float32(old) / np.float32(2) * (np.float32(1) - adjustment)
        # Here ONNX Runtime sums in double precision before it goes back to single.
        x = offset.astype(np.float64) + (places + 0.5) / np.float64(scale32) - 0.5
        x = x.astype(np.float32)
    else:
        node.refuse(f"coordinate_transformation_mode {transform} is not covered")
    return x.astype(np.float64)


_Kernel = Callable[[_Array, _Array], _Array]


def _kernel(node: Node, mode: str) -> _Kernel:
    """Returns the function from read coordinates and grid points to weights."""
    a = node.number("cubic_coeff_a", -0.75)
    rounding = node.text("nearest_mode", "round_prefer_floor")
    if mode == "linear":
        return _linear
    if mode == "cubic":
        return lambda x, at: _cubic(np.abs(x - at), a)
    if mode != "nearest" or rounding not in _NEAREST:
        node.refuse(f"mode {mode} with nearest_mode {rounding} is not covered")
    return _NEAREST[rounding]


def _nearest_floor(x: _Array, at: _Array) -> _Array:
    found: _Array = (at == np.floor(x)).astype(np.float64)
    return found


_NEAREST: dict[str, _Kernel] = {
    "floor": _nearest_floor,
    "ceil": lambda x, at: (at == np.ceil(x)).astype(np.float64),
    "round_prefer_floor": lambda x, at: (at == np.ceil(x - 0.5)).astype(np.float64),
    "round_prefer_ceil": lambda x, at: (at == np.floor(x + 0.5)).astype(np.float64),
}


def _linear(x: _Array, at: _Array) -> _Array:
    weights: _Array = np.maximum(0.0, 1 - np.abs(x - at))
    return weights


def _cubic(t: _Array, a: float) -> _Array:
    """Keys 1981, "Cubic convolution interpolation", equation 4 with a free parameter."""
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < _REACH, far, 0.0))


_REACH = 2
"""How far from a point the widest kernel reads."""


def _matrix(x: _Array, old: int, kernel: _Kernel, stretch: float, *, exclude: bool) -> _Array:
    """Returns the weights [new, old]; entries beyond the edge repeat it, or are left out."""
    margin = math.ceil(_REACH / stretch) + 1
    # What lies further out than the margin is read at the edge.
    x = np.clip(x, -margin + _REACH / stretch, old - 1 + margin - _REACH / stretch)
    at = np.arange(-margin, old + margin).astype(np.float64)
    weights = kernel(x[:, None] * stretch, at[None, :] * stretch)
    if exclude:
        weights[:, (at < 0) | (at >= old)] = 0
    if exclude or stretch < 1:
        weights /= weights.sum(1, keepdims=True)
    matrix = np.zeros((len(x), old))
    for column, place in enumerate(np.clip(at, 0, old - 1).astype(int)):
        matrix[:, place] += weights[:, column]
    return matrix


_MODES = {"linear": "bilinear", "bilinear": "bilinear", "cubic": "bicubic", "bicubic": "bicubic",
          "nearest": "nearest"}  # fmt: skip


@operator("GridSample", since=16)
def grid_sample(node: Node) -> Function:
    """Reads a map at points given in [-1, 1]."""
    mode = _MODES.get(node.text("mode", "linear"), "")
    padding = node.text("padding_mode", "zeros")
    align = bool(node.integer("align_corners", 0))
    if not mode or (mode == "bicubic" and len(node.shape()) != _PLANE):
        node.refuse("this mode is not covered for maps of this rank")
    return lambda x, grid: _grid_sample(
        x, grid, mode=mode, padding_mode=padding, align_corners=align
    )


_PLANE = 4
_grid_sample = on_the_cpu(functional.grid_sample)


@operator("AffineGrid", since=20)
def affine_grid(node: Node) -> Function:
    """The points of a grid after an affine map, for GridSample."""
    size = node.constant_ints(1)
    align = bool(node.integer("align_corners", 0))
    return lambda theta: functional.affine_grid(theta, size, align_corners=align)
