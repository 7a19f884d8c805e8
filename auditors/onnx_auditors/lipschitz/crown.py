"""Bounds of a network's values on balls, by backward linear relaxation (CROWN).

Zhang et al. 2018 (arXiv 1811.00866), on a graph as in Xu et al. 2020 (arXiv 2002.12920), section 3.

What the bounds hold for is every evaluation of the network in which each sum of n terms has an
error of at most gamma_n = n u / (1 - n u) times the sum of the terms' sizes, u = 2^-24, and each
activation the error that `Activation.evaluation_error` states: so for float32, in any order of
summation, and for exact arithmetic. The relaxation is made for the values as they are computed: a
step that replaces W x + b costs gamma_n |a| (|W| |x| + |b|) in a linear form a, where |x| is
bounded by the intervals found before. The float64 rounding of the bounds themselves is added in
the same way, with the float64 unit and the number of all terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from onnx_auditors.lipschitz.activations import UNIT32, UNIT64, Activation, Lines
from onnx_auditors.lipschitz.affine import Affine
from onnx_auditors.lipschitz.ball import Ball
from onnx_auditors.lipschitz.graph import Graph, Node
from onnx_auditors.lipschitz.joint import MaxPool
from onnx_auditors.lipschitz.refining import Ends, Refinement, Wider
from onnx_auditors.lipschitz.walking import walk

_INFLATE = 1 + 1e-9
"""Over the float64 rounding of sums of non-negative numbers."""
_HALF = 0.5


def gamma(terms: int, unit: float) -> float:
    """Returns n u / (1 - n u), rounded up (Higham 2002, lemma 3.1); inf where n u >= 1/2."""
    share = terms * unit
    return share / (1 - share) * _INFLATE if share < _HALF else float("inf")


class Bounds:
    """Intervals of all values on a batch of balls, and the bounds of linear forms from them.

    Attributes:
        graph: The graph.
        ball: The balls.
        low: Least value by node, float64 [n, *shape].
        high: Largest, likewise.
        size: Bound of the sum of absolute values of the terms that a value is the sum of, by node.
        rates: How low rises and high falls where the balls shrink, float64 [n, size] each, by node
            whose intervals come from backward relaxation; see `Ball.least`.
    """

    def __init__(self, graph: Graph, balls: Ball, wider: Wider | None = None) -> None:
        """Bounds all values.

        Args:
            graph: The graph.
            balls: The balls.
            wider: Bounds on balls around the same probes, some of which hold these.
        """
        self.graph = graph
        self.ball = balls
        self.low: list[Tensor] = []
        self.high: list[Tensor] = []
        self.size: list[Tensor] = []
        self._lines: dict[int, Lines] = {}
        self._slack: dict[int, Tensor] = {}
        self._gap: dict[int, Tensor] = {}
        self.rates: dict[int, tuple[Tensor, Tensor]] = {}
        self._errors: dict[int, Tensor] = {}
        n = len(balls.center)
        for node in graph.nodes[:-1]:
            if node.rule is None:
                self._put(
                    *(t.reshape(n, *node.shape) for t in (balls.low, balls.high, balls.reach))
                )
            elif isinstance(node.rule, Affine):
                self._affine(node, node.rule)
                if node.index > 1:
                    self._narrow(node, wider)
            else:
                self._bent(node)
        last = graph.nodes[-1]
        assert isinstance(last.rule, Affine)  # noqa: S101 - the graph ends so
        self._affine(last, last.rule)

    @cached_property
    def values(self) -> list[Tensor]:
        """All values at the probes, float64 [n, *shape]."""
        return self.graph.evaluate(self.ball.center.reshape(-1, *self.graph.nodes[0].shape))

    def _narrow(self, node: Node, wider: Wider | None) -> None:
        shape = self.low[node.index].shape
        ends = Ends(self.low[node.index], self.high[node.index])
        if wider is not None:
            wider.narrow(node.index, ends, self.ball)
        Refinement(self, node, ends).run()
        self.low[node.index], self.high[node.index] = (
            ends.low.reshape(shape),
            ends.high.reshape(shape),
        )
        self.rates[node.index] = ends.rise, ends.fall

    def _put(self, low: Tensor, high: Tensor, size: Tensor) -> None:
        self.low.append(low)
        self.high.append(high)
        self.size.append(size)

    def share(self, node: Node) -> float:
        """Returns the relative error of evaluating an affine node, and of bounding it."""
        rule = node.rule
        assert isinstance(rule, Affine)  # noqa: S101
        if not rule.terms:
            return 0.0
        nodes = [node, *(self.graph.nodes[p] for p in node.parents)]
        everything = sum(n.size for n in nodes) + 4 * rule.terms + 256
        return gamma(rule.terms + 1, UNIT32) + 2 * gamma(everything, UNIT64)

    def _affine(self, node: Node, rule: Affine) -> None:
        assert rule.absolute is not None  # noqa: S101 - the caller has looked
        given = node.parents
        if not rule.terms:
            values = self.low, self.high, self.size
            self._put(*(rule.linear(value[given[0]]) for value in values))
            return
        size = (rule.absolute(*(self.size[p] for p in given)) + rule.magnitude) * _INFLATE
        middle = [self.low[p] / 2 + self.high[p] / 2 for p in given]
        width = [(self.high[p] - self.low[p]) * (_HALF * _INFLATE) for p in given]
        center = rule.linear(*middle) + rule.bias
        reach = rule.absolute(*width) * _INFLATE + self.share(node) * size
        self._put(center - reach, center + reach, size)

    def _bent(self, node: Node) -> None:
        parent = node.parents[0]
        below, above = self.low[parent], self.high[parent]
        if isinstance(node.rule, Activation):
            low, high = node.rule.range(below, above)
            error = node.rule.evaluation_error(below, above)
            self._lines[node.index] = node.rule.lines(below, above)
            reach = torch.maximum(below.abs(), above.abs())
            lines = self._lines[node.index]
            steep = torch.maximum(lines.lower_slope.abs(), lines.upper_slope.abs())
            parts = steep * reach + lines.lower_offset.abs() + lines.upper_offset.abs()
            slack = error + 2 * gamma(node.size + 64, UNIT64) * parts
            self._slack[node.index] = slack
            self._gap[node.index] = lines.gap(below, above) + 2 * slack
            low, high = low - error, high + error
        elif isinstance(node.rule, MaxPool):
            low, high = node.rule.function(below), node.rule.function(above)
        else:
            raise TypeError(f"{node.op} cannot be relaxed")
        self._put(low, high, torch.maximum(low.abs(), high.abs()))

    def error(self, index: int) -> Tensor:
        """Returns the error of evaluating a value that is affine in the probe, [n, *shape]."""
        if index not in self._errors:
            node = self.graph.nodes[index]
            error = torch.zeros_like(self.low[index])
            if isinstance(node.rule, Affine):
                assert node.rule.absolute is not None  # noqa: S101 - the caller has looked
                before = node.rule.absolute(*(self.error(p) for p in node.parents))
                error = before * _INFLATE + self.share(node) * self.size[index]
            self._errors[index] = error
        return self._errors[index]

    def least(self, start: int, rows: Tensor) -> Tensor:
        """Returns lower bounds of linear forms of a value.

        Args:
            start: Index of the value's node.
            rows: Float64 [n, k, *shape].

        Returns:
            Float64 [n, k].
        """
        found = self.pull(start, rows)
        return found.total if found.forms is None else found.total + self.ball.least(found.forms)[0]

    def pull_entries(self, node: Node, chosen: Tensor, signs: Tensor) -> Pulled:
        """Takes entries [n, k] of an affine node times signs back to the probe."""
        weights = self.graph.weights(node.index)
        if weights is None:
            entries = signs.new_zeros(*chosen.shape, node.size)
            entries.scatter_(2, chosen[..., None], signs[..., None])
            return self.pull(node.index, entries.reshape(*chosen.shape, *node.shape))
        assert isinstance(node.rule, Affine)  # noqa: S101 - it has weights
        forms = weights[chosen] * signs.reshape(*signs.shape, *[1] * (weights.dim() - 1))
        found = self.pull(node.parents[0], forms)
        error = self.share(node) * self.size[node.index].flatten(1).gather(1, chosen)
        total = node.rule.bias.flatten()[chosen] * signs + found.total - error
        return Pulled(total, found.spread + 2 * error, found.forms)

    def pull(self, start: int, rows: Tensor) -> Pulled:
        """Takes linear forms of a value back to the probe.

        Args:
            start: Index of the value's node.
            rows: Float64 [n, k, *shape].
        """
        total = rows.new_zeros(rows.shape[:2])
        spread = torch.zeros_like(total)

        def visit(node: Node, form: Tensor) -> None:
            rule = node.rule
            assert isinstance(rule, Affine)  # noqa: S101
            nonlocal total, spread
            if rule.terms:
                error = self.share(node) * sum_of(form.abs(), self.size[node.index])
                total = total + form.flatten(2) @ rule.bias.flatten() - error
                spread = spread + 2 * error

        def through(node: Node, form: Tensor) -> tuple[Tensor, ...]:
            nonlocal total, spread
            if isinstance(node.rule, Activation):
                # up * lower line + down * upper line, of up = (form + |form|) / 2 and down.
                lines, size = self._lines[node.index], form.abs()
                middle = lines.lower_offset + lines.upper_offset
                apart = lines.lower_offset - lines.upper_offset - 2 * self._slack[node.index]
                both = torch.stack([apart, self._gap[node.index]], -1).flatten(1, -2)
                part, gap = (size.flatten(2) @ both).unbind(-1)
                total = total + (sum_of(form, middle) + part) / 2
                spread = spread + gap
                middle = (lines.lower_slope + lines.upper_slope) / 2
                apart = (lines.lower_slope - lines.upper_slope) / 2
                return ((form * middle[:, None]).addcmul_(size, apart[:, None]),)
            if isinstance(node.rule, MaxPool):
                up, down = form.clamp(min=0), form.clamp(max=0)
                part, constant = self._pooled(node, node.rule, up, down)
                total, spread = total + constant, torch.full_like(spread, torch.inf)
                return (part,)
            raise TypeError(f"{node.op} cannot be relaxed")

        def ends(node: Node, form: Tensor) -> Tensor | None:
            nonlocal total, spread
            last = self.straight(node, form)
            if last is not None:
                error = sum_of(form.abs(), self.error(node.index))
                total = total + form.flatten(2) @ self.graph.offset(node.index).flatten() - error
                spread = spread + 2 * error
            return last

        forms = walk(self.graph, start, rows, through, visit=visit, ends=ends)
        return Pulled(total, spread * _INFLATE, forms)

    def straight(self, node: Node, form: Tensor) -> Tensor | None:
        """Takes forms of a value that is affine in the probe to it, where that is one product."""
        if node.rule is None or not self.graph.straight[node.index]:
            return None
        rows = self.graph.rows(node.index)
        if rows is None or self.graph.columns(node.index) is not None:
            return None
        return form.flatten(2) @ rows

    def slack(self, node: Node) -> Tensor:
        """Returns the error of one evaluation of an activation, and of bounding it, [n, *shape]."""
        return self._slack[node.index]

    def _choice(self, node: Node, rule: MaxPool) -> tuple[Tensor, Tensor]:
        """Returns each window's entry with the largest lower end, and whether no other exceeds it.

        Int64 and bool [n, size].
        """
        parent = node.parents[0]
        below, above = self.low[parent].flatten(1), self.high[parent].flatten(1)
        best = below[:, rule.windows].argmax(2)
        place = rule.windows.expand(len(below), -1, -1).gather(2, best[..., None])[..., 0]
        others = torch.where(
            rule.windows[None] == place[..., None], -torch.inf, above[:, rule.windows]
        )
        return place, others.amax(2) <= below.gather(1, place)

    def selected(self, node: Node, form: Tensor) -> tuple[Tensor, Tensor]:
        """Takes forms through those windows of max pooling whose largest entry is sure.

        Args:
            node: The max pooling.
            form: Float64 [n, k, *shape].

        Returns:
            Forms of the parent, and which windows are not sure, bool [n, size].
        """
        assert isinstance(node.rule, MaxPool)  # noqa: S101 - the caller has looked
        place, sure = self._choice(node, node.rule)
        kept = torch.where(sure[:, None], form.flatten(2), 0)
        return self._scattered(node, place, kept), ~sure

    def _scattered(self, node: Node, place: Tensor, kept: Tensor) -> Tensor:
        parent = self.graph.nodes[node.parents[0]]
        part = kept.new_zeros(*kept.shape[:2], parent.size)
        part.scatter_add_(2, place[:, None].expand_as(kept), kept)
        return part.reshape(*kept.shape[:2], *parent.shape)

    def _pooled(self, node: Node, rule: MaxPool, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """Takes forms through max pooling: from below by the entry with the largest lower end.

        From above by the same entry where no other can exceed it, else by a constant.
        """
        place, sure = self._choice(node, rule)
        top = self.high[node.parents[0]].flatten(1)[:, rule.windows].amax(2)
        up, down = up.flatten(2), down.flatten(2)
        kept = up + torch.where(sure[:, None], down, 0)
        constant = sum_of(torch.where(sure[:, None], 0, down), top)
        return self._scattered(node, place, kept), constant


@dataclass(frozen=True)
class Pulled:
    """Linear forms of the probe that bound those of a value: total + forms x is never above them.

    Attributes:
        total: Constants, float64 [n, k].
        spread: By how much the forms of the value exceed that at most, likewise; infinite where
            nothing is known.
        forms: Float64 [n, k, d]; None where they do not depend on the probe.
    """

    total: Tensor
    spread: Tensor
    forms: Tensor | None


def sum_of(form: Tensor, values: Tensor) -> Tensor:
    """Sums [n, k, *shape] times [n or 1, *shape] over the shape."""
    return (form.flatten(2) @ values.flatten(1)[..., None])[..., 0]
