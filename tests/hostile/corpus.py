"""Models made to harm: how each is made, and what whoever sends it must be told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import onnx
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper
from tests import models

TRUE = numpy_helper.from_array(np.array(1, np.bool_), "true")
FAR = 1 << 60
"""An offset far beyond any file."""


@dataclass(frozen=True)
class Case:
    """A hostile model.

    Attributes:
        build: Makes the ONNX file.
        reason: The v1.ErrorReason with which it is refused, without its prefix.
        words: What the message has to say, beside what is allowed.
        files: External data by path.
    """

    build: Callable[[], bytes]
    reason: str
    words: tuple[str, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)


def graph(*nodes: onnx.NodeProto, weights: tuple[TensorProto, ...] = ()) -> bytes:
    """A model from "x" [1, 4] to "logits"."""
    return models.model(nodes, [1, 4], [1, 4], weights).SerializeToString()


def ints(name: str, *values: int) -> TensorProto:
    """A vector of int64."""
    return numpy_helper.from_array(np.array(values, np.int64), name)


def state(name: str, element_type: int = TensorProto.FLOAT, *shape: int) -> ValueInfoProto:
    """A value that goes into or out of a body."""
    return helper.make_tensor_value_info(name, element_type, shape)


def flipped(seed: int) -> bytes:
    """A model with some bits turned."""
    broken = bytearray(models.mlp().SerializeToString())
    dice = np.random.default_rng(seed)
    for place in dice.integers(0, len(broken), 8):
        broken[place] ^= 1 << int(dice.integers(8))
    return bytes(broken)


def truncated() -> bytes:
    """A model that ends in the middle of its weights."""
    whole = models.mlp().SerializeToString()
    return whole[: len(whole) // 2]


def endless_loop(above: float | None = None) -> bytes:
    """A Loop that never ends, whatever comes in or if its sum is above a number."""
    going = helper.make_node("Identity", ["c"], ["c2"])
    if above is not None:
        going = helper.make_node("Greater", ["sum", "bound"], ["c2"])
    body = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["v"], ["sum"], keepdims=0),
            going,
            helper.make_node("Identity", ["v"], ["v2"]),
        ],
        "body",
        [state("i", TensorProto.INT64), state("c", TensorProto.BOOL), state("v")],
        [state("c2", TensorProto.BOOL), state("v2")],
    )
    for value in (body.input[2], body.output[1]):
        value.type.tensor_type.ClearField("shape")
    turns = numpy_helper.from_array(np.array(2**62, np.int64), "turns")
    node = helper.make_node("Loop", ["turns", "true", "x"], ["logits"], body=body)
    bound = numpy_helper.from_array(np.array(above or 0, np.float32), "bound")
    return graph(node, weights=(turns, bound, TRUE))


def expand() -> bytes:
    """8 GiB from four numbers."""
    return graph(
        helper.make_node("Expand", ["x", "to"], ["wide"]),
        helper.make_node("ReduceSum", ["wide", "axis"], ["logits"], keepdims=0),
        weights=(ints("to", 2**29, 1, 4), ints("axis", 0)),
    )


def constant_of_shape() -> bytes:
    """8 GiB of zeros that folding of constants would make."""
    return graph(
        helper.make_node("ConstantOfShape", ["to"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros", "axis"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["logits"]),
        weights=(ints("to", 2**29, 4), ints("axis", 0)),
    )


def no_text() -> bytes:
    """A name that is not UTF-8."""
    return models.mlp().SerializeToString().replace(b"gemm0", b"gem\xff0")


def nested_if(levels: int) -> bytes:
    """Branches within branches."""
    out = state("logits", TensorProto.FLOAT, 1, 4)
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["logits"])], "e", [], [out])
    node = helper.make_node("Identity", ["x"], ["logits"])
    for level in range(levels):
        branch = helper.make_graph([node], f"level{level}", [], [out])
        node = helper.make_node("If", ["true"], ["logits"], then_branch=branch, else_branch=other)
    return graph(node, weights=(TRUE,))


def nested(levels: int) -> bytes:
    """Graphs within graphs, deeper than protobuf itself would write them."""
    content = _field(1, _field(4, b"Relu"))
    for _ in range(levels):
        attribute = _field(1, b"then_branch") + _field(6, content)
        content = _field(1, _field(4, b"If") + _field(5, attribute))
    return _field(7, content)


def _field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message that holds bytes, text or another message."""
    size, rest = len(content), bytearray()
    while size > 0x7F:
        rest.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *rest, size]) + content


