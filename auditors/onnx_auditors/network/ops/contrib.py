"""Operators of ONNX Runtime's own domain that its quantiser and optimiser, and exporters, write."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional

from onnx_auditors.network.node import Node
from onnx_auditors.network.ops.attention import join_heads, split_heads
from onnx_auditors.network.ops.linear import conv
from onnx_auditors.network.ops.pooling import average_pool, global_average_pool
from onnx_auditors.network.ops.quantised import RANGES, dequantize, quantize
from onnx_auditors.network.registry import MICROSOFT, Function, operator


def _limits(node: Node, zero: int) -> tuple[int, int]:
    """Returns the range of an output that has the type of a zero point."""
    element_type = node.element_type(zero) if node.present(zero) else node.element_type(0)
    if element_type not in RANGES:
        node.refuse(f"quantising to {TensorProto.DataType.Name(element_type)} is not covered")
    node.declare(element_type)
    return RANGES[element_type]


@operator("QGemm", domain=MICROSOFT, surrogate=True, carries=True)
def qgemm(node: Node) -> Function:
    """Gemm of quantised values; quantised again where an output scale is given."""
    alpha = node.number("alpha", 1.0)
    left, right = node.integer("transA", 0), node.integer("transB", 0)
    again = node.present(7)
    limits = _limits(node, 8) if again else (0, 0)
    if not again:
        node.declare(TensorProto.FLOAT)

    def function(
        a: Tensor, a_scale: Tensor, a_zero: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor,
        c: Tensor | None = None, y_scale: Tensor | None = None, y_zero: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        dtype = a_scale.dtype
        first = a.to(dtype) - a_zero.to(dtype)
        # Scale and zero point are one, or one for each column of the product.
        per_column = b_zero.to(dtype)
        if right and per_column.numel() > 1:
            per_column = per_column.reshape(-1, 1)
        second = b.to(dtype) - per_column
        total = (first.mT if left else first) @ (second.mT if right else second)
        total = total if c is None else total + c.to(dtype)
        y = total * (alpha * a_scale * b_scale)
        return y if y_scale is None else quantize(y, y_scale, y_zero, limits)

    return function


_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "QLinearAdd": torch.add,
    "QLinearMul": torch.mul,
}


@operator(*_BINARY, domain=MICROSOFT, surrogate=True, carries=True)
def qlinear_binary(node: Node) -> Function:
    """Sum or product of quantised values, quantised again."""
    combine = _BINARY[node.op_type]
    limits = _limits(node, 7)

    def function(
        a: Tensor, a_scale: Tensor, a_zero: Tensor | None, b: Tensor, b_scale: Tensor,
        b_zero: Tensor | None, y_scale: Tensor, y_zero: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        y = combine(dequantize(a, a_scale, a_zero), dequantize(b, b_scale, b_zero))
        return quantize(y, y_scale, y_zero, limits)

    return function


@operator("QLinearConcat", domain=MICROSOFT, surrogate=True, carries=True)
def qlinear_concat(node: Node) -> Function:
    """Joins quantised values of several scales, quantised again."""
    axis = node.integer("axis")
    limits = _limits(node, 1)

    def function(y_scale: Tensor, y_zero: Tensor, *triples: Tensor) -> Tensor:
        parts = [
            dequantize(*triples[i : i + 3])
            for i in range(0, len(triples), 3)
        ]  # fmt: skip
        return quantize(torch.cat(parts, axis), y_scale, y_zero, limits)

    return function


def _qlinear_unary(node: Node, apply: Function) -> Function:
    limits = _limits(node, 4)

    def function(
        x: Tensor,
        x_scale: Tensor,
        x_zero: Tensor | None,
        y_scale: Tensor,
        y_zero: Tensor | None = None,
    ) -> Tensor:
        return quantize(apply(dequantize(x, x_scale, x_zero)), y_scale, y_zero, limits)

    return function


@operator("QLinearAveragePool", "QLinearGlobalAveragePool", domain=MICROSOFT, surrogate=True,
          carries=True)  # fmt: skip
def qlinear_average_pool(node: Node) -> Function:
    """Averages of quantised values, quantised again."""
    if node.integer("channels_last", 0):
        node.refuse("channels_last is not covered")
    if node.op_type == "QLinearAveragePool":
        return _qlinear_unary(node, average_pool(node))
    return _qlinear_unary(node, global_average_pool(node))


@operator("QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", domain=MICROSOFT,
          surrogate=True, carries=True)  # fmt: skip
def qlinear_activation(node: Node) -> Function:
    """Activations of quantised values, quantised again."""
    if node.op_type == "QLinearSigmoid":
        return _qlinear_unary(node, torch.sigmoid)
    if node.op_type == "QLinearLeakyRelu":
        slope = node.number("alpha", 0.01)
        return _qlinear_unary(node, lambda x: functional.leaky_relu(x, slope))
    axis, rank = node.integer("axis", -1), len(node.shape())
    if node.integer("opset") < 13 and axis % rank != rank - 1:  # noqa: PLR2004 - the opset's number
        node.refuse("softmax over several axes is not covered")
    return _qlinear_unary(node, lambda x: torch.softmax(x, axis))


_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "Relu": torch.relu,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "LeakyRelu": functional.leaky_relu,
    "Clip": torch.clamp,
    "HardSigmoid": lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0, 1),
}


@operator("FusedConv", domain=MICROSOFT)
def fused_conv(node: Node) -> Function:
    """Convolution, plus another tensor, then an activation."""
    name = node.text("activation", "")
    params = (
        [float(p) for p in node.value("activation_params")] if node.has("activation_params") else []
    )
    if name and name not in _ACTIVATIONS:
        node.refuse(f"activation {name} is not covered")
    convolve = conv(node)

    def function(x: Tensor, w: Tensor, b: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        y = convolve(x, w, b)
        y = y if z is None else y + z
        return _ACTIVATIONS[name](y, *params) if name else y

    return function


@operator("Gelu", domain=MICROSOFT)
def gelu(_: Node) -> Function:
    """Gaussian error linear unit."""
    return functional.gelu


@operator("BiasGelu", "FastGelu", domain=MICROSOFT)
def bias_gelu(node: Node) -> Function:
    """The same after adding a bias; FastGelu by tanh."""
    approximate = "tanh" if node.op_type == "FastGelu" else "none"

    def function(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.gelu(x if bias is None else x + bias, approximate=approximate)

    return function


@operator("SimplifiedLayerNormalization")
@operator("SimplifiedLayerNormalization", domain=MICROSOFT)
def simplified_layer_normalization(node: Node) -> Function:
    """Divides by the root mean square over the last axes."""
    node.ignore("stash_type")
    epsilon = node.number("epsilon", 1e-5)
    rank = len(node.shape())
    axes = list(range(node.integer("axis", -1) % rank, rank))

    def function(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        inverse = torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon)
        return x * inverse * scale, inverse

    return function


@operator("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(node: Node) -> Function:
    """Adds a residual and a bias, then normalises the last axis."""
    epsilon = node.number("epsilon", 1e-12)

    def function(
        x: Tensor,
        skip: Tensor,
        gamma: Tensor,
        beta: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        total = x + skip if bias is None else x + skip + bias
        mean = total.mean(-1, keepdim=True)
        centred = total - mean
        inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + epsilon)
        y = centred * inverse * gamma
        return (y if beta is None else y + beta), mean, inverse, total

    return function


@operator("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_simplified_layer_normalization(node: Node) -> Function:
    """Adds a residual and a bias, then divides by the root mean square of the last axis."""
    epsilon = node.number("epsilon", 1e-12)

    def function(
        x: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        total = x + skip if bias is None else x + skip + bias
        inverse = torch.rsqrt(total.square().mean(-1, keepdim=True) + epsilon)
        return total * inverse * gamma, torch.zeros_like(inverse), inverse, total

    return function


@operator("FusedMatMul", domain=MICROSOFT)
def fused_matmul(node: Node) -> Function:
    """A matrix product times a factor, either one with its last two axes turned."""
    alpha = node.number("alpha", 1.0)
    left, right = node.integer("transA", 0), node.integer("transB", 0)
    if node.integer("transBatchA", 0) or node.integer("transBatchB", 0):
        node.refuse("transBatchA and transBatchB are not covered")
    # A vector has no axes to turn, and ONNX Runtime leaves it as it is.
    left, right = left and len(node.shape()) > 1, right and len(node.shape(1)) > 1
    return lambda a, b: alpha * ((a.mT if left else a) @ (b.mT if right else b))


@operator("Attention", domain=MICROSOFT)
def attention(node: Node) -> Function:
    """Self-attention from one input: the product with the weights is queries, keys and values."""
    heads = node.integer("num_heads")
    hidden = node.shape(1)[1]
    sizes = node.integers("qkv_hidden_sizes", [hidden // 3] * 3)
    causal = bool(node.integer("unidirectional", 0))
    scale = node.number("scale", 0.0) or 1 / math.sqrt(sizes[0] // heads)
    fill = node.number("mask_filter_value", -10000.0)
    keeps = node.wants(1)
    if node.present(6):
        node.refuse("past and present in one buffer are not covered")

    def function(
        x: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None,
        past: Tensor | None = None, added: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        projected = x @ weight
        projected = projected if bias is None else projected + bias
        parts = [split_heads(p, heads) for p in torch.split(projected, sizes, -1)]
        query, key, value = parts
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        bias_of_mask = _mask_bias(mask, query, key, fill, causal=causal)
        y = _attend(query, key, value, bias_of_mask, added, scale)
        return (y, torch.stack([key, value])) if keeps else y

    _check_mask(node, 3)
    return function


@operator("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(node: Node) -> Function:
    """Attention of given queries, keys and values, [batch, length, heads * size] each."""
    heads = node.integer("num_heads")
    size = node.shape()[-1] // heads
    causal = bool(node.integer("unidirectional", 0))
    scale = node.number("scale", 0.0) or 1 / math.sqrt(size)
    fill = node.number("mask_filter_value", -10000.0)
    if len(node.shape()) != _ROWS or any(node.present(i) for i in range(6, len(node.inputs))):
        node.refuse("packed inputs and caches are not covered")
    if not (node.present(1) and node.present(2)) or len(node.shape(1)) != _ROWS:
        node.refuse("packed keys and values are not covered")
    _check_mask(node, 4)
    widths = [node.shape()[-1], node.shape(1)[-1], node.shape(2)[-1]]

    def function(
        query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None,
        mask: Tensor | None = None, added: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        if bias is not None:
            q_bias, k_bias, v_bias = torch.split(bias, widths)
            query, key, value = query + q_bias, key + k_bias, value + v_bias
        q, k, v = (split_heads(p, heads) for p in (query, key, value))
        return _attend(q, k, v, _mask_bias(mask, q, k, fill, causal=causal), added, scale)

    return function


_ROWS = 3


def _check_mask(node: Node, index: int) -> None:
    """Of ONNX Runtime's many masks, those that say for each key or pair whether to look."""
    if node.present(index) and len(node.shape(index)) not in {2, 3}:
        node.refuse("only masks [batch, keys] and [batch, queries, keys] are covered")


def _mask_bias(
    mask: Tensor | None, query: Tensor, key: Tensor, fill: float, *, causal: bool
) -> Tensor:
    """What is added to the scores; ONNX Runtime fills with a finite number, and lets it add up."""
    bias = query.new_zeros(())
    if mask is not None:
        seen = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]  # noqa: PLR2004 - [batch, keys]
        bias = torch.where(seen > 0, 0.0, fill).to(query.dtype)
    if causal:
        rows, columns = query.shape[2], key.shape[2]
        places = torch.arange(columns, device=key.device)
        ahead = places > torch.arange(rows, device=key.device)[:, None] + columns - rows
        bias = bias + torch.where(ahead, torch.finfo(query.dtype).min, 0.0).to(query.dtype)
    return bias


def _attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, added: Tensor | None, scale: float
) -> Tensor:
    scores = (query @ key.mT) * scale + bias
    scores = scores if added is None else scores + added
    return join_heads(torch.softmax(scores, -1) @ value)
