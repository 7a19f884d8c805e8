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
    """Expected lead over 1/2 of the best AUROC of values without ties that know nothing."""

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


def best_auroc(values: Tensor, concepts: Concepts, *, parts: bool) -> tuple[Floats, Indices]:
    """Returns how well each direction tells the concept that it tells best.

    With B its AUROC, (B - B0) / (1 - B0): 1 where it is perfect, 0 at chance. B0 is what the best
    of so many concepts reaches by chance; values with ties stray less from 1/2, by the root of
    1 - sum (t^3 - t) / (n^3 - n) over runs of t equal values among n (Lehmann 1975,
    "Nonparametrics", section 1.4).

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
    chance = concepts.chance * _stray(runs, ordered)
    every = torch.ones(values.shape[1], device=device)
    all_probes = _auroc(order, runs, shown, every)
    best, which = all_probes.max(1)
    columns = [best]
    if parts:
        eighth = torch.arange(values.shape[1], device=device) % EIGHTHS
        kept = ((eighth != part).float() for part in range(EIGHTHS))
        columns += [_auroc(order, runs, shown, part).amax(1) for part in kept]
    found = torch.stack(columns, 1)
    level = torch.full_like(found, 0.5) + chance[:, None]
    # With fewer probes chance strays more.
    level[:, 1:] = 0.5 + chance[:, None] * math.sqrt(EIGHTHS / (EIGHTHS - 1))
    scores = (found - level) / (1 - level)
    return scores.cpu().numpy(), concepts.names[which.cpu().numpy()]


def _stray(runs: tuple[Tensor, Tensor] | None, ordered: Tensor) -> Tensor:
    """Returns how far AUROCs stray from 1/2 by chance over how far they do without ties, [d]."""
    if runs is None:
        return torch.ones(len(ordered), dtype=torch.float64, device=ordered.device)
    count = ordered.shape[1]
    # Each of the t places of a run adds t^2 - 1.
    length = (runs[1] - runs[0]).double()
    return (1 - (length**2 - 1).sum(1) / (count**3 - count)).clamp_min(0).sqrt()


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
    n of them and i inside, i / (2 n - i). By chance it is about half the share that it covers. Of
    equal values at the threshold the expected share is inside.

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
        above, equal = values > bar, values == bar
        covered = masks[:, concept]
        share = equal[:, covered].sum(1).double() / equal.sum(1)
        inside = above[:, covered].sum(1) + (size - above.sum(1)) * share
        columns.append(inside / (2 * size - inside))
    best, which = torch.stack(columns, 1).max(1)
    return best.cpu().numpy(), which.cpu().numpy()
