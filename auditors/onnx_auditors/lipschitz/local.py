"""Bounds in a ball from slope ranges: of margins from the probe on, and of amplification.

Both write the network as a linear map with a slope per neuron, C +- R, and take forms back to the
probe with the slopes C; what R leaves over is bounded neuron by neuron.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onnx_auditors.lipschitz.activations import UNIT64, Activation, Slopes
from onnx_auditors.lipschitz.affine import Affine
from onnx_auditors.lipschitz.crown import Bounds, gamma, sum_of
from onnx_auditors.lipschitz.graph import Graph, Node
from onnx_auditors.lipschitz.joint import MaxPool
from onnx_auditors.lipschitz.walking import walk

_UP = 1 + 1e-9
_STEADY = 1e-7
"""Radius of slopes from which on a neuron's own bound is worth its cost."""
_ENTRIES = 1 << 20
"""Entries of one block of linear forms."""


def margin_rows(labels: Tensor, classes: int) -> Tensor:
    """Returns the forms logit_label - logit_c, c any other class, [n, classes - 1, classes]."""
    everything = torch.eye(classes, dtype=torch.float64, device=labels.device)
    rows = everything[labels][:, None] - everything[None]
    others = torch.ones(len(labels), classes, dtype=torch.bool, device=labels.device)
    others[torch.arange(len(labels)), labels] = False
    return rows[others].reshape(len(labels), classes - 1, classes)


def anchored_margins(bounds: Bounds, values: list[Tensor], labels: Tensor) -> Tensor:
    """Returns lower bounds of all margins on balls, from secants through the probe.

    With a the values at the probe and s the secant slopes (g(z) - g(a)) / (z - a), all of them in
    C +- R on the interval of z, the change of a form of a layer is that of the linear network with
    slopes C, and at most sum |form| R |z - a| more; |z - a| is bounded by the interval. Holds for
    the same evaluations as the bounds of `crown`.

    Args:
        bounds: Intervals on the balls.
        values: All values at the probes, as `Graph.evaluate` returns them.
        labels: Int64 [n].

    Returns:
        Float64 [n, classes - 1].
    """
    graph = bounds.graph
    last = graph.nodes[-1]
    rows = margin_rows(labels, graph.classes)
    total = (rows @ values[-1].flatten(1)[..., None])[..., 0]

    def visit(node: Node, form: Tensor) -> None:
        # Twice: for the value in the ball and for that at the probe.
        nonlocal total
        total = total - 2 * bounds.share(node) * sum_of(form.abs(), bounds.size[node.index])

    def through(node: Node, form: Tensor) -> tuple[Tensor, ...]:
        nonlocal total
        parent = node.parents[0]
        low, high, anchor = bounds.low[parent], bounds.high[parent], values[parent]
        reach = torch.maximum(high - anchor, anchor - low).clamp(min=0) * _UP
        if isinstance(node.rule, Activation):
            middle, radius = _split(node.rule.secants(anchor, low, high))
            rest = radius * reach + bounds.slack(node)
            total = total - sum_of(form.abs(), rest)
            return (form * middle[:, None],)
        assert isinstance(node.rule, MaxPool)  # noqa: S101 - the bounds have looked
        part, unsure = bounds.selected(node, form)
        rest = torch.where(unsure, _largest(reach, node.rule), 0)
        total = total - sum_of(form.abs(), rest.reshape(len(rest), *node.shape))
        return (part,)

    def ends(node: Node, form: Tensor) -> Tensor | None:
        nonlocal total
        last = bounds.straight(node, form)
        if last is not None:
            total = total - 2 * sum_of(form.abs(), bounds.error(node.index))
        return last

    forms = walk(graph, last.index, rows, through, visit=visit, ends=ends)
    return total if forms is None else total + bounds.ball.least(forms, centered=True)[0]


def amplifications(bounds: Bounds, labels: Tensor) -> Tensor:
    """Returns upper bounds of the Lipschitz constants of all margins on balls.

    For any two points of a ball, |change of z_i| <= m_i |change of x|, where m of a neuron is the
    dual norm of its form of the probe with slopes C, plus sum |form| R m of the neurons before it:
    the recursion of Fazlyab et al. 2023 (LipLT, arXiv 2310.10849) taken neuron by neuron, on the
    ball. A statement on the function in exact arithmetic; float64 rounding is added.

    Args:
        bounds: Intervals on the balls.
        labels: Int64 [n].

    Returns:
        Float64 [n, classes - 1].
    """
    return _Amplification(bounds).of(
        len(bounds.graph.nodes) - 1, margin_rows(labels, bounds.graph.classes)
    )


