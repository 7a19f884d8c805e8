"""Certified radii: how far from each probe no point of the box is answered differently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnx_auditors.lipschitz.activations import UNIT32, Activation
from onnx_auditors.lipschitz.affine import Affine
from onnx_auditors.lipschitz.ball import ball
from onnx_auditors.lipschitz.crown import Bounds
from onnx_auditors.lipschitz.graph import Graph, ToInput, graph_of
from onnx_auditors.lipschitz.joint import MaxPool
from onnx_auditors.lipschitz.local import anchored_margins
from onnx_auditors.network import Network

NORMS = ("l2", "linf")
EVALUATIONS = 14
"""Radii tried for each probe, at most."""
PRECISION = 0.004
"""Relative width of the interval in which the search for the radius ends."""
_MEMORY = 1 << 24
"""Entries of the largest block of linear forms of one probe times the number of probes."""
_TIES = 64 * UNIT32
"""Relative margin by which logits have to differ where the file squashes them in float32."""

Doubles = npt.NDArray[np.float64]
Margins = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Certificates:
    """Radii and where they come from.

    Attributes:
        radius: Float64 [n]; 0 where the probe is misclassified or nothing could be proved.
        method: Method that proves it by itself, or "together" where none does: "global", "crown",
            "anchored"; "" where the radius is 0.
    """

    radius: Doubles
    method: list[str]


def certified_radii(
    network: Network,
    inputs: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    norm: str = "l2",
    box: tuple[float | Doubles, float | Doubles] = (0.0, 1.0),
    *,
    to_input: ToInput | None = None,
) -> Doubles:
    """Returns radii in which no point of the box is answered otherwise than by the label.

    Certified is the file as a float32 evaluation computes it: for every float32 point p of the box
    with ||p - probe|| < radius the label has the strictly largest logit (and score), whatever the
    order in which sums are added up, for the error model of `crown`. That holds for kernels that
    form each sum from its products, and not for half precision, TF32 or Winograd convolutions.

    Args:
        network: The network.
        inputs: Probes in probe space, [n, *probe shape].
        labels: Classes, [n].
        norm: "l2" or "linf".
        box: Ends of the box, broadcasting to a probe.
        to_input: The affine map from probes to the model's input; see `graph_of`.

    Returns:
        Float64 [n]; 0 where the probe is misclassified, or nothing can be proved: see `obstacles`.

    Raises:
        ValueError: An unknown norm, or a probe outside the box.
    """
    graph = graph_of(network, inputs.shape[1:], to_input)
    return certificates(graph, inputs, labels, norm, box).radius


def obstacles(graph: Graph) -> list[str]:
    """Returns why nothing can be certified on a graph; empty if something can."""
    found = list(graph.problems)
    if graph.half_precision:
        found.append("the model computes in half precision, whose errors are not bounded")
    for node in graph.nodes[1:]:
        label = f"{node.op} '{node.label}'"
        if isinstance(node.rule, Affine):
            if node.rule.absolute is None:
                found.append(f"{label}: the signs of its coefficients are not known")
        elif not isinstance(node.rule, Activation | MaxPool):
            found.append(f"{label}: no relaxation of it is known")
    return list(dict.fromkeys(found))


def certificates(
    graph: Graph,
    inputs: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    norm: str = "l2",
    box: tuple[float | Doubles, float | Doubles] = (0.0, 1.0),
    pairs: Tensor | None = None,
) -> Certificates:
    """Returns certified radii of probes; see `certified_radii`.

    Args:
        graph: The graph.
        inputs: Probes in probe space, [n, *probe shape].
        labels: Classes, [n].
        norm: "l2" or "linf".
        box: Ends of the box, broadcasting to a probe.
        pairs: Global bounds of the margins of pairs of classes, float64 [classes, classes].

    Raises:
        ValueError: An unknown norm, or a probe outside the box.
    """
    if norm not in NORMS:
        raise ValueError(f"norm: found {norm!r}, allowed are {', '.join(NORMS)}")
    count = len(inputs)
    radius, methods = np.zeros(count), [""] * count
    if obstacles(graph) or not count:
        return Certificates(radius, methods)
    device = graph.nodes[-1].rule.bias.device  # type: ignore[union-attr]  # logits are affine
    x = torch.as_tensor(np.asarray(inputs), dtype=torch.float64, device=device)
    ends = tuple(torch.as_tensor(e, dtype=torch.float64, device=device) for e in box)
    if bool(((x < ends[0]) | (x > ends[1])).any()):
        raise ValueError("inputs: a probe lies outside the box")
    y = torch.as_tensor(np.asarray(labels), dtype=torch.int64, device=device)
    step = max(1, _MEMORY // (64 * max(node.size for node in graph.nodes)))
    for rows in torch.arange(count, device=device).split(step):
        search = _Search(graph, x[rows], y[rows], norm, (ends[0], ends[1]), pairs)
        search.run()
        radius[rows.cpu().numpy()] = search.low.cpu().numpy()
        for i, name in zip(rows.tolist(), search.names(), strict=True):
            methods[i] = name
    return Certificates(radius, methods)
