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

import torch
from torch import Tensor

from onnx_auditors.lipschitz.activations import UNIT32, UNIT64, Activation, Lines
from onnx_auditors.lipschitz.affine import Affine
from onnx_auditors.lipschitz.ball import Ball
from onnx_auditors.lipschitz.graph import Graph, Node, walk
from onnx_auditors.lipschitz.joint import MaxPool

_INFLATE = 1 + 1e-9
"""Over the float64 rounding of sums of non-negative numbers."""
_ENTRIES = 1 << 20
"""Entries of one block of linear forms at most: 8 MiB in float64, for the processor's cache."""
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
            wider: Bounds on balls that hold these; the values inside then get theirs, shrunk, and
                no backward relaxation of their own.
        """
        self.graph = graph
        self.ball = balls
        self.low: list[Tensor] = []
        self.high: list[Tensor] = []
        self.size: list[Tensor] = []
        self._lines: dict[int, Lines] = {}
        self._slack: dict[int, Tensor] = {}
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
                if wider is not None:
                    self._inherit(node, wider)
                elif node.index > 1:
                    self._refine(node)
            else:
                self._bent(node)
        last = graph.nodes[-1]
        assert isinstance(last.rule, Affine)  # noqa: S101 - the graph ends so
        self._affine(last, last.rule)

    def inside(self, balls: Ball, rows: Tensor) -> Bounds:
        """Returns bounds on smaller balls around the same probes, without backward relaxation.

        What a relaxation on the larger ball gave as a linear form of the probe holds on the smaller
        one, where its least value is larger.

        Args:
            balls: The smaller balls.
            rows: Which of the probes they are around, int64.
        """
        return Bounds(self.graph, balls, Wider(self, rows))

    def _inherit(self, node: Node, wider: Wider) -> None:
        bounds, rows = wider.bounds, wider.rows
        low, high = bounds.low[node.index][rows], bounds.high[node.index][rows]
        if node.index in bounds.rates:
            gain = bounds.ball.shrunk(self.ball.radius, rows)[:, None]
            rise, fall = (rate[rows] * gain for rate in bounds.rates[node.index])
            low, high = low + rise.reshape(low.shape), high - fall.reshape(high.shape)
        self.low[-1] = torch.maximum(self.low[-1], low)
        self.high[-1] = torch.minimum(self.high[-1], high)

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
            self._slack[node.index] = error + 2 * gamma(node.size + 64, UNIT64) * parts
            low, high = low - error, high + error
        elif isinstance(node.rule, MaxPool):
            low, high = node.rule.function(below), node.rule.function(above)
        else:
            raise TypeError(f"{node.op} cannot be relaxed")
        self._put(low, high, torch.maximum(low.abs(), high.abs()))

    def _refine(self, node: Node) -> None:
        """Bounds those entries by backward relaxation whose intervals matter."""
        n = len(self.ball.center)
        wanted = torch.zeros(n, node.size, dtype=torch.bool, device=self.low[0].device)
        low, high = self.low[node.index].flatten(1), self.high[node.index].flatten(1)
        for user in self.graph.users[node.index]:
            rule = self.graph.nodes[user].rule
            if isinstance(rule, Activation) and rule.breaks is not None:
                for point in rule.breaks:
                    wanted |= (low < point) & (high > point)
            elif not isinstance(rule, Affine):
                wanted |= True
        count = int(wanted.sum(1).max())
        if count == 0:
            return
        # The entries that matter come first in each row; what fills up the others does no harm.
        chosen = wanted.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
        rise, fall = torch.zeros_like(low), torch.zeros_like(high)
        for part in torch.split(chosen, self._block(node.index, n), 1):
            found, rate = self._entries(node, part)
            count = part.shape[1]
            least, most = found[:, :count], -found[:, count:]
            before = low.gather(1, part), high.gather(1, part)
            rise.scatter_(1, part, torch.where(least > before[0], rate[:, :count], 0))
            fall.scatter_(1, part, torch.where(most < before[1], rate[:, count:], 0))
            low.scatter_(1, part, torch.maximum(before[0], least))
            high.scatter_(1, part, torch.minimum(before[1], most))
        self.rates[node.index] = rise, fall
        self.low[node.index] = low.reshape(n, *node.shape)
        self.high[node.index] = high.reshape(n, *node.shape)

    def _entries(self, node: Node, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Returns least values of entries [n, k] of a value, and of their negatives, [n, 2 k]."""
        n, count = chosen.shape
        columns, rows = self.graph.columns(node.index), self.graph.rows(node.index)
        if rows is not None:
            forms = rows[chosen]
            forms = torch.cat([forms, -forms], 1)
            places = None if columns is None else columns[chosen].repeat(1, 2, 1)
            found, rate = self.ball.least(forms, places)
            bias = self.graph.offset(node.index).flatten()[chosen]
            error = self._error(node.index).flatten(1).gather(1, chosen)
            return found + torch.cat([bias - error, -bias - error], 1), rate
        entries = chosen.new_zeros(n, 2 * count, node.size, dtype=torch.float64)
        entries[:, :count].scatter_(2, chosen[..., None], 1.0)
        entries[:, count:].scatter_(2, chosen[..., None], -1.0)
        total, last = self._pull(node.index, entries.reshape(n, -1, *node.shape))
        if last is None:
            return total, torch.zeros_like(total)
        if columns is None:
            found, rate = self.ball.least(last)
        else:
            places = columns[chosen].repeat(1, 2, 1)
            found, rate = self.ball.least(last.gather(2, places), places)
        return total + found, rate

    def _error(self, index: int) -> Tensor:
        """Returns the error of evaluating a value that is affine in the probe, [n, *shape]."""
        if index not in self._errors:
            node = self.graph.nodes[index]
            error = torch.zeros_like(self.low[index])
            if isinstance(node.rule, Affine):
                assert node.rule.absolute is not None  # noqa: S101 - the caller has looked
                before = node.rule.absolute(*(self._error(p) for p in node.parents))
                error = before * _INFLATE + self.share(node) * self.size[index]
            self._errors[index] = error
        return self._errors[index]

    def _block(self, start: int, n: int) -> int:
        """Returns how many entries are bounded at once."""
        largest = max(node.size for node in self.graph.nodes[: start + 1])
        return max(1, _ENTRIES // (2 * n * largest))

    def least(self, start: int, rows: Tensor) -> Tensor:
        """Returns lower bounds of linear forms of a value.

        Args:
            start: Index of the value's node.
            rows: Float64 [n, k, *shape].

        Returns:
            Float64 [n, k].
        """
        total, forms = self._pull(start, rows)
        return total if forms is None else total + self.ball.least(forms)[0]

    def _pull(self, start: int, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns constants and forms of the probe whose sum bounds forms of a value from below."""
        total = rows.new_zeros(rows.shape[:2])

        def visit(node: Node, form: Tensor) -> None:
            rule = node.rule
            assert isinstance(rule, Affine)  # noqa: S101
            nonlocal total
            if rule.terms:
                total = total + form.flatten(2) @ rule.bias.flatten()
                total = total - self.share(node) * sum_of(form.abs(), self.size[node.index])

        def through(node: Node, form: Tensor) -> tuple[Tensor, ...]:
            nonlocal total
            if isinstance(node.rule, Activation):
                # up * lower line + down * upper line, of up = (form + |form|) / 2 and down.
                lines, size = self._lines[node.index], form.abs()
                middle = lines.lower_offset + lines.upper_offset
                apart = lines.lower_offset - lines.upper_offset - 2 * self._slack[node.index]
                total = total + (sum_of(form, middle) + sum_of(size, apart)) / 2
                middle = (lines.lower_slope + lines.upper_slope) / 2
                apart = (lines.lower_slope - lines.upper_slope) / 2
                return ((form * middle[:, None]).addcmul_(size, apart[:, None]),)
            if isinstance(node.rule, MaxPool):
                up, down = form.clamp(min=0), form.clamp(max=0)
                part, constant = self._pooled(node, node.rule, up, down)
                total = total + constant
                return (part,)
            raise TypeError(f"{node.op} cannot be relaxed")

        forms = walk(self.graph, start, rows, through, visit=visit)
        return total, forms

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
class Wider:
    """Bounds on larger balls around the same probes.

    Attributes:
        bounds: The bounds.
        rows: The probes by their place in `bounds`, int64 [n].
    """

    bounds: Bounds
    rows: Tensor


def sum_of(form: Tensor, values: Tensor) -> Tensor:
    """Sums [n, k, *shape] times [n or 1, *shape] over the shape."""
    return (form.flatten(2) @ values.flatten(1)[..., None])[..., 0]
