"""Sliding windows beside ONNX Runtime: transposed convolution and the rarer poolings."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.auditors.network.ops.compare import FEW, check, draw, model_of

windows = st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(0, 2)
)


@FEW
@given(
    axes=st.lists(windows, min_size=1, max_size=3),
    group=st.sampled_from([1, 2]),
    bias=st.booleans(),
    extra=st.sampled_from([0, 1]),
    auto_pad=st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]),
    shaped=st.booleans(),
)
def test_conv_transpose(
    axes: list[tuple[int, ...]], group: int, bias: bool, extra: int, auto_pad: str, shaped: bool
) -> None:
    """Transposed convolution agrees for every way to give its padding."""
    kernel, strides, dilations, begin, end = (list(column) for column in zip(*axes, strict=True))
    x = draw(2, 4, *(4 + i for i in range(len(axes))))
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": group}
    attributes["auto_pad"] = auto_pad
    attributes["output_padding"] = [min(extra, s - 1) for s in strides]
    sizes = [
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, s, k, d, e in zip(
            x.shape[2:], strides, kernel, dilations, attributes["output_padding"], strict=True
        )
    ]
    if shaped and auto_pad in {"NOTSET", "SAME_UPPER"}:
        attributes["output_shape"] = [n - min(b, 1) for n, b in zip(sizes, begin, strict=True)]
    elif auto_pad == "NOTSET":
        attributes["pads"] = begin + end
        assume(all(n - b - e > 0 for n, b, e in zip(sizes, begin, end, strict=True)))
    else:
        assume(all(n * s <= full for n, s, full in zip(x.shape[2:], strides, sizes, strict=True)))
    inputs = [x, draw(4, 3, *kernel, seed=1), *([draw(3 * group, seed=2)] if bias else [])]
    check(model_of("ConvTranspose", inputs, constant=[1, 2], **attributes), inputs, 1e-4)


@FEW
@given(
    axes=st.lists(windows, min_size=1, max_size=3),
    ceil_mode=st.sampled_from([0, 1]),
    power=st.sampled_from([1, 2, 3]),
    auto_pad=st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]),
)
def test_lp_pool(axes: list[tuple[int, ...]], ceil_mode: int, power: int, auto_pad: str) -> None:
    """Norms of windows agree with dilations, uneven padding and ceil_mode."""
    kernel, strides, dilations, begin, end = (list(column) for column in zip(*axes, strict=True))
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "p": power}
    attributes["auto_pad"] = auto_pad
    if auto_pad == "NOTSET":
        begin = [min(pad, size - 1) for pad, size in zip(begin, kernel, strict=True)]
        end = [min(pad, size - 1) for pad, size in zip(end, kernel, strict=True)]
        attributes |= {"pads": begin + end, "dilations": dilations, "ceil_mode": ceil_mode}
    inputs = [draw(2, 3, *(6 + i for i in range(len(axes))))]
    check(model_of("LpPool", inputs, opset_version=18, **attributes), inputs, 1e-4)


@FEW
@given(
    axes=st.lists(windows, min_size=2, max_size=3),
    ceil_mode=st.sampled_from([0, 1]),
    include=st.sampled_from([0, 1]),
)
def test_dilated_average_pool(axes: list[tuple[int, ...]], ceil_mode: int, include: int) -> None:
    """Averages with dilations agree, however padding counts."""
    kernel, strides, dilations, begin, end = (list(column) for column in zip(*axes, strict=True))
    begin = [min(pad, size - 1) for pad, size in zip(begin, kernel, strict=True)]
    end = [min(pad, size - 1) for pad, size in zip(end, kernel, strict=True)]
    inputs = [draw(2, 3, *(6 + i for i in range(len(axes))))]
    model = model_of("AveragePool", inputs, kernel_shape=kernel, strides=strides,
                     dilations=dilations, pads=begin + end, ceil_mode=ceil_mode,
                     count_include_pad=include)  # fmt: skip
    check(model, inputs, 1e-4)


@FEW
@given(
    axes=st.lists(windows, min_size=1, max_size=3),
    ceil_mode=st.sampled_from([0, 1]),
    order=st.sampled_from([0, 1]),
    integers=st.booleans(),
)
def test_max_pool_indices(
    axes: list[tuple[int, ...]], ceil_mode: int, order: int, integers: bool
) -> None:
    """MaxPool says where it found its entries, in either order, also for integers."""
    assume(order == 0 or len(axes) == 2)
    kernel, strides, dilations, begin, end = (list(column) for column in zip(*axes, strict=True))
    begin = [min(pad, size - 1) for pad, size in zip(begin, kernel, strict=True)]
    end = [min(pad, size - 1) for pad, size in zip(end, kernel, strict=True)]
    x = draw(2, 3, *(6 + i for i in range(len(axes))))
    inputs = [(x * 40).astype(np.int8) if integers else x]
    model = model_of("MaxPool", inputs, outputs=["y", "i"], kernel_shape=kernel, strides=strides,
                     dilations=dilations, pads=begin + end, ceil_mode=ceil_mode,
                     storage_order=order)  # fmt: skip
    check(model, inputs)


@FEW
@given(axes=st.lists(windows, min_size=2, max_size=2), channels=st.integers(1, 2))
def test_col2im(axes: list[tuple[int, ...]], channels: int) -> None:
    """Col2Im agrees for overlapping blocks with strides, dilations and padding."""
    kernel, strides, dilations, begin, end = (list(column) for column in zip(*axes, strict=True))
    image = [7, 8]
    counts = [
        (n + b + e - (k - 1) * d - 1) // s + 1
        for n, k, s, d, b, e in zip(image, kernel, strides, dilations, begin, end, strict=True)
    ]
    x = draw(2, channels * int(np.prod(kernel)), int(np.prod(counts)))
    inputs = [x, np.array(image), np.array(kernel)]
    model = model_of("Col2Im", inputs, constant=[1, 2], strides=strides, dilations=dilations,
                     pads=begin + end)  # fmt: skip
    check(model, inputs, 1e-4)
