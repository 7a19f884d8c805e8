"""Whole models beside ONNX Runtime and beside the torch modules they were exported from."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from tests.support import graph_model, shared_data
from torch import nn

from onnx_auditors.errors import InvalidModel, ParityFailed
from onnx_auditors.network import Network, Session, load, parity, require
from onnx_auditors.network.registry import OPERATORS, Operator

MODELS = [
    "cifar_base_kw",
    "cifar_resnet_2b",
    "mnist-net_256x2",
    "mnist-net_256x4",
    "mnist_convnet_maxpool",
    "squeezenet1_1_fp16",
    "squeezenet1_1_fp32",
]


def samples(network: Network, count: int, seed: int = 0) -> np.ndarray:
    scale = 255 if "squeezenet" in network.summary.producer or network.classes == 1000 else 1
    shape = (count, *network.input.shape[1:])
    return np.random.default_rng(seed).random(shape, dtype=np.float32) * np.float32(scale)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 5])
def test_shared_model_has_parity(name: str, batch: int) -> None:
    """A published model gives ONNX Runtime's outputs, at the batch it fixes and at others."""
    path = shared_data() / "models" / f"{name}.onnx"
    network, session = load(path), Session(path)
    x = samples(network, batch)
    result = parity(network, session, x)
    require(result)
    assert result.label_agreement == batch
    assert result.max_relative_difference < (2e-3 if "fp16" in name else 1e-5)
    assert session.run(x).shape == network(torch.from_numpy(x)).shape == (batch, network.classes)


@pytest.mark.parametrize("name", MODELS[:5])
def test_gradient_of_shared_model(name: str) -> None:
    """The gradient of a published model is that of finite differences in double precision."""
    network = load(shared_data() / "models" / f"{name}.onnx", floating=torch.float64)
    x = torch.from_numpy(samples(network, 2)).double().requires_grad_()
    direction = torch.from_numpy(np.random.default_rng(1).standard_normal(x.shape))
    weights = torch.linspace(-1, 1, network.classes, dtype=torch.float64)
    (network(x) @ weights).sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        step = 1e-7 * direction
        ends = [(network(x + sign * step) @ weights).sum(dim=0) for sign in (1, -1)]
    numeric = (ends[0] - ends[1]) / 2e-7
    torch.testing.assert_close((x.grad * direction).sum(), numeric, rtol=1e-5, atol=1e-7)


def test_softmax_at_the_end_is_left_out() -> None:
    """Logits of a model that gives probabilities turn into these by softmax, in float32."""
    network = load(shared_data() / "models" / "squeezenet1_1_fp16.onnx")
    x = torch.from_numpy(samples(network, 2))
    logits = network(x)
    assert logits.dtype == torch.float32
    assert float(logits.detach().std()) > 0.5
    probabilities = network.evaluate({network.input.name: x})[network.output]
    assert probabilities.dtype == torch.float16
    torch.testing.assert_close(
        logits.softmax(1), probabilities.reshape(2, -1).float(), rtol=1e-3, atol=1e-6
    )


class Cnn(nn.Module):
    """A small network with most of what plain CNNs use."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8), nn.SiLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.LeakyReLU(0.1), nn.AvgPool2d(2, padding=1),
            nn.Conv2d(8, 16, 3, dilation=2, padding=2), nn.GELU(), nn.MaxPool2d(3, 2, padding=1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(16, 6),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns class scores."""
        scores: torch.Tensor = self.body(x.view(x.size(0), 3, 16, 16) * 2 - 1)
        return scores


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 20), nn.LayerNorm(20), nn.ELU(), nn.Linear(20, 20),
        nn.Softplus(), nn.Linear(20, 5), nn.Softmax(dim=1),
    )  # fmt: skip


