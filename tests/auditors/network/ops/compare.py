"""Models of one operator, run by our network and by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from hypothesis import settings
from onnx import helper, numpy_helper

from onnx_auditors.network import load
from onnx_auditors.network.saturation import unsigned
from onnx_auditors.network.session import saturates

Array = npt.NDArray[Any]
FEW = settings(max_examples=30, deadline=None, derandomize=True)


def model_of(
    op_type: str,
    inputs: Sequence[Array | None],
    *,
    constant: Sequence[int] = (),
    outputs: Sequence[str] = ("y",),
    opset_version: int = 21,
    domain: str = "",
    **attributes: Any,
) -> onnx.ModelProto:
    """Returns a model of one node; ONNX Runtime says the types and shapes of its outputs.

    Args:
        op_type: Its operator.
        inputs: Examples of its inputs; None leaves one out.
        constant: Positions of inputs that the model stores.
        outputs: Names of its outputs.
        opset_version: Version of the standard operators.
        domain: The operator's domain.
        attributes: Its attributes.
    """
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    node = helper.make_node(op_type, names, outputs, name="n", domain=domain, **attributes)
    given = {f"x{i}": x for i, x in enumerate(inputs) if x is not None and i not in constant}
    stored = {f"x{i}": x for i, x in enumerate(inputs) if x is not None and i in constant}
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for n, x in given.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs if name],
        [numpy_helper.from_array(x, n) for n, x in stored.items()],
    )
    opsets = [helper.make_opsetid("", opset_version), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    results = _session(model).run(None, given)
    for info, y in zip(model.graph.output, results, strict=True):
        kind = helper.np_dtype_to_tensor_dtype(y.dtype)
        info.CopyFrom(helper.make_tensor_value_info(info.name, kind, y.shape))
    return model


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    """Opens a model, with 8-bit products that are exact on this processor."""
    model = unsigned(model) if saturates() else model
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options)


def given_inputs(model: onnx.ModelProto, inputs: Sequence[Array | None]) -> dict[str, Array]:
    """Returns the model's inputs by name."""
    names = {info.name for info in model.graph.input}
    every = {f"x{i}": x for i, x in enumerate(inputs) if x is not None}
    return {name: x for name, x in every.items() if name in names}


def check(
    model: onnx.ModelProto,
    inputs: Sequence[Array | None],
    tolerance: float = 2e-5,
    *,
    steps: int = 0,
) -> None:
    """Compares every output with ONNX Runtime's: shape, type and values.

    Args:
        model: The model.
        inputs: The node's inputs.
        tolerance: Relative and absolute difference that floats may have.
        steps: Difference that integers may have.
    """
    given = given_inputs(model, inputs)
    expected = _session(model).run(None, given)
    found = load(model).evaluate({n: torch.from_numpy(np.array(x)) for n, x in given.items()})
    for info, right in zip(model.graph.output, expected, strict=True):
        ours = found[info.name].numpy()
        assert ours.dtype == right.dtype
        assert ours.shape == right.shape
        if right.dtype.kind == "f":
            np.testing.assert_allclose(ours, right, rtol=tolerance, atol=tolerance)
        else:
            difference = np.abs(ours.astype(np.int64) - right.astype(np.int64))
            assert difference.max(initial=0) <= steps


def draw(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Returns standard normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
