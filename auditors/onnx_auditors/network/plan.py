"""Binds the nodes of a graph to torch functions, for given input shapes.

Binding follows the graph once on tensors without data. Whatever depends on no input's content, such
as shape arithmetic, is computed then and there; what is left is a list of steps to run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor

from onnx_auditors.errors import InvalidModel, LimitExceeded, UnsupportedOperator
from onnx_auditors.network import ops as _ops  # noqa: F401 - fills the registry
from onnx_auditors.network.limits import Limits
from onnx_auditors.network.node import DependsOnInput, Node, Refused, Value
from onnx_auditors.network.reading import STANDARD_DOMAINS, walk
from onnx_auditors.network.registry import Function, Operator, find

_SHAPE_ALONE = frozenset({"Shape", "Size"})


class UnknownShape(UnsupportedOperator):
    """Nodes can only be bound once the content of the inputs is known."""


@dataclass(frozen=True)
class Step:
    """One call: `outputs = function(*inputs)`; an empty name is an input left out."""

    function: Function
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A graph bound for given input shapes.

    Attributes:
        steps: What is left to run, in order.
        constants: Values that depend on no input's content, by name.
        shapes: Shape of every value, by name.
        dtypes: Element type of every value, by name.
    """

    steps: list[Step]
    constants: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]


def check_operators(graph: onnx.GraphProto, opset: int) -> None:
    """Checks that the registry has every operator.

    Raises:
        UnsupportedOperator: It has not; lists every such node.
    """
    missing = [
        describe(node, opset)
        for node in walk(graph.node)
        if find(node.domain, node.op_type) is None
    ]
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


class Binder:
    """Binds one graph, for one set of input shapes.

    Args:
        graph: The graph, in topological order.
        opset: Version of the standard operator set.
        floating: Dtype in which half and single precision are computed.
        limits: Caps on what is computed.
    """

    def __init__(
        self, graph: onnx.GraphProto, opset: int, floating: torch.dtype, limits: Limits
    ) -> None:
        self._graph = graph
        self._opset = opset
        self._floating = floating
        self._limits = limits
        self._read = {name for node in walk(graph.node) for name in node.input}
        self._read |= {output.name for output in graph.output}

    def bind(
        self,
        weights: Mapping[str, Tensor],
        inputs: Mapping[str, Tensor],
        device: torch.device,
    ) -> Plan:
        """Returns the plan.

        Args:
            weights: Initializers by name.
            inputs: Tensors of the meta device by input name.
            device: Where folded constants go.

        Raises:
            UnsupportedOperator: Nodes that no operator covers; lists all that can be reached.
            InvalidModel: A node that cannot be evaluated, such as shapes that do not go together.
            LimitExceeded: A value that is too large.
        """
        types = {t.name: t.data_type for t in self._graph.initializer}
        types |= {i.name: i.type.tensor_type.elem_type for i in self._graph.input}
        values = {name: Value(name, w.to("meta"), w, types[name]) for name, w in weights.items()}
        values |= {name: Value(name, meta, None, types[name]) for name, meta in inputs.items()}
        steps: list[Step] = []
        refused: list[str] = []
        known_later = True
        for proto in self._graph.node:
            if any(name and name not in values for name in proto.input):
                continue  # depends on a node that was refused
            try:
                step, outputs = self._bind_node(proto, values, device)
            except Refused as reason:
                refused.append(f"{describe(proto, self._opset)}: {reason}")
                known_later = known_later and isinstance(reason, DependsOnInput)
                continue
            values |= {v.name: v for v in outputs}
            if step is not None:
                steps.append(step)
        if refused:
            raise unsupported(refused, UnknownShape if known_later else UnsupportedOperator)
        return Plan(
            steps,
            {v.name: v.constant for v in values.values() if v.constant is not None},
            {v.name: v.shape for v in values.values()},
            {v.name: v.meta.dtype for v in values.values()},
        )

    def _bind_node(
        self, proto: onnx.NodeProto, values: Mapping[str, Value], device: torch.device
    ) -> tuple[Step | None, list[Value]]:
        entry = find(proto.domain, proto.op_type)
        if entry is None:
            raise Refused("it is not in the registry")
        inputs = [values[name] if name else None for name in proto.input]
        if not entry.carries:
            inputs = [value and value.materialised() for value in inputs]
        outputs = [name if name in self._read else "" for name in proto.output]
        node = Node(proto, self._opset, inputs, outputs, self._floating)
        function = _bind_function(entry, node)
        arguments = node.arguments()
        metas = self._call(proto, function, [a.meta if a else None for a in arguments])
        if len(metas) > len(outputs):
            function = _first(function, len(outputs))
            metas = metas[: len(outputs)]
        if any(outputs[len(metas) :]):
            raise Refused(f"only the first {len(metas)} outputs are covered")
        names = outputs[: len(metas)]
        metas = [m.to("meta") for m in metas]
        types = [node.output_type(i, meta.dtype) for i, meta in enumerate(metas)]
        for name, meta in zip(names, metas, strict=True):
            self._check_size(name, meta)
        if all(a is None or a.constant is not None for a in arguments):
            constants = self._call(proto, function, [a.constant if a else None for a in arguments])
            folded = [c.to(device) for c in constants]
            return None, [Value(*v) for v in zip(names, metas, folded, types, strict=True) if v[0]]
        if node.op_type in _SHAPE_ALONE:
            constants = self._call(proto, function, [None])
            return None, [Value(names[0], metas[0], constants[0].to(device), types[0])]
        held = [a is not None and values[a.name].is_carried for a in arguments]
        if not entry.carries and any(held):
            function = _on_integers(function, [a.meta.dtype if a else None for a in arguments])
        step = Step(function, tuple(a.name if a else "" for a in arguments), tuple(names))
        return step, [
            Value(n, m, None, t) for n, m, t in zip(names, metas, types, strict=True) if n
        ]

    @staticmethod
    def _call(
        proto: onnx.NodeProto, function: Function, arguments: Sequence[Tensor | None]
    ) -> list[Tensor]:
        try:
            with torch.no_grad():
                results = function(*arguments)
        except (NotImplementedError, TypeError) as error:
            raise Refused(f"its inputs are not covered ({_first_line(error)})") from error
        except (RuntimeError, IndexError, ValueError) as error:
            raise InvalidModel(
                f"{proto.op_type} (node '{proto.name}') cannot be evaluated: {_first_line(error)}"
            ) from error
        return list(results) if isinstance(results, tuple) else [results]

    def _check_size(self, name: str, meta: Tensor) -> None:
        size = meta.numel() * meta.element_size()
        if size > self._limits.max_value_bytes:
            raise LimitExceeded(
                f"value '{name}' of shape {list(meta.shape)} takes {size:,} bytes; at most "
                f"{self._limits.max_value_bytes:,} are accepted"
            )


