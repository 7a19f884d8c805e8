"""Scores of all probes of a sample: how well a direction tells a concept, and where it sees it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnx_auditors.units.source import EIGHTHS, Bools, Floats, Indices

_FEWEST = 10
"""Probes on each side of a concept, at least."""
_PERMUTATIONS, _SEED = 256, 101
_FEW_TIES = 0.01


@dataclass(frozen=True, eq=False)
class Concepts:
    """What probes of a sample show.

    Attributes:
        shown: Bool [m, c], of which each column has at least 10 on each side.
        names: Number of each column among all concepts or labels, [c].
    """

    shown: Bools
    names: Indices
    chance: float
    """Expected lead over 1/2 of the best AUROC of values that know nothing."""

    @classmethod
    def of(cls, labels: Indices | None, concepts: Bools | None, seed: int) -> Concepts | None:
        """Takes given concepts, or labels in their place; None where none has enough probes.

        Args:
            labels: By rank, [m]; None where there are none.
            concepts: By rank, [m, c]; None where none are given.
            seed: Seed of the permutations that tell what chance is.
        """
        if concepts is not None:
            shown, names = concepts, np.arange(concepts.shape[1])
        elif labels is not None:
            names = np.unique(labels)
            shown = labels[:, None] == names
        else:
            return None
        enough = (shown.sum(0) >= _FEWEST) & ((~shown).sum(0) >= _FEWEST)
        if not enough.any():
            return None
        kept = shown[:, enough]
        rng = np.random.default_rng([seed, _SEED])
        ranks = rng.permuted(np.tile(np.arange(1.0, len(kept) + 1), (_PERMUTATIONS, 1)), axis=1)
        inside = kept.sum(0)
        pairs = ranks @ kept - inside * (inside + 1) / 2
        best = (pairs / (inside * (len(kept) - inside))).max(1)
        return cls(kept, names[enough], float(best.mean()) - 0.5)


def best_auroc(
    values: Tensor, concepts: Concepts, rng: np.random.Generator, *, parts: bool
) -> tuple[Floats, Indices]:
    """Returns how well each direction tells the concept that it tells best.

    With B its AUROC, (B - B0) / (1 - B0): 1 where it is perfect, 0 at chance, where B0 is what the
    best of so many concepts reaches by chance. Ties are broken at random, direction by direction,
    so that chance is alike for units with many equal values and for directions without.

    Args:
        values: Values of directions on the sample, by rank, [directions, m], m at most 4,096.
        concepts: What the probes show.
        rng: Breaks ties.
        parts: Whether to score without each eighth too.

    Returns:
        Scores [directions, 9], or [directions, 1] without parts: of all, then without each eighth;
        and the number of the best concept, [directions].
    """
    device = values.device
    shown = torch.from_numpy(concepts.shown).float().to(device)
    order = _order(values, rng)
    best, which = _auroc(order, shown, torch.ones(values.shape[1], device=device)).max(1)
    columns = [best]
    if parts:
        eighth = torch.arange(values.shape[1], device=device) % EIGHTHS
        kept = ((eighth != part).float() for part in range(EIGHTHS))
        columns += [_auroc(order, shown, part).amax(1) for part in kept]
    found = torch.stack(columns, 1)
    level = torch.full_like(found, 0.5 + concepts.chance)
    # With fewer probes chance strays more.
    level[:, 1:] = 0.5 + concepts.chance * math.sqrt(EIGHTHS / (EIGHTHS - 1))
    scores = (found - level) / (1 - level)
    return scores.cpu().numpy(), concepts.names[which.cpu().numpy()]


def _order(values: Tensor, rng: np.random.Generator) -> Tensor:
    """Returns the probes by rising value, int64 [directions, m]; equal ones in random order."""
    order: Tensor
    ordered, order = torch.sort(values, stable=True, dim=1)
    ties = (ordered[:, 1:] == ordered[:, :-1]).sum(1)
    # Among continuous values a few are equal by rounding: their order does not matter.
    tied = torch.nonzero(ties > _FEW_TIES * values.shape[1])[:, 0]
    if len(tied):
        mixed = torch.from_numpy(rng.random((len(tied), values.shape[1])).argsort(1))
        mixed = mixed.to(values.device)
        again = torch.sort(values[tied].gather(1, mixed), stable=True, dim=1).indices
        order[tied] = mixed.gather(1, again)
    return order


def _auroc(order: Tensor, shown: Tensor, kept: Tensor) -> Tensor:
    """Returns P(shown > other) among the kept probes, float64 [directions, c].

    Ranks are integers whose sums stay below 2^24 for up to 4,096 probes: single precision is exact.
    """
    sorted_ranks = kept[order].cumsum(1)
    # Back from sorted places to probes.
    ranks = torch.empty_like(sorted_ranks).scatter_(1, order, sorted_ranks)
    concepts = shown * kept[:, None]
    inside = concepts.double().sum(0)
    outside = float(kept.sum()) - inside
    pairs = (ranks @ concepts).double() - inside * (inside + 1) / 2
    # A concept that is gone from a part of the probes tells nothing there.
    return torch.where((inside > 0) & (outside > 0), pairs / (inside * outside).clamp_min(1), 0.5)


def best_iou(values: Tensor, masks: Tensor, rng: np.random.Generator) -> tuple[Floats, Indices]:
    """Returns the best intersection over union of each direction's largest places with a mask.

    For each concept as many places count as it covers, so that no threshold has to be chosen: with
    n of them and i inside, i / (2 n - i). By chance it is about half the share that it covers.

    Args:
        values: Values of directions at all places of the sample, [directions, places].
        masks: Whether a place sees a concept, bool [places, c].
        rng: Breaks ties.

    Returns:
        Scores [directions] and the number of the best concept, [directions].
    """
    falling = _order(values, rng).flip(1)
    columns = []
    for concept, size in enumerate(masks.sum(0).tolist()):
        inside = masks[:, concept][falling[:, :size]].sum(1).double()
        columns.append(inside / (2 * size - inside).clamp_min(1))
    best, which = torch.stack(columns, 1).max(1)
    return best.cpu().numpy(), which.cpu().numpy()
