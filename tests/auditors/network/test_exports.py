"""Real exports of many kinds of networks beside ONNX Runtime and the original modules."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from onnx import helper
from tests.auditors.network import zoo
from tests.auditors.network.exports import exported
from tests.support import graph_model
from torch import Tensor, nn

from onnx_auditors.network import Network, Session, load, parity, require

ROWS = 5
KINDS = [
    ("mlp", True, 1), ("alexnet", False, 1), ("vgg", False, 3), ("resnet", True, 0),
    ("mobilenet", False, 0), ("densenet", False, 1), ("vit", True, 1), ("convnext", False, 1),
    ("autoencoder", False, 1), ("quocnet", True, 1), ("quocnet", False, 0),
]  # fmt: skip
"""Name, exporter and fixed batch (0: open): each network and each way once."""
MATRIX = [
    (name, dynamo, fixed, opset)
    for name in zoo.ZOO
    for dynamo, opsets in ((True, (18, 20, 21, 23)), (False, (13, 15, 17, 18)))
    for fixed, opset in itertools.product((0, 1), opsets)
    if (name, opset) != ("vit", 13)  # torch exports its attention from opset 14 on
]


def inputs(name: str, rows: int = ROWS) -> Tensor:
    shape = (rows, *zoo.ZOO[name][1])
    return torch.from_numpy(np.random.default_rng(1).random(shape, dtype=np.float32))


def without_squash(name: str) -> nn.Module:
    """Returns the original module up to the value that the network takes for its logits."""
    module = zoo.make(name)
    if name in {"mlp", "autoencoder"}:
        assert isinstance(module, nn.Sequential)
        return nn.Sequential(*list(module)[:-1])
    return module


def check(name: str, content: bytes, device: str = "cpu") -> Network:
    """Checks outputs, all values, logits and input gradients of an export."""
    network, x = load(content, device), inputs(name)
    session = Session(content, output=network.output)
    result = parity(network, session, x.numpy())
    require(result)
    assert result.max_relative_difference <= 1e-5
    assert result.label_agreement == ROWS
    original = without_squash(name)
    found, expected = network(x.to(device)).cpu(), zoo.classify(original, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn(found.shape[1], generator=torch.Generator().manual_seed(2))

    def moved(x: Tensor) -> Tensor:
        there: Tensor = network(x.to(device))
        return there.cpu()

    assert cosine(moved, lambda x: zoo.classify(original, x), x, weights) >= 0.99999
    return network


def cosine(network: object, original: object, x: Tensor, weights: Tensor) -> float:
    gradients = []
    for function in (network, original):
        leaf = x.clone().requires_grad_()
        assert callable(function)
        (gradient,) = torch.autograd.grad((function(leaf) @ weights).sum(), leaf)
        gradients.append(gradient.double().flatten())
    ours, theirs = gradients
    return float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0))


@pytest.mark.parametrize(("name", "dynamo", "fixed"), KINDS)
def test_export(name: str, dynamo: bool, fixed: int) -> None:
    """An export gives ONNX Runtime's values and the original's gradients at any batch."""
    check(name, exported(name, dynamo=dynamo, fixed=fixed))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dynamo", "fixed", "opset"), MATRIX)
def test_export_matrix(name: str, dynamo: bool, fixed: int, opset: int) -> None:
    """So it does with every exporter, for open and fixed batches, in opsets from 13 to 23."""
    check(name, exported(name, dynamo=dynamo, fixed=fixed, opset=opset))


@pytest.mark.parametrize(
    ("name", "dynamo", "fixed"), [("vit", True, 1), ("alexnet", False, 1), ("quocnet", True, 1)]
)
def test_one_graph(name: str, dynamo: bool, fixed: int) -> None:
    """Compilers see one graph without breaks, and the exporter takes it."""
    network, x = load(exported(name, dynamo=dynamo, fixed=fixed)), inputs(name)
    expected = network(x)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    exported_program = torch.export.export(network.graph(x), (x,))
    torch.testing.assert_close(exported_program.module()(x)[0].reshape(ROWS, -1), expected)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [0, 1])
@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_network_is_one_graph(name: str, fixed: int) -> None:
    """No network of the zoo breaks the graph, mapped over its fixed batch or not."""
    test_one_graph(name, dynamo=True, fixed=fixed)


@pytest.mark.parametrize("name", ["resnet", "vit", "quocnet"])
def test_rows_of_a_rewritten_batch(name: str) -> None:
    """A graph rewritten for more rows gives each row what it has alone, and mixes no gradients."""
    dynamo = name != "quocnet"
    network, x = load(exported(name, dynamo=dynamo, fixed=1)), inputs(name)
    together = network(x)
    for i in range(ROWS):
        torch.testing.assert_close(together[i : i + 1], network(x[i : i + 1]), rtol=1e-4, atol=1e-6)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(leaf)[2].sum(), leaf)
    assert (gradient.flatten(1).abs().sum(1) > 0).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("picked", [[2, 0, -1], [[1, 1], [-3, 2]]])
def test_picking_along_the_rows_of_a_fixed_batch(picked: list[object]) -> None:
    """Where a sample's entries lie along the batch's axis, each row is picked from alone."""
    indices = np.array(picked)
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["f"]),
        helper.make_node("Gather", ["f", "i"], ["g"], axis=0),
        helper.make_node("Reshape", ["g", "row"], ["y"]),
    ]
    weights = {"flat": np.array([3, 4]), "i": indices, "row": np.array([1, 4 * indices.size])}
    network = load(graph_model(nodes, {"x": [1, 3, 4]}, weights))
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = x.numpy()[:, indices].reshape(5, -1)
    np.testing.assert_array_equal(network(x).numpy(), expected)
    # The graph is of the model's own nodes, for all rows at once: it is not mapped over them.
    found = [n.meta["onnx"].op_type for n in network.graph(x).graph.nodes if "onnx" in n.meta]
    assert found == ["Reshape", "Gather", "Reshape"]


@pytest.mark.parametrize(("name", "fixed"), [("convnext", 1), ("vit", 1), ("resnet", 0)])
def test_values_by_name(name: str, fixed: int) -> None:
    """Values come by name, a row per sample, and the rest follows from them differentiably."""
    network, x = load(exported(name, dynamo=name != "convnext", fixed=fixed)), inputs(name, 3)
    logits, cut = network(x), 0
    for layer in network.layers:
        h = network.values(x, [layer.output])[layer.output].detach().requires_grad_()
        assert h.shape[0] == 3
        try:
            back = network.from_value(layer.output, h)
        except Exception as error:  # noqa: BLE001 - a path may lead around the value
            assert "does not follow" in str(error)  # noqa: PT017
            continue
        torch.testing.assert_close(back, logits, rtol=1e-4, atol=1e-5)
        (gradient,) = torch.autograd.grad(back.sum(), h)
        assert gradient.abs().sum() > 0
        cut += 1
    assert cut >= 5


def test_layers() -> None:
    """Layers have their operators' weights, attributes and static shapes."""
    network = load(exported("alexnet", dynamo=False, fixed=1))
    convolutions = [layer for layer in network.layers if layer.op_type == "Conv"]
    assert len(convolutions) == 4
    first, second = convolutions[:2]
    assert first.kind == "linear"
    assert tuple(first.weights[1].shape) == (16, 3, 5, 5)
    assert first.attributes["strides"] == [2, 2]
    assert first.attributes["pads"] == [2, 2, 2, 2]
    assert first.input_shapes == ((1, 3, 32, 32),)
    assert first.output_shape == (1, 16, 16, 16)
    assert second.attributes["group"] == 2
    kinds = {layer.op_type: layer.kind for layer in network.layers}
    assert kinds["Relu"] == kinds["MaxPool"] == kinds["Pow"] == "nonlinear"
    assert kinds["Gemm"] == kinds["Reshape"] == "linear"
    assert [layer.kind for layer in network.layers if layer.op_type == "Div"] == ["nonlinear"] * 2