class _Amplification:
    """The recursion: bounds m of neurons, found in the order of the graph."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.graph = bounds.graph
        self.sums = _absolute_sums(self.graph)
        self.middle: dict[int, Tensor] = {}
        self.radius: dict[int, Tensor] = {}
        self.neurons: list[Tensor | None] = [None] * len(self.graph.nodes)
        for node in self.graph.bent:
            parent = node.parents[0]
            if isinstance(node.rule, Activation):
                pair = node.rule.slopes(bounds.low[parent], bounds.high[parent])
                self.middle[node.index], self.radius[node.index] = _split(pair)
                wanted = self.radius[node.index] > _STEADY
            else:
                wanted = torch.ones_like(bounds.low[parent], dtype=torch.bool)
            self._neurons(parent, wanted.flatten(1))

    def _neurons(self, index: int, wanted: Tensor) -> None:
        """Finds m of those neurons of a value that are wanted; the others get a plain product's."""
        found = self._plain(index)
        rows = self.graph.rows(index)
        if rows is not None:
            self.neurons[index] = torch.minimum(found, self._straight(index, rows))
            return
        count = int(wanted.sum(1).max())
        node = self.graph.nodes[index]
        if count and not (isinstance(node.rule, Activation | MaxPool)):
            n = len(wanted)
            chosen = wanted.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
            widest = max(v.size for v in self.graph.nodes[: index + 1])
            for part in torch.split(chosen, max(1, _ENTRIES // (n * widest)), 1):
                rows = found.new_zeros(n, part.shape[1], node.size)
                rows.scatter_(2, part[..., None], 1.0)
                better = self.of(index, rows.reshape(n, -1, *node.shape))
                found.scatter_(1, part, torch.minimum(found.gather(1, part), better))
        self.neurons[index] = found

    def _straight(self, index: int, rows: Tensor) -> Tensor:
        """Returns bounds for a value that is affine in the probe: norms of its rows, [size]."""
        order = 1 if self.bounds.ball.norm == "linf" else 2
        size: Tensor = torch.linalg.vector_norm(rows, order, dim=1)
        terms = sum(node.size + 64 for node in self.graph.nodes[: index + 1])
        return size * _UP + 2 * gamma(terms, UNIT64) * self.sums[index].flatten()

    def _plain(self, index: int) -> Tensor:
        """Returns bounds from the largest slopes and absolute values alone, [n, size]."""
        node = self.graph.nodes[index]
        bounds = self.bounds
        if node.rule is None:
            return torch.ones(
                len(bounds.ball.center),
                node.size,
                dtype=torch.float64,
                device=bounds.ball.center.device,
            )
        below = [self._known(p) for p in node.parents]
        if isinstance(node.rule, Affine):
            assert node.rule.absolute is not None  # noqa: S101 - the caller has looked
            given = [
                b.reshape(-1, *self.graph.nodes[p].shape)
                for b, p in zip(below, node.parents, strict=True)
            ]
            return node.rule.absolute(*given).flatten(1) * _UP
        if isinstance(node.rule, MaxPool):
            return _largest(below[0], node.rule)
        slope = self.middle[node.index].abs() + self.radius[node.index]
        return below[0] * slope.flatten(1) * _UP

    def _known(self, index: int) -> Tensor:
        known = self.neurons[index]
        if known is None:
            known = self.neurons[index] = self._plain(index)
        return known

    def of(self, start: int, rows: Tensor) -> Tensor:
        """Returns bounds of forms [n, k, *shape] of a value, [n, k]."""
        total = rows.new_zeros(rows.shape[:2])
        rounding = rows.new_zeros(rows.shape[:2])

        def visit(node: Node, form: Tensor) -> None:
            nonlocal rounding
            terms = node.size + sum(self.graph.nodes[p].size for p in node.parents) + 64
            rounding = rounding + 2 * gamma(terms, UNIT64) * sum_of(
                form.abs(), self.sums[node.index]
            )

        def through(node: Node, form: Tensor) -> tuple[Tensor, ...]:
            nonlocal total
            parent = node.parents[0]
            if isinstance(node.rule, Activation):
                rest = self.radius[node.index].flatten(1) * self._known(parent)
                total = total + sum_of(form.abs(), rest)
                return (form * self.middle[node.index][:, None],)
            assert isinstance(node.rule, MaxPool)  # noqa: S101 - the bounds have looked
            part, unsure = self.bounds.selected(node, form)
            rest = torch.where(unsure, _largest(self._known(parent), node.rule), 0)
            total = total + sum_of(form.abs(), rest.reshape(len(rest), *node.shape))
            return (part,)

        forms = walk(self.graph, start, rows, through, visit=visit)
        if forms is not None:
            straight = (
                forms.abs().sum(-1) if self.bounds.ball.norm == "linf" else forms.norm(dim=-1)
            )
            total = total + straight
        return total * _UP + rounding


def _absolute_sums(graph: Graph) -> list[Tensor]:
    """Returns bounds of each entry's change per unit of Linf, with all slopes at their largest."""
    sums: list[Tensor] = []
    for node in graph.nodes:
        given = [sums[p] for p in node.parents]
        if isinstance(node.rule, Affine):
            assert node.rule.absolute is not None  # noqa: S101 - the caller has looked
            sums.append(node.rule.absolute(*given) * _UP)
        elif isinstance(node.rule, Activation):
            steep = max(abs(b) for b in node.rule.bounds)
            sums.append(given[0] * steep)
        elif node.rule is None:
            sums.append(torch.ones(1, *node.shape, dtype=torch.float64, device=graph.device))
        else:
            sums.append(node.rule.function(*given))
    return sums


def _split(slopes: Slopes) -> tuple[Tensor, Tensor]:
    """Returns centre and radius of slopes."""
    least, most = slopes
    return least / 2 + most / 2, (most - least) / 2 * _UP + 1e-15


def _largest(values: Tensor, rule: MaxPool) -> Tensor:
    """Returns the largest of values [n, ...] in each window, [n, size]."""
    return values.flatten(1)[:, rule.windows].amax(2)
