"""The linear map between two values of a graph, with a fixed slope for each activation."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from onnx_auditors.lipschitz.affine import Affine
from onnx_auditors.lipschitz.crown import gamma
from onnx_auditors.lipschitz.graph import Graph
from onnx_auditors.lipschitz.operator import UNIT, LinearOperator

_UNKNOWN_ROUNDING = 2.0**-40
"""Relative error of a map whose absolute values are not known."""


def transfer(
    graph: Graph, source: int, target: int, slopes: Mapping[int, float] | None = None
) -> LinearOperator | None:
    """Returns the map from changes of one value to changes of another.

    Args:
        graph: The graph.
        source: Node that it starts from.
        target: Node where it ends.
        slopes: Slope of each activation by node; what is missing, or is 0, lets nothing pass.

    Returns:
        The map, with shapes as in the graph; None where no path leads there.
    """
    nodes = _between(graph, source, target, slopes or {})
    return (
        None if nodes is None else _Transfer(graph, source, target, nodes, slopes or {}).operator()
    )


def _between(
    graph: Graph, source: int, target: int, slopes: Mapping[int, float]
) -> list[int] | None:
    reached = {source}
    for node in graph.nodes[source + 1 : target + 1]:
        passes = isinstance(node.rule, Affine) or slopes.get(node.index, 0.0) != 0
        if passes and any(p in reached for p in node.parents):
            reached.add(node.index)
    needed = {target}
    for k in range(target, source, -1):
        if k in needed:
            needed.update(graph.nodes[k].parents)
    both = sorted((reached & needed) - {source})
    return both if target in reached and (both or source == target) else None


class _Transfer:
    """Applies the map and its relatives node by node."""

    def __init__(
        self, graph: Graph, source: int, target: int, nodes: list[int],
        slopes: Mapping[int, float],
    ) -> None:  # fmt: skip
        self.graph, self.source, self.target = graph, source, target
        self.nodes, self.slopes = nodes, slopes

    def forward(self, x: Tensor, *, absolute: bool = False) -> Tensor:
        values = {self.source: x}
        for k in self.nodes:
            node = self.graph.nodes[k]
            if isinstance(node.rule, Affine):
                apply = node.rule.absolute if absolute else node.rule.linear
                assert apply is not None  # noqa: S101 - the caller has looked
                given = [
                    values[p] if p in values else x.new_zeros(len(x), *self.graph.nodes[p].shape)
                    for p in node.parents
                ]
                values[k] = apply(*given)
            else:
                slope = abs(self.slopes[k]) if absolute else self.slopes[k]
                values[k] = values[node.parents[0]] * slope
        return values[self.target]

    def adjoint(self, y: Tensor, *, absolute: bool = False) -> Tensor:
        forms = {self.target: y}
        inside = {self.source, *self.nodes}
        for k in reversed(self.nodes):
            node, form = self.graph.nodes[k], forms.pop(k)
            if isinstance(node.rule, Affine):
                apply = node.rule.absolute_adjoint if absolute else node.rule.adjoint
                assert apply is not None  # noqa: S101 - the caller has looked
                parts = apply(form)
            else:
                parts = (form * (abs(self.slopes[k]) if absolute else self.slopes[k]),)
            for parent, part in zip(node.parents, parts, strict=True):
                if parent in inside:
                    forms[parent] = forms[parent] + part if parent in forms else part
        return forms[self.source]

    def operator(self) -> LinearOperator:
        """Returns the map with a bound on its rounding.

        Each path through the graph rounds at most as often as all nodes together; the error is at
        most gamma times || |A| ||_2 <= sqrt(|| |A| ||_1 || |A| ||_inf), forward and backward.
        """
        ins, outs = self.graph.nodes[self.source], self.graph.nodes[self.target]
        known, terms = True, 64
        for k in self.nodes:
            node = self.graph.nodes[k]
            terms += node.size + sum(self.graph.nodes[p].size for p in node.parents) + 8
            known &= not isinstance(node.rule, Affine) or node.rule.absolute is not None
        error = 0.0
        if known:
            ones = torch.ones(1, *ins.shape, dtype=torch.float64, device=self.graph.device)
            rows = float(self.forward(ones, absolute=True).max())
            columns = float(self.adjoint(ones.new_ones(1, *outs.shape), absolute=True).max())
            error = 2 * gamma(terms, UNIT) * math.sqrt(rows) * math.sqrt(columns)
        return LinearOperator(
            ins.shape,
            outs.shape,
            self.forward,
            self.adjoint,
            error=error,
            rounding=0.0 if known else _UNKNOWN_ROUNDING,
            absolute=(
                lambda x: self.forward(x, absolute=True),
                lambda y: self.adjoint(y, absolute=True),
            ) if known else None,
            device=self.graph.device,
        )  # fmt: skip