def export(module: nn.Module, x: torch.Tensor, path: Path, *, dynamic: bool) -> Path:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    with warnings.catch_warnings():
        # The exporter's own warnings say nothing about the network.
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    return path


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("kind", ["cnn", "mlp"])
def test_torch_export(kind: str, dynamic: bool, tmp_path: Path) -> None:
    """A default torch export gives the module's outputs and input gradients at any batch."""
    torch.manual_seed(0)
    module = (Cnn() if kind == "cnn" else mlp()).eval()
    shape = (3, 16, 16) if kind == "cnn" else (3, 4)
    path = export(
        module, torch.rand(2 if dynamic else 1, *shape), tmp_path / "m.onnx", dynamic=dynamic
    )
    network, session = load(path), Session(path)
    x = torch.rand(5, *shape, requires_grad=True)
    logits = network(x)
    scores = logits if kind == "cnn" else logits.softmax(1)
    torch.testing.assert_close(scores, module(x), rtol=1e-4, atol=1e-5)
    weights = torch.linspace(-1, 1, logits.shape[1])
    (ours,) = torch.autograd.grad((scores @ weights).sum(), x)
    (theirs,) = torch.autograd.grad((module(x) @ weights).sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    require(parity(network, session, x.detach().numpy()))


def test_values_and_back() -> None:
    """From a value in the middle the rest of the network gives the same logits."""
    network = load(shared_data() / "models" / "mnist_convnet_maxpool.onnx")
    x = torch.from_numpy(samples(network, 4))
    for name in network.value_names():
        h = network.values(x, [name])[name]
        assert len(h) == 4
        torch.testing.assert_close(network.from_value(name, h), network(x))


def test_a_value_beside_the_path_is_refused() -> None:
    """The logits are no function of a value that a path leads around."""
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("Add", ["x", "h"], ["y"]),
    ]
    network = load(graph_model(nodes, {"x": [1, 3]}))
    with pytest.raises(InvalidModel, match="'x'"):
        network.from_value("h", torch.ones(2, 3))


def test_hard_coded_batch_behind_an_open_one() -> None:
    """A graph that declares an open batch and reshapes to one row is run row by row."""
    nodes = [
        helper.make_node("Reshape", ["x", "one"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    w = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    model = graph_model(nodes, {"x": ["n", 2, 3]}, {"one": np.array([1, 6]), "w": w})
    network = load(model)
    x = np.random.default_rng(1).standard_normal((5, 2, 3)).astype(np.float32)
    expected = x.reshape(5, 6) @ w
    np.testing.assert_allclose(network(torch.from_numpy(x)), expected, rtol=1e-5)
    session = Session(model.SerializeToString())
    assert session.run(x[:1]).shape == (1, 4)


def test_fixed_batch_above_one() -> None:
    """A batch that is no multiple of the fixed one is filled up and cut again."""
    w = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    model = graph_model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [2, 4]}, {"w": w})
    x = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    np.testing.assert_allclose(load(model)(torch.from_numpy(x)), x @ w, rtol=1e-5)
    np.testing.assert_allclose(Session(model.SerializeToString()).run(x), x @ w, rtol=1e-5)


def test_a_wrong_operator_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parity fails for an operator that computes something else, and names its first value."""
    wrong = Operator(lambda _: lambda x: torch.nn.functional.leaky_relu(x, 0.05), since=1)
    monkeypatch.setitem(OPERATORS, "Relu", wrong)
    path = shared_data() / "models" / "mnist-net_256x2.onnx"
    network = load(path)
    result = parity(network, Session(path), samples(network, 3))
    first = next(node.output[0] for node in onnx.load(path).graph.node if node.op_type == "Relu")
    assert not result.passed
    assert result.first_divergent_value == first
    with pytest.raises(ParityFailed, match=f"'{first}'"):
        require(result)


def test_moving_the_network_changes_its_precision() -> None:
    """Plans made before weights were converted are not used after it."""
    network = load(graph_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [1, 2]},
        {"w": np.eye(2, dtype=np.float32)},
    ))  # fmt: skip
    network(torch.ones(1, 2))
    network.register_buffer("weight_0", 2 * torch.eye(2))
    network.to("cpu")
    assert network(torch.ones(1, 2)).tolist() == [[2.0, 2.0]]
