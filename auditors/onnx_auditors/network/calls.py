"""The torch function of one node: bound to it, wrapped for it, called with its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import torch
from torch import Tensor

from onnx_auditors.errors import InvalidModel
from onnx_auditors.network.node import Node, Refused
from onnx_auditors.network.registry import Function, Operator


def on_integers(function: Function, dtypes: Sequence[torch.dtype | None]) -> Function:
    """Wraps a function so that integers held as floats reach it as integers."""

    def converted(*arguments: Tensor | None) -> Any:  # noqa: ANN401 - what the function returns
        pairs = zip(arguments, dtypes, strict=True)
        return function(*[a if a is None or d is None else a.to(d) for a, d in pairs])

    return converted


def bind_function(entry: Operator, node: Node) -> Function:
    """Returns the torch function of a node.

    Raises:
        Refused: The operator does not cover the node.
    """
    if node.opset < entry.since:
        node.refuse(f"its meaning before opset {entry.since} is not covered")
    try:
        function = entry.bind(node)
    except (ArithmeticError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise Refused(f"attributes and inputs do not go together ({error})") from error
    node.check_all_read()
    return function


def evaluate(
    proto: onnx.NodeProto, function: Function, arguments: Sequence[Tensor | None]
) -> object:
    """Returns what a node's function gives.

    Raises:
        Refused: It does not cover the arguments.
        InvalidModel: The arguments do not go together.
    """
    try:
        return function(*arguments)
    except (NotImplementedError, TypeError) as error:
        raise Refused(f"its inputs are not covered ({_first_line(error)})") from error
    except (ArithmeticError, AssertionError, IndexError, RuntimeError, ValueError) as error:
        # Torch asserts some of what it expects of shapes where there is no data.
        raise InvalidModel(
            f"{proto.op_type} (node '{proto.name}') cannot be evaluated: {_first_line(error)}"
        ) from error


def as_list(results: object) -> list[Tensor]:
    """Returns the outputs of a node's function as a list."""
    return list(results) if isinstance(results, tuple) else [results]  # type: ignore[list-item] # functions return tensors


def check_count(names: Sequence[str], results: Sequence[object]) -> None:
    """Refuses a node of which more outputs are read than its function gives.

    Raises:
        Refused: One that is read is missing.
    """
    if any(names[len(results) :]):
        raise Refused(f"only the first {len(results)} outputs are covered")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