def _first(function: Function, count: int) -> Function:
    """Wraps a function of several results whose last ones nobody asked for."""
    return lambda *arguments: function(*arguments)[:count]


def _on_integers(function: Function, dtypes: Sequence[torch.dtype | None]) -> Function:
    """Wraps a function so that integers held as floats reach it as integers."""

    def converted(*arguments: Tensor | None) -> Any:  # noqa: ANN401 - what the function returns
        pairs = zip(arguments, dtypes, strict=True)
        return function(*[a if a is None or d is None else a.to(d) for a, d in pairs])

    return converted


def _bind_function(entry: Operator, node: Node) -> Function:
    if node.opset < entry.since:
        node.refuse(f"its meaning before opset {entry.since} is not covered")
    try:
        function = entry.bind(node)
    except (IndexError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise Refused(f"attributes and inputs do not go together ({error})") from error
    node.check_all_read()
    return function


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def program(
    plan: Plan, sources: Sequence[str], targets: Sequence[str]
) -> Callable[..., tuple[Tensor, ...]]:
    """Returns the function from some values of a plan to others.

    Args:
        plan: The plan.
        sources: Names of the values that are given, in the order of the function's arguments.
        targets: Names of the values that it returns.

    Raises:
        KeyError: A target depends on a value that is neither given nor computed; its argument is
            the value's name.
    """
    steps = _needed(plan, sources, targets)
    last_use = {name: i for i, step in enumerate(steps) for name in step.inputs}
    kept = {*targets, *sources, *plan.constants, ""}
    calls: list[tuple[Function, tuple[str, ...], tuple[str, ...], list[str]]] = []
    for i, step in enumerate(steps):
        spent = [n for n in set(step.inputs) if last_use[n] == i and n not in kept]
        calls.append((step.function, step.inputs, step.outputs, spent))
    constants: dict[str, Any] = {**plan.constants, "": None}

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        values = constants.copy()
        values.update(zip(sources, given, strict=True))
        for call, inputs, outputs, spent in calls:
            result = call(*[values[name] for name in inputs])
            if len(outputs) == 1 and not isinstance(result, tuple):
                values[outputs[0]] = result
            else:
                values.update(zip(outputs, result, strict=True))
            for name in spent:
                del values[name]
        return tuple([values[name] for name in targets])

    return function


def _needed(plan: Plan, sources: Sequence[str], targets: Sequence[str]) -> list[Step]:
    """Returns the steps that lead from the sources to the targets."""
    makers = {name: step for step in plan.steps for name in step.outputs}
    ready = {*sources, *plan.constants, ""}
    wanted = [name for name in targets if name not in ready]
    needed: set[int] = set()
    while wanted:
        step = makers[wanted.pop()]
        if id(step) not in needed:
            needed.add(id(step))
            wanted += [name for name in step.inputs if name not in ready]
    return [step for step in plan.steps if id(step) in needed]
