"""Operators that read maps between grid points, beside ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.auditors.network.ops.compare import FEW, Array, check, draw, model_of

from onnx_auditors.errors import UnsupportedOperator

TRANSFORMS = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners",
              "asymmetric"]  # fmt: skip


@FEW
@given(
    mode=st.sampled_from(["linear", "cubic"]),
    transform=st.sampled_from(TRANSFORMS),
    scales=st.lists(st.sampled_from([0.5, 0.6, 1.0, 1.5, 2.0, 2.6]), min_size=2, max_size=2),
    by_size=st.booleans(),
    antialias=st.booleans(),
    exclude=st.booleans(),
    a=st.sampled_from([-0.75, -0.5]),
)
def test_resize(
    mode: str,
    transform: str,
    scales: list[float],
    by_size: bool,
    antialias: bool,
    exclude: bool,
    a: float,
) -> None:
    """Linear and cubic interpolation agree for scales and sizes, up and down."""
    x = draw(1, 2, 7, 10)
    inputs: list[Array | None] = [x, None, np.array([1, 1, *scales], np.float32)]
    if by_size:
        sizes = [int(n * s) for n, s in zip(x.shape, [1, 1, *scales], strict=True)]
        inputs = [x, None, None, np.array(sizes)]
    extra: dict[str, Any] = {}
    if mode == "cubic":
        extra = {"cubic_coeff_a": a, "exclude_outside": int(exclude)}
    model = model_of("Resize", inputs, constant=[2, 3], mode=mode, antialias=int(antialias),
                     coordinate_transformation_mode=transform, **extra)  # fmt: skip
    check(model, inputs, 1e-4)


@FEW
@given(
    rounding=st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
    transform=st.sampled_from(TRANSFORMS),
    scales=st.lists(st.sampled_from([0.5, 0.6, 1.0, 1.5, 2.0, 3.0]), min_size=2, max_size=2),
    by_size=st.booleans(),
)
def test_resize_nearest(rounding: str, transform: str, scales: list[float], by_size: bool) -> None:
    """Nearest interpolation agrees for every rounding."""
    x = draw(1, 2, 7, 10)
    whole = all((n * s).is_integer() for n, s in zip(x.shape[2:], scales, strict=True))
    exact = whole or by_size or rounding in {"floor", "ceil"}
    assume(transform != "half_pixel_symmetric" or exact)
    inputs: list[Array | None] = [x, None, np.array([1, 1, *scales], np.float32)]
    if by_size:
        sizes = [int(n * s) for n, s in zip(x.shape, [1, 1, *scales], strict=True)]
        inputs = [x, None, None, np.array(sizes)]
    model = model_of("Resize", inputs, constant=[2, 3], mode="nearest", nearest_mode=rounding,
                     coordinate_transformation_mode=transform)  # fmt: skip
    check(model, inputs)


def symmetric(old: int, rounding: str, *, new: int = 0, scale: float = 0.0) -> None:
    """Compares a resize of a ramp, whose entries say where they come from."""
    x = np.arange(old, dtype=np.float32).reshape(1, 1, old, 1)
    inputs: list[Array | None] = [x, None, None, np.array([1, 1, new, 1])]
    if scale:
        inputs = [x, None, np.array([1, 1, scale, 1], np.float32)]
    model = model_of("Resize", inputs, constant=[2, 3], mode="nearest", nearest_mode=rounding,
                     coordinate_transformation_mode="half_pixel_symmetric")  # fmt: skip
    check(model, inputs)


@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
def test_ties_of_half_pixel_symmetric(rounding: str) -> None:
    """The middle of an axis lies on a grid point or between two: rounding there is exact."""
    for old, new in ((3, 1), (3, 11), (5, 3), (6, 2), (6, 22), (10, 26), (4, 4)):
        symmetric(old, rounding, new=new)
    for old, scale in ((8, 1.5), (5, 1.1), (10, 2.3)):
        symmetric(old, rounding, scale=scale)
    if rounding in {"floor", "ceil"}:
        for old, scale in ((9, 0.55), (11, 0.3), (7, 2.6), (9, 0.4), (7, 1.4)):
            symmetric(old, rounding, scale=scale)
        return
    with pytest.raises(UnsupportedOperator, match="rounds at ties"):
        symmetric(7, rounding, scale=0.6)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_resize_to_the_same_shape(mode: str, transform: str) -> None:
    """A scale that rounds to the same size is no resize; beside another axis that grows it is."""
    for scales in ([1.1, 1.0], [1.1, 1.5]):
        inputs: list[Array | None] = [draw(1, 1, 5, 4), None, np.array([1, 1, *scales], np.float32)]
        model = model_of("Resize", inputs, constant=[2], mode=mode,
                         coordinate_transformation_mode=transform)  # fmt: skip
        check(model, inputs)
    roi = np.array([0, 0, 0.2, 0, 1, 1, 0.8, 1], np.float32)
    whole: list[Array | None] = [draw(1, 1, 5, 4), roi, None, np.array([1, 1, 5, 4])]
    model = model_of("Resize", whole, constant=[1, 3], mode=mode,
                     coordinate_transformation_mode="tf_crop_and_resize")  # fmt: skip
    check(model, whole)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_of_a_region(mode: str) -> None:
    """A region is cut out, and what lies beyond the map gets a fixed value."""
    x = draw(1, 1, 6, 8)
    roi = np.array([0, 0, 0.2, -0.3, 1, 1, 0.9, 1.2], np.float32)
    inputs = [x, roi, None, np.array([1, 1, 5, 7])]
    model = model_of("Resize", inputs, constant=[1, 3], mode=mode, extrapolation_value=7.0,
                     coordinate_transformation_mode="tf_crop_and_resize")  # fmt: skip
    check(model, inputs, 1e-4)


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
def test_resize_keeps_the_aspect(policy: str) -> None:
    """Sizes may be bounds only, for some axes."""
    x = draw(1, 2, 6, 9)
    inputs = [x, None, None, np.array([9, 11])]
    model = model_of("Resize", inputs, constant=[3], mode="linear", axes=[2, 3],
                     keep_aspect_ratio_policy=policy)  # fmt: skip
    check(model, inputs, 1e-4)


@FEW
@given(
    mode=st.sampled_from(["linear", "nearest", "cubic"]),
    padding=st.sampled_from(["zeros", "border", "reflection"]),
    align=st.sampled_from([0, 1]),
    volume=st.booleans(),
)
def test_grid_sample(mode: str, padding: str, align: int, volume: bool) -> None:
    """GridSample agrees for maps and volumes, also at points outside."""
    assume(mode != "cubic" or not volume)
    shape = (2, 3, 4, 5, 6) if volume else (2, 3, 5, 6)
    grid = draw(2, *((3,) if volume else ()), 4, 3, 3 if volume else 2, seed=1) * 0.9
    inputs = [draw(*shape), grid]
    model = model_of("GridSample", inputs, mode=mode, padding_mode=padding, align_corners=align)
    check(model, inputs, 1e-4)


@pytest.mark.parametrize("align", [0, 1])
def test_affine_grid(align: int) -> None:
    """AffineGrid agrees in two and three dimensions."""
    for size, theta in (([2, 3, 4, 5], draw(2, 2, 3)), ([2, 3, 4, 5, 6], draw(2, 3, 4))):
        inputs = [theta, np.array(size)]
        check(model_of("AffineGrid", inputs, constant=[1], align_corners=align), inputs, 1e-4)
