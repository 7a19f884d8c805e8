"""Reads an ONNX file that nobody has vouched for.

The order matters: size, parse, limits, operators, external data, the checker. Nothing that costs
more than the file's own size happens before the limits are known to hold.
"""

from __future__ import annotations

import graphlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import onnx
import onnx.checker
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from onnx_audit import v1
from onnx_auditors.errors import InvalidModel, LimitExceeded
from onnx_auditors.network.external import load_external_data
from onnx_auditors.network.limits import Limits, check_rank, tensor_bytes, too_large
from onnx_auditors.network.summary import summarize

STANDARD_DOMAINS = ("", "ai.onnx")
_SHOWN = 100
"""Bytes of a wrong name that an error shows."""
_SMALL_BYTES = 4096
"""Up to here stored tensors may be shapes and axes, which the converter reads."""


@dataclass(frozen=True)
class ModelFile:
    """A model as read.

    Attributes:
        proto: The file's content with external data filled in; otherwise as uploaded.
        summary: What the file says of itself.
    """

    proto: onnx.ModelProto
    summary: v1.ModelSummary


def read(source: str | Path | bytes | onnx.ModelProto, limits: Limits) -> ModelFile:
    """Reads and checks a model.

    Args:
        source: A path, the bytes of a file without external data, or a parsed model.
        limits: What the model may cost.

    Raises:
        InvalidModel: Not ONNX, truncated, against ONNX's rules, or external data is missing.
        LimitExceeded: Larger than the limits allow.
    """
    folder: Path | None = None
    if isinstance(source, onnx.ModelProto):
        content = source.SerializeToString(deterministic=True)
    elif isinstance(source, bytes):
        content = source
    else:
        folder = Path(source).parent
        content = _read_bytes(Path(source), limits)
    if len(content) > limits.max_model_bytes:
        raise too_large(
            "max_model_bytes", "bytes in the ONNX file", len(content), limits.max_model_bytes
        )
    proto = _parse(content)
    digest = hashlib.sha256(content).hexdigest()
    del content  # the weights are in the parsed model too
    _check_limits(proto, limits)
    _check_text(proto)
    digests = load_external_data(_tensors(proto), folder, limits)
    _sort_nodes(proto.graph)
    _check(proto)
    return ModelFile(proto, summarize(proto, _model_digest(digest, digests)))


def without_weights(
    proto: onnx.ModelProto,
) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto]]:
    """Returns a copy whose larger weights are inputs instead, and those weights.

    The checker, the inliner and the converter each serialise what they get: without the weights
    they need little time and memory.
    """
    large = {t.name: t for t in proto.graph.initializer if tensor_bytes(t) > _SMALL_BYTES}
    graph = onnx.GraphProto(
        name=proto.graph.name,
        node=proto.graph.node,
        input=proto.graph.input,
        output=proto.graph.output,
        initializer=(t for t in proto.graph.initializer if t.name not in large),
        sparse_initializer=proto.graph.sparse_initializer,
    )
    present = {info.name for info in graph.input}
    graph.input.extend(
        onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
        for name, tensor in large.items()
        if name not in present
    )
    copy = onnx.ModelProto(
        ir_version=proto.ir_version,
        opset_import=proto.opset_import,
        functions=proto.functions,
        graph=graph,
    )
    return copy, large


def standard_opset(proto: onnx.ModelProto) -> int:
    """Returns the version of the standard operator set that the model imports; 0 if none."""
    versions = [o.version for o in proto.opset_import if o.domain in STANDARD_DOMAINS]
    return max(versions, default=0)


def names_in(text: str) -> frozenset[str]:
    """Returns the names in a text, which spaces part."""
    return frozenset(text.split())


