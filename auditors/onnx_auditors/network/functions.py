"""Standard operators that no function of ours covers, written out by their body in the standard.

ONNX defines many operators by a graph of simpler ones. Such a body becomes a local function of the
model, so that it is counted like one before it is written out like one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import onnx.defs
import onnx.inliner
import onnx.shape_inference

from onnx_auditors.errors import InvalidModel
from onnx_auditors.network.coverage import is_covered
from onnx_auditors.network.limits import Limits
from onnx_auditors.network.reading import (
    STANDARD_DOMAINS,
    check_sizes,
    names_in,
    standard_opset,
    subgraphs,
    walk,
)

_DOMAINS = names_in("ai.onnx ai.onnx.ml ai.onnx.preview") | {""}
_OWN_DOMAIN = "onnx_audit.bodies"
_Types = Mapping[str, onnx.TypeProto]
_Schema = Any
"""An onnx.defs.OpSchema; its stubs lack what is read here."""


def write_out(proto: onnx.ModelProto, limits: Limits) -> onnx.ModelProto:
    """Returns the model with the bodies of standard operators in place of nodes without a function.

    A body that has an operator without function or body of its own is left alone, so that the node
    can be refused under the name that the model's author knows.

    Args:
        proto: The model, without local functions.
        limits: What it may cost, bodies included.

    Raises:
        InvalidModel: Shapes and types in the graph contradict each other.
        LimitExceeded: It has too many nodes, or nested too deeply, with bodies written out.
    """
    while any(may_have_body(node) for node in walk(proto.graph.node)):
        called = _with_calls(proto)
        if not called.functions:
            break
        check_sizes(called, limits)
        proto = onnx.inliner.inline_local_functions(called)
    return proto


def may_have_body(node: onnx.NodeProto) -> bool:
    """Says whether a node has no function of ours but, at some opset, a body in the standard."""
    known = node.domain in _DOMAINS and onnx.defs.has(node.op_type, _key(node))
    if is_covered(node) or not known:
        return False
    schema: _Schema = onnx.defs.get_schema(node.op_type, _key(node))
    return bool(schema.has_function or schema.has_context_dependent_function)


def _key(node: onnx.NodeProto) -> str:
    return "" if node.domain in STANDARD_DOMAINS else str(node.domain)


def _with_calls(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy in which nodes with a usable body call it as a local function."""
    versions = {o.domain: o.version for o in proto.opset_import}
    versions[""] = standard_opset(proto)
    try:
        copy = onnx.shape_inference.infer_shapes(proto)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        raise InvalidModel(f"the shapes in the graph do not go together: {error}") from error
    for node, types in _typed(copy.graph, {}):
        body = _body(node, types, versions) if may_have_body(node) else None
        if body is None:
            continue
        body.domain, body.name = _OWN_DOMAIN, f"{node.op_type}_{len(copy.functions)}"
        for inner in body.node:
            inner.name = f"{node.name or node.op_type}/{inner.op_type}"
        copy.functions.append(body)
        node.domain, node.op_type = body.domain, body.name
    if copy.functions:
        copy.opset_import.append(onnx.helper.make_opsetid(_OWN_DOMAIN, 1))
    return copy


def _typed(graph: onnx.GraphProto, outer: _Types) -> Iterator[tuple[onnx.NodeProto, _Types]]:
    """Yields every node, those of subgraphs included, with the types of the values that it sees."""
    types = dict(outer)
    types |= {i.name: i.type for i in (*graph.input, *graph.value_info, *graph.output)}
    for tensor in graph.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _typed(inner, types)
        yield node, types


def _body(
    node: onnx.NodeProto, types: _Types, versions: Mapping[str, int]
) -> onnx.FunctionProto | None:
    """Returns the standard's body of a node, for the model's opset; None where it has none."""
    version = versions[_key(node)]
    try:
        schema = onnx.defs.get_schema(node.op_type, version, _key(node))
        body = _static_body(node, schema, version) or _built_body(node, schema, version, types)
    except Exception:  # noqa: BLE001 - the C++ side raises anything for a bad node
        return None
    if body is None or not all(is_covered(n) or may_have_body(n) for n in walk(body.node)):
        return None
    if any(o.version > versions.get(o.domain, 0) for o in body.opset_import):
        return None  # written for a newer opset than the model's
    for opset in body.opset_import:
        opset.version = versions[opset.domain]
    return body


def _static_body(node: onnx.NodeProto, schema: _Schema, version: int) -> onnx.FunctionProto | None:
    """Returns a body that is the same for every node; the node gets the attributes it leaves out.

    The body refers to attributes, and the inliner knows nothing of their defaults.
    """
    if version < min(schema.function_opset_versions, default=version + 1):
        return None  # the first body is newer
    present = {a.name for a in node.attribute}
    node.attribute.extend(
        a.default_value
        for name, a in sorted(schema.attributes.items())
        if name not in present and a.default_value.name
    )
    return onnx.FunctionProto.FromString(schema.get_function_with_opset_version(version))


def _built_body(
    node: onnx.NodeProto, schema: _Schema, version: int, types: _Types
) -> onnx.FunctionProto | None:
    """Returns a body that the standard builds from attributes and the types of inputs."""
    versions = [v for v in schema.context_dependent_function_opset_versions if v <= version]
    if not versions:
        return None
    inputs = [types.get(name, onnx.TypeProto()).SerializeToString() for name in node.input]
    content = schema.get_context_dependent_function_with_opset_version(
        max(versions), node.SerializeToString(), inputs
    )
    return onnx.FunctionProto.FromString(content) if content else None
