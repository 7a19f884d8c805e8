"""Bounds in balls of attention, products, quotients and normalisation, against searches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from tests.auditors.lipschitz.nets import Builder
from tests.auditors.lipschitz.searching import attack, inside, jacobian_norms, points
from tests.support import graph_model

from onnx_auditors.lipschitz import (
    LayerBounds,
    all_layers,
    certified_radii,
    compose_bounds,
    graph_of,
    layer_certificates,
)
from onnx_auditors.network import load

BALLS: tuple[Literal["l2", "linf"], ...] = ("l2", "linf")
TOKENS, WIDTH = 3, 4
SHAPE = (1, TOKENS, WIDTH)
Kind = Callable[[Builder], int]


def _projected(b: Builder, x: str = "x", out: int = WIDTH) -> str:
    return b.op("MatMul", x, b.weight(WIDTH, out, scale=0.4))


def _attention(b: Builder) -> int:
    query, key, value = (_projected(b) for _ in range(3))
    scores = b.op("MatMul", query, b.op("Transpose", key, perm=[0, 2, 1]))
    weights = b.op("Softmax", b.op("Mul", scores, b.constant(np.float32(0.5))), axis=-1)
    b.op("Add", b.op("MatMul", weights, value), "x")
    return TOKENS * WIDTH


def _attention_operator(b: Builder) -> int:
    query, key, value = _projected(b, out=8), _projected(b), _projected(b)
    b.op("Attention", query, key, value, q_num_heads=4, kv_num_heads=2, is_causal=1)
    return TOKENS * 8


def _block(b: Builder) -> int:
    one = b.op("LayerNormalization", "x", b.weight(WIDTH, scale=1.0), axis=-1, epsilon=1e-3)
    query, key, value = (_projected(b, one) for _ in range(3))
    scores = b.op("MatMul", query, b.op("Transpose", key, perm=[0, 2, 1]))
    mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), value)
    b.op("Gelu", _projected(b, b.op("Add", "x", mixed)))
    return TOKENS * WIDTH


def _excited(b: Builder) -> int:
    x = b.op("Relu", _projected(b))
    b.op("Sigmoid", _projected(b, b.op("ReduceMean", x, b.constant(np.array([1])), keepdims=1)))
    b.op("Mul", x, b.last)
    return TOKENS * WIDTH


def _quotient(b: Builder) -> int:
    top = _projected(b)
    bottom = b.op("Add", b.op("Sigmoid", _projected(b)), b.constant(np.float32(1)))
    b.op("Div", top, bottom)
    return TOKENS * WIDTH


def _normalised(b: Builder) -> int:
    two = b.constant(np.float32(2))
    axes = b.constant(np.array([-1]))
    x = b.op("Sub", "x", b.op("ReduceMean", "x", axes, keepdims=1))
    variance = b.op("ReduceMean", b.op("Pow", x, two), axes, keepdims=1)
    b.op("Div", x, b.op("Sqrt", b.op("Add", variance, b.constant(np.float32(0.01)))))
    return TOKENS * WIDTH


def _functions(b: Builder) -> int:
    half = b.constant(np.float32(0.5))
    b.op("Exp", b.op("Mul", "x", half))
    b.op("Log", b.op("Add", b.last, half))
    b.op("Reciprocal", b.op("Add", b.last, half))
    return TOKENS * WIDTH


def _rms(b: Builder) -> int:
    b.op("RMSNormalization", "x", b.weight(WIDTH, scale=1.0), axis=-1, epsilon=1e-3)
    return TOKENS * WIDTH


KINDS: dict[str, Kind] = {
    "attention": _attention, "attention operator": _attention_operator, "block": _block,
    "squeeze and excite": _excited, "quotient": _quotient, "normalised by hand": _normalised,
    "exponential, logarithm, reciprocal": _functions, "RMS normalisation": _rms,
}  # fmt: skip


def _model(kind: str, seed: int) -> onnx.ModelProto:
    b = Builder(
        SHAPE, seed, opset=24 if kind in {"attention operator", "RMS normalisation"} else 21
    )
    return b.head(KINDS[kind](b))


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_searches_stay_within(kind: str, norm: Literal["l2", "linf"]) -> None:
    """Gradients of margins in a ball have no larger dual norm; attacks in a radius find nothing."""
    network = load(_model(kind, 1))
    graph = graph_of(network)
    x = points(network, 2)
    labels = graph.logits(x).argmax(1)
    layers = all_layers(graph, (norm,), delta=1e-12, entropy=0)
    composed = compose_bounds(graph, layers, norm, delta=1e-12, entropy=0)
    if kind != "RMS normalisation":
        assert graph.problems
        assert math.isinf(composed.upper)
    sizes = (1e-6, 0.02, 0.1)
    known = LayerBounds(layers, composed.pairs)
    _, bounds = layer_certificates(graph, x.numpy(), labels.numpy(), norm, known, sizes)
    assert bool((bounds[:, 1:] >= bounds[:, :-1]).all())
    assert np.isfinite(bounds[:, 0]).all()
    draws = torch.Generator().manual_seed(0)
    for i in range(len(x)):
        for k, size in enumerate(sizes):
            moves = torch.randn(5, *x.shape[1:], generator=draws, dtype=torch.float64)
            moves = size * moves.sign() if norm == "linf" else moves
            ball = torch.full((5, 1, 1), size, dtype=torch.float64)
            _, apart = jacobian_norms(network, inside(x[i][None], moves, ball, norm), norm)
            steepest = float(apart[labels[i]].max())
            assert steepest <= bounds[i, k] * (1 + 1e-9)
    radii = torch.from_numpy(certified_radii(network, x.numpy(), labels.numpy(), norm))
    assert bool((radii > 0).all())
    assert bool((attack(network, x, labels, radii, norm) > 0).all())


def test_a_product_of_one_value_is_exact_at_the_probe() -> None:
    """X * x has the slope 2 max |x| + 2 r, plus as much again, in a ball of radius r."""
    b = Builder((1, 2), 0)
    b.op("Gemm", b.op("Mul", "x", "x"), b.constant(np.eye(2, dtype=np.float32)))
    b.nodes[-1].output[0] = "y"
    network = load(graph_model(b.nodes, {"x": (1, 2)}, b.weights))
    graph = graph_of(network)
    layers = all_layers(graph, ("linf",), delta=1e-12, entropy=0)
    pairs = compose_bounds(graph, layers, "linf", delta=1e-12, entropy=0).pairs
    known = LayerBounds(layers, pairs)
    x, label = np.array([[0.5, 0.25]]), np.array([0])
    _, bounds = layer_certificates(graph, x, label, "linf", known, (1e-9, 0.125))
    # Both logits change by at most 2 (0.5 + r) per unit, their difference by twice that.
    assert bounds[0] == pytest.approx([2.0, 2.5], rel=1e-6)
