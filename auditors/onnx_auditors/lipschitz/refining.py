"""Narrows the intervals of one value by backward relaxation, where that matters.

An interval of an entry matters while it holds a bend of what reads it. The form that bounds one end
gives a looser other end at once: from above a value exceeds its lower bound by no more than the
distances between the lines of all activations on the way. So the end that may settle an entry comes
first, for the whole ball without the box, which is cheap, then cut by the box, and the exact other
end only for those entries that are not settled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onnx_auditors.lipschitz.activations import Activation
from onnx_auditors.lipschitz.affine import Affine
from onnx_auditors.lipschitz.graph import Node

if TYPE_CHECKING:
    from onnx_auditors.lipschitz.ball import Ball
    from onnx_auditors.lipschitz.crown import Bounds

_ENTRIES = 1 << 19
"""Entries of one block of linear forms at most: 4 MiB in float64, for the processor's cache."""


class Ends:
    """Intervals of the entries of a value, and how they narrow where the balls shrink.

    Attributes:
        low: Least values, float64 [n, size].
        high: Largest, likewise.
        rise: How low rises; see `Ball.least`.
        fall: How high falls.
    """

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high = low.flatten(1), high.flatten(1)
        self.rise, self.fall = torch.zeros_like(self.low), torch.zeros_like(self.high)

    def raise_low(self, least: Tensor, rate: Tensor) -> None:
        """Takes lower bounds and their rates where they are better."""
        self.rise = torch.where(least > self.low, rate, self.rise)
        self.low = torch.maximum(self.low, least)

    def lower_high(self, most: Tensor, rate: Tensor) -> None:
        """Takes upper bounds and their rates where they are better."""
        self.fall = torch.where(most < self.high, rate, self.fall)
        self.high = torch.minimum(self.high, most)

    def part(self, places: Tensor) -> Ends:
        """Returns the entries at some places [n, k]."""
        found = Ends(self.low.gather(1, places), self.high.gather(1, places))
        found.rise, found.fall = self.rise.gather(1, places), self.fall.gather(1, places)
        return found

    def put(self, places: Tensor, part: Ends) -> None:
        """Takes the entries at some places back."""
        self.low = self.low.scatter(1, places, part.low)
        self.high = self.high.scatter(1, places, part.high)
        self.rise = self.rise.scatter(1, places, part.rise)
        self.fall = self.fall.scatter(1, places, part.fall)


@dataclass(frozen=True)
class Wider:
    """Bounds on other balls around the same probes.

    What a relaxation on a larger ball gave as a linear form of the probe holds on a smaller one,
    where its least value is larger.

    Attributes:
        bounds: The bounds.
        rows: The probes by their place in `bounds`, int64 [n].
    """

    bounds: Bounds
    rows: Tensor

    def narrow(self, index: int, ends: Ends, balls: Ball) -> None:
        """Narrows intervals of a value to those of the larger balls, shrunk."""
        rows, others = self.rows, self.bounds.ball
        inside = (balls.radius <= others.radius[rows])[:, None]
        low, high = (side[index][rows].flatten(1) for side in (self.bounds.low, self.bounds.high))
        rise, fall = (rate[rows] for rate in self.bounds.rates[index])
        gain = others.shrunk(balls.radius, rows)[:, None]
        ends.raise_low(torch.where(inside, low + rise * gain, -torch.inf), rise)
        ends.lower_high(torch.where(inside, high - fall * gain, torch.inf), fall)