def walk(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yields nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from walk(graph.node)


def _read_bytes(path: Path, limits: Limits) -> bytes:
    try:
        size = path.stat().st_size
        if size > limits.max_model_bytes:
            raise too_large(
                "max_model_bytes", "bytes in the ONNX file", size, limits.max_model_bytes
            )
        return path.read_bytes()
    except OSError as error:
        raise InvalidModel(f"the ONNX file cannot be read: {error.strerror}") from error


def _parse(content: bytes) -> onnx.ModelProto:
    try:
        proto = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise InvalidModel(
            f"{len(content):,} bytes that are not an ONNX model: the file is of another kind, cut "
            "short, or nested deeper than protobuf reads; export it again"
        ) from error
    if not proto.graph.node or not proto.opset_import:
        raise InvalidModel("no ONNX model: it has no nodes or names no operator set")
    return proto


class _Size(NamedTuple):
    """Nodes, levels of subgraphs, and of calls of local functions, of what is written out."""

    nodes: int
    depth: int
    calls: int


def check_sizes(proto: onnx.ModelProto, limits: Limits) -> None:
    """Counts the nodes, those of local functions at each call of them.

    Raises:
        LimitExceeded: There are too many, or subgraphs or calls are nested too deeply.
        InvalidModel: A local function calls itself.
    """
    nodes = _size(proto.graph.node, _function_sizes(proto, limits), limits, depth=0).nodes
    if nodes > limits.max_nodes:
        what = "nodes, with functions written out"
        raise too_large("max_nodes", what, nodes, limits.max_nodes)


def _check_limits(proto: onnx.ModelProto, limits: Limits) -> None:
    check_sizes(proto, limits)
    _check_domains(proto, limits)
    stored = 0
    for tensor in _tensors(proto):
        check_rank(tensor.name, len(tensor.dims), limits)
        for size in tensor.dims:
            if size < 0:
                raise InvalidModel(f"tensor '{tensor.name}' has an axis of size {size}")
            if size > limits.max_dimension:
                where = f"in an axis of '{tensor.name}'"
                raise too_large("max_dimension", where, size, limits.max_dimension)
        stored += tensor_bytes(tensor)
    if stored > limits.max_initializer_bytes:
        what = "bytes of weights"
        raise too_large("max_initializer_bytes", what, stored, limits.max_initializer_bytes)


def _check_text(message: Message) -> None:
    """Refuses names that are not UTF-8, which protobuf hands out as bytes."""
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING:
            texts = value if field.is_repeated else [value]
            wrong = next((text for text in texts if isinstance(text, bytes)), None)
            if wrong is not None:
                raise InvalidModel(f"{field.full_name} {wrong[:_SHOWN]!r} is not UTF-8")
        elif field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                _check_text(inner)


def _check_domains(proto: onnx.ModelProto, limits: Limits) -> None:
    """Refuses operators of domains that are not taken; local functions belong to the model."""
    if not limits.domains:
        return
    own = {(f.domain, f.name) for f in proto.functions}
    nodes = [*proto.graph.node, *(node for f in proto.functions for node in f.node)]
    for node in walk(nodes):
        domain = node.domain or "ai.onnx"
        if domain not in limits.domains and (node.domain, node.op_type) not in own:
            allowed = ", ".join(limits.domains)
            raise LimitExceeded(
                f"{node.op_type} (node '{node.name}') is of the domain {domain}; operators are "
                f"accepted of {allowed}",
                limit="domains",
                found=domain,
                allowed=allowed,
            )


def _function_sizes(proto: onnx.ModelProto, limits: Limits) -> dict[tuple[str, str], _Size]:
    """Counts the nodes of each local function written out, without writing it out."""
    functions = {(f.domain, f.name): f for f in proto.functions}
    calls = {
        key: {(n.domain, n.op_type) for n in walk(f.node)} & functions.keys()
        for key, f in functions.items()
    }
    try:
        order = list(graphlib.TopologicalSorter(calls).static_order())
    except graphlib.CycleError as error:
        raise InvalidModel("a local function calls itself") from error
    sizes: dict[tuple[str, str], _Size] = {}
    for key in order:
        sizes[key] = _size(functions[key].node, sizes, limits, depth=0)
    return sizes


def _size(
    nodes: Iterable[onnx.NodeProto],
    functions: Mapping[tuple[str, str], _Size],
    limits: Limits,
    depth: int,
) -> _Size:
    total, deepest, calls = 0, depth, 0
    _check_depth(depth, limits)
    for node in nodes:
        called = functions.get((node.domain, node.op_type), _Size(1, 0, -1))
        inner = [_size(g.node, functions, limits, depth + 1) for g in subgraphs(node)]
        total += called.nodes + sum(size.nodes for size in inner)
        deepest = max(deepest, depth + called.depth, *(size.depth for size in inner))
        calls = max(calls, called.calls + 1, *(size.calls for size in inner))
        _check_depth(deepest, limits)
        _check_calls(calls, limits)
    return _Size(total, deepest, calls)


def _check_depth(depth: int, limits: Limits) -> None:
    if depth > limits.max_subgraph_depth:
        what = "levels of subgraphs"
        raise too_large("max_subgraph_depth", what, depth, limits.max_subgraph_depth)


def _check_calls(calls: int, limits: Limits) -> None:
    if calls > limits.max_function_depth:
        what = "levels of calls of local functions"
        raise too_large("max_function_depth", what, calls, limits.max_function_depth)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yields the graphs among a node's attributes."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yields every stored tensor: initializers and attributes, those of subgraphs included."""
    nodes = list(proto.graph.node)
    nodes += [node for function in proto.functions for node in function.node]
    yield from proto.graph.initializer
    for node in walk(nodes):
        for graph in subgraphs(node):
            yield from graph.initializer
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors


def _sort_nodes(graph: onnx.GraphProto) -> None:
    """Brings the nodes into topological order, which some exporters do not keep."""
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needs = {
        i: {makers[name] for name in _names_read(node) if name in makers}
        for i, node in enumerate(graph.node)
    }
    if all(maker < i for i, before in needs.items() for maker in before):
        return
    try:
        order = list(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError as error:
        nodes = ", ".join(f"'{graph.node[i].name or graph.node[i].op_type}'" for i in error.args[1])
        raise InvalidModel(f"the graph is cyclic: {nodes}") from error
    nodes_in_order = [graph.node[i] for i in order]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes_in_order]
    del graph.node[:]
    graph.node.extend(copies)


def _names_read(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for inner in walk(n for graph in subgraphs(node) for n in graph.node):
        yield from inner.input


def _check(proto: onnx.ModelProto) -> None:
    checked = without_weights(proto)[0]
    # ONNX Runtime's optimiser writes this operator into the standard domain, which has none.
    for node in walk(checked.graph.node):
        if node.op_type == "SimplifiedLayerNormalization":
            node.domain = "com.microsoft"
    if all(o.domain != "com.microsoft" for o in checked.opset_import):
        checked.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    try:
        onnx.checker.check_model(checked)
    except onnx.checker.ValidationError as error:
        raise InvalidModel(f"the file breaks ONNX's rules: {error}") from error


def _model_digest(digest: str, external: dict[str, str]) -> str:
    if not external:
        return digest
    lines = sorted((external | {"model.onnx": digest}).items())
    text = "".join(f"{value}  {path}\n" for path, value in lines)
    return hashlib.sha256(text.encode()).hexdigest()
