"""A network as bounds look at it: affine maps and nonlinear functions on an acyclic graph.

It starts at a probe and ends at the logits, and is taken in float64: the weights are those of the
file, and what is bounded is the function that they define in exact arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from onnx_auditors.lipschitz.activations import Activation
from onnx_auditors.lipschitz.affine import Affine
from onnx_auditors.lipschitz.joint import MaxPool, Opaque
from onnx_auditors.network.layers import Layer

_BLOCK = 256
"""Forms that are taken back at once to find the entries that they depend on."""
_MOST_ROWS = 1 << 24
"""Entries of forms of a value that are kept: 128 MiB."""
ToInput = Callable[[Tensor], Tensor]
INPUT_MAP, LOGITS = "input map", "logits"


@dataclass(frozen=True)
class Node:
    """One value of the graph and how it comes about.

    Attributes:
        index: Its place in the graph.
        name: Name of the value in the file; or `input map`, `logits`, or the probe's.
        op: Operator that makes it.
        label: Name of the operator's node, for people; the value's where it has none.
        parents: Indices of what it is made of.
        shape: Its shape in the file at batch 1.
        rule: The function; None for the probe itself.
    """

    index: int
    name: str
    op: str
    label: str
    parents: tuple[int, ...]
    shape: tuple[int, ...]
    rule: Affine | Activation | MaxPool | Opaque | None

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Graph:
    """All values between a probe and the logits, in topological order.

    Attributes:
        nodes: The probe first, the logits last.
        problems: Sentences that say which nodes have no finite Lipschitz constant, and why.
        refused: Those of them that have no bound in a ball either.
        layers: The layer of the network behind each node made by one, by the node's index.
        squashed: Whether the file turns the logits into probabilities.
        half_precision: Whether the file computes in half precision.
    """

    nodes: list[Node]
    problems: list[str]
    refused: list[str]
    layers: dict[int, Layer]
    squashed: bool
    half_precision: bool

    @property
    def classes(self) -> int:
        """Number of logits."""
        return self.nodes[-1].size

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        rule = self.nodes[-1].rule
        assert isinstance(rule, Affine)  # noqa: S101 - the graph ends so
        return rule.bias.device

    @cached_property
    def users(self) -> list[list[int]]:
        """Indices of the nodes that read each node."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for parent in node.parents:
                found[parent].append(node.index)
        return found

    @cached_property
    def bent(self) -> list[Node]:
        """The nonlinear nodes."""
        return [n for n in self.nodes if n.rule is not None and not isinstance(n.rule, Affine)]

    def columns(self, index: int) -> Tensor | None:
        """Returns which entries of the probe each entry of a value can depend on.

        Returns:
            Int64 [size, w], distinct in each row; None where w would be more than half of them.
        """
        if index not in self._columns:
            self._columns[index] = self._find_columns(index)
        return self._columns[index]

    @cached_property
    def _columns(self) -> dict[int, Tensor | None]:
        return {}

    def rows(self, index: int) -> Tensor | None:
        """Returns the entries of a value as forms of the probe, at the places of `columns`.

        Returns:
            Float64 [size, w or d] without the bias; None where the value is not affine in the
            probe, or so large that they are not kept.
        """
        if index not in self._rows:
            self._rows[index] = self._find_rows(index) if self.straight[index] else None
        return self._rows[index]

    @cached_property
    def _rows(self) -> dict[int, Tensor | None]:
        return {}

    def offset(self, index: int) -> Tensor:
        """Returns a value that is affine in the probe at the probe 0, float64 [*shape]."""
        if index not in self._offsets:
            node = self.nodes[index]
            if isinstance(node.rule, Affine):
                given = [self.offset(p)[None] for p in node.parents]
                self._offsets[index] = node.rule.linear(*given)[0] + node.rule.bias
            else:
                self._offsets[index] = torch.zeros(
                    node.shape, dtype=torch.float64, device=self.device
                )
        return self._offsets[index]

    @cached_property
    def _offsets(self) -> dict[int, Tensor]:
        return {}

    @cached_property
    def straight(self) -> list[bool]:
        """Whether each value is affine in the probe."""
        found: list[bool] = []
        for node in self.nodes:
            affine_here = node.rule is None or isinstance(node.rule, Affine)
            found.append(affine_here and all(found[p] for p in node.parents))
        return found

    def _find_rows(self, index: int) -> Tensor | None:
        columns = self.columns(index)
        width = self.nodes[0].size if columns is None else columns.shape[1]
        if self.nodes[index].size * width > _MOST_ROWS:
            return None
        found = []
        for start, forms in self._pulled(index, absolute=False):
            part = columns[start : start + len(forms)] if columns is not None else None
            found.append(forms if part is None else forms.gather(1, part))
        return torch.cat(found) if found else None

    def _find_columns(self, index: int) -> Tensor | None:
        pattern = torch.cat(
            [forms > 0 for _, forms in self._pulled(index, absolute=True)]
            or [torch.ones(1, 1, dtype=torch.bool)]
        )
        width = max(1, int(pattern.sum(1).max()))
        if 2 * width > pattern.shape[1]:
            return None
        return pattern.to(torch.float32).topk(width, dim=1).indices.sort(dim=1).values

    def _pulled(self, index: int, *, absolute: bool) -> Iterator[tuple[int, Tensor]]:
        """Yields blocks of the entries of a value as forms of the probe, all slopes 1."""
        node = self.nodes[index]
        for start in range(0, node.size, _BLOCK):
            count = min(_BLOCK, node.size - start)
            rows = torch.zeros(count, node.size, dtype=torch.float64, device=self.device)
            rows.diagonal(start).fill_(1)
            rows = rows.reshape(1, count, *node.shape)
            forms = walk(self, index, rows, self._everywhere, absolute=absolute)
            if forms is not None:
                yield start, forms[0]

    def _everywhere(self, bent: Node, form: Tensor) -> tuple[Tensor, ...]:
        """Takes forms back to all entries that a nonlinear node may have them from."""
        if not isinstance(bent.rule, MaxPool):
            return (form,)
        flat = form.flatten(2)
        parent = self.nodes[bent.parents[0]]
        part = flat.new_zeros(*flat.shape[:2], parent.size)
        for tap in bent.rule.windows.T:
            part.index_add_(2, tap, flat)
        return (part.reshape(*flat.shape[:2], *parent.shape),)

    def evaluate(self, x: Tensor, until: int | None = None) -> list[Tensor]:
        """Returns all values [n, *shape] of probes [n, *probe shape] in float64."""
        values: list[Tensor] = []
        for node in self.nodes[: None if until is None else until + 1]:
            given = [values[p] for p in node.parents]
            if isinstance(node.rule, Affine):
                values.append(node.rule.linear(*given) + node.rule.bias)
            elif node.rule is None:
                values.append(x)
            else:
                values.append(node.rule.function(*given))
        return values

    def logits(self, x: Tensor) -> Tensor:
        """Returns the logits [n, classes] of probes [n, *probe shape] in float64."""
        return self.evaluate(x)[-1]


