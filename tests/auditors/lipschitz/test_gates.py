"""Gated activations that are spelled out, against dense grids and against their own operators."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from tests.auditors.lipschitz.nets import Builder
from tests.support import graph_model

from onnx_auditors.lipschitz import graph_of, network_bounds
from onnx_auditors.lipschitz.activations import Activation
from onnx_auditors.network import load

Spelling = Callable[[Builder, str], str]


def _number(b: Builder, value: float) -> str:
    return b.constant(np.float32(value))


def _silu(b: Builder, x: str) -> str:
    return b.op("Mul", x, b.op("Sigmoid", x))


def _scaled_silu(b: Builder, x: str) -> str:
    gate = b.op("Sigmoid", b.op("Mul", x, _number(b, -1.7)))
    return b.op("Mul", b.op("Sub", _number(b, 0.5), gate), b.op("Mul", x, _number(b, 3)))


def _gelu(b: Builder, x: str) -> str:
    erf = b.op("Erf", b.op("Div", x, _number(b, math.sqrt(2))))
    return b.op("Mul", b.op("Mul", x, b.op("Add", erf, _number(b, 1))), _number(b, 0.5))


def _halved_gelu(b: Builder, x: str) -> str:
    erf = b.op("Erf", b.op("Mul", x, _number(b, math.sqrt(0.5))))
    half = b.op("Mul", _number(b, 0.5), x)
    return b.op("Mul", b.op("Add", _number(b, 1), erf), half)


def _tanh_gelu(b: Builder, x: str) -> str:
    cube = b.op("Mul", b.op("Pow", x, _number(b, 3)), _number(b, 0.044715))
    inner = b.op("Mul", b.op("Add", x, cube), _number(b, math.sqrt(2 / math.pi)))
    gate = b.op("Add", b.op("Tanh", inner), _number(b, 1))
    return b.op("Mul", b.op("Mul", x, _number(b, 0.5)), gate)


def _hard_swish(b: Builder, x: str) -> str:
    gate = b.op("Clip", b.op("Add", x, _number(b, 3)), _number(b, 0), _number(b, 6))
    return b.op("Div", b.op("Mul", x, gate), _number(b, 6))


def _hard_swish_by_sigmoid(b: Builder, x: str) -> str:
    return b.op("Mul", x, b.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))


def _mish(b: Builder, x: str) -> str:
    return b.op("Mul", x, b.op("Tanh", b.op("Softplus", x)))


SPELLINGS: dict[str, tuple[Spelling, float]] = {
    "SiLU": (_silu, 1.0998394), "GELU": (_gelu, 1.1289042),
    "halved GELU": (_halved_gelu, 1.1289042),
    "tanh GELU": (_tanh_gelu, 1.1289929), "hard swish": (_hard_swish, 1.5),
    "hard swish by its sigmoid": (_hard_swish_by_sigmoid, 1.5), "Mish": (_mish, 1.0884985),
    # 3 x (1/2 - sigmoid(-1.7 x)) has the slope 3 (S'(1.7 x) - 1/2).
    "scaled SiLU": (_scaled_silu, 3 * 0.5998394),
}  # fmt: skip


def _model(spelling: Spelling) -> onnx.ModelProto:
    b = Builder((1, 8), 0)
    spelling(b, b.dense(8, 6))
    return b.head(6)


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelled_out_gates_are_one_activation(name: str) -> None:
    """The range of slopes is that of the closed form, and the values those of the operators."""
    spelling, largest = SPELLINGS[name]
    model = _model(spelling)
    network = load(model)
    graph = graph_of(network)
    assert not graph.problems
    (node,) = graph.bent
    rule = node.rule
    assert isinstance(rule, Activation)
    share = max(map(abs, rule.bounds)) * (1 / 2 if name == "GELU" else 1)
    share /= 6 if name == "hard swish" else 1
    assert share == pytest.approx(largest, rel=2e-5)
    assert share >= largest * (1 - 1e-7)
    x = torch.linspace(-12, 12, 20_001, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(rule.function(x).sum(), x)
    assert float(slope.min()) >= rule.bounds[0] - 1e-12
    assert float(slope.max()) <= rule.bounds[1] + 1e-12
    probes = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide = load(model, floating=torch.float64)
    expected = torch.cat([wide(p[None]) for p in probes])
    torch.testing.assert_close(graph.logits(probes), expected)
    section = network_bounds(network, ("l2",), entropy=0, probes=probes)
    bound = section.network[0].bound
    assert 0 < bound.lower <= bound.upper < math.inf


def _by_another_value(b: Builder, x: str) -> str:
    return b.op("Mul", x, b.op("Sigmoid", b.dense(6, 6, x)))


def _by_another_entry(b: Builder, x: str) -> str:
    w = b.constant(np.arange(1, 7, dtype=np.float32))
    return b.op("Mul", x, b.op("Sigmoid", b.op("Mul", x, w)))


def _square(b: Builder, x: str) -> str:
    return b.op("Mul", x, x)


def _shifted(b: Builder, x: str) -> str:
    return b.op("Mul", b.op("Add", x, _number(b, 1)), b.op("Softplus", x))


@pytest.mark.parametrize("spelling", [_by_another_value, _by_another_entry, _square, _shifted])
def test_other_products_stay_without_a_constant(spelling: Spelling) -> None:
    """A gate by something else, or a square, is no known function of one entry."""
    graph = graph_of(load(_model(spelling)))
    assert any("Mul of two values" in problem for problem in graph.problems)


def test_a_gate_that_is_read_elsewhere_stays() -> None:
    """The sigmoid of a SiLU goes on as a value of its own where something else reads it."""
    b = Builder((1, 8), 0)
    x = b.dense(8, 6)
    gate = b.op("Sigmoid", x)
    b.op("Add", b.op("Mul", x, gate), gate)
    b.dense(6, 4)
    b.nodes[-1].output[0] = "y"
    model = graph_model(b.nodes, {"x": (1, 8)}, b.weights)
    graph = graph_of(load(model))
    assert sorted(node.op for node in graph.bent) == ["Sigmoid", "Swish"]
    probes = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide = load(model, floating=torch.float64)
    torch.testing.assert_close(graph.logits(probes), torch.cat([wide(p[None]) for p in probes]))
