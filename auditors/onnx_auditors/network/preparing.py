"""Brings a model that was read into the one form that is bound."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx.inliner
import onnx.version_converter

from onnx_auditors.errors import InvalidModel
from onnx_auditors.network.coverage import check_operators, is_covered
from onnx_auditors.network.functions import may_have_body, write_out
from onnx_auditors.network.limits import Limits
from onnx_auditors.network.reading import standard_opset, walk, without_weights

TARGET_OPSET = 21
_CHANGED = {"PRelu": 7, "Scan": 9}
"""First opsets in which PRelu's slopes broadcast, and Scan has no batch axis of its own."""


@dataclass(frozen=True)
class Prepared:
    """A model as it is bound.

    Attributes:
        proto: The model with all functions written out, at opset 21 where it can be; larger
            weights are left out and stand among the inputs.
        weights: All stored weights by name.
    """

    proto: onnx.ModelProto
    weights: dict[str, onnx.TensorProto]


def prepare(proto: onnx.ModelProto, limits: Limits) -> Prepared:
    """Returns the model with all functions written out and, where it can be, at opset 21.

    A graph that the converter cannot lift stays at its own opset; operators whose meaning differs
    there are refused when they are bound.

    Args:
        proto: The model as read.
        limits: What it may cost with functions written out.

    Raises:
        InvalidModel: Local functions that do not fit their calls.
        UnsupportedOperator: Operators that the network has no function for; lists every node.
        LimitExceeded: Larger than the limits allow.
    """
    prepared, weights = without_weights(proto)
    if prepared.functions:
        try:
            prepared = onnx.inliner.inline_local_functions(prepared)
        except RuntimeError as error:
            raise InvalidModel(f"a local function does not fit its calls: {error}") from error
    prepared, opset = write_out(prepared, limits), standard_opset(prepared)
    if any(not is_covered(n) and not may_have_body(n) for n in walk(prepared.graph.node)):
        check_operators(prepared.graph, opset)  # before the converter gets to see the graph
    if 0 < opset < TARGET_OPSET and not _changes_meaning(prepared):
        prepared = write_out(_lifted(prepared), limits)
    check_operators(prepared.graph, opset)
    kept = {tensor.name: tensor for tensor in prepared.graph.initializer}
    return Prepared(prepared, kept | weights)


def _lifted(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model at opset 21; as it is where the converter cannot."""
    try:
        return onnx.version_converter.convert_version(proto, TARGET_OPSET)
    except Exception:  # noqa: BLE001 - the converter raises whatever its C++ side raised
        return proto


def _changes_meaning(proto: onnx.ModelProto) -> bool:
    """Says whether there are old nodes that the converter leaves as they are, wrongly."""
    opset = standard_opset(proto)
    return any(opset < _CHANGED.get(node.op_type, 0) for node in walk(proto.graph.node))