class Refinement:
    """Narrows the intervals of one value."""

    def __init__(self, bounds: Bounds, node: Node, ends: Ends) -> None:
        self.bounds, self.graph, self.ball = bounds, bounds.graph, bounds.ball
        self.node, self.ends = node, ends

    def run(self) -> None:
        """Narrows all intervals that matter."""
        index = self.node.index
        if self._open() and self.ball.norm == "l2" and self.graph.rows(index) is not None:
            self._by_norms()
        if not self._open():
            return
        center = self.bounds.values[index].flatten(1)
        up = center >= self._goals()[0]
        self._relax(up)
        self._relax(~up)

    def _open(self) -> bool:
        return bool((self._goals()[0] > -torch.inf).any())

    def _goals(self) -> tuple[Tensor, Tensor]:
        """Returns what the least value of an entry, and of its negative, has to exceed to matter.

        Float64 [n, size] each: infinite where all of it matters, minus infinite where nothing does.
        """
        ends = self.ends
        goals = torch.full_like(ends.low, -torch.inf), torch.full_like(ends.low, -torch.inf)
        for user in self.graph.users[self.node.index]:
            rule = self.graph.nodes[user].rule
            if isinstance(rule, Activation) and rule.breaks is not None:
                for point in rule.breaks:
                    inside = (ends.low < point) & (ends.high > point)
                    for goal, value in zip(goals, (point, -point), strict=True):
                        goal.copy_(torch.where(inside, goal.clamp(min=value), goal))
            elif not isinstance(rule, Affine):
                for goal in goals:
                    goal.fill_(torch.inf)
        return goals

    def _by_norms(self) -> None:
        """Narrows the intervals of a value that is affine in the probe, without the box."""
        index = self.node.index
        rows, columns = self.graph.rows(index), self.graph.columns(index)
        assert rows is not None  # noqa: S101 - the caller has looked
        center = self.ball.center
        at = center @ rows.T if columns is None else (center[:, columns] * rows).sum(-1)
        size = torch.linalg.vector_norm(rows, dim=1).expand_as(at)
        width, rate = self.ball.width(size, rows.shape[1])
        at = at + self.graph.offset(index).flatten()
        width = width + self.bounds.error(index).flatten(1)
        self.ends.raise_low(at - width, rate)
        self.ends.lower_high(at + width, rate)

    def _relax(self, up: Tensor) -> None:
        """Bounds the entries that matter from below where `up` is true, and else from above."""
        goals = self._goals()
        wanted = goals[0] > -torch.inf
        count = int(wanted.sum(1).max())
        if not count:
            return
        # Entries that matter come first in each row; what fills up the others does no harm.
        chosen = wanted.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
        goal = torch.where(up, *goals)
        for places in torch.split(chosen, self._block(len(chosen)), 1):
            part, rises = self.ends.part(places), up.gather(1, places)
            signs = torch.where(rises, 1.0, -1.0).to(part.low)
            least, rate, most, other = self._entries(places, signs, goal.gather(1, places))
            part.raise_low(torch.where(rises, least, -most), torch.where(rises, rate, other))
            part.lower_high(torch.where(rises, most, -least), torch.where(rises, other, rate))
            self.ends.put(places, part)

    def _entries(
        self, chosen: Tensor, signs: Tensor, goal: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns least values with their rates of signs times entries, and largest, [n, k]."""
        node, bounds, graph = self.node, self.bounds, self.graph
        columns, rows = graph.columns(node.index), graph.rows(node.index)
        places = None if columns is None else columns[chosen]
        if rows is not None:
            forms = rows[chosen] * signs[..., None]
            error = bounds.error(node.index).flatten(1).gather(1, chosen)
            total = graph.offset(node.index).flatten()[chosen] * signs - error
            spread = 2 * error
        else:
            pulled = bounds.pull_entries(node, chosen, signs)
            total, spread = pulled.total, pulled.spread
            if pulled.forms is None:
                none = torch.zeros_like(total)
                return total, none, total + spread, none
            forms = pulled.forms if places is None else pulled.forms.gather(2, places)
        least, rate, most, other = self.ball.enclose(forms, places, goal - total)
        return total + least, rate, total + spread + most, other

    def _block(self, n: int) -> int:
        """Returns how many entries are bounded at once."""
        rows = self.graph.rows(self.node.index)
        if rows is not None:
            return max(1, _ENTRIES // (n * rows.shape[1]))
        largest = max(node.size for node in self.graph.nodes[: self.node.index + 1])
        return max(1, _ENTRIES // (n * largest))
