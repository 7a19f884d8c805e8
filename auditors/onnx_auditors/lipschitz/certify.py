"""Certified radii: how far from each probe no point of the box is answered differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnx_auditors.lipschitz.activations import Activation
from onnx_auditors.lipschitz.affine import Affine
from onnx_auditors.lipschitz.ball import ball
from onnx_auditors.lipschitz.composition import LARGEST_VALUE, global_radii, pairs_of
from onnx_auditors.lipschitz.crown import Bounds
from onnx_auditors.lipschitz.graph import Graph, ToInput, graph_of
from onnx_auditors.lipschitz.joint import MaxPool
from onnx_auditors.lipschitz.local import amplifications
from onnx_auditors.lipschitz.search import Search
from onnx_auditors.network import Network

BallNorm = Literal["l2", "linf"]
NORMS: tuple[BallNorm, ...] = ("l2", "linf")
_MEMORY = 1 << 24
"""Entries of the largest block of linear forms of one probe times the number of probes."""
_DELTA, _ENTROPY = 1e-12, 0
_EVALUATION = 1e-4
"""Share of the largest logit that a float32 evaluation is taken to err by at most."""

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Certificates:
    """Radii and where they come from.

    Attributes:
        radius: Float64 [n]; 0 where the probe is misclassified or nothing could be proved.
        method: "crown" or "anchored" where that alone proves it, "together" where it takes both,
            "global" for the global bound; "" where the radius is 0.
    """

    radius: Doubles
    method: list[str]


def certified_radii(
    network: Network,
    inputs: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    norm: BallNorm = "l2",
    box: tuple[float | Doubles, float | Doubles] = (0.0, 1.0),
    *,
    to_input: ToInput | None = None,
) -> Doubles:
    """Returns radii in which no point of the box is answered otherwise than by the label.

    Certified is the file as a float32 evaluation computes it: for every float32 point p of the box
    with ||p - probe|| < radius the label has the strictly largest logit (and score), whatever the
    order in which sums are added up, for the error model of `crown`. That holds for kernels that
    form each sum from its products, and not for half precision, TF32 or Winograd convolutions.
    Where only the global bound applies (normalising layers, softmax inside), its radius is that of
    exact arithmetic with margins lowered by 1e-4 of the largest logit for float32, which is far
    above what is seen and no proof.

    For each other class the margin's bound is the better one of backward relaxation and of secants
    through the probe; the slopes of the latter lie within those of a Lipschitz bound in the ball,
    so that such a bound never gives a larger radius.

    Args:
        network: The network.
        inputs: Probes in probe space, [n, *probe shape].
        labels: Classes, [n].
        norm: "l2" or "linf".
        box: Ends of the box, broadcasting to a probe.
        to_input: The affine map from probes to the model's input; see `graph_of`.

    Returns:
        Float64 [n]; 0 where the probe is misclassified or nothing can be proved.

    Raises:
        ValueError: An unknown norm, or a probe outside the box.
    """
    _check_norm(norm)
    graph = graph_of(network, inputs.shape[1:], to_input)
    pairs = None
    if obstacles(graph) and not refusals(graph):
        pairs = pairs_of(graph, norm, delta=_DELTA, entropy=_ENTROPY)
    return certificates(graph, inputs, labels, norm, box, pairs).radius


def refusals(graph: Graph) -> list[str]:
    """Returns why not even a global bound certifies anything; empty if one does."""
    found = list(graph.problems)
    if graph.half_precision:
        found.append("the model computes in half precision, whose errors are not bounded")
    return found


def obstacles(graph: Graph) -> list[str]:
    """Returns why a graph has no bounds in balls; empty if it has."""
    found = refusals(graph)
    largest = max(node.size for node in graph.nodes)
    if largest > LARGEST_VALUE:
        found.append(
            f"a value has {largest} entries; bounds in balls relax at most {LARGEST_VALUE}"
        )
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
    norm: BallNorm = "l2",
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
    _check_norm(norm)
    count = len(inputs)
    radius, methods = np.zeros(count), [""] * count
    if refusals(graph) or not count:
        return Certificates(radius, methods)
    device = graph.device
    x = torch.as_tensor(np.asarray(inputs), dtype=torch.float64, device=device)
    ends = tuple(torch.as_tensor(e, dtype=torch.float64, device=device) for e in box)
    if bool(((x < ends[0]) | (x > ends[1])).any()):
        raise ValueError("inputs: a probe lies outside the box")
    y = torch.as_tensor(np.asarray(labels), dtype=torch.int64, device=device)
    if not obstacles(graph):
        _in_balls(graph, (x, y), norm, (ends[0], ends[1]), (radius, methods))
    if pairs is not None:
        _globally(graph, (x, y), pairs, (radius, methods))
    return Certificates(radius, methods)


def _blocks(graph: Graph, count: int) -> tuple[Tensor, ...]:
    """Returns the indices of some probes in blocks of which each fits into memory."""
    step = max(1, _MEMORY // (64 * max(node.size for node in graph.nodes)))
    return torch.split(torch.arange(count, device=graph.device), step)


def _check_norm(norm: str) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm: found {norm!r}, allowed are {', '.join(NORMS)}")


def _globally(
    graph: Graph, probes: tuple[Tensor, Tensor], pairs: Tensor, found: tuple[Doubles, list[str]]
) -> None:
    """Raises the radii to those that global bounds of pairs give."""
    logits = graph.logits(probes[0])
    slack = _EVALUATION * logits.abs().amax(1).clamp(min=1)
    lowered = logits.scatter_add(1, probes[1][:, None], -slack[:, None])
    radii = global_radii(lowered, probes[1], pairs).cpu().numpy()
    for i in np.flatnonzero(radii > found[0]):
        found[0][i], found[1][i] = radii[i], "global"


def _in_balls(
    graph: Graph, probes: tuple[Tensor, Tensor], norm: str, box: tuple[Tensor, Tensor],
    found: tuple[Doubles, list[str]],
) -> None:  # fmt: skip
    """Raises the radii to those that bounds in balls give."""
    x, y = probes
    for rows in _blocks(graph, len(x)):
        search = Search(graph, x[rows], y[rows], norm, box)
        search.run()
        found[0][rows.cpu().numpy()] = search.low.cpu().numpy()
        for i, name in zip(rows.tolist(), search.method, strict=True):
            found[1][i] = name


def local_bounds(
    graph: Graph,
    inputs: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    norm: BallNorm,
    radii: Sequence[float],
    box: tuple[float | Doubles, float | Doubles] = (0.0, 1.0),
) -> Doubles:
    """Returns upper bounds of the Lipschitz constants of the label's margins in balls in the box.

    A statement on the function in exact arithmetic; see `local.amplifications`.

    Args:
        graph: The graph.
        inputs: Probes in probe space, [n, *probe shape].
        labels: Classes, [n].
        norm: "l2" or "linf".
        radii: Radii of the balls, above 0.
        box: Ends of the box, broadcasting to a probe.

    Returns:
        Float64 [n, radii], the largest over the other classes; infinite where nothing is known.

    Raises:
        ValueError: An unknown norm, or a radius that is not above 0.
    """
    _check_norm(norm)
    if any(not radius > 0 for radius in radii):
        raise ValueError(f"radii: found {list(radii)}, allowed are numbers above 0")
    found = np.full((len(inputs), len(radii)), np.inf)
    if obstacles(graph):
        return found
    x = torch.as_tensor(np.asarray(inputs), dtype=torch.float64, device=graph.device)
    y = torch.as_tensor(np.asarray(labels), dtype=torch.int64, device=graph.device)
    ends = [torch.as_tensor(e, dtype=torch.float64, device=graph.device) for e in box]
    for rows in _blocks(graph, len(x)):
        for k, radius in enumerate(radii):
            size = torch.full((len(rows),), float(radius), dtype=torch.float64, device=x.device)
            bounds = Bounds(graph, ball(x[rows], size, norm, (ends[0], ends[1])))
            worst = amplifications(bounds, y[rows]).amax(1)
            found[rows.cpu().numpy(), k] = worst.cpu().numpy()
    # What holds in a ball holds in the smaller ones.
    order = np.argsort(radii)[::-1]
    found[:, order] = np.minimum.accumulate(found[:, order], axis=1)
    return found
