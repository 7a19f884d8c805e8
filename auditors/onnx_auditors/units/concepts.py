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
        values: Values of directions on the sample, by rank, [directions, m], m at most 4,096.
        concepts: What the probes show.
        parts: Whether to score without each eighth too.

    Returns:
        Scores [directions, 9], or [directions, 1] without parts: of all, then without each eighth;
        and the number of the best concept, [directions].
    """
    device = values.device
    shown = torch.from_numpy(concepts.shown).float().to(device)
    ordered, order = values.sort(1)
    runs = _runs(ordered)
    every = torch.ones(values.shape[1], device=device)
    all_probes = _auroc(order, runs, shown, every)
    best, which = all_probes.max(1)
    columns = [best]
    if parts:
        eighth = torch.arange(values.shape[1], device=device) % EIGHTHS
        kept = ((eighth != part).float() for part in range(EIGHTHS))
        columns += [_auroc(order, runs, shown, part).amax(1) for part in kept]
    scores = 2 * torch.stack(columns, 1) - 1
    return scores.cpu().numpy(), concepts.names[which.cpu().numpy()]


def _runs(ordered: Tensor) -> tuple[Tensor, Tensor] | None:
    """Returns where the run of equal values around each sorted place begins and ends, [d, m] each.

    None where all values differ.
    """
    fresh = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[:, 1:], ordered[:, :-1], out=fresh[:, 1:])
    if fresh.all():
        return None
    places = torch.arange(ordered.shape[1], device=ordered.device).expand_as(ordered)
    begins = torch.where(fresh, places, 0).cummax(1).values
    last = torch.roll(fresh, -1, 1)
    last[:, -1] = True
    ends = torch.where(last, places + 1, ordered.shape[1]).flip(1).cummin(1).values.flip(1)
    return begins, ends


def _auroc(
    order: Tensor, runs: tuple[Tensor, Tensor] | None, shown: Tensor, kept: Tensor
) -> Tensor:
    """Returns P(shown > other) + P(tie) / 2 among the kept probes, float64 [directions, c].

    Twice the midranks are integers whose sums stay below 2^24 for up to 4,096 probes, so that
    single precision is exact.
    """
    counts = kept[order].cumsum(1)
    if runs is None:
        twice = 2 * counts
    else:
        counts = torch.nn.functional.pad(counts, (1, 0))
        twice = counts.gather(1, runs[0]) + counts.gather(1, runs[1]) + 1
    # Back from sorted places to probes.
    twice = torch.empty_like(twice).scatter_(1, order, twice)
    concepts = shown * kept[:, None]
    inside = concepts.double().sum(0)
    outside = float(kept.sum()) - inside
    pairs = (twice @ concepts).double() / 2 - inside * (inside + 1) / 2
    # A concept that is gone from a part of the probes tells nothing there.
    return torch.where((inside > 0) & (outside > 0), pairs / (inside * outside).clamp_min(1), 0.5)


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
