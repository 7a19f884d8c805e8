"""Every operator beside ONNX Runtime, on models of one node."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper
from tests.support import graph_model, node_model

from onnx_auditors.errors import UnsupportedOperator
from onnx_auditors.network import load
from onnx_auditors.network.calls import bind_function
from onnx_auditors.network.node import Node, Refused, Value
from onnx_auditors.network.registry import OPERATORS

RNG = np.random.default_rng(0)
FEW = settings(max_examples=40, deadline=None, derandomize=True)


def reference(model: onnx.ModelProto, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options)
    result: npt.NDArray[Any] = session.run(None, {"x": x})[0]
    return result


def check(model: onnx.ModelProto, x: npt.NDArray[Any], tolerance: float = 2e-5) -> None:
    """Compares the model's output with ONNX Runtime's: shape, type and values."""
    expected = reference(model, x)
    ours = load(model).evaluate({"x": torch.from_numpy(x)})["y"].numpy()
    assert ours.dtype == expected.dtype
    np.testing.assert_allclose(ours, expected, rtol=tolerance, atol=tolerance)


def draw(*shape: int) -> npt.NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    "op_type",
    ["Relu", "Sigmoid", "Tanh", "Exp", "Abs", "Neg", "Reciprocal", "Floor", "Ceil", "Round",
     "Softsign", "Erf", "Sign", "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Mish", "HardSwish",
     "Softplus", "Identity", "LeakyRelu", "Elu", "Celu", "Selu", "Gelu", "HardSigmoid",
     "ThresholdedRelu", "Softmax", "LogSoftmax", "GlobalAveragePool", "GlobalMaxPool", "Flatten",
     "Dropout", "Clip"],
)  # fmt: skip
def test_operator_with_defaults(op_type: str) -> None:
    """An operator of one input gives ONNX Runtime's values with its default attributes."""
    x = draw(2, 3, 4, 5) * 3
    check(node_model(op_type, x), x)


@pytest.mark.parametrize("op_type", ["Sqrt", "Log", "Asin", "Acos"])
def test_operator_on_its_domain(op_type: str) -> None:
    """An operator that is defined on part of the line gives ONNX Runtime's values there."""
    x = RNG.random((2, 7), dtype=np.float32)
    check(node_model(op_type, x), x)


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "PRelu"])
def test_binary_operator_broadcasts(op_type: str) -> None:
    """An operator of two inputs broadcasts the second as ONNX Runtime does."""
    x = np.abs(draw(2, 3, 4, 5)) + 0.5
    check(node_model(op_type, x, np.abs(draw(3, 1, 5)) + 0.5), x)


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [("LeakyRelu", {"alpha": 0.3}), ("Elu", {"alpha": 0.7}), ("Celu", {"alpha": 2.0}),
     ("Selu", {"alpha": 1.2, "gamma": 0.9}), ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
     ("Gelu", {"approximate": "tanh"}), ("ThresholdedRelu", {"alpha": 0.2}),
     ("Softmax", {"axis": 1}), ("LogSoftmax", {"axis": 2}), ("Flatten", {"axis": -1}),
     ("Flatten", {"axis": 0}), ("Transpose", {"perm": [0, 3, 1, 2]}), ("Transpose", {}),
     ("LRN", {"size": 3, "alpha": 0.2, "beta": 0.6, "bias": 2.0}),
     ("DepthToSpace", {"blocksize": 2}), ("DepthToSpace", {"blocksize": 2, "mode": "CRD"})],
)  # fmt: skip
def test_attributes(op_type: str, attributes: dict[str, Any]) -> None:
    """An operator's attributes mean what they mean to ONNX Runtime."""
    x = draw(2, 8, 4, 5)
    check(node_model(op_type, x, **attributes), x)


def test_softmax_of_an_old_opset() -> None:
    """Softmax before opset 13 works on the flattened tail."""
    x = draw(2, 3, 4)
    check(node_model("Softmax", x, opset=9, axis=1), x)


def test_clip_with_one_end() -> None:
    """Clip takes its upper end without a lower one."""
    x = draw(3, 4)
    check(node_model("Clip", x, None, np.array(0.2, np.float32)), x)


windows = st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(0, 2)
)


