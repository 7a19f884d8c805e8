"""Quantised operators: values beside ONNX Runtime, gradients beside the model without rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tests.auditors.network.ops.compare import FEW, Array, check, draw, model_of
from tests.support import graph_model

from onnx_auditors.network import load

KINDS: dict[str, type[np.integer[Any]]] = {
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
}


def integers(*shape: int, kind: str = "uint8", seed: int = 0) -> Array:
    limits = np.iinfo(KINDS[kind])
    low, high = max(limits.min, -200), min(limits.max, 200)
    return np.random.default_rng(seed).integers(low, high + 1, shape).astype(KINDS[kind])


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("grain", ["tensor", "axis", "block"])
def test_quantize_and_dequantize(kind: str, grain: str) -> None:
    """Both agree for every type, with one scale, one for each channel, and one for each block."""
    shape = {"tensor": (), "axis": (4,), "block": (2, 2, 5)}[grain]
    rng = np.random.default_rng(1)
    scales = rng.uniform(0.01, 0.05, shape).astype(np.float32)
    zeros = rng.integers(0, 9, shape).astype(KINDS[kind])
    extra: dict[str, Any] = {"block_size": 2} if grain == "block" else {}
    inputs: list[Array | None] = [draw(2, 4, 5) * 3, scales, zeros]
    model = model_of("QuantizeLinear", inputs, constant=[1, 2], axis=1, **extra)
    check(model, inputs)
    inputs = [integers(2, 4, 5, kind=kind), scales, zeros]
    check(model_of("DequantizeLinear", inputs, constant=[1, 2], axis=1, **extra), inputs)


def test_ties_go_to_the_even_integer_before_the_zero_point() -> None:
    """A tie is rounded before an odd zero point is added."""
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 300.0, -300.0], np.float32)
    inputs: list[Array | None] = [x, np.array(1.0, np.float32), np.array(3, np.uint8)]
    check(model_of("QuantizeLinear", inputs, constant=[1, 2]), inputs)


@FEW
@given(
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    group=st.sampled_from([1, 2]),
    channels=st.booleans(),
    bias=st.booleans(),
)
def test_qlinear_conv(
    stride: int, dilation: int, pads: list[int], group: int, channels: bool, bias: bool
) -> None:
    """Quantised convolution agrees, with scales for each channel and uneven padding."""
    w = integers(6, 4 // group, 3, 2, kind="int8", seed=1)
    w_scale = np.linspace(0.01, 0.02, 6, dtype=np.float32) if channels else np.float32(0.02)
    w_zero = np.zeros(6, np.int8) if channels else np.int8(0)
    inputs: list[Array | None] = [
        integers(2, 4, 8, 9), np.array(0.02, np.float32), np.array(120, np.uint8), w,
        np.asarray(w_scale), np.asarray(w_zero), np.array(0.05, np.float32),
        np.array(100, np.uint8),
        np.random.default_rng(2).integers(-999, 999, 6).astype(np.int32) if bias else None,
    ]  # fmt: skip
    model = model_of("QLinearConv", inputs, constant=range(1, 9), strides=[stride] * 2,
                     dilations=[dilation] * 2, pads=pads, group=group)  # fmt: skip
    check(model, inputs, steps=1)


def test_integer_products() -> None:
    """Products of integers are exact, also where single precision is not."""
    a, b = integers(3, 700), integers(700, 5, seed=1)
    zero = np.array(3, np.uint8)
    check(model_of("MatMulInteger", [a, b, zero, zero]), [a, b, zero, zero])
    x, w = integers(1, 40, 6, 6), integers(5, 40, 3, 3, seed=1)
    check(model_of("ConvInteger", [x, w, zero, zero], pads=[1, 1, 1, 1]), [x, w, zero, zero])


def test_dynamic_quantisation() -> None:
    """DynamicQuantizeLinear agrees, also where all values have one sign or are 0."""
    for x in (draw(3, 4), np.abs(draw(3, 4)), -np.abs(draw(3, 4))):
        inputs: list[Array | None] = [x]
        model = model_of("DynamicQuantizeLinear", inputs, outputs=["y", "s", "z"])
        check(model, inputs, steps=1)


def qdq_model() -> onnx.ModelProto:
    """A quantised product between two quantised tensors, with a MaxPool on integers."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("MaxPool", ["q"], ["p"], kernel_shape=[2], strides=[2]),
        helper.make_node("Reshape", ["p", "flat"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    weights: dict[str, Array] = {"s": np.array(0.02, np.float32), "z": np.array(128, np.uint8),
               "flat": np.array([-1, 6]),
               "w": draw(6, 3, seed=1)}  # fmt: skip
    return graph_model(nodes, {"x": ["n", 2, 6]}, weights)


def test_gradients_pass_through_integers() -> None:
    """The gradient is that of the model without rounding, and 0 where a value was clipped."""
    network = load(qdq_model())
    x = torch.from_numpy(draw(4, 2, 6))
    x[0, 0, 0] = 9.0
    leaf = x.clone().requires_grad_()
    network(leaf).square().sum().backward()
    smooth = x.clone().requires_grad_()
    pooled = torch.nn.functional.max_pool1d(smooth.clamp(-128 * 0.02, 127 * 0.02), 2).reshape(-1, 6)
    y = pooled @ torch.from_numpy(draw(6, 3, seed=1))
    torch.autograd.backward(y, 2 * network(x).detach())
    assert leaf.grad is not None
    assert smooth.grad is not None
    torch.testing.assert_close(leaf.grad, smooth.grad)
    assert float(leaf.grad[0, 0, 0]) == 0


def test_integers_are_integers_to_other_operators() -> None:
    """What was quantised wraps around in arithmetic that the standard defines on integers."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("Add", ["q", "q"], ["a"]),
        helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT),
    ]
    model = graph_model(
        nodes, {"x": [3]}, {"s": np.array(1.0, np.float32), "z": np.array(0, np.uint8)}
    )
    y = load(model).evaluate({"x": torch.tensor([1.0, 100.0, 200.0])})["y"]
    assert y.tolist() == [2.0, 200.0, 144.0]
