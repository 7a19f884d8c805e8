"""Bounds in balls layer by layer: for every network whose layers have bounds there.

The product over the graph, with constants of the ball in place of global ones: of activations the
slopes on the intervals that their inputs can be in, and what `moving` knows of products, attention
and normalisation. If v changes by at most m per unit of change of the probe, it stays within m r of
its value at the probe in a ball of radius r, which bounds the constants of what reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.lipschitz.activations import Activation, largest_size
from onnx_auditors.lipschitz.bound import Norm
from onnx_auditors.lipschitz.composition import pair_bounds
from onnx_auditors.lipschitz.graph import Graph
from onnx_auditors.lipschitz.joint import Opaque
from onnx_auditors.lipschitz.layer_bounds import nonlinear_constant
from onnx_auditors.lipschitz.moving import Local
from onnx_auditors.lipschitz.steps import Step, steps_of

_UP = 1 + 1e-9
_HALVINGS = 24
"""Steps of the search for a radius, which starts from that of the smallest ball."""


class Layerwise:
    """Bounds around some probes in one norm, in exact arithmetic."""

    def __init__(
        self, graph: Graph, layers: Sequence[v1.LipschitzLayer], norm: Norm, probes: Tensor
    ) -> None:
        """Evaluates the network at the probes.

        Args:
            graph: The graph; nothing of it is `refused`.
            layers: Messages of `layer_bounds`, one per layer of `pieces(graph)`, in its order.
            norm: "l2" or "linf".
            probes: Float64 [n, *probe shape].
        """
        self.graph, self.norm = graph, norm
        self.values = graph.evaluate(probes)
        self._steps = steps_of(graph, layers, norm)
        self._local: dict[int, Local] = {}
        for node in graph.bent:
            if isinstance(node.rule, Opaque) and node.rule.moving is not None:
                self._local[node.index] = node.rule.moving(
                    [self.values[p] for p in node.parents], norm
                )

    def changes(self, radius: Tensor) -> Tensor:
        """Returns the change of what the last layer reads per unit of change of the probe.

        Of what it makes, where it is not linear.

        Args:
            radius: Radii of the balls, float64 [n].
        """
        found = {0: torch.ones_like(radius)}
        for step in self._steps:
            found[step.piece.index] = self._through(step, found, radius)
        last = self._steps[-1].piece
        return found[last.sources[0] if last.kind == "linear" else last.index]

    def _through(self, step: Step, found: dict[int, Tensor], radius: Tensor) -> Tensor:
        given = [found[source] for source in step.piece.sources]
        node = self.graph.nodes[step.piece.index]
        if step.branches:
            parts = [_product(b, g) for b, g in zip(step.branches, given, strict=True)]
            return self._together(parts, apart=step.apart)
        if step.piece.kind == "linear":
            return _product(step.bound.upper, given[0])
        if isinstance(node.rule, Activation):
            value = self.values[node.parents[0]].flatten(1)
            slack = (given[0] * radius)[:, None] * _UP + 1e-9 * value.abs()
            value_shape = (len(value), *node.shape)
            low, high = (value - slack).reshape(value_shape), (value + slack).reshape(value_shape)
            steep = largest_size(node.rule.slopes(low, high)).flatten(1).amax(1)
            steep = torch.where(steep.isfinite(), steep, torch.inf)
            return _product(steep.clamp(max=max(map(abs, node.rule.bounds))), given[0])
        whole = self._together(given, apart=True)
        everywhere = _product(nonlinear_constant(self.graph, node.index, self.norm), whole)
        local = self._local.get(node.index)
        if local is None:
            return everywhere
        near = local([(g * radius * _UP, g) for g in given])
        return torch.minimum(torch.where(near.isnan(), torch.inf, near), everywhere)

    def _together(self, parts: Sequence[Tensor], *, apart: bool) -> Tensor:
        stacked = torch.stack(list(parts))
        if not apart:
            return stacked.sum(0) * _UP
        return stacked.amax(0) if self.norm == "linf" else stacked.norm(dim=0) * _UP

    @cached_property
    def _pairs(self) -> Tensor:
        """Amplification of differences of logits per unit of what `changes` returns."""
        last = self._steps[-1].piece
        source = last.sources[0] if last.kind == "linear" else last.index
        change = {source: 1.0, last.index: 1.0}
        if last.kind == "linear":
            change[last.index] = self._steps[-1].bound.upper
        return pair_bounds(self.graph, last, change, self.norm)

    def amplifications(self, labels: Tensor, radius: Tensor) -> Tensor:
        """Returns bounds of the amplification of margins in balls, float64 [n, classes].

        Args:
            labels: Int64 [n].
            radius: Float64 [n].
        """
        return _product(self._pairs[labels], self.changes(radius)[:, None])

    def radii(self, margins: Tensor, labels: Tensor) -> Tensor:
        """Returns radii below which no margin ends, float64 [n].

        Args:
            margins: Float64 [n, classes], of the label to each class.
            labels: Int64 [n].
        """
        others = torch.ones_like(margins, dtype=torch.bool)
        others.scatter_(1, labels[:, None], False)

        def holds(radius: Tensor) -> Tensor:
            fall = _product(self.amplifications(labels, radius), radius[:, None])
            return ((margins > fall) | ~others).all(1)

        low = torch.zeros_like(margins[:, 0])
        steep = self.amplifications(labels, low).clamp(min=1e-300)
        high = torch.where(others, margins / steep, torch.inf).amin(1).clamp(0, 1e6)
        for _ in range(_HALVINGS):
            middle = low / 2 + high / 2
            sure = holds(middle)
            low, high = torch.where(sure, middle, low), torch.where(sure, high, middle)
        return low


def _product(a: Tensor | float, b: Tensor) -> Tensor:
    """Returns a product of numbers >= 0, rounded up; 0 times infinity is 0."""
    a = torch.as_tensor(a, dtype=b.dtype, device=b.device)
    return torch.where((a == 0) | (b == 0), 0.0, a * b) * _UP
