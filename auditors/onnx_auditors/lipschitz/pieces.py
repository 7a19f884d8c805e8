"""The layers of a graph as bounds see them: linear regions, nonlinear functions, joins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from onnx_auditors.lipschitz.affine import Affine
from onnx_auditors.lipschitz.graph import LOGITS, Graph
from onnx_auditors.lipschitz.joint import Opaque

Kind = Literal["linear", "nonlinear", "join", "unbounded"]


@dataclass(frozen=True)
class Piece:
    """One layer.

    Attributes:
        index: Node of the graph that it makes.
        sources: Nodes that it reads; one for a linear region.
        kind: "linear" for affine nodes between one value and another, "nonlinear", "join" for an
            affine node of several values, "unbounded" for what has no constant.
        members: Nodes that it consists of, in order.
        name: Name of the value that it makes.
        op_types: Their operators.
        input_shape: Shape of one sample of its first source.
        output_shape: Shape of one sample of what it makes.
    """

    index: int
    sources: tuple[int, ...]
    kind: Kind
    members: tuple[int, ...]
    name: str
    op_types: tuple[str, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


def pieces(graph: Graph) -> list[Piece]:
    """Returns the layers of a graph in order.

    Affine nodes form one linear region as long as they lead from one value to one value: chains,
    and branches that part and meet again without a nonlinear function in between.
    """
    ends, roots = _regions(graph)
    found = []
    for node in graph.nodes[1:]:
        if not isinstance(node.rule, Affine):
            nowhere = isinstance(node.rule, Opaque) and all(
                math.isinf(c) for c in node.rule.constants.values()
            )
            kind: Kind = "unbounded" if nowhere else "nonlinear"
            found.append(_piece(graph, node.index, node.parents, kind, (node.index,)))
        elif node.index in ends:
            root = roots[node.index]
            if root is None:
                found.append(_piece(graph, node.index, node.parents, "join", (node.index,)))
            else:
                members = _members(graph, root, node.index)
                found.append(_piece(graph, node.index, (root,), "linear", members))
    return found


def _piece(
    graph: Graph, index: int, sources: tuple[int, ...], kind: Kind, members: tuple[int, ...]
) -> Piece:
    first, last = graph.nodes[sources[0]], graph.nodes[index]
    named = graph.nodes[members[-2]] if last.name == LOGITS and len(members) > 1 else last
    return Piece(
        index, sources, kind, members, named.name,
        tuple(graph.nodes[m].op for m in members),
        first.shape if first.rule is None else first.shape[1:],
        last.shape if last.name == LOGITS else last.shape[1:],
    )  # fmt: skip


def _regions(graph: Graph) -> tuple[set[int], list[int | None]]:
    """Returns the affine nodes where a region ends, and the value at which each node's begins."""
    affine = [isinstance(node.rule, Affine) for node in graph.nodes]
    ends = {len(graph.nodes) - 1}
    ends |= {k for k, users in enumerate(graph.users) if any(not affine[u] for u in users)}
    while True:
        before = len(ends)
        roots: list[int | None] = [None] * len(graph.nodes)
        for node in graph.nodes[1:]:
            if not affine[node.index]:
                continue
            starts = {p if p in ends or not affine[p] else roots[p] for p in node.parents}
            if len(starts) == 1:
                roots[node.index] = starts.pop()
            else:
                ends.add(node.index)
                ends.update(p for p in node.parents if affine[p])
        reached: list[set[int]] = [set() for _ in graph.nodes]
        for k in range(len(graph.nodes) - 1, 0, -1):
            reached[k] = {k} if k in ends else set().union(*(reached[u] for u in graph.users[k]))
            if affine[k] and len(reached[k]) > 1:
                ends.add(k)
        if len(ends) == before:
            return ends, roots


def _members(graph: Graph, root: int, end: int) -> tuple[int, ...]:
    found, todo = set(), [end]
    while todo:
        k = todo.pop()
        if k != root and k not in found:
            found.add(k)
            todo.extend(graph.nodes[k].parents)
    return tuple(sorted(found))
