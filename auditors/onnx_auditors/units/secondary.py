"""Scores that others use, for comparison: class selectivity and the 2-AFC score.

Both are made of the probes of the sample.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from onnx_auditors.units.source import EIGHTHS, Floats, Indices, Single

SHOWN = 9
"""Inputs on each side that are shown, and as many that are asked about."""


def selectivity(values: Tensor, labels: Indices) -> tuple[Floats, Indices]:
    """Returns class selectivity and the label that each direction prefers.

    Morcos et al. 2018, "On the importance of single directions for generalization", section 2.3:
    (m - m') / (m + m') with m the largest mean activity for a label, and m' the mean of the other
    labels' means. Directions have no rectifier of their own: their activity is what is above their
    mean over the probes.

    Args:
        values: Values of directions on the sample, float32 [directions, m].
        labels: Labels of the sample, [m].

    Returns:
        Scores of all probes and without each eighth, [directions, 9], and labels, [directions].
    """
    names, numbers = np.unique(labels, return_inverse=True)
    shown = torch.nn.functional.one_hot(torch.from_numpy(numbers), len(names)).float()
    shown = shown.to(values.device)
    active = (values - values.mean(1, keepdim=True)).clamp_min(0)
    sums = torch.stack([active[:, i::EIGHTHS] @ shown[i::EIGHTHS] for i in range(EIGHTHS)]).double()
    counts = torch.stack([shown[i::EIGHTHS].sum(0) for i in range(EIGHTHS)]).double()
    whole, best = _selectivity(sums.sum(0), counts.sum(0))
    parts = [
        _selectivity(sums.sum(0) - sums[i], counts.sum(0) - counts[i])[0] for i in range(EIGHTHS)
    ]
    return torch.stack([whole, *parts], 1).cpu().numpy(), names[best.cpu().numpy()]


def _selectivity(sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the index and the place of the best label, from sums [directions, c], counts [c]."""
    there = counts > 0
    means = sums[:, there] / counts[there]
    best, place = means.max(1)
    others = (means.sum(1) - best) / max(1, means.shape[1] - 1)
    index = (best - others) / (best + others).clamp_min(1e-30)
    return index, torch.nonzero(there)[:, 0][place]


def two_afc(values: Tensor, embedding: Single) -> Floats:
    """Returns how well inputs with high values are told from such with low ones, by likeness alone.

    The task of Zimmermann et al. 2023, "Scale alone does not improve mechanistic interpretability
    in vision models", by a machine: of the 18 inputs with the largest values, and of the 18 with
    the smallest, every other one is shown. The rest are asked about, each of the one side with each
    of the other: is its mean cosine with the shown large ones, less that with the shown small ones,
    the larger? With P the share of such pairs for which it is (ties count half), 2 P - 1.

    Args:
        values: Values of directions on the sample, float32 [directions, m], m at least 36.
        embedding: Unit vectors of the sample in the reference embedding, [m, e].

    Returns:
        Scores [directions], 0 at chance and 1 at best.
    """
    points = torch.from_numpy(embedding).to(values.device)
    ends = [points[values.topk(2 * SHOWN, 1, largest=large).indices] for large in (True, False)]
    axis = ends[0][:, ::2].mean(1) - ends[1][:, ::2].mean(1)
    high, low = (torch.einsum("dke,de->dk", end[:, 1::2], axis) for end in ends)
    difference = high[:, :, None] - low[:, None, :]
    score: Floats = difference.sign().mean((1, 2)).double().cpu().numpy()
    return score
