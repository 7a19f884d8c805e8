"""Where in a map directions have their largest value, for the few probes that are shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from onnx_auditors.units import calibration
from onnx_auditors.units.directions import Family
from onnx_auditors.units.setup import Prepared, Setup
from onnx_auditors.units.source import Indices

_PROBES = 64


@dataclass(frozen=True, eq=False)
class Rows:
    """Directions with some of their top inputs.

    Attributes:
        family: Their family.
        directions: Their numbers, [m].
        ranks: Ranks of probes, [m, k].
    """

    family: int
    directions: Indices
    ranks: Indices


def largest(setup: Setup, prepared: Prepared, rows: Rows) -> Indices:
    """Returns the place of the largest value, row-major in the grid of the map, [m, k]."""
    value = prepared.job.value
    numbers, inverse = np.unique(rows.ranks.ravel(), return_inverse=True)
    directions, which = np.unique(rows.directions, return_inverse=True)
    columns = _columns(prepared, rows.family, directions)
    found = np.empty((len(directions), len(numbers)), dtype=np.int64)
    for begin in range(0, len(numbers), _PROBES):
        part = numbers[begin : begin + _PROBES]
        for values in calibration.steps(
            setup.source, prepared.job.network, [value.measured], part, setup.order, len(part)
        ):
            units = value.looked_at(value.units(values[value.measured]))
            answers = prepared.scale.apply(units) @ columns
            found[:, begin : begin + len(part)] = answers.argmax(1).T.cpu().numpy()
    wide = np.broadcast_to(which.reshape(-1, 1), rows.ranks.shape)
    return value.positions[found[wide, inverse.reshape(rows.ranks.shape)]]


def _columns(prepared: Prepared, family: int, directions: Indices) -> torch.Tensor:
    """Returns directions by number as columns, float32 [d, m]."""
    made = prepared.directions
    if family == Family.NATURAL:
        identity = torch.zeros(made.size, len(directions))
        identity[directions, torch.arange(len(directions))] = made.sign[directions].cpu()
        return identity.to(made.device)
    columns = []
    for begin, end in made.chunks(family):
        inside = directions[(directions >= begin) & (directions < end)]
        if len(inside) and (chunk := made.matrix(family, begin, end)) is not None:
            columns.append(chunk[:, torch.from_numpy(inside - begin).to(made.device)])
    return torch.cat(columns, 1)