def cyclic() -> bytes:
    """Two nodes that wait for each other."""
    return graph(
        helper.make_node("Add", ["x", "b"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "second"),
        helper.make_node("Relu", ["b"], ["logits"], "third"),
    )


def same_outputs() -> bytes:
    """Two nodes that make the same value."""
    return graph(
        helper.make_node("Relu", ["x"], ["logits"]), helper.make_node("Abs", ["x"], ["logits"])
    )


def same_weights() -> bytes:
    """Two weights of one name."""
    weights = [numpy_helper.from_array(np.full((1, 4), i, np.float32), "w") for i in range(2)]
    return graph(helper.make_node("Add", ["x", "w"], ["logits"]), weights=tuple(weights))


def custom() -> bytes:
    """An operator of a domain that nobody knows."""
    return graph(helper.make_node("Steal", ["x"], ["logits"], "thief", domain="com.example"))


def many_nodes(count: int) -> bytes:
    """A long chain."""
    names = ["x", *(f"v{number}" for number in range(count - 1)), "logits"]
    return graph(
        *(helper.make_node("Relu", [source], [target]) for source, target in pairwise(names))
    )


def huge_weight(*dims: int) -> bytes:
    """A weight that says it is huge, and holds nothing."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims)
    return graph(helper.make_node("Add", ["x", "w"], ["logits"]), weights=(weight,))


def huge_input() -> bytes:
    """An input of 16 PiB."""
    size = 1 << 52
    return models.model(
        [helper.make_node("Relu", ["x"], ["logits"])], [1, size], [1, size]
    ).SerializeToString()


def many_axes() -> bytes:
    """A value of a hundred axes."""
    node = helper.make_node("Unsqueeze", ["x", "axes"], ["logits"])
    return graph(node, weights=(ints("axes", *range(100)),))


def external(location: str, offset: int = 0, length: int = 16) -> bytes:
    """A model whose weights lie in a file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 4])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        weight.external_data.add(key=key, value=str(value))
    return graph(helper.make_node("Add", ["x", "w"], ["logits"]), weights=(weight,))


def weighted(values: np.ndarray) -> bytes:
    """A model that scales its input by a matrix [4, 4]."""
    weight = numpy_helper.from_array(values.astype(np.float32), "w")
    return models.model(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])], [None, 4], [None, 4], [weight]
    ).SerializeToString()


def _file(location: str, word: str = "") -> Case:
    return Case(partial(external, location), "INVALID_MODEL", (word or location, "'w'"))


def _beyond(offset: int, length: int) -> Case:
    words = ("'w'", "16 bytes", f"{length:,} bytes at offset {offset:,}", "which has 20")
    build = partial(external, "w.bin", offset, length)
    return Case(build, "INVALID_MODEL", words, {"w.bin": bytes(20)})


REFUSED: Mapping[str, Case] = {
    "truncated": Case(truncated, "INVALID_MODEL", ("bytes that are not an ONNX model", "cut")),
    "endless Loop": Case(endless_loop, "LIMIT_EXCEEDED", ("loop", "10,000 turns")),
    "8 GiB Expand": Case(
        expand, "LIMIT_EXCEEDED", ("8,589,934,592 bytes", "'wide'", "4,294,967,296")
    ),
    "8 GiB ConstantOfShape": Case(
        constant_of_shape, "LIMIT_EXCEEDED", ("8,589,934,592 bytes", "'zeros'", "4,294,967,296")
    ),
    "nested If": Case(
        partial(nested_if, 25), "LIMIT_EXCEEDED", ("9 levels of subgraphs", "at most 8")
    ),
    "nested without end": Case(partial(nested, 5_000), "INVALID_MODEL", ("nested deeper",)),
    "name that is no text": Case(no_text, "INVALID_MODEL", ("NodeProto.name", "not UTF-8")),
    "cyclic": Case(cyclic, "INVALID_MODEL", ("cyclic", "'first'", "'second'")),
    "two nodes make one value": Case(same_outputs, "INVALID_MODEL", ("logits",)),
    "two weights of one name": Case(
        same_weights, "INVALID_MODEL", ("w initializer name is not unique",)
    ),
    "custom domain": Case(custom, "UNSUPPORTED_OPERATOR", ("Steal", "thief", "com.example")),
    "a million nodes": Case(
        partial(many_nodes, 10**6), "LIMIT_EXCEEDED", ("1,000,000 nodes", "at most 50,000")
    ),
    "huge weight": Case(
        partial(huge_weight, 1 << 31, 1 << 31), "LIMIT_EXCEEDED", ("2,147,483,648", "'w'")
    ),
    "large weight": Case(
        partial(huge_weight, 1 << 30, 1 << 30),
        "LIMIT_EXCEEDED",
        ("bytes of weights", "at most 1,610,612,736"),
    ),
    "negative weight": Case(partial(huge_weight, -1, 4), "INVALID_MODEL", ("'w'", "size -1")),
    "weight without content": Case(partial(huge_weight, 1, 4), "INVALID_MODEL", ("w",)),
    "huge input": Case(huge_input, "LIMIT_EXCEEDED", ("'x'", "at most 4,294,967,296")),
    "many axes": Case(many_axes, "LIMIT_EXCEEDED", ("axes of 'logits'", "at most 16")),
    "no rows of weights": Case(
        partial(weighted, np.zeros((0, 4))), "INVALID_MODEL", ("MatMul", "cannot be evaluated")
    ),
    "path out of the folder": _file("../../../../../../etc/passwd"),
    "path to the runner's folder": _file("../audit"),
    "absolute path": _file("/etc/passwd"),
    "link of the system": _file("/proc/self/root/etc/passwd"),
    "file that was not sent": _file("nobody-sent-this", "missing"),
    "path without end": _file("d" * 5000, "too long"),
    "offset beyond the file": _beyond(FAR, 16),
    "length beyond the file": _beyond(8, 16),
    "length of another size": _beyond(0, 20),
    "offset below the file": _beyond(-16, 16),
}
"""Models that are refused when they are registered."""
