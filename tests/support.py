"""Helpers that several tests share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file


def shared_data() -> Path:
    """Returns the folder of real models and images; skips the test where it is missing."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ONNX_AUDIT_SHARED", default))
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"real models and images are not at {folder}; set ONNX_AUDIT_SHARED")
    return folder


def node_model(
    op_type: str,
    x: npt.NDArray[Any],
    *constants: npt.NDArray[Any] | None,
    opset: int = 21,
    **attributes: Any,
) -> onnx.ModelProto:
    """Returns a model of one node: its input "x", then constants; None leaves an input out."""
    names = ["" if c is None else f"c{i}" for i, c in enumerate(constants)]
    node = helper.make_node(op_type, ["x", *names], ["y"], name="n", **attributes)
    weights = {n: c for n, c in zip(names, constants, strict=True) if c is not None}
    return graph_model([node], {"x": x.shape}, weights, opset=opset)


def graph_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int | str]],
    weights: Mapping[str, npt.NDArray[Any]] | None = None,
    *,
    outputs: Sequence[str] = ("y",),
    opset: int = 21,
    check: bool = True,
) -> onnx.ModelProto:
    """Returns a float model of some nodes; output shapes are left to be inferred."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(w), n) for n, w in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    if check:
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model)
    return model


def save_probes(
    path: Path, inputs: npt.NDArray[Any], labels: npt.NDArray[Any] | None = None
) -> Path:
    """Writes a probe set; copies, because safetensors writes strided arrays wrongly."""
    tensors = {"inputs": np.ascontiguousarray(inputs)}
    if labels is not None:
        tensors["labels"] = np.ascontiguousarray(labels)
    save_file(tensors, path)
    return path
