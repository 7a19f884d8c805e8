"""Bounds of the whole network: from those of its layers, and from centre and radius of slopes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.lipschitz.activations import UNIT64, Activation
from onnx_auditors.lipschitz.affine import Affine
from onnx_auditors.lipschitz.bound import Bound, Norm
from onnx_auditors.lipschitz.bounds import operator_bounds
from onnx_auditors.lipschitz.constants import joined
from onnx_auditors.lipschitz.crown import gamma
from onnx_auditors.lipschitz.graph import Graph, Node
from onnx_auditors.lipschitz.lanczos import attained
from onnx_auditors.lipschitz.layer_bounds import (
    layer_bounds,
    nonlinear_constant,
)
from onnx_auditors.lipschitz.operator import LinearOperator
from onnx_auditors.lipschitz.pieces import Piece, pieces
from onnx_auditors.lipschitz.steps import Step, steps_of
from onnx_auditors.lipschitz.transfer import transfer
from onnx_auditors.lipschitz.walking import walk

_UP = 1 + 1e-9
_ROUGH = 1e-3
MOST_MAPS, LARGEST_VALUE = 160, 1 << 16
"""Linear maps and entries of a value up to which the recursion is affordable."""
MOST_PAIRS = 1 << 27
"""Entries of differences of rows that are written out for pairs of classes."""


@dataclass(frozen=True)
class Composed:
    """Bounds of the network in one norm.

    Attributes:
        product: Product over the graph.
        recursion: The recursion with centre and radius; infinite where it was not made.
        pairs: Upper bounds of the amplification of logit_a - logit_b, float64 [classes, classes].
        delta: Chance that something here does not hold.
    """

    product: float
    recursion: float
    pairs: Tensor
    delta: float

    @property
    def upper(self) -> float:
        """The smaller one of both bounds."""
        return min(self.product, self.recursion)


@dataclass
class _State:
    """What is known on the way.

    Attributes:
        change: Bound of the change of each value per unit of change of the probe, by node.
        delta: Chance that one of the bounds in use does not hold.
    """

    change: dict[int, float] = field(default_factory=lambda: {0: 1.0})
    delta: float = 0.0


def compose_bounds(
    graph: Graph, layers: Sequence[v1.LipschitzLayer], norm: Norm, *, delta: float, entropy: int
) -> Composed:
    """Returns the bounds of the network in one norm.

    The recursion is that of Fazlyab et al. 2023 (LipLT, arXiv 2310.10849) on an acyclic graph: with
    activations of slopes c_j +- r_j, the change of a value k is that of the linear network with
    slopes c plus what the remainders make of the changes m_j of the activations' inputs,
    m_k <= ||T_k0|| + sum_j ||T_kj|| r_j m_j. Functions without a range of slopes have c = 0 and
    their constant as r. Every m is the smaller one of that and the product over the graph.

    Args:
        graph: The graph.
        layers: Messages of `layer_bounds`, one per layer of `pieces(graph)`, in its order.
        norm: "l1", "l2" or "linf".
        delta: Chance that a probabilistic bound made here does not hold.
        entropy: Seed of the random starts of such bounds.
    """
    steps = steps_of(graph, layers, norm)
    plain = _State(delta=math.fsum(step.bound.failure_probability for step in steps))
    _renew(plain, steps, norm)
    end = steps[-1].piece
    product = plain.change[end.index]
    if graph.problems or not _affordable(graph):
        return Composed(product, math.inf, pair_bounds(graph, end, plain.change, norm), plain.delta)
    state = _State(dict(plain.change), plain.delta)
    centres, radii = _slopes(graph, norm)
    # What a nonlinear function makes is left to its constant: its own remainder would count.
    straight = [isinstance(node.rule, Affine) for node in graph.nodes]
    targets = sorted({p for node in graph.bent for p in node.parents if straight[p]} | {end.index})
    maps = sum(1 for t in targets for node in graph.bent if node.index < t) + len(targets)
    refined = math.inf
    for target in targets:
        found = _reach(graph, target, (centres, radii), state, norm, delta / maps, entropy)
        refined = found if target == end.index else refined
        state.change[target] = min(state.change[target], found)
        _renew(state, steps, norm)
    pairs = torch.minimum(
        pair_bounds(graph, end, state.change, norm),
        _refined_pairs(graph, state.change, centres, radii, norm),
    )
    return Composed(product, refined, pairs, state.delta)


def all_layers(
    graph: Graph, norms: Sequence[Norm], *, delta: float, entropy: int
) -> list[v1.LipschitzLayer]:
    """Returns the bounds of all layers, of which one does not hold with a chance of delta / 2."""
    found = pieces(graph)
    each = delta / (2 * max(1, len(found)))
    return [layer_bounds(graph, p, norms, delta=each, entropy=entropy)[0] for p in found]


def global_radii(logits: Tensor, labels: Tensor, pairs: Tensor) -> Tensor:
    """Returns the radii that bounds of pairs give, by exact arithmetic; 0 where the label loses.

    Args:
        logits: Float64 [n, classes].
        labels: Int64 [n].
        pairs: Float64 [classes, classes], bounds of the amplification of differences of logits.

    Returns:
        Float64 [n], rounded down.
    """
    margins = logits.gather(1, labels[:, None]) - logits
    steep = pairs[labels]
    radii = torch.where(steep > 0, margins / steep.clamp(min=1e-300), torch.inf)
    # A pair without any slope never changes places, whichever is ahead.
    radii = torch.where((steep <= 0) & (margins <= 0), 0.0, radii)
    radii.scatter_(1, labels[:, None], torch.inf)
    return radii.amin(1).clamp(min=0) * (1 - 1e-9)


def _renew(state: _State, steps: Sequence[Step], norm: Norm) -> None:
    """Takes the bounds through the layers once more; none gets larger."""
    for step in steps:
        given = [state.change[source] for source in step.piece.sources]
        if step.branches:
            parts = [_times(b, g) for b, g in zip(step.branches, given, strict=True)]
            value = joined(parts, norm) if step.apart else math.fsum(parts) * _UP
        else:
            # A constant of several values is one of all their entries together.
            whole = given[0] if len(given) == 1 else joined(given, norm)
            value = _times(step.bound.upper, whole) * _UP
        index = step.piece.index
        state.change[index] = min(value, state.change.get(index, math.inf))


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _affordable(graph: Graph) -> bool:
    count = len(graph.bent) + 1
    small = max(node.size for node in graph.nodes) <= LARGEST_VALUE
    return count * (count + 1) // 2 <= MOST_MAPS and small


def _slopes(graph: Graph, norm: Norm) -> tuple[dict[int, float], dict[int, float]]:
    centres, radii = {}, {}
    for node in graph.bent:
        if isinstance(node.rule, Activation):
            least, most = node.rule.bounds
            centres[node.index] = (least + most) / 2
            radii[node.index] = (most - least) / 2 * _UP
        else:
            centres[node.index] = 0.0
            radii[node.index] = nonlinear_constant(graph, node.index, norm)
    return centres, radii


def _reach(
    graph: Graph, target: int, slopes: tuple[dict[int, float], dict[int, float]], state: _State,
    norm: Norm, delta: float, entropy: int,
) -> float:  # fmt: skip
    """Returns the bound of the change of a value by the recursion."""
    centres, radii = slopes
    sources = [0, *(node.index for node in graph.bent if node.index < target)]
    parts = []
    for source in sources:
        weight = 1.0
        if source:
            parents = [state.change[p] for p in graph.nodes[source].parents]
            change = parents[0] if len(parents) == 1 else joined(parents, norm)
            weight = _times(radii[source], change)
        operator = transfer(graph, source, target, centres) if weight else None
        if operator is not None:
            parts.append((weight, operator))
    if norm == "l2":
        bound, scale = _together(parts, delta, entropy)
        state.delta += bound.delta
        return _times(bound.upper, scale) * _UP
    bounds = [operator_bounds(op, norm, delta=delta, entropy=entropy).upper for _, op in parts]
    return math.fsum(_times(b, w) for b, (w, _) in zip(bounds, parts, strict=True)) * _UP


def _together(
    parts: list[tuple[float, LinearOperator]], delta: float, entropy: int
) -> tuple[Bound, float]:
    """Returns what bounds ||sum_j w_j T_j u_j||_2 over all u_j of norm 1, as two factors.

    By Cauchy-Schwarz it is at most sqrt(sum_j l_j) times the norm of the maps w_j T_j / sqrt(l_j)
    side by side, for all l_j > 0; with l_j = w_j ||T_j|| at most sum_j w_j ||T_j||, and less where
    the maps reach their norms in different directions.
    """
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=False):
        sizes = [w * attained(op, tolerance=_ROUGH)[0] for w, op in parts]
    least = max(*sizes, 1e-300) * _ROUGH
    shares = [max(size, least) for size in sizes]
    factors = [w / math.sqrt(s) for (w, _), s in zip(parts, shares, strict=True)]
    maps = [op for _, op in parts]
    counts = [math.prod(op.input_shape) for op in maps]

    def forward(x: Tensor) -> Tensor:
        pieces_of_x = torch.split(x, counts, 1)
        each = [
            f * op.forward(p.reshape(-1, *op.input_shape))
            for f, op, p in zip(factors, maps, pieces_of_x, strict=True)
        ]
        return torch.stack(each).sum(0)

    def adjoint(y: Tensor) -> Tensor:
        return torch.cat(
            [f * op.adjoint(y).flatten(1) for f, op in zip(factors, maps, strict=True)], 1
        )

    # The sum over the maps rounds by far less than the maps themselves, whose errors count twice.
    side_by_side = LinearOperator(
        (sum(counts),), maps[0].output_shape, forward, adjoint,
        error=2 * math.fsum(f * op.error for f, op in zip(factors, maps, strict=True)),
        rounding=2 * len(maps) * max(op.rounding for op in maps),
        device=maps[0].device,
    )  # fmt: skip
    bound = operator_bounds(side_by_side, "l2", delta=delta, entropy=entropy)
    return bound, math.sqrt(math.fsum(shares)) * _UP


def pair_bounds(graph: Graph, last: Piece, change: dict[int, float], norm: Norm) -> Tensor:
    """Returns bounds of pairs, from the rows of the last layer if it is linear.

    Args:
        graph: The graph.
        last: Its last layer.
        change: Bounds of the change of what the last layer reads and makes, by node.
        norm: The norm.
    """
    classes = graph.classes
    whole = {"l1": 1.0, "l2": math.sqrt(2) * _UP, "linf": 2.0}[norm] * change[last.index]
    plain = torch.full((classes, classes), whole, dtype=torch.float64, device=graph.device)
    if last.kind == "linear" and math.isfinite(change[last.sources[0]]):
        operator = transfer(graph, last.sources[0], last.index)
        if operator is not None and operator.absolute is not None:
            eye = torch.eye(classes, dtype=torch.float64, device=graph.device)
            rows = operator.adjoint(eye).flatten(1)
            error = _size(operator.absolute[1](eye).flatten(1), norm) * gamma(_terms(graph), UNIT64)
            found = _distances(rows, norm) + error[:, None] + error[None]
            plain = torch.minimum(plain, found * (change[last.sources[0]] * _UP))
    return plain.fill_diagonal_(0.0)


def _terms(graph: Graph) -> int:
    return 2 * sum(node.size for node in graph.nodes) + 64


def _size(rows: Tensor, norm: Norm) -> Tensor:
    """Returns norms of linear forms, dual to `norm`, along the last axis, rounded up."""
    order = {"l1": math.inf, "l2": 2.0, "linf": 1.0}[norm]
    size: Tensor = torch.linalg.vector_norm(rows, order, dim=-1)
    return size * _UP


def _distances(rows: Tensor, norm: Norm) -> Tensor:
    """Returns dual norms of differences of rows [classes, d], [classes, classes], rounded up."""
    count, width = rows.shape
    if count * count * width > MOST_PAIRS:
        sizes = _size(rows, norm)
        return sizes[:, None] + sizes[None]
    return torch.stack([_size(rows - row, norm) for row in rows])


def _refined_pairs(
    graph: Graph, change: dict[int, float], centres: dict[int, float], radii: dict[int, float],
    norm: Norm,
) -> Tensor:  # fmt: skip
    """Returns bounds of pairs by the recursion, whose last step takes rows and no norms of maps."""
    classes = graph.classes
    eye = torch.eye(classes, dtype=torch.float64, device=graph.device)[None]
    found = torch.zeros(classes, classes, dtype=torch.float64, device=graph.device)
    if any(isinstance(n.rule, Affine) and n.rule.absolute is None for n in graph.nodes):
        return found + math.inf
    taken: dict[bool, list[tuple[int, Tensor]]] = {False: [], True: []}
    for absolute in (False, True):

        def through(node: Node, form: Tensor, absolute: bool = absolute) -> tuple[Tensor, ...]:
            taken[absolute].append((node.index, form[0].flatten(1)))
            if not isinstance(node.rule, Activation):
                return ()
            slope = centres[node.index]
            return (form * (abs(slope) if absolute else slope),)

        forms = walk(graph, len(graph.nodes) - 1, eye, through, absolute=absolute)
        if forms is not None:
            taken[absolute].append((0, forms[0]))
    errors = dict(taken[True])
    for index, rows in taken[False]:
        weight = 1.0
        if index:
            parents = [change[p] for p in graph.nodes[index].parents]
            whole = parents[0] if len(parents) == 1 else joined(parents, norm)
            weight = _times(radii[index], whole)
        error = _size(errors[index], norm) * gamma(_terms(graph), UNIT64)
        found += (_distances(rows, norm) + error[:, None] + error[None]) * (weight * _UP)
    return (found * _UP).fill_diagonal_(0.0)
