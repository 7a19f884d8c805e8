"""How much the margins of single probes can change in balls around them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from onnx_auditors.lipschitz.ball import ball
from onnx_auditors.lipschitz.crown import Bounds
from onnx_auditors.lipschitz.graph import Graph
from onnx_auditors.lipschitz.local import amplifications

Doubles = npt.NDArray[np.float64]


def largest_amplification(
    graph: Graph,
    inputs: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    norm: str,
    radius: float,
    box: tuple[Doubles, Doubles],
) -> Doubles:
    """Returns upper bounds of the Lipschitz constants of the margins on balls around probes.

    Args:
        graph: A graph without obstacles; see `certify.obstacles`.
        inputs: Probes in probe space, inside the box, [n, *probe shape].
        labels: Classes, [n]; the margins are theirs to all others.
        norm: "l2" or "linf", of changes of the probe.
        radius: Radius of the balls, cut off at the box.
        box: Ends of the box, broadcasting to a probe.

    Returns:
        Float64 [n], the largest over the other classes.
    """

    def wide(values: npt.NDArray[np.floating]) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), dtype=torch.float64, device=graph.device)

    x, ends = wide(inputs), (wide(box[0]), wide(box[1]))
    bounds = Bounds(graph, ball(x, torch.full_like(x.flatten(1)[:, 0], radius), norm, ends))
    rows = torch.as_tensor(np.asarray(labels), dtype=torch.int64, device=graph.device)
    found: Doubles = amplifications(bounds, rows).amax(1).cpu().numpy()
    return found
