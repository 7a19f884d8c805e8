"""Turns a plan into a torch.fx graph from some of its values to others."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from onnx_auditors.network.plan import Plan, Step
from onnx_auditors.network.registry import Function


def lower(plan: Plan, sources: Sequence[str], targets: Sequence[str]) -> fx.GraphModule:
    """Returns the function from some values of a plan to others as one graph.

    Each node of the graph is one node of the model and carries it as `meta["onnx"]`; constants are
    buffers. It returns a tuple.

    Args:
        plan: The plan.
        sources: Names of the values that are given, in the order of the function's arguments.
        targets: Names of the values that it returns.

    Raises:
        KeyError: A target depends on a value that is neither given nor computed; its argument is
            the value's name.
    """
    graph, root = fx.Graph(), nn.Module()
    constants: dict[str, torch.Tensor] = {}
    nodes: dict[str, Any] = {"": None}
    for i, name in enumerate(sources):
        nodes[name] = graph.placeholder(f"given_{i}")

    def node(name: str) -> Any:  # noqa: ANN401 - an fx node, or None for an input left out
        if name not in nodes:
            constant = plan.values[name].constant
            if constant is None:
                raise KeyError(name)
            constants[f"constant_{len(constants)}"] = constant
            nodes[name] = graph.get_attr(f"constant_{len(constants) - 1}")
        return nodes[name]

    for step in needed(plan, sources, targets):
        call = graph.call_function(_named(step), tuple(node(name) for name in step.inputs))
        call.meta["onnx"] = step.node
        for i, name in enumerate(step.outputs):
            if name:
                part = graph.call_function(operator.getitem, (call, i)) if step.several else call
                nodes[name] = part
    graph.output(tuple(node(name) for name in targets))
    for name, constant in constants.items():
        root.register_buffer(name, constant)
    module = fx.GraphModule(root, graph, "NetworkGraph")
    # A module finds its buffers slowly, after everything else; as plain attributes they are quick.
    module.__dict__.update(constants)
    return module


def _named(step: Step) -> Function:
    """Returns a step's function with a name that can stand in generated code."""
    function = step.function
    if getattr(function, "__module__", None) and getattr(function, "__name__", "<")[0] != "<":
        return function

    def call(*arguments: Any) -> Any:  # noqa: ANN401 - passes everything through
        return function(*arguments)

    if type(function) is type(call):
        function.__name__ = function.__qualname__ = step.node.op_type.lower()
        return function
    call.__name__ = step.node.op_type.lower()
    return call


def needed(plan: Plan, sources: Sequence[str], targets: Sequence[str]) -> list[Step]:
    """Returns the steps that lead from the sources to the targets.

    Raises:
        KeyError: As `lower`.
    """
    makers = {name: step for step in plan.steps for name in step.outputs}
    ready = {*sources, ""}
    wanted = [name for name in targets if name not in ready]
    chosen: set[int] = set()
    while wanted:
        name = wanted.pop()
        if name in plan.values and plan.values[name].constant is not None:
            continue
        step = makers[name]
        if id(step) not in chosen:
            chosen.add(id(step))
            wanted += [n for n in step.inputs if n not in ready]
    return [step for step in plan.steps if id(step) in chosen]