@FEW
@given(
    axes=st.lists(windows, min_size=1, max_size=3),
    group=st.sampled_from([1, 2]),
    bias=st.booleans(),
    auto_pad=st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]),
)
def test_conv(
    axes: list[tuple[int, ...]],
    group: int,
    bias: bool,
    auto_pad: str,
) -> None:
    """Convolution agrees for 1 to 3 axes, groups, strides, dilations and uneven padding."""
    kernel, strides, dilations, begin, end = (list(column) for column in zip(*axes, strict=True))
    attributes: dict[str, Any] = {"strides": strides, "group": group, "auto_pad": auto_pad}
    if auto_pad == "NOTSET":
        attributes |= {"pads": begin + end, "dilations": dilations}
    x = draw(2, 4, *(6 + i for i in range(len(axes))))
    constants = [draw(6, 4 // group, *kernel), *([draw(6)] if bias else [])]
    check(node_model("Conv", x, *constants, **attributes), x, 1e-4)


@FEW
@given(
    op_type=st.sampled_from(["MaxPool", "AveragePool"]),
    axes=st.lists(windows, min_size=1, max_size=3),
    ceil_mode=st.sampled_from([0, 1]),
    include=st.sampled_from([0, 1]),
    auto_pad=st.sampled_from(["NOTSET", "NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]),
)
def test_pooling(
    op_type: str, axes: list[tuple[int, ...]], ceil_mode: int, include: int, auto_pad: str
) -> None:
    """Pooling agrees for uneven padding, ceil_mode, dilations and both ways to count padding."""
    kernel, strides, dilations, begin, end = (list(column) for column in zip(*axes, strict=True))
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "auto_pad": auto_pad}
    if auto_pad == "NOTSET":
        begin = [min(pad, size - 1) for pad, size in zip(begin, kernel, strict=True)]
        end = [min(pad, size - 1) for pad, size in zip(end, kernel, strict=True)]
        attributes |= {"pads": begin + end, "ceil_mode": ceil_mode}
    if op_type == "MaxPool":
        attributes["dilations"] = dilations if auto_pad == "NOTSET" else [1] * len(kernel)
    else:
        attributes["count_include_pad"] = include
    x = draw(2, 3, *(6 + i for i in range(len(axes))))
    check(node_model(op_type, x, **attributes), x)


@FEW
@given(
    left=st.sampled_from([0, 1]),
    right=st.sampled_from([0, 1]),
    alpha=st.sampled_from([1.0, 0.5]),
    beta=st.sampled_from([1.0, -2.0]),
    third=st.sampled_from([None, (), (1,), (5,), (3, 1), (3, 5)]),
)
def test_gemm(
    left: int, right: int, alpha: float, beta: float, third: tuple[int, ...] | None
) -> None:
    """Gemm agrees for every transposition, factor and shape of the third operand."""
    x = draw(4, 3) if left else draw(3, 4)
    constants: list[npt.NDArray[Any]] = [draw(5, 4) if right else draw(4, 5)]
    if third is not None:
        constants.append(np.asarray(draw(*third), dtype=np.float32))
    model = node_model("Gemm", x, *constants, transA=left, transB=right, alpha=alpha, beta=beta)
    check(model, x)


@pytest.mark.parametrize("shape", [(5,), (5, 4), (2, 5, 4), (3, 1, 5, 4)])
def test_matmul(shape: tuple[int, ...]) -> None:
    """MatMul broadcasts stacks of matrices, and takes vectors."""
    x = draw(2, 3, 5)
    check(node_model("MatMul", x, draw(*shape)), x)


def test_batch_normalization() -> None:
    """Batch normalisation uses the stored statistics."""
    x = draw(2, 3, 4, 5)
    variance = np.abs(draw(3)) + 0.1
    model = node_model("BatchNormalization", x, draw(3), draw(3), draw(3), variance, epsilon=1e-3)
    check(model, x)


def test_instance_and_layer_normalization() -> None:
    """The other normalisations use the sample's own statistics."""
    x = draw(2, 3, 4, 5)
    check(node_model("InstanceNormalization", x, draw(3), draw(3), epsilon=1e-2), x, 1e-4)
    check(node_model("LayerNormalization", x, draw(4, 5), draw(4, 5), axis=2), x, 1e-4)


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [([2, -1], {}), ([0, 0, -1], {}), ([-1], {}), ([4, 3, 5, 2], {}), ([1, 0, -1, 4], {})],
)
def test_reshape(shape: list[int], attributes: dict[str, int]) -> None:
    """Reshape copies axes for 0 and takes the rest for -1."""
    x = draw(2, 3, 4, 5)
    check(node_model("Reshape", x, np.array(shape), **attributes), x)


def test_reshape_to_no_entries() -> None:
    """With allowzero a 0 is a size."""
    x = draw(2, 0)
    check(node_model("Reshape", x, np.array([0, 7]), allowzero=1), x)


@FEW
@given(data=st.data())
def test_slice(data: st.DataObject) -> None:
    """Slice agrees for all starts and ends, in and out of range, and steps of either sign."""
    x = draw(5, 6)
    ends = st.integers(-8, 8) | st.sampled_from([2**63 - 1, -(2**63)])
    axes = data.draw(st.permutations([0, 1]))[: data.draw(st.integers(1, 2))]
    starts = [data.draw(ends) for _ in axes]
    stops = [data.draw(ends) for _ in axes]
    steps = [data.draw(st.sampled_from([1, 2, -1, -2])) for _ in axes]
    assume(all(step > 0 or stop < 2**62 for step, stop in zip(steps, stops, strict=True)))
    lists = [np.array(values, dtype=np.int64) for values in (starts, stops, axes, steps)]
    check(node_model("Slice", x, *lists), x)


@FEW
@given(
    mode=st.sampled_from(["constant", "reflect", "edge", "wrap"]),
    pads=st.lists(st.integers(-1, 2), min_size=4, max_size=4),
)
def test_pad(mode: str, pads: list[int]) -> None:
    """Pad agrees in every mode, and crops with negative amounts."""
    assume(mode == "constant" or min(pads) >= 0)
    x = draw(4, 5)
    value = np.array(1.5, np.float32) if mode == "constant" else None
    check(node_model("Pad", x, np.array(pads), value, mode=mode), x)


def test_pad_of_some_axes() -> None:
    """Pad takes amounts for a choice of axes."""
    x = draw(2, 3, 4)
    check(node_model("Pad", x, np.array([1, 2, 0, 1]), None, np.array([2, -2])), x)


@pytest.mark.parametrize("op_type", [name for name in OPERATORS if name.startswith("Reduce")])
@pytest.mark.parametrize(("axes", "keep"), [([1, -1], 1), ([0], 0), (None, 1)])
def test_reductions(op_type: str, axes: list[int] | None, keep: int) -> None:
    """Reductions agree over some axes and over all, kept or dropped."""
    x = np.abs(draw(2, 3, 4)) + 0.1
    constants = [] if axes is None else [np.array(axes, dtype=np.int64)]
    opset = 13 if op_type == "ReduceSum" else 18
    check(node_model(op_type, x, *constants, keepdims=keep, opset=opset), x)


@pytest.mark.parametrize(
    ("op_type", "constants", "attributes"),
    [("Squeeze", [np.array([1])], {}), ("Squeeze", [], {}), ("Unsqueeze", [np.array([0, -1])], {}),
     ("Expand", [np.array([4, 1, 1, 3])], {}), ("Tile", [np.array([1, 2, 3])], {}),
     ("Gather", [np.array([[0, -1], [2, 1]])], {"axis": 2}), ("Gather", [np.array(1)], {"axis": 0}),
     ("GatherElements", [np.array([[[-1, 0, 2]], [[1, 1, 0]]])], {"axis": 2}),
     ("Trilu", [np.array(1)], {"upper": 0})],
)  # fmt: skip
def test_shape_operators(
    op_type: str, constants: list[npt.NDArray[Any]], attributes: dict[str, Any]
) -> None:
    """Operators that rearrange entries agree."""
    x = draw(2, 1, 3)
    check(node_model(op_type, x, *constants, **attributes), x)


def test_split_into_uneven_parts() -> None:
    """Split by number makes the last part smaller, by sizes uses them."""
    x = draw(2, 7)
    by_number = helper.make_node("Split", ["x"], ["a", "b", "y"], axis=1, num_outputs=3)
    check(graph_model([by_number], {"x": x.shape}), x)
    by_sizes = helper.make_node("Split", ["x", "s"], ["a", "y", "b"], axis=1)
    check(graph_model([by_sizes], {"x": x.shape}, {"s": np.array([1, 4, 2])}), x)


def test_shape_arithmetic_is_folded() -> None:
    """A reshape whose shape is computed from the input's shape follows any batch."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    weights = {"zero": np.array([0]), "rest": np.array([-1])}
    model = graph_model(nodes, {"x": ["n", 3, 4]}, weights)
    network = load(model)
    for batch in (1, 3):
        x = draw(batch, 3, 4)
        ours = network.evaluate({"x": torch.from_numpy(x)})["y"].numpy()
        np.testing.assert_array_equal(ours, reference(model, x))


def test_an_attribute_that_nobody_reads_is_refused() -> None:
    """What an operator does not cover is an error, never another result."""
    x = draw(2, 3, 8, 8)
    unknown = node_model("Relu", x)
    unknown.graph.node[0].attribute.append(helper.make_attribute("consumed_inputs", [0]))
    node = Node(
        unknown.graph.node[0], 21, [Value("x", torch.empty(2), None, 1)], ["y"], torch.float32
    )
    with pytest.raises(Refused, match="consumed_inputs"):
        bind_function(OPERATORS["Relu"], node)
    mask = helper.make_node("BatchNormalization", ["x", "c", "c", "c", "c"], ["a", "y", "v"])
    model = graph_model([mask], {"x": x.shape}, {"c": draw(3)}, check=False)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [3]))
    with pytest.raises(UnsupportedOperator, match="first 1 outputs"):
        load(model)
