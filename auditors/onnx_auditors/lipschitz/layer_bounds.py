"""Bounds of one layer in all norms, as the report shows them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.lipschitz.activations import Activation
from onnx_auditors.lipschitz.affine import Affine
from onnx_auditors.lipschitz.ascent import ascend
from onnx_auditors.lipschitz.bound import Bound, Norm
from onnx_auditors.lipschitz.bounds import operator_bounds
from onnx_auditors.lipschitz.chain import region
from onnx_auditors.lipschitz.graph import Graph
from onnx_auditors.lipschitz.joint import MaxPool, Opaque
from onnx_auditors.lipschitz.pieces import Piece

_NORMS: dict[Norm, v1.Norm.ValueType] = {"l1": v1.NORM_L1, "l2": v1.NORM_L2, "linf": v1.NORM_LINF}
_KINDS = {
    "linear": v1.LIPSCHITZ_LAYER_KIND_LINEAR,
    "nonlinear": v1.LIPSCHITZ_LAYER_KIND_NONLINEAR,
    "join": v1.LIPSCHITZ_LAYER_KIND_JOIN,
    "unbounded": v1.LIPSCHITZ_LAYER_KIND_UNBOUNDED,
}
_UP = 1 + 1e-12
_GRID, _REACH = 20_001, 10.0
_SEARCH = 1 << 16
"""Largest input of a function whose lower end is searched."""


def norm_value(norm: Norm) -> v1.Norm.ValueType:
    """Returns the schema's value of a norm."""
    return _NORMS[norm]


def layer_message(piece: Piece, bounds: Iterable[v1.LipschitzBound] = ()) -> v1.LipschitzLayer:
    """Returns the message of a layer with some bounds."""
    return v1.LipschitzLayer(
        name=piece.name, op_types=piece.op_types, bounds=bounds, kind=_KINDS[piece.kind],
        input_shape=piece.input_shape, output_shape=piece.output_shape,
    )  # fmt: skip


def layer_bounds(
    graph: Graph, piece: Piece, norms: Sequence[Norm], *, delta: float, entropy: int
) -> tuple[v1.LipschitzLayer, dict[Norm, Tensor]]:
    """Returns the bounds of one layer.

    Those of a join are of all its values together, as one.

    Args:
        graph: The graph.
        piece: The layer.
        norms: The norms.
        delta: Chance that a probabilistic bound does not hold, for each of the norms.
        entropy: Seed of the random starts of such bounds.

    Returns:
        The message without share and shard, and for a linear layer the input that attains the
        lower end, by norm, in the shape of the layer's input; none for the zero map.
    """
    if piece.kind == "linear":
        made = region(graph, piece)
        found = {
            norm: operator_bounds(made.operator, norm, delta=delta, entropy=entropy)
            for norm in norms
        }
        witnesses = {n: made.lift(b.witness) for n, b in found.items() if b.witness is not None}
        return layer_message(piece, [bound_message(b) for b in found.values()]), witnesses
    if piece.kind == "join":
        bounds = [_join(graph, piece, norm) for norm in norms]
    else:
        bounds = [_nonlinear(graph, piece, norm) for norm in norms]
    return layer_message(piece, bounds), {}


def bound_message(bound: Bound) -> v1.LipschitzBound:
    """Returns the message of a bound."""
    sure = bound.proof == "deterministic"
    proof = v1.PROOF_KIND_DETERMINISTIC if sure else v1.PROOF_KIND_PROBABILISTIC
    return v1.LipschitzBound(
        norm=_NORMS[bound.norm], lower=bound.lower, upper=bound.upper, proof=proof,
        failure_probability=bound.delta, method=bound.method,
    )  # fmt: skip


def branch_norms(graph: Graph, index: int, norm: Norm) -> list[float]:
    """Returns upper bounds of what an affine node of several values makes of each alone.

    Largest row sum and largest column sum of the absolute values, and in L2 the root of their
    product, which is exact for sums, concatenations and broadcasting.
    """
    node = graph.nodes[index]
    rule = node.rule
    assert isinstance(rule, Affine)  # noqa: S101 - joins are affine
    if rule.absolute is None or rule.absolute_adjoint is None:
        return [math.inf] * len(node.parents)
    given = [
        torch.zeros(1, *graph.nodes[p].shape, dtype=torch.float64, device=graph.device)
        for p in node.parents
    ]
    columns = rule.absolute_adjoint(given[0].new_ones(1, *node.shape))
    found = []
    for i, column in enumerate(columns):
        ones = [torch.ones_like(x) if k == i else x for k, x in enumerate(given)]
        rows, most = float(rule.absolute(*ones).max()), float(column.max())
        value = {"l1": most, "linf": rows, "l2": math.sqrt(rows * most)}[norm]
        found.append(value * _UP)
    return found


