"""Binds the nodes of a graph to torch functions, for given input shapes.

Binding follows the graph once on tensors without data. Whatever depends on no input's content, such
as shape arithmetic, is computed then and there; what is left is a list of steps to run. Where a
graph's shapes or branches depend on the content of its input there is no such list: it is then
bound anew for every input, with the content in hand, so that everything is computed on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx
import torch
from torch import Tensor

from onnx_auditors.errors import InvalidModel, LimitExceeded, UnsupportedOperator
from onnx_auditors.network import control
from onnx_auditors.network.calls import as_list, bind_function, check_count, evaluate, on_integers
from onnx_auditors.network.coverage import describe, unsupported
from onnx_auditors.network.limits import Limits, check_bytes, check_rank
from onnx_auditors.network.node import DependsOnInput, Node, Refused, Value, to_torch
from onnx_auditors.network.reading import subgraphs, walk
from onnx_auditors.network.registry import Function, find

_SHAPE_ALONE = frozenset({"Shape", "Size"})


class UnknownShape(UnsupportedOperator):
    """Nodes can only be bound once the content of the inputs is known."""


@dataclass(frozen=True)
class Step:
    """One call: `outputs = function(*inputs)`; an empty name is an input left out.

    Attributes:
        function: Torch function of the node.
        inputs: Names of its arguments.
        outputs: Names of its results; an empty name is a result that nobody reads.
        several: Whether it returns a tuple.
        node: The node.
        reads: Names of all inputs of the node, those that the function does not get included.
    """

    function: Function
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    several: bool
    node: onnx.NodeProto
    reads: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """A graph bound for given input shapes.

    Attributes:
        steps: What is left to run, in order.
        values: What is known of every value, by name.
        moved: Names of values whose first axis is not the batch, where the plan knows.
    """

    steps: list[Step]
    values: dict[str, Value]
    moved: frozenset[str] = frozenset()

    @property
    def constants(self) -> dict[str, Tensor]:
        """Values that depend on no input's content, by name."""
        return {v.name: v.constant for v in self.values.values() if v.constant is not None}

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a value."""
        return self.values[name].shape


class Binder:
    """Binds one graph, for any set of input shapes.

    Args:
        graph: The graph, in topological order.
        opset: Version of the standard operator set.
        floating: Dtype in which half and single precision are computed.
        limits: Caps on what is computed.
    """

    def __init__(
        self, graph: onnx.GraphProto, opset: int, floating: torch.dtype, limits: Limits
    ) -> None:
        self.graph = graph
        self.opset = opset
        self.floating = floating
        self.limits = limits
        nodes = list(walk(graph.node))
        self.read = {name for node in nodes for name in node.input}
        self.read |= {output.name for output in graph.output}
        inner = (g for node in nodes for g in subgraphs(node))
        self.read |= {output.name for g in inner for output in g.output}

    def bind(
        self,
        weights: Mapping[str, Tensor],
        inputs: Mapping[str, Tensor],
        device: torch.device,
    ) -> Plan:
        """Returns the plan.

        Args:
            weights: Initializers by name.
            inputs: Tensors by input name: of the meta device for a plan that can be run with any
                content, or with content, which then is computed with.
            device: Where folded constants go.

        Raises:
            UnsupportedOperator: Nodes that no operator covers; lists all that can be reached.
            InvalidModel: A node that cannot be evaluated, such as shapes that do not go together.
            LimitExceeded: A value that is too large, or more nodes to run than the limit.
        """
        types = {t.name: t.data_type for t in self.graph.initializer}
        types |= {i.name: i.type.tensor_type.elem_type for i in self.graph.input}
        scope = {name: Value(name, w.to("meta"), w, types[name]) for name, w in weights.items()}
        scope |= {
            name: Value(name, x.to("meta"), None if x.is_meta else x, types[name])
            for name, x in inputs.items()
        }
        walker = Walker(self, device, dict(scope))
        walker.nodes(self.graph.node, scope, "")
        if walker.refused:
            later = walker.refused_for_good == 0
            raise unsupported(walker.refused, UnknownShape if later else UnsupportedOperator)
        missing = [output.name for output in self.graph.output if output.name not in scope]
        if missing:
            raise InvalidModel(f"the output '{missing[0]}' is made by no node that can be computed")
        return Plan(walker.steps, walker.values)


@dataclass
class Walker:
    """One walk over a graph: the steps and values so far.

    Attributes:
        binder: What is the same in every walk.
        device: Where folded constants go.
        values: Values by name; those of subgraphs under the name of the node that has them.
        steps: Steps in order.
        refused: Nodes that no operator covers, with reasons.
        refused_for_good: How many of them do not wait for the content of the inputs alone.
        count: Nodes bound, every iteration of a loop counted.
    """

    binder: Binder
    device: torch.device
    values: dict[str, Value]
    steps: list[Step] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    refused_for_good: int = 0
    count: int = 0

    def nodes(self, nodes: Iterable[onnx.NodeProto], scope: dict[str, Value], prefix: str) -> None:
        """Binds nodes in order, adding what they compute to the scope.

        Args:
            nodes: The nodes.
            scope: Values by the names that the nodes know them by.
            prefix: What to put before a name to make it unique in the whole walk.
        """
        for proto in nodes:
            if any(name and name not in scope for name in (*proto.input, *control.captures(proto))):
                continue  # depends on a node that was refused
            self.spend()
            try:
                results = self._node(proto, scope, prefix)
            except Refused as reason:
                self.refused.append(f"{describe(proto, self.binder.opset)}: {reason}")
                self.refused_for_good += not isinstance(reason, DependsOnInput)
                continue
            for name, value in results.items():
                scope[name] = self.values[value.name] = value

    def spend(self) -> None:
        """Counts one node, or one turn of a loop.

        Raises:
            LimitExceeded: There were too many.
        """
        self.count += 1
        if self.count > self.binder.limits.max_steps:
            raise LimitExceeded(
                f"the graph runs more than {self.binder.limits.max_steps:,} nodes, every turn of "
                "its loops counted; that is the most that is accepted"
            )

    def _node(
        self, proto: onnx.NodeProto, scope: dict[str, Value], prefix: str
    ) -> dict[str, Value]:
        inputs = [scope[name] if name else None for name in proto.input]
        if control.is_control(proto):
            return control.bind(self, proto, inputs, scope, prefix)
        names = [prefix + name if name in self.binder.read else "" for name in proto.output]
        if not any(names):
            return {}
        values = self.call(proto, inputs, names)
        return {v.name.removeprefix(prefix): v for v in values if v.name}

    def call(
        self, proto: onnx.NodeProto, inputs: Sequence[Value | None], names: Sequence[str]
    ) -> list[Value]:
        """Binds one node without subgraphs and returns its outputs under the given names.

        Raises:
            Refused: No operator covers it.
            InvalidModel: It cannot be evaluated.
            LimitExceeded: An output is too large.
        """
        entry, binder = find(proto.domain, proto.op_type), self.binder
        if entry is None:
            raise Refused("it is not in the registry")
        seen = inputs if entry.carries else [value and value.materialised() for value in inputs]
        node = Node(proto, binder.opset, seen, names, binder.floating, binder.limits)
        function = bind_function(entry, node)
        arguments = node.arguments()
        if not entry.carries and any(a and self.values[a.name].is_carried for a in arguments):
            function = on_integers(function, [a.meta.dtype if a else None for a in arguments])
        reads = tuple(v.name if v else "" for v in inputs)
        return self.add(proto, function, arguments, names, node.output_type, reads)

    def add(
        self,
        proto: onnx.NodeProto,
        function: Function,
        arguments: Sequence[Value | None],
        names: Sequence[str],
        element_type: Callable[[int, torch.dtype], int],
        reads: tuple[str, ...] | None = None,
    ) -> list[Value]:
        """Adds a call of a function to the steps, or folds it where its arguments are constant.

        Args:
            proto: The node that it is of.
            function: The function.
            arguments: Its arguments.
            names: Names of its results; an empty one is not read.
            element_type: Gives the element type of a result from its position and dtype.
            reads: Names of all inputs of the node; the arguments' if left out.
        """
        if all(a is None or a.constant is not None for a in arguments):
            return self._fold(proto, function, arguments, names, element_type)
        results = evaluate(proto, function, [a.meta if a else None for a in arguments])
        metas = [m.to("meta") for m in as_list(results)]
        check_count(names, metas)
        for name, meta in zip(names, metas, strict=False):
            self._check_size(name, meta)
        if proto.op_type in _SHAPE_ALONE:
            constants = as_list(evaluate(proto, function, [None]))
            folded = constants[0].to(self.device)
            return [Value(names[0], metas[0], folded, onnx.TensorProto.INT64)]
        passed = tuple(a.name if a else "" for a in arguments)
        several = isinstance(results, tuple)
        made = tuple(names[: len(metas)])
        self.steps.append(Step(function, passed, made, several, proto, reads or passed))
        types = [element_type(i, meta.dtype) for i, meta in enumerate(metas)]
        return [Value(n, m, None, t) for n, m, t in zip(names, metas, types, strict=False)]

    def _fold(
        self,
        proto: onnx.NodeProto,
        function: Function,
        arguments: Sequence[Value | None],
        names: Sequence[str],
        element_type: Callable[[int, torch.dtype], int],
    ) -> list[Value]:
        try:
            results = evaluate(proto, function, [a.meta if a else None for a in arguments])
        except (Refused, InvalidModel):
            pass  # its shape depends on the content, so its size is known afterwards only
        else:
            for name, meta in zip(names, as_list(results), strict=False):
                self._check_size(name, meta)
        constants = as_list(
            evaluate(proto, function, [a.constant if a else None for a in arguments])
        )
        check_count(names, constants)
        for name, constant in zip(names, constants, strict=False):
            self._check_size(name, constant)
        placed = [c.to(self.device) for c in constants]
        return [
            Value(name, c.detach().to("meta"), c, element_type(i, c.dtype))
            for i, (name, c) in enumerate(zip(names, placed, strict=False))
        ]

    def stored(self, graph: onnx.GraphProto, prefix: str) -> dict[str, Value]:
        """Returns the initializers of a subgraph by name."""
        found = {}
        for tensor in graph.initializer:
            constant = to_torch(tensor, self.binder.floating).to(self.device)
            name = prefix + tensor.name
            value = Value(name, constant.to("meta"), constant, tensor.data_type)
            found[tensor.name] = self.values[value.name] = value
        return found

    def _check_size(self, name: str, meta: Tensor) -> None:
        check_rank(name, meta.dim(), self.binder.limits)
        size = meta.numel() * meta.element_size()
        check_bytes(name, meta.shape, size, self.binder.limits)
