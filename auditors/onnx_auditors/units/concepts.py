"""Scores of all probes of a sample: how well a direction tells a concept, and where it sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnx_auditors.units.source import EIGHTHS, Bools, Floats, Indices

_FEWEST = 10
"""Probes on each side of a concept, at least."""


@dataclass(frozen=True, eq=False)
class Concepts:
    """What probes of a sample show.

    Attributes:
        shown: Bool [m, c], of which each column has at least 10 on each side.
        names: Number of each column among all concepts or labels, [c].
    """

    shown: Bools
    names: Indices

    @classmethod
    def of(cls, labels: Indices | None, concepts: Bools | None) -> Concepts | None:
        """Takes given concepts, or labels in their place; None where none has enough probes.

        Args:
            labels: By rank, [m]; None where there are none.
            concepts: By rank, [m, c]; None where none are given.
        """
        if concepts is not None:
            shown, names = concepts, np.arange(concepts.shape[1])
        elif labels is not None:
            names = np.unique(labels)
            shown = labels[:, None] == names
        else:
            return None
        enough = (shown.sum(0) >= _FEWEST) & ((~shown).sum(0) >= _FEWEST)
        return cls(shown[:, enough], names[enough]) if enough.any() else None


def best_auroc(values: Tensor, concepts: Concepts, *, parts: bool) -> tuple[Floats, Indices]:
    """Returns 2 AUROC - 1 of the concept that each direction tells best.

    Args:
        values: Values of directions on the sample, by rank, [directions, m].
        concepts: What the probes show.
        parts: Whether to score without each eighth too.

    Returns:
        Scores [directions, 9], or [directions, 1] without parts: of all, then without each eighth;
        and the number of the best concept, [directions].
    """
    shown = torch.from_numpy(concepts.shown).to(values.device)
    every = _auroc(values, shown)
    best, which = every.max(1)
    columns = [best]
    if parts:
        eighth = torch.arange(values.shape[1], device=values.device) % EIGHTHS
        for part in range(EIGHTHS):
            kept = eighth != part
            columns.append(_auroc(values[:, kept], shown[kept]).amax(1))
    scores = 2 * torch.stack(columns, 1) - 1
    return scores.cpu().numpy(), concepts.names[which.cpu().numpy()]


def _auroc(values: Tensor, shown: Tensor) -> Tensor:
    """Returns P(shown > other) + P(tie) / 2 by midranks, float64 [directions, c]."""
    ordered = values.contiguous().sort(1).values
    below = torch.searchsorted(ordered, values.contiguous(), right=False)
    upto = torch.searchsorted(ordered, values.contiguous(), right=True)
    ranks = (below + upto + 1).double() / 2
    inside = shown.double().sum(0)
    outside = len(shown) - inside
    pairs = ranks @ shown.double() - inside * (inside + 1) / 2
    # A concept that is gone from a part of the probes tells nothing there.
    return torch.where(
        (inside > 0) & (outside > 0), pairs / (inside * outside).clamp_min(1), 0.5
    )


def best_iou(values: Tensor, masks: Tensor) -> tuple[Floats, Indices]:
    """Returns the best intersection over union of each direction's largest places with a mask.

    For each concept as many places count as it covers, so that no threshold has to be chosen: with
    n of them and i inside, i / (2 n - i). By chance it is about half the share that it covers.

    Args:
        values: Values of directions at all places of the sample, [directions, places].
        masks: Whether a place sees a concept, bool [places, c].

    Returns:
        Scores [directions] and the number of the best concept, [directions].
    """
    sizes = masks.sum(0)
    falling = values.sort(1, descending=True).values
    columns = []
    for concept, size in enumerate(sizes.tolist()):
        if not size:
            columns.append(torch.zeros(len(values), dtype=torch.float64, device=values.device))
            continue
        bar = falling[:, size - 1 : size]
        active = values >= bar
        inside = active[:, masks[:, concept]].sum(1).double()
        columns.append(inside / (active.sum(1) + size - inside))
    best, which = torch.stack(columns, 1).max(1)
    return best.cpu().numpy(), which.cpu().numpy()
