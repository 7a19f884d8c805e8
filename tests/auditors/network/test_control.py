"""If, Loop and Scan beside ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tests.support import graph_model

from onnx_auditors.errors import LimitExceeded, UnsupportedOperator
from onnx_auditors.network import Limits, load

X = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


def info(
    name: str, shape: list[int | str] | None = None, kind: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def branch(op_type: str, name: str, *more: str) -> onnx.GraphProto:
    node = helper.make_node(op_type, ["x", *more], [name])
    return helper.make_graph([node], name, [], [info(name, ["n", 3])])


def choice(condition: list[onnx.NodeProto], *sides: onnx.GraphProto) -> onnx.ModelProto:
    node = helper.make_node("If", ["c"], ["y"], then_branch=sides[0], else_branch=sides[1])
    weights = {"zero": np.zeros((), np.float32), "two": np.full((), 2, np.float32)}
    model = graph_model([*condition, node], {"x": ["n", 3]}, weights, check=False)
    model.graph.output[0].CopyFrom(info("y", ["n", 3]))
    onnx.checker.check_model(model)
    return model


def positive(total: str = "ReduceSum") -> list[onnx.NodeProto]:
    """Returns nodes that make `c`: whether the input's sum is above 0."""
    return [
        helper.make_node(total, ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
    ]


def reference(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options)
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return result


def evaluate(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    network = load(model)
    (result,) = network.evaluate({network.input.name: torch.from_numpy(x)}).values()
    return result.numpy()


@pytest.mark.parametrize("value", [True, False])
def test_a_known_condition_is_folded(value: bool) -> None:
    """Of a constant condition only the branch taken is left, whatever is in the other."""
    constant = helper.make_node(
        "Constant", [], ["c"], value=numpy_helper.from_array(np.array(value))
    )
    model = choice([constant], branch("Relu", "yes"), branch("Neg", "no"))
    network = load(model)
    assert [layer.op_type for layer in network.layers] == ["Relu" if value else "Neg", "Identity"]
    np.testing.assert_array_equal(evaluate(model, X), reference(model, X))


@pytest.mark.parametrize("sign", [1, -1])
def test_harmless_branches_are_both_computed(sign: int) -> None:
    """A condition on the input chooses between two results, in one graph without breaks."""
    model = choice(positive(), branch("Relu", "yes"), branch("Mul", "no", "two"))
    x = sign * np.abs(X)
    np.testing.assert_allclose(evaluate(model, x), reference(model, x), rtol=1e-6)
    network = load(model)
    nodes = network.graph(torch.from_numpy(x)).graph.nodes
    assert any(node.meta["onnx"].op_type == "If" for node in nodes if "onnx" in node.meta)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_branch_that_may_harm_is_only_taken_when_chosen(sign: int) -> None:
    """The square root of negative numbers next door leaves values and gradients alone."""
    model = choice(positive(), branch("Sqrt", "yes"), branch("Mul", "no", "two"))
    x = sign * np.abs(X) - 0.0
    np.testing.assert_allclose(evaluate(model, x), reference(model, x), rtol=1e-6)
    leaf = torch.from_numpy(x).requires_grad_()
    network = load(model)
    (gradient,) = torch.autograd.grad(network(leaf).sum(), leaf)
    expected = 0.5 / np.sqrt(x) if sign > 0 else np.full_like(x, 2)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    with pytest.raises(UnsupportedOperator, match="content of its input"):
        network.graph(leaf)


def test_a_fixed_batch_chooses_for_every_row() -> None:
    """A model exported for one row decides for each row of a batch alone."""
    model = choice(positive(), branch("Relu", "yes"), branch("Neg", "no"))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    expected = np.concatenate([reference(model, row[None]) for row in X])
    np.testing.assert_allclose(load(model)(torch.from_numpy(X)), expected, rtol=1e-6)


def loop(turns: int | None, *, stop: bool = False) -> onnx.ModelProto:
    """Returns a loop that doubles its state and yields it; it may stop once the sum is large."""
    nodes = [
        helper.make_node("Add", ["h", "h"], ["h2"]),
        helper.make_node("Identity", ["h2"], ["v"]),
    ]
    if stop:
        nodes += [
            helper.make_node("ReduceSum", ["h2"], ["s"], keepdims=0),
            helper.make_node("Less", ["s", "large"], ["on"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["going"], ["on"]))
    body = helper.make_graph(
        nodes, "body",
        [
            info("turn", [], TensorProto.INT64),
            info("going", [], TensorProto.BOOL),
            info("h", ["n", 3]),
        ],
        [info("on", [], TensorProto.BOOL), info("h2", ["n", 3]), info("v", ["n", 3])],
    )  # fmt: skip
    weights = {"true": np.array(True), "large": np.full((), 50, np.float32)}
    if turns is not None:
        weights["turns"] = np.array(turns)
    node = helper.make_node("Loop", ["turns" if turns is not None else "", "true", "x"],
                            ["last", "all"], body=body)  # fmt: skip
    total = helper.make_node("ReduceSum", ["all", "first"], ["y"], keepdims=0)
    weights["first"] = np.array([0])
    model = graph_model([node, total], {"x": ["n", 3]}, weights, check=False)
    model.graph.output[0].CopyFrom(info("y", ["n", 3]))
    onnx.checker.check_model(model)
    return model


def test_a_loop_of_known_length_is_written_out() -> None:
    """Its turns become nodes of the plan, and gradients go through all of them."""
    model = loop(3)
    np.testing.assert_allclose(evaluate(model, X), reference(model, X), rtol=1e-6)
    network, leaf = load(model), torch.from_numpy(X).requires_grad_()
    assert sum(layer.op_type == "Add" for layer in network.layers) == 3
    (gradient,) = torch.autograd.grad(network(leaf).sum(), leaf)
    np.testing.assert_allclose(gradient, np.full_like(X, 14))


def test_a_loop_that_the_input_ends() -> None:
    """A loop whose length depends on the input runs as long as ONNX Runtime's."""
    model, x = loop(None, stop=True), np.abs(X)
    for scale in (0.01, 1, 10):
        result = evaluate(model, (scale * x).astype(np.float32))
        expected = reference(model, (scale * x).astype(np.float32))
        np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("limits", [Limits(max_iterations=100), Limits(max_steps=500)])
def test_a_loop_without_end_is_stopped(limits: Limits) -> None:
    """A small file that runs for ever is refused while it is loaded."""
    with pytest.raises(LimitExceeded, match="accepted"):
        load(loop(None), limits=limits)
    with pytest.raises(LimitExceeded):
        load(loop(2**62), limits=limits)


def test_nested_branches_that_depend_on_the_input_are_bounded() -> None:
    """Branches within branches double with every level and stop at the limit."""
    inner = branch("Relu", "leaf")
    for level in range(7):
        node = helper.make_node("If", ["c"], [f"y{level}"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([node], f"g{level}", [], [info(f"y{level}", ["n", 3])])
    model = choice(positive(), inner, inner)
    with pytest.raises(LimitExceeded):
        load(model, limits=Limits(max_steps=200, max_subgraph_depth=20))


@pytest.mark.parametrize("backwards", [0, 1])
def test_scan(backwards: int) -> None:
    """A running sum over an axis, from either end, gives ONNX Runtime's values."""
    body = helper.make_graph(
        [helper.make_node("Add", ["h", "slice"], ["h2"]),
         helper.make_node("Tanh", ["h2"], ["out"])],
        "body", [info("h", ["n"]), info("slice", ["n"])], [info("h2", ["n"]), info("out", ["n"])],
    )  # fmt: skip
    nodes = [
        helper.make_node("ReduceMax", ["x", "one"], ["start"], keepdims=0),
        helper.make_node("Scan", ["start", "x"], ["last", "y"], body=body, num_scan_inputs=1,
                         scan_input_axes=[1], scan_input_directions=[backwards],
                         scan_output_axes=[1], scan_output_directions=[backwards]),
    ]  # fmt: skip
    model = graph_model(nodes, {"x": ["n", 3]}, {"one": np.array([1])}, check=False)
    model.graph.output[0].CopyFrom(info("y", ["n", 3]))
    onnx.checker.check_model(model)
    np.testing.assert_allclose(evaluate(model, X), reference(model, X), rtol=1e-6)


@pytest.mark.parametrize("backwards", [0, 1])
@pytest.mark.parametrize("lengths", [None, [3, 4]])
def test_scan_of_opset_8(backwards: int, lengths: list[int] | None) -> None:
    """The first Scan, which goes through a batch sample by sample, gives ONNX Runtime's values."""
    body = helper.make_graph(
        [helper.make_node("Add", ["h", "slice"], ["h2"]),
         helper.make_node("Tanh", ["h2"], ["out"])],
        "body", [info("h", [3]), info("slice", [3])], [info("h2", [3]), info("out", [3])],
    )  # fmt: skip
    weights: dict[str, np.ndarray] = {"start": np.array([[1, 2, 3], [4, 5, 6]], np.float32)}
    if lengths is not None:
        weights["lengths"] = np.array(lengths)
    given = ["" if lengths is None else "lengths", "start", "x"]
    nodes = [
        helper.make_node("Scan", given, ["last", "y"], body=body, num_scan_inputs=1,
                         directions=[backwards]),
    ]  # fmt: skip
    x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    shapes: dict[str, list[int | str]] = {"y": [2, 4, 3], "last": [2, 3]}
    for output, shape in shapes.items():
        model = graph_model(
            nodes, {"x": [2, 4, 3]}, weights, outputs=(output,), opset=8, check=False
        )
        model.graph.output[0].CopyFrom(info(output, shape))
        np.testing.assert_allclose(evaluate(model, x), reference(model, x), rtol=1e-6)


def test_a_graph_that_depends_on_its_inputs_content_starts_at_its_input() -> None:
    """From a value inside it cannot be run, and the error says from where it can."""
    nodes = [
        helper.make_node("Relu", ["x"], ["h"]),
        helper.make_node("NonZero", ["h"], ["places"]),
        helper.make_node("Transpose", ["places"], ["rows"]),
        helper.make_node("GatherND", ["h", "rows"], ["positive"]),
        helper.make_node("ReduceMean", ["positive"], ["m"], keepdims=0),
        helper.make_node("Sub", ["h", "m"], ["y"]),
    ]
    model = graph_model(nodes, {"x": ["n", 3]})
    network, x = load(model), torch.from_numpy(X)
    np.testing.assert_allclose(network(x), reference(model, X), rtol=1e-6)
    h = network.values(x, ["h"])["h"]
    with pytest.raises(UnsupportedOperator, match="from its input alone, not from a value inside"):
        network.from_value("h", h)
