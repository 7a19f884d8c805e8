"""The graph of a network, made node by node from its operators."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from onnx_auditors.lipschitz.activations import Activation
from onnx_auditors.lipschitz.affine import Affine, affine, of_step
from onnx_auditors.lipschitz.elementwise import activation
from onnx_auditors.lipschitz.gates import Folded, folded
from onnx_auditors.lipschitz.graph import INPUT_MAP, LOGITS, Graph, Node, ToInput
from onnx_auditors.lipschitz.joint import MaxPool, Opaque, joint, product
from onnx_auditors.network import Network, load
from onnx_auditors.network.layers import Layer
from onnx_auditors.network.lowering import needed
from onnx_auditors.network.outputs import Column
from onnx_auditors.network.plan import Plan, Step


def graph_of(
    network: Network, probe_shape: Sequence[int] | None = None, to_input: ToInput | None = None
) -> Graph:
    """Returns the graph of a network.

    Args:
        network: The network.
        probe_shape: Shape of one probe; the model's sample shape if left out.
        to_input: The affine map from probes [n, *probe shape] to the model's input, with one
            coefficient per entry, and that not negative, such as an `InputMap`; left out, probes
            are the model's input.

    Raises:
        InvalidModel: The model leaves its input's shape open.
        UnsupportedOperator: Its shapes depend on the content of its input.
        ValueError: The map from probe space has negative coefficients.
    """
    first = next(iter(network.layers))
    sample = _input_shape(network, first)
    wide = load(
        network.original, network.device, network.limits, floating=torch.float64,
        sample_shape=sample[1:], output=network.output or None,
    )  # fmt: skip
    batch = wide.batch or 1
    plan = wide.plan(torch.zeros(batch, *sample[1:], dtype=torch.float64, device=network.device))
    builder = _Builder(wide, plan, network.layers)
    builder.start(tuple(probe_shape or sample[1:]), sample, to_input)
    if batch != 1:
        problem = f"the model's batch is fixed to {batch}; bounds need a batch of 1"
        builder.problems.append(problem)
        builder.refused.append(problem)
    steps = needed(plan, [network.input.name], [network.logits])
    gates, idle = folded(plan, steps, network.logits)
    for i, step in enumerate(steps):
        if step.outputs[0] in gates and i not in idle:
            builder.add_gate(step, gates[step.outputs[0]])
        elif i not in idle:
            builder.add(step)
    builder.finish(network)
    return builder.graph(network)


def _input_shape(network: Network, first: Layer) -> tuple[int, ...]:
    name = network.input.name
    for layer in (first, *network.layers):
        if name in layer.inputs:
            return layer.input_shapes[layer.inputs.index(name)]
    return tuple(network.input.shape)


class _Builder:
    """Makes the graph node by node."""

    def __init__(self, network: Network, plan: Plan, layers: Sequence[Layer]) -> None:
        self.network = network
        self.plan = plan
        self.nodes: list[Node] = []
        self.problems: list[str] = []
        self.refused: list[str] = []
        self.layers: dict[int, Layer] = {}
        self._places: dict[str, int] = {}
        self._by_output = {name: layer for layer in layers for name in layer.outputs}

    def put(
        self, name: str, op: str, parents: Sequence[int], shape: tuple[int, ...],
        rule: Affine | Activation | MaxPool | Opaque | None, label: str = "",
    ) -> None:  # fmt: skip
        """Appends a node."""
        node = Node(len(self.nodes), name, op, label or name, tuple(parents), shape, rule)
        self.nodes.append(node)
        self._places[name] = node.index

    def start(
        self, probe: tuple[int, ...], sample: tuple[int, ...], to_input: ToInput | None
    ) -> None:
        """Puts the probe and the map to the model's input."""
        name, shape = self.network.input.name, (1, *sample[1:])
        self.put("probe", "Input", (), probe, None)
        take = to_input or (lambda x: x.reshape(len(x), *sample[1:]))
        zero = torch.zeros(1, *probe, dtype=torch.float64, device=self.network.device)
        bias = take(zero).detach().to(torch.float64)

        def linear(x: Tensor) -> Tensor:
            return take(x[None]) - bias

        (column_sums,) = torch.func.vjp(linear, zero[0])[1](torch.ones_like(bias))
        if bool((column_sums < 0).any()):
            raise ValueError("the map from probe space to the model's input has negative entries")
        magnitude = 2 * bias.abs()  # its rounding counts twice: it is added, then subtracted
        rule = affine(linear, [probe], absolute=linear, bias=bias, magnitude=magnitude, terms=6)
        self.put(INPUT_MAP, "InputMap", (0,), shape, rule)
        self._places[name] = 1

    def add(self, step: Step) -> None:
        """Puts the results of a step."""
        read = [n for n in step.inputs if n and self.plan.values[n].constant is None]
        parents = [self._places[n] for n in read]
        for i, name in enumerate(step.outputs):
            if not name:
                continue
            rule = self._rule(step, i)
            shape = self.plan.shape(name)
            if isinstance(rule, Opaque) and all(map(math.isinf, rule.constants.values())):
                problem = f"{name} ({step.node.op_type}): {rule.reason}"
                self.problems.append(problem)
                if rule.moving is None:
                    self.refused.append(problem)
            self.put(name, step.node.op_type, parents, shape, rule, step.node.name)

    def add_gate(self, step: Step, gate: Folded) -> None:
        """Puts a product that is a function of one entry of another value."""
        name = step.outputs[0]
        parents = [self._places[gate.root]]
        self.put(name, gate.rule.name, parents, self.plan.shape(name), gate.rule, step.node.name)

    def _rule(self, step: Step, output: int) -> Affine | Activation | MaxPool | Opaque:
        bent = activation(step, self.plan)
        if bent is not None:
            return bent
        layer = self._by_output.get(step.outputs[output])
        if layer is not None:
            self.layers[len(self.nodes)] = layer
            if not layer.linear:
                return joint(step, self.plan, layer)
        straight = of_step(step, self.plan, output, self.network.device)
        if not isinstance(straight, str):
            return straight
        return product(step, self.plan, straight)

    def finish(self, network: Network) -> None:
        """Puts the logits, one row of scores."""
        last = self._places[network.logits]
        count = self.nodes[last].size
        squashed_column = network.column is Column.PROBABILITY and network.logits == network.output
        boundary = Column.PROBABILITY.value if squashed_column else 0.0

        def linear(x: Tensor) -> Tensor:
            flat = x.reshape(-1)
            return flat if network.column is None else torch.cat([torch.zeros_like(flat), flat])

        classes = count if network.column is None else 2
        bias = torch.zeros(classes, dtype=torch.float64, device=network.device)
        if network.column is not None:
            bias[1] = -boundary
        rule = affine(
            linear, [self.nodes[last].shape], absolute=linear, bias=bias, magnitude=bias.abs(),
            terms=1,
        )  # fmt: skip
        self.put(LOGITS, "Logits", (last,), (classes,), rule)

    def graph(self, network: Network) -> Graph:
        """Returns the graph."""
        squashed = network.logits != network.output or network.column is Column.PROBABILITY
        return Graph(
            self.nodes, self.problems, self.refused, self.layers, squashed, network.half_precision
        )
