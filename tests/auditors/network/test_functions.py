"""Operators computed by their body in the standard, beside ONNX Runtime and onnx.reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest
import torch
from onnx import TensorProto, helper
from tests.auditors.network.ops.compare import Array, check, draw, model_of
from tests.support import graph_model

from onnx_auditors.errors import LimitExceeded, UnsupportedOperator
from onnx_auditors.network import Limits, load
from onnx_auditors.network.registry import OPERATORS

Forget = Callable[..., None]

BODIES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "Softmax": ([draw(2, 5, 3)], {"axis": 1}),
    "LogSoftmax": ([draw(2, 5)], {}),
    "Gelu": ([draw(2, 5)], {"approximate": "tanh"}),
    "ThresholdedRelu": ([draw(2, 5)], {}),
    "HardSigmoid": ([draw(2, 5)], {"beta": 0.3}),
    "Celu": ([draw(2, 5)], {"alpha": 0.7}),
    "Softplus": ([draw(2, 5)], {}),
    "LayerNormalization": ([draw(2, 3, 5), draw(5, seed=1), draw(5, seed=2)], {"epsilon": 1e-3}),
    "GroupNormalization": ([draw(2, 6, 4), draw(6, seed=1), draw(6, seed=2)], {"num_groups": 3}),
    "ReduceLogSumExp": ([draw(2, 5), np.array([1])], {"keepdims": 0}),
    "CenterCropPad": ([draw(2, 5), np.array([4, 3])], {}),
}


def reference(model: onnx.ModelProto, inputs: dict[str, Array]) -> Array:
    """Returns the only output by onnx.reference."""
    (output,) = onnx.reference.ReferenceEvaluator(model).run(None, inputs)
    return np.asarray(output)


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Forget:
    """Takes the network's own functions of operators away."""

    def remove(*names: str) -> None:
        for name in names:
            monkeypatch.delitem(OPERATORS, name)

    return remove


@pytest.mark.parametrize("op_type", BODIES)
def test_bodies_are_onnx_runtimes_operators(op_type: str, forget: Forget) -> None:
    """Without a function of its own an operator gives ONNX Runtime's answer by its body."""
    inputs, attributes = BODIES[op_type]
    model = model_of(op_type, inputs, constant=range(1, len(inputs)), **attributes)
    forget(op_type)
    check(model, inputs)
    assert op_type not in {node.op_type for node in load(model).nodes}


def test_bodies_that_need_bodies(forget: Forget) -> None:
    """Attention by its body, whose softmax and casts have no function of their own either."""
    inputs = [draw(1, 2, 3, 4), draw(1, 2, 5, 4, seed=1), draw(1, 2, 5, 4, seed=2)]
    model = model_of("Attention", inputs, opset_version=23, is_causal=1)
    forget("Attention", "Softmax", "CastLike")
    check(model, inputs)


@pytest.mark.parametrize("opset", [10, 17, 22])
def test_the_body_is_that_of_the_models_opset(opset: int, forget: Forget) -> None:
    """An operator that got its body after the model's opset has it once the model is lifted."""
    inputs = [draw(3, 4)]
    model = model_of("ThresholdedRelu", inputs, opset_version=opset, alpha=0.3)
    forget("ThresholdedRelu")
    check(model, inputs)


