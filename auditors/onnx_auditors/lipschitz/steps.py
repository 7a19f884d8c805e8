"""The layers of a graph with their bounds in one norm, as a composition takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_audit import v1
from onnx_auditors.lipschitz.bound import Norm
from onnx_auditors.lipschitz.graph import Graph
from onnx_auditors.lipschitz.layer_bounds import branch_norms, norm_value
from onnx_auditors.lipschitz.pieces import Piece, pieces


@dataclass(frozen=True)
class Step:
    """A layer on the way.

    Attributes:
        piece: The layer.
        bound: Its bound in the norm.
        branches: For a join, what it makes of each of its values alone.
        apart: Whether a join puts its values side by side.
    """

    piece: Piece
    bound: v1.LipschitzBound
    branches: tuple[float, ...] = ()
    apart: bool = False


def steps_of(graph: Graph, layers: Sequence[v1.LipschitzLayer], norm: Norm) -> list[Step]:
    """Returns the layers with their bounds in one norm, in the order of the graph."""
    wanted = norm_value(norm)
    bounds = [b for layer in layers for b in layer.bounds if b.norm == wanted]
    steps = []
    for piece, bound in zip(pieces(graph), bounds, strict=True):
        if piece.kind == "join":
            branches = tuple(branch_norms(graph, piece.index, norm))
            apart = graph.nodes[piece.index].op == "Concat"
            steps.append(Step(piece, bound, branches, apart))
        else:
            steps.append(Step(piece, bound))
    return steps
