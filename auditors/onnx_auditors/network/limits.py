"""What a model may cost, checked before anything is built from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import onnx.helper

from onnx_auditors.errors import InvalidModel, LimitExceeded

_GIB = 2**30


@dataclass(frozen=True)
class Limits:
    """Caps on a model.

    Attributes:
        max_model_bytes: Size of the ONNX file itself; protobuf ends at 2 GiB.
        max_nodes: Nodes, with subgraphs, and with functions written out.
        max_subgraph_depth: Nesting of subgraphs.
        max_function_depth: Nesting of calls of local functions.
        max_rank: Axes of a tensor, stored or computed.
        max_dimension: Largest size of one axis of a stored tensor.
        max_initializer_bytes: Stored weights, external data included.
        max_steps: Nodes that run, every turn of a loop counted.
        max_iterations: Turns of one loop.
        max_value_bytes: One computed value of the graph, for one batch.
        domains: Domains of operators that are taken, "ai.onnx" for the standard one; empty for all
            that the network knows.
    """

    max_model_bytes: int = 2 * _GIB - 1
    max_nodes: int = 50_000
    max_subgraph_depth: int = 8
    max_function_depth: int = 64
    max_rank: int = 16
    max_dimension: int = 2**31 - 1
    max_initializer_bytes: int = 3 * _GIB // 2
    max_steps: int = 200_000
    max_iterations: int = 10_000
    max_value_bytes: int = 4 * _GIB
    domains: Sequence[str] = ()


def too_large(limit: str, what: str, found: int, allowed: int) -> LimitExceeded:
    """Returns the error for a figure beyond its limit, which is named as in `Limits`."""
    message = f"{found:,} {what}; at most {allowed:,} are accepted"
    return LimitExceeded(message, limit=limit, found=str(found), allowed=str(allowed))


def check_rank(name: str, rank: int, limits: Limits) -> None:
    """Checks the number of axes of a tensor.

    Raises:
        LimitExceeded: It has too many.
    """
    if rank > limits.max_rank:
        raise too_large("max_rank", f"axes of '{name}'", rank, limits.max_rank)


def check_bytes(name: str, shape: Sequence[int], size: int, limits: Limits) -> None:
    """Checks the size of a computed value, in bytes.

    Raises:
        LimitExceeded: It is too large.
    """
    if size > limits.max_value_bytes:
        what = f"bytes for the value '{name}' of shape {list(shape)}"
        raise too_large("max_value_bytes", what, size, limits.max_value_bytes)


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Returns the size of a tensor's content from its shape and element type.

    Raises:
        InvalidModel: There is no such element type.
    """
    elements = 1
    for size in tensor.dims:
        elements *= size
    try:
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError as error:
        raise InvalidModel(
            f"tensor '{tensor.name}' has the unknown element type {tensor.data_type}"
        ) from error
    return elements * width
