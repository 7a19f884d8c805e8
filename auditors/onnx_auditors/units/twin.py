"""The same graph with freshly drawn weights: what structure alone makes of the probes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_auditors.network import Network, load

_SEED = 61
_MATRIX = 2
_WEIGHTED = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
_NORMALISES = {"BatchNormalization": (1.0, 0.0, 0.0, 1.0), "InstanceNormalization": (1.0, 0.0)}
"""Scale, shift, mean and variance of a fresh normalisation."""


def untrained(network: Network, seed: int, sample_shape: tuple[int, ...]) -> Network:
    """Returns the network with fresh weights: normal with variance 2 / fan-in, no biases.

    He et al. 2015, "Delving deep into rectifiers", eq. 10. Normalisations are set to pass their
    input on.

    Args:
        network: The network.
        seed: Seed of the weights.
        sample_shape: Shape of one sample of the model's input.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(network.original)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    fresh: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {}
    rng = np.random.default_rng([seed, _SEED])
    for node in proto.graph.node:
        for position, name in enumerate(node.input):
            if name not in stored or name in fresh:
                continue
            shape = tuple(stored[name].dims)
            if node.op_type in _NORMALISES and position > 0:
                fresh[name] = np.full(shape, _NORMALISES[node.op_type][position - 1])
            elif node.op_type in _WEIGHTED and len(shape) >= _MATRIX:
                spread = np.sqrt(2 / _fan_in(node, shape, position))
                fresh[name] = rng.standard_normal(shape) * spread
            elif node.op_type in _WEIGHTED and position == len(node.input) - 1:
                fresh[name] = np.zeros(shape)
    for name, drawn in fresh.items():
        dtype = numpy_helper.to_array(stored[name]).dtype
        stored[name].CopyFrom(numpy_helper.from_array(drawn.astype(dtype), name))
    opened = any(size < 1 for size in network.input.shape[1:])
    return load(
        proto,
        network.device,
        network.limits,
        output=network.output or None,
        sample_shape=sample_shape if opened else None,
    )


def _fan_in(node: onnx.NodeProto, shape: tuple[int, ...], position: int) -> int:
    """Returns how many inputs each output of a linear layer reads."""
    if node.op_type == "Conv":
        return int(np.prod(shape[1:]))
    if node.op_type == "ConvTranspose":
        return int(shape[0] * np.prod(shape[2:]))
    if node.op_type == "Gemm":
        turned = any(a.name == "transB" and a.i for a in node.attribute)
        return shape[1] if turned else shape[0]
    return shape[-2] if position == 1 else shape[-1]
