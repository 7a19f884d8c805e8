"""Products of unsigned and signed 8-bit numbers, which some processors saturate.

x86 processors without VNNI add two such products in 16 bits: 255 * 127 + 255 * 127 becomes 32767.
ONNX Runtime uses these instructions unless asked not to (`session.x64quantprecision`, which stores
the signed weights as unsigned ones), so that a file has other answers there than elsewhere. Weights
within 64 of 0 cannot saturate. Source: ONNX Runtime's page "Quantize ONNX Models"; measured in
`tests/auditors/network/test_saturation.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_auditors.network.reading import walk

_SAFE = 64
"""Two products of a weight of this size and 255 add up to less than 2^15."""
_MATRIX = 2


class _Places(NamedTuple):
    """Where an operator has the zero point of its first factor, its second and the latter's."""

    first_zero: int
    second: int
    second_zero: int


_PRODUCTS = {
    "MatMulInteger": _Places(2, 1, 3),
    "QLinearMatMul": _Places(2, 3, 5),
    "QLinearConv": _Places(2, 3, 5),
    "QGemm": _Places(2, 3, 5),
}


class Product(NamedTuple):
    """A product of unsigned and signed numbers in a file.

    Attributes:
        node: The node.
        places: Where it has its factors.
        stored: Whether the signed factor is stored in the graph itself.
        wide: Whether it can saturate: it is computed, or stored with entries far from 0.
    """

    node: onnx.NodeProto
    places: _Places
    stored: bool
    wide: bool


def products(proto: onnx.ModelProto) -> Iterator[Product]:
    """Yields the products of an unsigned and a signed factor that a file spells out."""
    tensors = {t.name: t for t in proto.graph.initializer}
    bodies = [proto.graph.node, *(function.node for function in proto.functions)]
    for node in (node for body in bodies for node in walk(body)):
        places = _PRODUCTS.get(node.op_type)
        if places is None:
            continue
        first = _kind(tensors, node, places.first_zero)
        # The others need a zero point, which says the type; here it may be left out.
        if first != TensorProto.UINT8 and (first or node.op_type != "MatMulInteger"):
            continue
        stored = _kind(tensors, node, places.second) == TensorProto.INT8
        if stored or _kind(tensors, node, places.second_zero) == TensorProto.INT8:
            wide = not stored or is_wide(tensors[node.input[places.second]])
            yield Product(node, places, stored, wide)


def can_saturate(proto: onnx.ModelProto) -> bool:
    """Whether a file has products that saturate where ONNX Runtime's options are the default.

    Pairs of QuantizeLinear and DequantizeLinear around a product count too: ONNX Runtime makes
    integer products of them, and unsigned numbers of the first factor on x86.
    """
    if any(product.wide for product in products(proto)):
        return True
    tensors = {t.name: t for t in proto.graph.initializer}
    weights = (
        tensors[node.input[0]]
        for node in walk(proto.graph.node)
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors
    )
    return any(
        weight.data_type == TensorProto.INT8 and len(weight.dims) >= _MATRIX and is_wide(weight)
        for weight in weights
    )


def is_wide(weight: TensorProto) -> bool:
    """Whether a stored int8 tensor has entries that can saturate."""
    return bool((np.abs(numpy_helper.to_array(weight).astype(np.int16)) > _SAFE).any())


def unsigned(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a model that stores the signed factors of such products as unsigned numbers.

    Factor and zero point grow by 128, which changes nothing in exact arithmetic. Factors that are
    computed, or stored outside the main graph, stay.
    """
    found = list(products(proto))
    if not any(product.wide and product.stored for product in found):
        return proto
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    stored = {t.name: t for t in result.graph.initializer}
    wanted = {product.node.output[0] for product in found if product.stored}
    added: dict[str, TensorProto] = {}

    def shifted(name: str) -> str:
        values = numpy_helper.to_array(stored[name]) if name else np.zeros((), np.int8)
        fresh = f"{name}/unsigned"
        added[fresh] = numpy_helper.from_array(_shift(values), fresh)
        return fresh

    for node in result.graph.node:
        places = _PRODUCTS.get(node.op_type)
        if places is None or node.output[0] not in wanted:
            continue
        zero = node.input[places.second_zero] if len(node.input) > places.second_zero else ""
        if zero and zero not in stored:
            continue
        node.input.extend([""] * (places.second_zero + 1 - len(node.input)))
        node.input[places.second] = shifted(node.input[places.second])
        node.input[places.second_zero] = shifted(zero)
    result.graph.initializer.extend(added.values())
    return result


def _shift(values: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    return (values.astype(np.int16) + 128).astype(np.uint8)


def _kind(tensors: dict[str, TensorProto], node: onnx.NodeProto, place: int) -> int:
    """Returns the element type of a stored input; 0 where it is left out or computed."""
    name = node.input[place] if place < len(node.input) else ""
    return tensors[name].data_type if name in tensors else 0


def probe() -> tuple[bytes, dict[str, npt.NDArray[np.uint8]], int]:
    """Returns a model that shows whether products saturate, its input, and the exact answer."""
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 1])],
        [numpy_helper.from_array(np.full((4, 1), 127, np.int8), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString(), {"x": np.full((1, 4), 255, np.uint8)}, 4 * 255 * 127
