"""The search for radii against bisection, intervals against points, rows against autograd."""

from __future__ import annotations

import pytest
import torch
from tests.auditors.lipschitz.nets import KINDS
from tests.auditors.lipschitz.searching import points

from onnx_auditors.lipschitz import graph_of
from onnx_auditors.lipschitz.ball import ball
from onnx_auditors.lipschitz.crown import Bounds
from onnx_auditors.lipschitz.local import anchored_margins, margin_rows
from onnx_auditors.lipschitz.refining import Wider
from onnx_auditors.lipschitz.search import PRECISION, Search
from onnx_auditors.network import load

_BOX = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["Relu", "Tanh", "projected residual", "PRelu and clip"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_radii_are_those_of_bisection(kind: str, norm: str) -> None:
    """Bisection with fresh bounds for each radius ends where the secants do, within tolerance."""
    network = load(KINDS[kind](3))
    graph, x = graph_of(network), points(network, 64)
    # Those nearest to another answer: the others keep theirs in all of the box.
    best = graph.logits(x).topk(2).values
    x = x[(best[:, 0] - best[:, 1]).argsort()[:2]]
    labels = graph.logits(x).argmax(1)
    search = Search(graph, x, labels, norm, _BOX)
    search.run()
    assert bool((search.low > 0).all() & (search.low < 1).all())
    low, high = torch.zeros(2, dtype=torch.float64), 2 * search.low
    for _ in range(11):
        middle = (low + high) / 2
        bounds = Bounds(graph, ball(x, middle, norm, _BOX))
        crown = bounds.least(len(graph.nodes) - 1, margin_rows(labels, graph.classes))
        anchored = anchored_margins(bounds, graph.evaluate(x), labels)
        sure = torch.maximum(crown, anchored).amin(1) > 0
        low, high = torch.where(sure, middle, low), torch.where(sure, high, middle)
    assert bool((search.low >= low * (1 - PRECISION - 2e-3)).all())
    assert bool((search.low <= high * (1 + 1e-2)).all())


@pytest.mark.parametrize("kind", ["Relu", "overlapping pool", "residual"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_intervals_hold_values_in_balls(kind: str, norm: str) -> None:
    """Values at points of a ball stay in its intervals, and in those from a larger ball."""
    network = load(KINDS[kind](2))
    graph, x = graph_of(network), points(network, 3)
    wide = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
    small = torch.tensor([0.1, 0.4, 0.3], dtype=torch.float64)
    outer = Bounds(graph, ball(x, wide, norm, _BOX))
    inner = Bounds(graph, ball(x, small, norm, _BOX), Wider(outer, torch.arange(3)))
    draws = torch.Generator().manual_seed(0)
    for bounds, radius in ((outer, wide), (inner, small)):
        for share in (0.5, 1.0):
            step = torch.randn(64, *x.shape, generator=draws, dtype=torch.float64).sign()
            size = step.flatten(2).norm(dim=2) if norm == "l2" else torch.ones(64, 3)
            scale = (share * radius / size).reshape(64, 3, *[1] * (x.dim() - 1))
            inside = (x + step * scale).clamp(0, 1).flatten(0, 1)
            for node, values in zip(graph.nodes, graph.evaluate(inside), strict=True):
                value = values.reshape(64, 3, *node.shape)
                assert bool((value >= bounds.low[node.index] - 1e-12).all())
                assert bool((value <= bounds.high[node.index] + 1e-12).all())


@pytest.mark.parametrize("kind", ["Relu", "overlapping pool", "average", "concat"])
def test_rows_are_the_jacobian(kind: str) -> None:
    """Values that are affine in the probe, by forward passes or back, as autograd has them."""
    network = load(KINDS[kind](1))
    graph, x = graph_of(network), points(network, 1)
    seen = 0
    for node in graph.nodes[1:]:
        rows = graph.rows(node.index)
        if rows is None:
            continue
        index = node.index

        def value(point: torch.Tensor, index: int = index) -> torch.Tensor:
            return graph.evaluate(point, until=index)[-1].flatten()

        jacobian = torch.func.jacrev(value)(x).reshape(node.size, -1)
        columns = graph.columns(index)
        full = rows if columns is None else torch.zeros_like(jacobian).scatter(1, columns, rows)
        assert torch.allclose(full, jacobian, rtol=0, atol=1e-12)
        seen += 1
    assert seen