def walk(
    graph: Graph,
    start: int,
    rows: Tensor,
    through: Callable[[Node, Tensor], tuple[Tensor, ...]],
    *,
    absolute: bool = False,
    visit: Callable[[Node, Tensor], None] | None = None,
) -> Tensor | None:
    """Takes linear forms of a value back to the probe.

    Args:
        graph: The graph.
        start: Index of the value.
        rows: The forms, float64 [n, k, *shape].
        through: Takes forms of a nonlinear node to its parents; an empty tuple ends there.
        absolute: Whether affine maps are taken with their absolute values.
        visit: Sees every affine node and the forms of it.

    Returns:
        Forms of the probe, [n, k, d]; None where no path leads there.
    """
    n, k = rows.shape[:2]
    forms = {start: rows}
    for index in range(start, 0, -1):
        if index not in forms:
            continue
        node, form = graph.nodes[index], forms.pop(index)
        if isinstance(node.rule, Affine):
            if visit is not None:
                visit(node, form)
            pull = node.rule.absolute_adjoint if absolute else node.rule.adjoint
            assert pull is not None  # noqa: S101 - the caller has looked
            parts = pull(form.flatten(0, 1))
            parts = tuple(p.reshape(n, k, *p.shape[1:]) for p in parts)
        else:
            parts = through(node, form)
        for parent, part in zip(node.parents, parts, strict=False):
            forms[parent] = forms[parent] + part if parent in forms else part
    return forms[0].flatten(2) if 0 in forms else None
