"""Which nodes the network has functions for, and how it says which it has not."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from onnx_auditors.errors import UnsupportedOperator
from onnx_auditors.network import control
from onnx_auditors.network import ops as _ops  # noqa: F401 - fills the registry
from onnx_auditors.network.reading import STANDARD_DOMAINS, walk
from onnx_auditors.network.registry import find


def is_covered(node: onnx.NodeProto) -> bool:
    """Says whether the network has a function for a node's operator."""
    return find(node.domain, node.op_type) is not None or control.is_control(node)


def check_operators(graph: onnx.GraphProto, opset: int) -> None:
    """Checks that the registry has every operator.

    Raises:
        UnsupportedOperator: It has not; lists every such node.
    """
    missing = [describe(node, opset) for node in walk(graph.node) if not is_covered(node)]
    if missing:
        raise unsupported(missing)


def unsupported(
    nodes: Sequence[str], error: type[UnsupportedOperator] = UnsupportedOperator
) -> UnsupportedOperator:
    """Returns the error that lists the nodes."""
    listed = "; ".join(nodes)
    return error(
        f"{len(nodes)} of the model's nodes cannot be made differentiable: {listed}", nodes=listed
    )


def describe(node: onnx.NodeProto, opset: int) -> str:
    """Returns a node's operator, name, domain and opset for people to read."""
    domain = node.domain or "ai.onnx"
    version = f", opset {opset}" if node.domain in STANDARD_DOMAINS else ""
    return f"{node.op_type} (node '{node.name}', domain {domain}{version})"
