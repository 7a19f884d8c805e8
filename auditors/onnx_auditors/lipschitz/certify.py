"""Certified radii: how far from each probe no point of the box is answered differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.lipschitz.activations import Activation
from onnx_auditors.lipschitz.affine import Affine
from onnx_auditors.lipschitz.ball import ball
from onnx_auditors.lipschitz.building import graph_of
from onnx_auditors.lipschitz.composition import (
    LARGEST_VALUE,
    all_layers,
    compose_bounds,
    global_radii,
)
from onnx_auditors.lipschitz.crown import Bounds
from onnx_auditors.lipschitz.graph import Graph, ToInput
from onnx_auditors.lipschitz.joint import MaxPool, Opaque
from onnx_auditors.lipschitz.layerwise import Layerwise
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
class LayerBounds:
    """What the layers' bounds have to say on a probe.

    Attributes:
        layers: Messages of `layer_bounds`, one per layer of `pieces(graph)`, in its order.
        pairs: Global bounds of the margins of pairs of classes, float64 [classes, classes].
    """

    layers: Sequence[v1.LipschitzLayer]
    pairs: Tensor


@dataclass(frozen=True)
class Certificates:
    """Radii and where they come from.

    Attributes:
        radius: Float64 [n]; 0 where the probe is misclassified or nothing could be proved.
        method: "crown" or "anchored" where that alone proves it, "together" where it takes both,
            "layers" for the layers' bounds in the ball, "global" for the global bound; "" where the
            radius is 0.
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
    Where no relaxation is known (attention, normalising layers, softmax inside) or the network is
    too large for it, the radius comes from the layers' bounds in the ball or the global bound: it
    is that of exact arithmetic with margins lowered by 1e-4 of the largest logit for float32, which
    is far above what is seen and no proof.

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
    bounds = None
    if obstacles(graph) and not refusals(graph):
        layers = all_layers(graph, (norm,), delta=_DELTA, entropy=_ENTROPY)
        composed = compose_bounds(graph, layers, norm, delta=_DELTA, entropy=_ENTROPY)
        bounds = LayerBounds(layers, composed.pairs)
    return certificates(graph, inputs, labels, norm, box, bounds).radius


def refusals(graph: Graph) -> list[str]:
    """Returns why nothing at all certifies a radius; empty if something does."""
    found = list(graph.refused)
    if graph.half_precision:
        found.append("the model computes in half precision, whose errors are not bounded")
    return found


def obstacles(graph: Graph) -> list[str]:
    """Returns why a graph cannot be relaxed in balls; empty if it can."""
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
    bounds: LayerBounds | None = None,
) -> Certificates:
    """Returns certified radii of probes; see `certified_radii`.

    Args:
        graph: The graph.
        inputs: Probes in probe space, [n, *probe shape].
        labels: Classes, [n].
        norm: "l2" or "linf".
        box: Ends of the box, broadcasting to a probe.
        bounds: Of the layers and the network, for what they certify.

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
    if bounds is not None:
        given, _ = layer_certificates(graph, inputs, labels, norm, bounds)
        for i in np.flatnonzero(given.radius > radius):
            radius[i], methods[i] = given.radius[i], given.method[i]
    return Certificates(radius, methods)


def _blocks(graph: Graph, count: int) -> tuple[Tensor, ...]:
    """Returns the indices of some probes in blocks of which each fits into memory."""
    step = max(1, _MEMORY // (64 * max(node.size for node in graph.nodes)))
    return torch.split(torch.arange(count, device=graph.device), step)


def _check_norm(norm: str) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm: found {norm!r}, allowed are {', '.join(NORMS)}")


def layer_certificates(
    graph: Graph,
    inputs: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    norm: BallNorm,
    bounds: LayerBounds,
    radii: Sequence[float] = (),
) -> tuple[Certificates, Doubles]:
    """Returns what the bounds of layers and of pairs of classes say on probes.

    Layer by layer in balls only where that is more than the global bound: where a function is
    bounded, or far less steep, near the probe alone.

    Args:
        graph: The graph, without `refusals`.
        inputs: Probes in probe space, [n, *probe shape].
        labels: Classes, [n].
        norm: "l2" or "linf".
        bounds: Of the layers and the network.
        radii: Radii of balls, above 0.

    Returns:
        Radii with their methods, and bounds as those of `local_bounds`, float64 [n, radii].
    """
    x = torch.as_tensor(np.asarray(inputs), dtype=torch.float64, device=graph.device)
    y = torch.as_tensor(np.asarray(labels), dtype=torch.int64, device=graph.device)
    radius, methods = np.zeros(len(x)), [""] * len(x)
    steepest = np.zeros((len(x), len(radii)))
    for rows in _blocks(graph, len(x)):
        found, steep = _by_layers(graph, (x[rows], y[rows]), norm, bounds, radii)
        places = rows.cpu().numpy()
        radius[places], steepest[places] = found.radius, steep
        for i, method in zip(rows.tolist(), found.method, strict=True):
            methods[i] = method
    return Certificates(radius, methods), steepest


def _by_layers(
    graph: Graph, probes: tuple[Tensor, Tensor], norm: BallNorm, bounds: LayerBounds,
    radii: Sequence[float],
) -> tuple[Certificates, Doubles]:  # fmt: skip
    x, y = probes
    logits = graph.logits(x)
    slack = _EVALUATION * logits.abs().amax(1).clamp(min=1)
    lowered = logits.scatter_add(1, y[:, None], -slack[:, None])
    radius = global_radii(lowered, y, bounds.pairs)
    methods = ["global" if r > 0 else "" for r in radius.tolist()]
    steepest = bounds.pairs[y].amax(1)[:, None].expand(-1, len(radii)).clone()
    if any(isinstance(node.rule, Opaque) and node.rule.moving for node in graph.bent):
        layerwise = Layerwise(graph, bounds.layers, norm, x)
        near = layerwise.radii(lowered.gather(1, y[:, None]) - lowered, y)
        methods = ["layers" if r else m for r, m in zip(near > radius, methods, strict=True)]
        radius = torch.maximum(radius, near)
        for k, size in enumerate(radii):
            found = layerwise.amplifications(y, torch.full_like(radius, float(size))).amax(1)
            steepest[:, k] = torch.minimum(steepest[:, k], found)
    return Certificates(radius.cpu().numpy(), methods), steepest.cpu().numpy()


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
    x = torch.as_tensor(np.asarray(inputs), dtype=torch.float64, device=graph.device)
    y = torch.as_tensor(np.asarray(labels), dtype=torch.int64, device=graph.device)
    if obstacles(graph):
        return found
    ends = [torch.as_tensor(e, dtype=torch.float64, device=graph.device) for e in box]
    for rows in _blocks(graph, len(x)):
        for k, radius in enumerate(radii):
            size = torch.full((len(rows),), float(radius), dtype=torch.float64, device=x.device)
            balls = ball(x[rows], size, norm, (ends[0], ends[1]))
            worst = amplifications(Bounds(graph, balls), y[rows]).amax(1)
            found[rows.cpu().numpy(), k] = worst.cpu().numpy()
    # What holds in a ball holds in the smaller ones.
    order = np.argsort(radii)[::-1]
    found[:, order] = np.minimum.accumulate(found[:, order], axis=1)
    return found
