"""The state of a search over a batch of probes: what counts as success, best examples, the bill.

Every method works on a `Search`: it asks for scores and margins, which are booked per probe, and
offers points, of which the nearest adversarial one is kept. Everything is flat: rows of d values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from onnx_auditors import effort
from onnx_auditors.distortion import noise
from onnx_auditors.distortion.norms import Norm

Logits = Callable[[Tensor], Tensor]
"""From a batch in probe space [n, ...] to logits [n, classes]."""

_BLOCK_ROWS = {"cpu": 256, "cuda": 2**16}
"""Rows that go through the network together. On the CPU few of them stay in the cache."""


@dataclass(frozen=True)
class Margin:
    """A loss at a batch of points.

    Attributes:
        value: The loss, [m]; a margin is negative where the rival wins.
        gradient: Its gradient, [m, d].
        excess: Margin to being adversarial at all, [m]; negative where a point is adversarial.
        against: The strongest class apart from the target, or from the label without targets, [m].
    """

    value: Tensor
    gradient: Tensor
    excess: Tensor
    against: Tensor


class Search:
    """A batch of probes and the best that is known of each.

    Attributes:
        norm: What is made small.
        origin: The probes, [n, d].
        labels: The classes that count as right, int64 [n].
        targets: The classes that are aimed at, int64 [n]; None where any other class will do.
        anchors: Points of the box [p, d] and the network's answers to them [p]; None without.
        width: Mean width of the box.
        best: The nearest adversarial points so far, [n, d]; the probe where there is none.
        distance: Their distances, float64 [n]; inf where there is none.
        spent: (forward + backward rows) / 2 of each probe, float64 [n].
    """

    def __init__(
        self,
        logits: Logits,
        inputs: Tensor,
        labels: Tensor,
        box: tuple[Tensor, Tensor],
        *,
        norm: Norm,
        seeds: Tensor,
        targets: Tensor | None = None,
        anchors: tuple[Tensor, Tensor] | None = None,
        tell: Callable[[float], object] = lambda _: None,
    ) -> None:
        self.norm = norm
        self.shape = inputs.shape[1:]
        self.origin = inputs.flatten(1)
        self.labels = labels
        self.targets = targets
        self.anchors = None if anchors is None else (anchors[0].flatten(1), anchors[1])
        alike = [end.dim() < inputs.dim() or len(end) == 1 for end in box]
        self._box = [
            end.expand_as(inputs[:1] if same else inputs).flatten(1)
            for end, same in zip(box, alike, strict=True)
        ]
        self.width = float((box[1] - box[0]).mean())
        self.best = self.origin.clone()
        self.distance = inputs.new_full((len(inputs),), math.inf, dtype=torch.float64)
        self.spent = torch.zeros_like(self.distance)
        self._logits = logits
        self._tell = tell
        self._seeds = seeds
        self._charged = 0.0
        self._draws = torch.zeros_like(seeds)
        self._block = _BLOCK_ROWS[inputs.device.type]

    def scores(self, x: Tensor, rows: Tensor) -> Tensor:
        """Returns logits without gradients; costs half an evaluation a row."""
        self.charge(rows, 0.5)
        with torch.no_grad():
            return torch.cat(
                [self._logits(b.reshape(-1, *self.shape)) for b in torch.split(x, self._block)]
            )

    def margin(self, x: Tensor, rows: Tensor, rival: Tensor) -> Margin:
        """Returns the margin of points [m, d] to a rival class [m]; costs an evaluation a row.

        It is z_label - z_rival, or max(z_other) - z_target where targets are given.
        """
        return self._graded(self._margin, x, rows, rival)

    def cross_entropy(self, x: Tensor, rows: Tensor, rival: Tensor, sharpness: Tensor) -> Margin:
        """Returns the cross-entropy of points [m, d] to a rival class [m]; costs like `margin`.

        Where targets are given all classes compete, else only the label and the rival do: then it
        is log(1 + exp(z_label - z_rival)). Logits count times their row's sharpness [m].
        """
        return self._graded(self._cross_entropy, x, rows, rival, sharpness)

    def excess(self, scores: Tensor, rows: Tensor) -> Tensor:
        """Returns how far scores [m, classes] are from success, [m]; negative is success."""
        return self._standing(scores, rows)[0]

    def fooled(self, x: Tensor, rows: Tensor) -> Tensor:
        """Returns whether points are adversarial, bool [m], and keeps the best of them."""
        success = self.excess(self.scores(x, rows), rows) < 0
        self.offer(x, rows, success)
        return success

    def charge(self, rows: Tensor, cost: float) -> None:
        """Books the cost of one row for each entry of `rows`."""
        self.spent.index_add_(0, rows, torch.full_like(rows, cost, dtype=torch.float64))
        self._charged += cost * len(rows)
        effort.add(cost * len(rows))

    def left(self, rows: Tensor, budget: float) -> float:
        """Returns how many evaluations every row can still afford."""
        return budget - float(self.spent[rows].max())

    def noise(self, rows: Tensor) -> Tensor:
        """Returns standard Gaussian noise [m, d]; each probe's own, whatever else is there.

        Each probe counts its own draws, so that what only some of them need changes nothing for
        the others. The same probe has the same noise wherever it stands in `rows`.
        """
        self._draws[rows] += 1
        return noise.gaussian(self._seeds[rows], self._draws[rows], self.origin.shape[1])

    def box(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the box's ends, [m, d], or [1, d] where they are the same for all probes."""
        lower, upper = (end if len(end) == 1 else end.index_select(0, rows) for end in self._box)
        return lower, upper

    def clip(self, x: Tensor, rows: Tensor) -> Tensor:
        """Returns the nearest points of the box."""
        return torch.clamp(x, *self.box(rows))

    def room(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the least and the largest changes of probes that the box allows, [m, d]."""
        origin, (lower, upper) = self.origin.index_select(0, rows), self.box(rows)
        return lower - origin, upper - origin

    def parts(self, count: int) -> list[slice]:
        """Returns the parts of so many points that go through the network together."""
        return [slice(begin, begin + self._block) for begin in range(0, count, self._block)]

    def exact(self) -> Tensor:
        """Returns the distances computed in float64 all through."""
        found = self.norm.size(self.best.double() - self.origin)
        return torch.where(self.distance.isfinite(), found, self.distance)

    def offer(
        self, x: Tensor, rows: Tensor, adversarial: Tensor, change: Tensor | None = None
    ) -> None:
        """Takes those adversarial points that are nearer than the best so far.

        Args:
            x: Points, [m, d].
            rows: Their probes, [m].
            adversarial: Whether they count, bool [m].
            change: What they differ by from the probes, if that is known.
        """
        if change is None:
            change = x - self.origin.index_select(0, rows)
        distance = self.norm.size(change).masked_fill(~adversarial, math.inf)
        # Of several points for one probe the nearest counts.
        nearest = torch.full_like(self.distance, math.inf)
        nearest.scatter_reduce_(0, rows, distance, "amin")
        nearer = (distance == nearest[rows]) & (distance < self.distance[rows])
        chosen = nearer.nonzero().squeeze(1)
        self.distance[rows[chosen]] = distance[chosen]
        self.best[rows[chosen]] = x.index_select(0, chosen)

    def _graded(
        self, loss: Callable[..., Tensor], x: Tensor, rows: Tensor, *others: Tensor
    ) -> Margin:
        self.charge(rows, 1.0)
        self._tell(self._charged / len(self.spent))
        parts = []
        columns = (torch.split(column, self._block) for column in (x, rows, *others))
        for block, row, *rest in zip(*columns, strict=True):
            leaf = block.detach().requires_grad_()
            scores = self._logits(leaf.reshape(-1, *self.shape))
            value = loss(scores, row, *rest)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
            parts.append((value.detach(), gradient, *self._standing(scores.detach(), row)))
        return Margin(*(_joined(column) for column in zip(*parts, strict=True)))

    def _standing(self, scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns how far scores are from success, [m], and the strongest other class, [m]."""
        own = self.labels[rows] if self.targets is None else self.targets[rows]
        mine = scores.gather(1, own[:, None]).squeeze(1)
        others, strongest = scores.scatter(1, own[:, None], -math.inf).max(1)
        return (mine - others if self.targets is None else others - mine), strongest

    def _margin(self, scores: Tensor, rows: Tensor, rival: Tensor) -> Tensor:
        if self.targets is not None:
            return self.excess(scores, rows)
        right = scores.gather(1, self.labels[rows][:, None])
        return (right - scores.gather(1, rival[:, None])).squeeze(1)

    def _cross_entropy(
        self, scores: Tensor, rows: Tensor, rival: Tensor, sharpness: Tensor
    ) -> Tensor:
        scores = sharpness[:, None] * scores
        if self.targets is not None:
            return functional.cross_entropy(scores, rival, reduction="none")
        return functional.softplus(self._margin(scores, rows, rival))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Returns parts one after the other; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
