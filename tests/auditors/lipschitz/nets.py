"""Small networks of many kinds with random weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper
from tests.support import graph_model

Array = npt.NDArray[Any]
MAP = (1, 2, 6, 6)
FLAT = (1, 8)
CLASSES = 4


class Builder:
    """Appends nodes to a model, each reading the last value unless told otherwise."""

    def __init__(self, shape: tuple[int, ...], seed: int, opset: int = 21) -> None:
        """Starts at the input."""
        self.shape, self.opset = shape, opset
        self.draws = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.last = "x"

    def weight(self, *shape: int, scale: float | None = None) -> str:
        """Adds a constant of normal entries and returns its name."""
        name = f"w{len(self.weights)}"
        size = 1 / math.sqrt(max(1, math.prod(shape[1:]))) if scale is None else scale
        self.weights[name] = (self.draws.standard_normal(shape) * size).astype(np.float32)
        return name

    def constant(self, value: Any) -> str:
        """Adds a constant and returns its name."""
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(value)
        return name

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node; without inputs it reads the last value."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op_type, list(inputs) or [self.last], [name], **attributes)
        )
        self.last = name
        return name

    def dense(self, given: int, out: int, x: str | None = None) -> str:
        """Adds a Gemm."""
        w, b = self.weight(out, given, scale=1.5 / np.sqrt(given)), self.weight(out, scale=0.3)
        return self.op("Gemm", x or self.last, w, b, transB=1)

    def conv(self, given: int, out: int, x: str | None = None, **attributes: Any) -> str:
        """Adds a 3x3 convolution that keeps the side of the map."""
        w = self.weight(out, given // attributes.get("group", 1), 3, 3)
        attributes = {"pads": [1, 1, 1, 1], **attributes}
        return self.op("Conv", x or self.last, w, self.weight(out, scale=0.3), **attributes)

    def head(self, given: int) -> onnx.ModelProto:
        """Ends in logits and returns the model."""
        if len(self.shape) > len(FLAT):
            self.op("Flatten")
        self.dense(given, CLASSES)
        self.nodes[-1].output[0] = "y"
        return graph_model(self.nodes, {"x": self.shape}, self.weights, opset=self.opset)


def _elementwise(op: str, opset: int = 21, **attributes: Any) -> Callable[[int], onnx.ModelProto]:
    def make(seed: int) -> onnx.ModelProto:
        b = Builder(FLAT, seed, opset)
        b.dense(8, 7)
        b.op(op, **attributes)
        b.dense(7, 6)
        b.op(op, **attributes)
        return b.head(6)

    return make


def _mapwise(add: Callable[[Builder], int]) -> Callable[[int], onnx.ModelProto]:
    def make(seed: int) -> onnx.ModelProto:
        b = Builder(MAP, seed)
        return b.head(add(b))

    return make


def _residual(b: Builder) -> int:
    trunk = b.op("Relu", b.conv(2, 4))
    b.op("Relu", b.conv(4, 4))
    b.op("Add", b.conv(4, 4), trunk)
    b.op("Relu")
    return 144


def _projected(b: Builder) -> int:
    trunk = b.op("Relu", b.conv(2, 3))
    branch = b.conv(3, 4, b.op("Relu", b.conv(3, 3)))
    b.op("Add", branch, b.conv(3, 4, trunk))
    b.op("Relu")
    return 144


def _fan(b: Builder) -> int:
    trunk = b.op("Relu", b.conv(2, 3))
    one = b.conv(3, 2, trunk)
    b.op("Sub", one, b.conv(3, 2, trunk, dilations=[2, 2], pads=[2, 2, 2, 2]))
    b.op("Relu")
    return 72


def _concat(b: Builder) -> int:
    trunk = b.op("Relu", b.conv(2, 3))
    one = b.op("Relu", b.conv(3, 2, trunk))
    two = b.op("Tanh", b.conv(3, 3, trunk))
    b.op("Concat", one, trunk, two, axis=1)
    return 288


def _pooled(kernel: int, stride: int, side: int) -> Callable[[Builder], int]:
    def add(b: Builder) -> int:
        b.op("Relu", b.conv(2, 3))
        b.op("MaxPool", kernel_shape=[kernel, kernel], strides=[stride, stride])
        return 3 * side * side

    return add


def _raw_pool(b: Builder) -> int:
    b.conv(2, 3)
    b.op("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    b.conv(3, 3)
    b.op("Relu")
    return 27


def _average(b: Builder) -> int:
    b.op("Relu", b.conv(2, 3))
    b.op("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    b.op("Relu", b.conv(3, 4))
    b.op("GlobalAveragePool")
    return 4


def _normalised(b: Builder) -> int:
    b.conv(2, 4)
    scale, shift = b.weight(4, scale=1.0), b.weight(4, scale=0.5)
    mean, variance = b.weight(4, scale=0.5), b.constant(np.array([0.5, 1, 2, 3], np.float32))
    b.op("BatchNormalization", b.last, scale, shift, mean, variance)
    b.op("LeakyRelu", alpha=0.2)
    b.conv(4, 4, group=2, strides=[2, 2])
    b.op("Relu")
    return 36


def _response(b: Builder) -> int:
    b.op("Relu", b.conv(2, 5))
    b.op("LRN", size=3, alpha=0.5, beta=0.75, bias=1.0)
    return 180


def _layer_norm(b: Builder) -> int:
    b.op("Relu", b.conv(2, 2))
    scale, shift = b.weight(6, scale=1.0), b.weight(6, scale=0.5)
    b.op("LayerNormalization", b.last, scale, shift, axis=-1, epsilon=0.1)
    return 72


def _softmax(b: Builder) -> int:
    b.conv(2, 3)
    b.op("Softmax", axis=1)
    b.conv(3, 2)
    return 72


def _parametric(b: Builder) -> int:
    b.conv(2, 3)
    b.op("PRelu", b.last, b.weight(3, 1, 1, scale=0.7))
    b.op("Clip", b.last, b.constant(np.float32(-0.5)), b.constant(np.float32(1.0)))
    return 108


def _transposed(b: Builder) -> int:
    b.op("Relu", b.conv(2, 3))
    b.op("ConvTranspose", b.last, b.weight(3, 2, 2, 2), strides=[2, 2])
    b.op("Relu")
    return 288


def _moved(b: Builder) -> int:
    b.op("Transpose", perm=[0, 2, 3, 1])
    b.op("MatMul", b.last, b.weight(2, 5, scale=0.7))
    b.op("Relu")
    b.op(
        "Slice",
        b.last,
        b.constant(np.array([1])),
        b.constant(np.array([5])),
        b.constant(np.array([1])),
    )
    b.op("Mul", b.last, b.weight(5, scale=1.0))
    return 120


def _extremes(b: Builder) -> int:
    one = b.conv(2, 3)
    b.op("Max", one, b.conv(2, 3, "x"))
    return 108


KINDS: dict[str, Callable[[int], onnx.ModelProto]] = {
    **{op: _elementwise(op) for op in (
        "Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Gelu", "Elu", "Selu", "Celu", "Erf",
        "HardSigmoid", "HardSwish", "Mish", "Abs", "Atan",
    )},
    "Gelu tanh": _elementwise("Gelu", approximate="tanh"),
    "residual": _mapwise(_residual),
    "projected residual": _mapwise(_projected),
    "linear fan": _mapwise(_fan),
    "concat": _mapwise(_concat),
    "pool 2 by 2": _mapwise(_pooled(2, 2, 3)),
    "overlapping pool": _mapwise(_pooled(3, 1, 4)),
    "padded pool of a convolution": _mapwise(_raw_pool),
    "average": _mapwise(_average),
    "batch norm, groups, stride": _mapwise(_normalised),
    "LRN": _mapwise(_response),
    "layer norm": _mapwise(_layer_norm),
    "softmax inside": _mapwise(_softmax),
    "PRelu and clip": _mapwise(_parametric),
    "transposed convolution": _mapwise(_transposed),
    "transpose, matmul, slice": _mapwise(_moved),
    "max of two": _mapwise(_extremes),
}  # fmt: skip
