"""Faults planted in operators are found by parity, and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tests.auditors.network import zoo
from tests.auditors.network.exports import exported, quantize
from tests.support import graph_model

from onnx_auditors.errors import ParityFailed
from onnx_auditors.network import Network, Session, load, parity, require
from onnx_auditors.network.registry import MICROSOFT, OPERATORS, Operator


def inputs(name: str, rows: int = 5) -> np.ndarray:
    return np.random.default_rng(3).random((rows, *zoo.ZOO[name][1]), dtype=np.float32)


def wrong(op_type: str, change: Callable[[onnx.NodeProto], None]) -> Operator:
    """Returns an operator that computes something else than its node says."""
    true = OPERATORS[op_type]

    def bind(node: Any) -> Any:
        proto = onnx.NodeProto(op_type=op_type)
        proto.attribute.extend(node._attributes.values())
        change(proto)
        node._attributes = {a.name: a for a in proto.attribute}
        return true.bind(node)

    return Operator(bind, true.since, true.surrogate, true.carries)


def setting(name: str, value: Any) -> Callable[[onnx.NodeProto], None]:
    def change(node: onnx.NodeProto) -> None:
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


FAULTS = {
    "pad": ("vgg", "Conv", setting("pads", [0, 0, 2, 2])),
    "axis": ("vit", "Softmax", setting("axis", -2)),
    "epsilon": ("mlp", "LayerNormalization", setting("epsilon", 1e-3)),
    "output padding": ("autoencoder", "ConvTranspose", setting("pads", [0, 0, 2, 2])),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_attribute_is_found_and_named(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong padding, axis and epsilon fail, at the first node that has them."""
    name, op_type, change = FAULTS[fault]
    content = exported(name, dynamo=name in {"vit", "mlp"}, fixed=1)
    monkeypatch.setitem(OPERATORS, op_type, wrong(op_type, change))
    network = load(content)
    result = parity(network, Session(content, output=network.output), inputs(name))
    nodes = onnx.load_from_string(content).graph.node
    assert not result.passed
    assert result.first_divergent_value == next(n.output[0] for n in nodes if n.op_type == op_type)
    with pytest.raises(ParityFailed, match="the first value that differs"):
        require(result)


def test_a_swapped_bias_is_found_and_named() -> None:
    """Two biases that changed places are found at the first of them."""
    content = exported("vgg", dynamo=False, fixed=3)
    network = load(content)
    proto = onnx.load_from_string(content)
    biases = [n.input[2] for n in proto.graph.node if n.op_type == "Conv"][:2]
    stored = list(proto.graph.initializer)
    buffers = [network.get_buffer(network._names[name]) for name in biases]
    assert all(name in {t.name for t in stored} for name in biases)
    first = buffers[0].clone()
    buffers[0].copy_(buffers[1])
    buffers[1].copy_(first)
    result = parity(network, Session(content), inputs("vgg"))
    assert not result.passed
    first_conv = next(n.output[0] for n in proto.graph.node if n.op_type == "Conv")
    assert result.first_divergent_value == first_conv


def test_a_fault_that_the_output_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is wrong inside fails even where the outputs agree."""
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("LeakyRelu", ["h"], ["g"], alpha=0.5),
        helper.make_node("Neg", ["x"], ["m"]),
        helper.make_node("LeakyRelu", ["m"], ["k"], alpha=0.5),
        helper.make_node("Mul", ["k", "zero"], ["z"]),
        helper.make_node("Add", ["g", "z"], ["y"]),
    ]
    model = graph_model(nodes, {"x": ["n", 3]}, {"zero": np.zeros(1, np.float32)})
    monkeypatch.setitem(OPERATORS, "LeakyRelu", wrong("LeakyRelu", setting("alpha", 0.1)))
    x = np.random.default_rng(0).random((4, 3), dtype=np.float32)
    result = parity(load(model), Session(model.SerializeToString()), x)
    assert result.max_absolute_difference == 0
    assert not result.passed
    assert result.first_divergent_value == "k"


def test_tolerance_follows_the_model() -> None:
    """What may differ is small in single precision, and a part in a thousand in half."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Tanh", ["h"], ["y"])]
    w = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    x = np.random.default_rng(1).random((8, 16), dtype=np.float32)
    single = graph_model(nodes, {"x": ["n", 16]}, {"w": w})
    result = parity(load(single), Session(single.SerializeToString()), x)
    assert result.passed
    assert result.tolerance < 1e-4
    half = onnx.ModelProto()
    half.CopyFrom(single)
    half.graph.initializer[0].CopyFrom(numpy_helper.from_array(w.astype(np.float16), "w"))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del half.graph.value_info[:]
    result = parity(load(half), Session(half.SerializeToString()), x.astype(np.float16))
    assert result.passed
    assert 2.0**-11 < result.tolerance < 4e-3


def test_a_model_that_takes_bytes() -> None:
    """Pixels of 0 to 255 are leaves of gradients, and are rounded before ONNX Runtime gets them."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["t"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["f", "w"], ["c"]),
        helper.make_node("Flatten", ["c"], ["y"]),
    ]
    w = np.random.default_rng(0).standard_normal((2, 3, 3, 3)).astype(np.float32)
    model = graph_model(nodes, {"x": ["n", 4, 4, 3]}, {"w": w}, check=False)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8]))
    network, session = load(model), Session(model.SerializeToString())
    x = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 3)).astype(np.float32)
    require(parity(network, session, x))
    require(parity(network, session, x + np.float32(0.3)))
    np.testing.assert_allclose(session.run(x + np.float32(0.3)), session.run(x))
    np.testing.assert_allclose(gradient(network, x), gradient(network, x + np.float32(0.5)))
    assert np.abs(gradient(network, x)).min() > 0


def gradient(network: Network, x: np.ndarray) -> np.ndarray:
    leaf = torch.from_numpy(x).requires_grad_()
    scores = network(leaf)
    assert scores.shape == (len(x), 8)
    (result,) = torch.autograd.grad(scores.sum(), leaf)
    array: np.ndarray = result.numpy()
    return array


@pytest.mark.parametrize(("form", "op_type"), [("QDQ", "Gemm"), ("QOperator", "QGemm")])
def test_a_fault_in_8_bits_is_found_and_named(
    form: str, op_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product that is 2 % off fails, also behind parameters quantised to one number."""
    content = quantize(exported("alexnet", dynamo=False, fixed=1), inputs("alexnet"), form)
    key = op_type if form == "QDQ" else f"{MICROSOFT}.{op_type}"
    monkeypatch.setitem(OPERATORS, key, wrong(key, setting("alpha", 0.98)))
    result = parity(load(content), Session(content), inputs("alexnet"))
    nodes = onnx.load_from_string(content).graph.node
    assert not result.passed
    assert result.first_divergent_value == next(n.output[0] for n in nodes if n.op_type == op_type)


def test_parameters_excuse_nothing() -> None:
    """A parameter quantised to one number does not widen what may differ."""
    content = quantize(exported("alexnet", dynamo=False, fixed=1), inputs("alexnet"), "QDQ")
    result = parity(load(content), Session(content), inputs("alexnet"))
    assert result.passed
    assert result.tolerance < 0.05
