"""Which entries of the probe a value depends on, and how, where that is affine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onnx_auditors.lipschitz.affine import Affine
from onnx_auditors.lipschitz.joint import MaxPool
from onnx_auditors.lipschitz.walking import walk

if TYPE_CHECKING:
    from onnx_auditors.lipschitz.graph import Graph, Node

_BLOCK = 256
"""Forms that are taken back at once to find the entries that they depend on."""
_PUSHED = 1 << 22
"""Entries of the largest value of a block of probes."""
_MOST_ROWS = 1 << 24
"""Entries of forms of a value that are kept: 128 MiB."""


def rows_of(graph: Graph, index: int) -> Tensor | None:
    """Returns the entries of a value that is affine in the probe as forms; see `Graph.rows`."""
    columns = graph.columns(index)
    width = graph.nodes[0].size if columns is None else columns.shape[1]
    if graph.nodes[index].size * width > _MOST_ROWS:
        return None
    found = torch.zeros(graph.nodes[index].size, width, dtype=torch.float64, device=graph.device)
    if _forward(graph, index):
        for start, values in _pushed(graph, index, absolute=False):
            if columns is None:
                found[:, start : start + len(values)] = values.T
            else:
                entry, place = torch.nonzero(
                    (columns >= start) & (columns < start + len(values)), as_tuple=True
                )
                found[entry, place] = values[columns[entry, place] - start, entry]
        return found
    for start, forms in _pulled(graph, index, absolute=False):
        rows = slice(start, start + len(forms))
        found[rows] = forms if columns is None else forms.gather(1, columns[rows])
    return found


def columns_of(graph: Graph, index: int) -> Tensor | None:
    """Returns which entries of the probe a value depends on; see `Graph.columns`."""
    size, given = graph.nodes[0].size, graph.nodes[index].size
    pattern = torch.zeros(given, size, dtype=torch.bool, device=graph.device)
    forward = _forward(graph, index)
    blocks = (_pushed if forward else _pulled)(graph, index, absolute=True)
    for start, values in blocks:
        part = slice(start, start + len(values))
        if forward:
            pattern[:, part] = (values > 0).T
        else:
            pattern[part] = values > 0
        if 2 * int(pattern.sum(1).max()) > size:
            return None
    width = max(1, int(pattern.sum(1).max()))
    return pattern.to(torch.float32).topk(width, dim=1).indices.sort(dim=1).values


def _forward(graph: Graph, index: int) -> bool:
    """Whether taking unit probes forward is less work than taking entries back."""
    return graph.nodes[0].size <= graph.nodes[index].size


def _pushed(graph: Graph, index: int, *, absolute: bool) -> Iterator[tuple[int, Tensor]]:
    """Yields what a value is of blocks of unit probes, [b, size], all slopes 1, no bias."""
    first = graph.nodes[0]
    largest = max(node.size for node in graph.nodes[: index + 1])
    step = max(1, _PUSHED // largest)
    for start in range(0, first.size, step):
        count = min(step, first.size - start)
        units = torch.zeros(count, first.size, dtype=torch.float64, device=graph.device)
        units.diagonal(start).fill_(1)
        values: list[Tensor] = []
        for node in graph.nodes[: index + 1]:
            given = [values[p] for p in node.parents]
            if node.rule is None:
                values.append(units.reshape(count, *first.shape))
            elif isinstance(node.rule, Affine):
                push = node.rule.absolute if absolute else node.rule.linear
                assert push is not None  # noqa: S101 - the caller has looked
                values.append(push(*given))
            elif isinstance(node.rule, MaxPool):
                reached = given[0].flatten(1)[:, node.rule.windows].sum(2)
                values.append(reached.reshape(count, *node.shape))
            else:
                values.append(given[0])
        yield start, values[index].flatten(1)


def _pulled(graph: Graph, index: int, *, absolute: bool) -> Iterator[tuple[int, Tensor]]:
    """Yields blocks of the entries of a value as forms of the probe, all slopes 1."""
    node = graph.nodes[index]
    for start in range(0, node.size, _BLOCK):
        count = min(_BLOCK, node.size - start)
        rows = torch.zeros(count, node.size, dtype=torch.float64, device=graph.device)
        rows.diagonal(start).fill_(1)
        rows = rows.reshape(1, count, *node.shape)
        forms = walk(graph, index, rows, partial(_everywhere, graph), absolute=absolute)
        if forms is not None:
            yield start, forms[0]


def _everywhere(graph: Graph, bent: Node, form: Tensor) -> tuple[Tensor, ...]:
    """Takes forms back to all entries that a nonlinear node may have them from."""
    if not isinstance(bent.rule, MaxPool):
        return (form,)
    flat = form.flatten(2)
    parent = graph.nodes[bent.parents[0]]
    part = flat.new_zeros(*flat.shape[:2], parent.size)
    for tap in bent.rule.windows.T:
        part.index_add_(2, tap, flat)
    return (part.reshape(*flat.shape[:2], *parent.shape),)
