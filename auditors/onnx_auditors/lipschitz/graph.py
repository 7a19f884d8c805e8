"""A network as bounds look at it: affine maps and nonlinear functions on an acyclic graph.

It starts at a probe and ends at the logits, and is taken in float64: the weights are those of the
file, and what is bounded is the function that they define in exact arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from onnx_auditors.lipschitz.activations import Activation
from onnx_auditors.lipschitz.affine import Affine
from onnx_auditors.lipschitz.dependence import columns_of, rows_of
from onnx_auditors.lipschitz.joint import MaxPool, Opaque
from onnx_auditors.network.layers import Layer

_MOST_WEIGHTS = 1 << 22
"""Entries of a matrix that an affine node is kept as: 32 MiB."""
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
            self._columns[index] = columns_of(self, index)
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
            self._rows[index] = rows_of(self, index) if self.straight[index] else None
        return self._rows[index]

    @cached_property
    def _rows(self) -> dict[int, Tensor | None]:
        return {}

    def weights(self, index: int) -> Tensor | None:
        """Returns the entries of an affine node as forms of the value that it is made of.

        Returns:
            Float64 [size, *shape of the parent]; None where there are several, or where they are so
            large that they are not kept.
        """
        if index not in self._weights:
            node = self.nodes[index]
            made = None
            if isinstance(node.rule, Affine) and len(node.parents) == 1:
                parent = self.nodes[node.parents[0]]
                if node.size * parent.size <= _MOST_WEIGHTS:
                    units = torch.eye(node.size, dtype=torch.float64, device=self.device)
                    (made,) = node.rule.adjoint(units.reshape(-1, *node.shape))
            self._weights[index] = made
        return self._weights[index]

    @cached_property
    def _weights(self) -> dict[int, Tensor | None]:
        return {}

    def matrix(self, index: int) -> Tensor | None:
        """Returns an affine node as a matrix [size, size of the parent], where it is one."""
        rule = self.nodes[index].rule
        assert isinstance(rule, Affine)  # noqa: S101 - the caller has looked
        if rule.weight is None or len(self.nodes[index].parents) > 1:
            return None
        entries = self.nodes[index].size * self.nodes[self.nodes[index].parents[0]].size
        weights = self.weights(index) if rule.weight.numel() == entries else None
        return None if weights is None else weights.flatten(1)

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