def _join(graph: Graph, piece: Piece, norm: Norm) -> v1.LipschitzBound:
    node = graph.nodes[piece.index]
    rule = node.rule
    assert isinstance(rule, Affine)  # noqa: S101 - joins are affine
    each = branch_norms(graph, piece.index, norm)
    apart = node.op == "Concat"
    if norm == "l1" or apart:
        upper = max(each)
    else:
        upper = (
            math.fsum(each) if norm == "linf" else math.sqrt(math.fsum(b * b for b in each)) * _UP
        )
    lower = 0.0
    origin = [
        torch.zeros(1, *graph.nodes[p].shape, dtype=torch.float64, device=graph.device)
        for p in node.parents
    ]
    units = [x.clone() for x in origin]
    units[0].view(-1)[0] = 1.0
    signs = [
        -torch.ones_like(x) if node.op == "Sub" and i else torch.ones_like(x)
        for i, x in enumerate(origin)
    ]
    order = {"l1": 1.0, "l2": 2.0, "linf": math.inf}[norm]
    for xs in (units, signs):
        out = torch.linalg.vector_norm(rule.linear(*xs).flatten(), order)
        size = torch.linalg.vector_norm(torch.cat([x.flatten() for x in xs]), order)
        lower = max(lower, float(out / size) / _UP)
    return v1.LipschitzBound(
        norm=_NORMS[norm], lower=lower, upper=upper, proof=v1.PROOF_KIND_DETERMINISTIC,
        method=f"{len(node.parents)} values put together",
    )  # fmt: skip


def nonlinear_constant(graph: Graph, index: int, norm: Norm) -> float:
    """Returns the Lipschitz constant of a nonlinear node, of all that it reads together."""
    rule = graph.nodes[index].rule
    if isinstance(rule, Activation):
        return max(abs(b) for b in rule.bounds)
    assert isinstance(rule, MaxPool | Opaque)  # noqa: S101 - the node is nonlinear
    return rule.constants[norm]


def _nonlinear(graph: Graph, piece: Piece, norm: Norm) -> v1.LipschitzBound:
    rule = graph.nodes[piece.index].rule
    upper = nonlinear_constant(graph, piece.index, norm)
    if isinstance(rule, Activation):
        lower, method = _steepest(rule), "largest slope"
    else:
        assert isinstance(rule, MaxPool | Opaque)  # noqa: S101 - the node is nonlinear
        method = rule.reason
        lower = 0.0 if math.isinf(upper) else _seen(graph, piece, rule, norm)
    return v1.LipschitzBound(
        norm=_NORMS[norm], lower=min(lower, upper), upper=upper,
        proof=v1.PROOF_KIND_DETERMINISTIC, method=method,
    )  # fmt: skip


def _steepest(rule: Activation) -> float:
    """Returns the largest slope of a chord of an activation that is seen, or that it has."""
    if rule.exact:
        return max(abs(b) for b in rule.bounds)
    grid = torch.linspace(-_REACH, _REACH, _GRID, dtype=torch.float64)
    values = rule.function(grid)
    error = 1e-14 * (1 + float(values.abs().max()))
    chords = (values.diff().abs() - error).clamp(min=0) / grid.diff()
    return float(chords.max()) * (1 - 1e-9)


def _seen(graph: Graph, piece: Piece, rule: MaxPool | Opaque, norm: Norm) -> float:
    """Returns what a search from a few draws sees of a function of one value."""
    source = graph.nodes[piece.sources[0]]
    if len(piece.sources) > 1 or source.size > _SEARCH:
        return 0.0
    draws = torch.Generator().manual_seed(0)
    starts = torch.randn(4, *source.shape, generator=draws, dtype=torch.float64)
    scales = torch.tensor([1e-4, 1e-2, 1.0, 10.0], dtype=torch.float64)
    starts = (starts * scales.reshape(-1, *[1] * len(source.shape))).to(graph.device)
    return ascend(rule.function, starts, norm, steps=10).ratio
