"""Small models and probe sets, made from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17


def mlp(sizes: Sequence[int] = (16, 24, 4), seed: int = 0, scale: float = 3.0) -> onnx.ModelProto:
    """A dense ReLU network with a free batch: input "x", output "logits"."""
    random = np.random.default_rng(seed)
    nodes, weights, value = [], [], "x"
    last = len(sizes) - 2
    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        matrix = random.normal(0, scale / np.sqrt(fan_in), (fan_in, fan_out))
        weights.append(numpy_helper.from_array(matrix.astype(np.float32), f"w{layer}"))
        bias = random.normal(0, 0.1, fan_out).astype(np.float32)
        weights.append(numpy_helper.from_array(bias, f"b{layer}"))
        out = "logits" if layer == last else f"h{layer}"
        nodes.append(
            helper.make_node("Gemm", [value, f"w{layer}", f"b{layer}"], [out], f"gemm{layer}")
        )
        if layer != last:
            nodes.append(helper.make_node("Relu", [out], [f"a{layer}"], f"relu{layer}"))
            value = f"a{layer}"
    return model(nodes, [None, sizes[0]], [None, sizes[-1]], weights)


def model(
    nodes: Sequence[onnx.NodeProto],
    input_shape: Sequence[int | None],
    output_shape: Sequence[int | None],
    weights: Sequence[TensorProto] = (),
) -> onnx.ModelProto:
    """A model from nodes that lead from "x" to "logits"."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(input_shape))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, list(output_shape))],
        list(weights),
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.example", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def save(proto: onnx.ModelProto, path: Path) -> Path:
    """Writes a model to a file."""
    path.write_bytes(proto.SerializeToString())
    return path


def probes(
    count: int, *shape: int, seed: int = 1, low: float = 0.0, high: float = 1.0
) -> npt.NDArray[np.float32]:
    """Uniform random probes in [low, high)."""
    values = np.random.default_rng(seed).uniform(low, high, (count, *shape))
    return values.astype(np.float32)
