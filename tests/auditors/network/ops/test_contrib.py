"""Operators of ONNX Runtime's own domain beside ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.auditors.network.ops.compare import FEW, Array, check, draw, model_of

DOMAIN = "com.microsoft"


def quantised(*shape: int, signed: bool = False, seed: int = 0) -> Array:
    low, high, dtype = (-128, 128, np.int8) if signed else (0, 256, np.uint8)
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def scale(value: float) -> Array:
    return np.array(value, np.float32)


def zero(value: int, *, signed: bool = False) -> Array:
    return np.array(value, np.int8 if signed else np.uint8)


def test_gelu_family() -> None:
    """The three GELUs agree, with and without a bias."""
    x, bias = draw(2, 3, 8) * 3, draw(8, seed=1)
    check(model_of("Gelu", [x], domain=DOMAIN), [x])
    check(model_of("BiasGelu", [x, bias], domain=DOMAIN), [x, bias])
    check(model_of("FastGelu", [x, bias], domain=DOMAIN), [x, bias], 1e-4)
    check(model_of("FastGelu", [x], domain=DOMAIN), [x], 1e-4)


@FEW
@given(left=st.sampled_from([0, 1]), right=st.sampled_from([0, 1]), stack=st.booleans())
def test_fused_matmul(left: int, right: int, stack: bool) -> None:
    """FusedMatMul agrees for every transposition."""
    a, b = draw(4, 3) if left else draw(3, 4), draw(5, 4) if right else draw(4, 5)
    if stack:
        a = np.stack([a, 2 * a])
    model = model_of("FusedMatMul", [a, b], domain=DOMAIN, transA=left, transB=right, alpha=0.5)
    check(model, [a, b])


@pytest.mark.parametrize(
    ("activation", "params"),
    [("Relu", []), ("Tanh", []), ("Sigmoid", []), ("LeakyRelu", [0.3]), ("Clip", [-0.2, 0.4]),
     ("HardSigmoid", [0.3, 0.4])],
)  # fmt: skip
def test_fused_conv(activation: str, params: list[float]) -> None:
    """FusedConv agrees for every activation, with a bias and another tensor added."""
    x, w, b = draw(2, 3, 6, 6), draw(4, 3, 3, 3), draw(4)
    extra: dict[str, Any] = {"activation_params": params} if params else {}
    inputs = [x, w, b]
    model = model_of("FusedConv", inputs, constant=[1, 2], domain=DOMAIN, activation=activation,
                     pads=[1, 0, 1, 2], **extra)  # fmt: skip
    check(model, inputs, 1e-4)


def test_fused_conv_adds() -> None:
    """FusedConv adds its fourth input before the activation."""
    inputs = [draw(1, 3, 6, 6), draw(4, 3, 3, 3), draw(4), draw(1, 4, 4, 4, seed=3)]
    check(model_of("FusedConv", inputs, domain=DOMAIN, activation="Relu"), inputs, 1e-4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [("y",), ("y", "", "", "sum")])
def test_skip_normalisations(bias: bool, outputs: tuple[str, ...]) -> None:
    """Both skip normalisations agree, and show the sum if asked."""
    x, skip, gamma, beta, extra = (draw(*s, seed=i) for i, s in enumerate(
        [(2, 3, 8), (2, 3, 8), (8,), (8,), (8,)]
    ))  # fmt: skip
    inputs = [x, skip, gamma, beta, *([extra] if bias else [])]
    model = model_of("SkipLayerNormalization", inputs, outputs=outputs, domain=DOMAIN, epsilon=1e-3)
    check(model, inputs, 1e-4)
    inputs = [x, skip, gamma, *([extra] if bias else [])]
    model = model_of("SkipSimplifiedLayerNormalization", inputs, outputs=outputs, domain=DOMAIN,
                     epsilon=1e-3)  # fmt: skip
    check(model, inputs, 1e-4)


@FEW
@given(
    causal=st.sampled_from([0, 1]),
    mask=st.sampled_from(["none", "keys", "pairs"]),
    added=st.booleans(),
    scaled=st.booleans(),
)
def test_attention(causal: int, mask: str, added: bool, scaled: bool) -> None:
    """Attention of one input agrees for masks, a bias on the scores, and a scale."""
    batch, length, heads, size = 2, 5, 2, 4
    rng = np.random.default_rng(1)
    masks: dict[str, npt.NDArray[np.int32] | None] = {
        "none": None,
        "keys": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32),
        "pairs": (rng.random((batch, length, length)) < 0.7).astype(np.int32),
    }
    inputs: list[Array | None] = [draw(batch, length, 6), draw(6, 3 * heads * size) / 2,
                                  draw(3 * heads * size), masks[mask]]  # fmt: skip
    if added:
        inputs += [None, draw(1, heads, length, length, seed=2)]
    extra: dict[str, Any] = {"scale": 0.3} if scaled else {}
    model = model_of("Attention", inputs, constant=[1, 2], domain=DOMAIN, num_heads=heads,
                     unidirectional=causal, **extra)  # fmt: skip
    check(model, inputs, 1e-4)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_a_past(causal: int, masked: bool) -> None:
    """Past keys and values go before the new ones, and come back with them."""
    batch, length, before, heads, size = 2, 3, 4, 2, 4
    mask = np.array([[1] * 6 + [0], [0] + [1] * 6], np.int32)
    inputs: list[Array | None] = [
        draw(batch, length, 6), draw(6, 3 * heads * size) / 2, draw(3 * heads * size),
        mask if masked else None, draw(2, batch, heads, before, size, seed=3),
    ]  # fmt: skip
    model = model_of("Attention", inputs, constant=[1, 2], outputs=["y", "present"], domain=DOMAIN,
                     num_heads=heads, unidirectional=causal)  # fmt: skip
    check(model, inputs, 1e-4)


@FEW
@given(bias=st.booleans(), mask=st.booleans(), added=st.booleans(), causal=st.sampled_from([0, 1]))
def test_multi_head_attention(bias: bool, mask: bool, added: bool, causal: int) -> None:
    """MultiHeadAttention agrees with biases, a mask of keys and a bias on the scores."""
    batch, heads, rows, columns = 2, 2, 4, 4 if causal else 5
    key_mask = np.array([[1] * (columns - 1) + [0], [1] * columns], np.int32)
    inputs: list[Array | None] = [
        draw(batch, rows, 8), draw(batch, columns, 8, seed=1), draw(batch, columns, 6, seed=2),
        draw(22, seed=3) if bias else None, key_mask if mask else None,
        draw(1, heads, rows, columns, seed=4) if added else None,
    ]  # fmt: skip
    model = model_of("MultiHeadAttention", inputs, domain=DOMAIN, num_heads=heads,
                     unidirectional=causal)  # fmt: skip
    check(model, inputs, 1e-4)


@FEW
@given(
    signed=st.booleans(),
    left=st.sampled_from([0, 1]),
    right=st.sampled_from([0, 1]),
    bias=st.booleans(),
    again=st.booleans(),
    columns=st.booleans(),
)
def test_qgemm(signed: bool, left: int, right: int, bias: bool, again: bool, columns: bool) -> None:
    """QGemm agrees for every transposition, scales for each column, and without an output scale."""
    a = quantised(*((4, 3) if left else (3, 4)), signed=signed)
    b = quantised(*((5, 4) if right else (4, 5)), signed=True, seed=1)
    b_scale = np.linspace(0.01, 0.03, 5, dtype=np.float32) if columns else scale(0.02)
    b_zero = np.arange(5).astype(np.int8) if columns else zero(2, signed=True)
    c = np.random.default_rng(2).integers(-500, 500, 5).astype(np.int32) if bias else None
    inputs: list[Array | None] = [a, scale(0.01), zero(3, signed=signed), b, b_scale, b_zero, c]
    if again:
        inputs += [scale(0.05), zero(9, signed=signed)]
    model = model_of("QGemm", inputs, constant=[1, 2, 3, 4, 5, 6, 7, 8], domain=DOMAIN,
                     transA=left, transB=right, alpha=1.0)  # fmt: skip
    check(model, inputs, 1e-4, steps=1)


@pytest.mark.parametrize("op_type", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("signed", [False, True])
def test_qlinear_binary(op_type: str, signed: bool) -> None:
    """Sum and product of quantised values agree, with broadcasting."""
    inputs = [quantised(2, 3, 4, signed=signed), scale(0.02), zero(3, signed=signed),
              quantised(3, 1, signed=signed, seed=1), scale(0.03), zero(5, signed=signed),
              scale(0.05), zero(7, signed=signed)]  # fmt: skip
    check(model_of(op_type, inputs, domain=DOMAIN), inputs, steps=1)


def test_qlinear_concat() -> None:
    """QLinearConcat brings its inputs to one scale."""
    inputs = [scale(0.05), zero(7), quantised(2, 3), scale(0.02), zero(3), quantised(2, 5, seed=1),
              scale(0.09), zero(100)]  # fmt: skip
    model = model_of("QLinearConcat", inputs, constant=[0, 1, 3, 4, 6, 7], domain=DOMAIN, axis=1)
    check(model, inputs, steps=1)


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("ceil_mode", [0, 1])
def test_qlinear_average_pool(include: int, ceil_mode: int) -> None:
    """Averages of quantised values agree, over windows and over whole maps."""
    inputs = [quantised(2, 3, 7, 6), scale(0.02), zero(3), scale(0.03), zero(5)]
    model = model_of("QLinearAveragePool", inputs, domain=DOMAIN, kernel_shape=[3, 2],
                     strides=[2, 2], pads=[1, 0, 1, 0], count_include_pad=include,
                     ceil_mode=ceil_mode)  # fmt: skip
    check(model, inputs, steps=1)
    model = model_of("QLinearGlobalAveragePool", inputs, domain=DOMAIN, channels_last=0)
    check(model, inputs, steps=1)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [("QLinearLeakyRelu", {"alpha": 0.3}), ("QLinearSigmoid", {}),
     ("QLinearSoftmax", {"axis": -1, "opset": 13})],
)  # fmt: skip
def test_qlinear_activations(op_type: str, attributes: dict[str, Any], signed: bool) -> None:
    """Activations of quantised values agree."""
    inputs = [quantised(3, 6, signed=signed), scale(0.05), zero(30, signed=signed),
              scale(0.004), zero(0, signed=signed)]  # fmt: skip
    model = model_of(op_type, inputs, constant=[1, 2, 3, 4], domain=DOMAIN, **attributes)
    check(model, inputs, steps=1)


def test_simplified_layer_normalization() -> None:
    """SimplifiedLayerNormalization agrees over one axis and over two."""
    for axis, scale_shape in ((-1, (4,)), (1, (3, 4))):
        inputs = [draw(2, 3, 4), draw(*scale_shape, seed=1)]
        model = model_of("SimplifiedLayerNormalization", inputs, axis=axis, epsilon=1e-3)
        check(model, inputs, 1e-4)
