"""Takes linear forms of a value back to the probe, node by node."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from onnx_auditors.lipschitz.affine import Affine

if TYPE_CHECKING:
    from onnx_auditors.lipschitz.graph import Graph, Node


def walk(
    graph: Graph,
    start: int,
    rows: Tensor,
    through: Callable[[Node, Tensor], tuple[Tensor, ...]],
    *,
    absolute: bool = False,
    visit: Callable[[Node, Tensor], None] | None = None,
    ends: Callable[[Node, Tensor], Tensor | None] | None = None,
) -> Tensor | None:
    """Takes linear forms of a value back to the probe.

    Args:
        graph: The graph.
        start: Index of the value.
        rows: The forms, float64 [n, k, *shape].
        through: Takes forms of a nonlinear node to its parents; an empty tuple ends there.
        absolute: Whether affine maps are taken with their absolute values.
        visit: Sees every affine node and the forms of it.
        ends: Takes forms of a node to the probe at once, [n, k, d], where it can.

    Returns:
        Forms of the probe, [n, k, d]; None where no path leads there.
    """
    n, k = rows.shape[:2]
    forms = {start: rows}
    for index in range(start, 0, -1):
        if index not in forms:
            continue
        node, form = graph.nodes[index], forms.pop(index)
        last = ends(node, form) if ends is not None else None
        if last is not None:
            last = last.reshape(n, k, *graph.nodes[0].shape)
            forms[0] = forms[0] + last if 0 in forms else last
            continue
        if isinstance(node.rule, Affine):
            if visit is not None:
                visit(node, form)
            dense = None if absolute else graph.matrix(index)
            pull = node.rule.absolute_adjoint if absolute else node.rule.adjoint
            assert pull is not None  # noqa: S101 - the caller has looked
            flat = form.flatten(0, 1)
            parts = pull(flat) if dense is None else (flat.flatten(1) @ dense,)
            shapes = (graph.nodes[p].shape for p in node.parents)
            parts = tuple(p.reshape(n, k, *s) for p, s in zip(parts, shapes, strict=True))
        else:
            parts = through(node, form)
        for parent, part in zip(node.parents, parts, strict=False):
            forms[parent] = forms[parent] + part if parent in forms else part
    return forms[0].flatten(2) if 0 in forms else None
