"""Writing subgraphs out: what If, Loop and Scan share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx
import torch
from torch import Tensor

from onnx_auditors.errors import LimitExceeded
from onnx_auditors.network.node import DependsOnInput, Refused, Value

if TYPE_CHECKING:
    from onnx_auditors.network.plan import Walker

_IDENTITY = onnx.helper.make_node("Identity", [""], [""])


def inline(
    walker: Walker,
    graph: onnx.GraphProto,
    scope: dict[str, Value],
    given: Sequence[Value],
    prefix: str,
) -> list[Value]:
    """Writes a subgraph out and returns its outputs."""
    inner = scope | walker.stored(graph, prefix)
    if len(given) != len(graph.input):
        raise Refused(f"its graph has {len(graph.input)} inputs and gets {len(given)}")
    for info, value in zip(graph.input, given, strict=True):
        inner[info.name] = walker.values[value.name] = value
    walker.nodes(graph.node, inner, prefix)
    missing = [o.name for o in graph.output if o.name not in inner]
    if missing:
        raise Refused(f"its graph's output '{missing[0]}' cannot be computed")
    return [inner[o.name] for o in graph.output]


def apply(
    walker: Walker,
    proto: onnx.NodeProto,
    function: Callable[..., Tensor],
    values: Sequence[Value],
    name: str,
) -> Value:
    """Adds a step of the control node's own."""
    kind = values[-1].element_type
    return walker.add(proto, function, list(values), [name], lambda _, __: kind)[0]


def rename(
    walker: Walker, names: Sequence[str], results: Sequence[Value], prefix: str
) -> dict[str, Value]:
    """Gives the results of a subgraph the names of the node's outputs."""
    renamed = {}
    for name, value in zip(names, results, strict=False):
        if not name:
            continue
        if value.name == prefix + name:
            renamed[name] = value
        elif value.constant is not None:
            renamed[name] = dataclasses.replace(value, name=prefix + name)
        else:
            renamed[name] = apply(walker, _IDENTITY, _pass, [value], prefix + name)
    return renamed


def stack(*tensors: Tensor) -> Tensor:
    """Returns what turns yield, [turns, ...]."""
    return torch.stack(tensors)


def known(value: Value | None, what: str) -> Tensor:
    """Returns a constant.

    Raises:
        DependsOnInput: It is none, so far.
    """
    if value is None or value.constant is None:
        raise DependsOnInput(f"{what} depends on the model's input")
    return value.constant


def check_turns(walker: Walker, turn: int) -> None:
    """Counts a turn.

    Raises:
        LimitExceeded: There were too many.
    """
    walker.spend()
    if turn >= walker.binder.limits.max_iterations:
        raise LimitExceeded(
            f"a loop makes more than {walker.binder.limits.max_iterations:,} turns; that is the "
            "most that is accepted"
        )


def _pass(x: Tensor) -> Tensor:
    return x