def test_flex_attention() -> None:
    """An operator of the standard's preview, with a graph among its attributes, has no function."""
    value = helper.make_tensor_value_info
    capped = helper.make_graph(
        [
            helper.make_node("Tanh", ["score"], ["t"]),
            helper.make_node("Add", ["t", "t"], ["out"]),
        ],
        "capped",
        [value("score", TensorProto.FLOAT, [1, 2, 3, 5])],
        [value("out", TensorProto.FLOAT, [1, 2, 3, 5])],
    )
    shapes = {"q": [1, 2, 3, 4], "k": [1, 2, 5, 4], "v": [1, 2, 5, 4]}
    node = helper.make_node(
        "FlexAttention", list(shapes), ["y"], domain="ai.onnx.preview", score_mod=capped
    )
    graph = helper.make_graph(
        [node],
        "g",
        [value(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [value("y", TensorProto.FLOAT, [1, 2, 3, 4])],
    )
    opsets = [helper.make_opsetid("", 26), helper.make_opsetid("ai.onnx.preview", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    inputs = {name: draw(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    expected = reference(model, inputs)
    found = load(model).evaluate({n: torch.from_numpy(x) for n, x in inputs.items()})["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def branches(op_type: str, *names: str, shape: list[int]) -> onnx.ModelProto:
    """Returns a model with a node in the branch that is taken, which reads the graph around it."""
    then = helper.make_graph(
        [helper.make_node(op_type, names, ["a"])],
        "then",
        [],
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, shape)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["h"], ["b"])],
        "else",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, shape)],
    )
    nodes = [
        helper.make_node("Neg", ["x"], ["h"]),
        helper.make_node("If", ["yes"], ["z"], then_branch=then, else_branch=other),
        helper.make_node("Add", ["z", "x"], ["y"]),
    ]
    weights: dict[str, Any] = {
        "yes": np.array(True), "zero": np.float32(0), "one": np.float32(1), "four": np.float32(4)
    }  # fmt: skip
    return graph_model(nodes, {"x": shape}, weights)


def test_bodies_in_branches(forget: Forget) -> None:
    """A node of a subgraph is written out there, with the types that the graph around it has."""
    model, x = branches("Softmax", "h", shape=[2, 4]), draw(2, 4)
    forget("Softmax")
    expected = reference(model, {"x": x})
    found = load(model).evaluate({"x": torch.from_numpy(x)})["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_bodies_are_counted_before_they_are_written_out(forget: Forget) -> None:
    """Limits on nodes and on nesting hold for the model with its bodies."""
    inputs, _ = BODIES["LayerNormalization"]
    model = model_of("LayerNormalization", inputs)
    nested = branches("Range", "zero", "four", "one", shape=[4])
    load(model, limits=Limits(max_nodes=1))
    load(nested, limits=Limits(max_subgraph_depth=1))
    forget("LayerNormalization", "Range")
    load(model, limits=Limits(max_nodes=40))
    with pytest.raises(LimitExceeded, match="nodes, with functions written out; at most 20"):
        load(model, limits=Limits(max_nodes=20))
    load(nested, limits=Limits(max_subgraph_depth=2))
    with pytest.raises(LimitExceeded, match="2 levels of subgraphs; at most 1"):
        load(nested, limits=Limits(max_subgraph_depth=1))


def test_a_body_that_cannot_be_formed_is_not_written_out() -> None:
    """Bernoulli, whose body draws random numbers, is refused under its own name."""
    model = graph_model([helper.make_node("Bernoulli", ["x"], ["y"], name="coin")], {"x": [1, 3]})
    with pytest.raises(UnsupportedOperator, match=r"1 of .*Bernoulli .node 'coin'") as error:
        load(model)
    assert "Random" not in str(error.value)


def test_a_node_that_breaks_its_schema_is_refused() -> None:
    """A body that the standard cannot build for a node is no way around the refusal."""
    empty = helper.make_graph([], "empty", [], [])
    node = helper.make_node("SequenceMap", ["x"], ["y"], name="map", body=empty)
    model = graph_model([node], {"x": [1, 3]}, check=False)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3]))
    with pytest.raises(UnsupportedOperator, match=r"SequenceMap .node 'map'"):
        load(model)


def test_a_function_of_ours_goes_first() -> None:
    """An operator with a function of its own keeps its node."""
    inputs, _ = BODIES["LayerNormalization"]
    assert [n.op_type for n in load(model_of("LayerNormalization", inputs)).nodes] == [
        "LayerNormalization"
    ]
