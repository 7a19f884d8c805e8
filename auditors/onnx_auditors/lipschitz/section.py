"""The bounds of a whole network as the report's section."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.lipschitz.ascent import Seen, ascend
from onnx_auditors.lipschitz.bound import Norm
from onnx_auditors.lipschitz.building import graph_of
from onnx_auditors.lipschitz.composition import Composed, all_layers, compose_bounds, global_radii
from onnx_auditors.lipschitz.graph import Graph, ToInput
from onnx_auditors.lipschitz.layer_bounds import norm_value
from onnx_auditors.network import Network

NORMS: tuple[Norm, ...] = ("l2", "linf", "l1")
DELTA = 1e-12
MOST_DOMINANT = 20
_FEW_PROBES = 8
_ONE_STEP = 1 / 255


def network_bounds(
    network: Network,
    norms: Sequence[Norm] = NORMS,
    *,
    delta: float = DELTA,
    entropy: int = 0,
    probes: Tensor | None = None,
    probe_shape: Sequence[int] | None = None,
    to_input: ToInput | None = None,
) -> v1.LipschitzSection:
    """Returns bounds of all layers and of the network, from probe space to the logits.

    Args:
        network: The network.
        norms: Norms of input and output alike.
        delta: Chance that a probabilistic bound does not hold.
        entropy: Seed of the random starts of such bounds.
        probes: Probes [n, *probe shape] near which the lower end is searched; none are drawn.
        probe_shape: Shape of one probe; that of the probes, or the model's sample, if left out.
        to_input: The affine map from probes to the model's input; see `graph_of`.

    Returns:
        The section with layers, network, dominant and unbounded; the rest is left to the auditor.

    Raises:
        ValueError: An unknown norm.
    """
    if unknown := set(norms) - set(NORMS):
        raise ValueError(f"norms: found {sorted(unknown)}, allowed are {', '.join(NORMS)}")
    shape = probe_shape if probes is None else probes.shape[1:]
    graph = graph_of(network, shape, to_input)
    layers = all_layers(graph, norms, delta=delta, entropy=entropy)
    return joined_layers(graph, layers, norms, delta=delta, entropy=entropy, probes=probes)[0]


def joined_layers(
    graph: Graph,
    layers: Sequence[v1.LipschitzLayer],
    norms: Iterable[Norm],
    *,
    delta: float,
    entropy: int,
    probes: Tensor | None,
) -> tuple[v1.LipschitzSection, dict[Norm, Tensor]]:
    """Returns the section of layers that are bounded, and the bounds of pairs of classes by norm.

    Args:
        graph: The graph.
        layers: Messages of `layer_bounds`, one per layer of `pieces(graph)`, in its order.
        norms: The norms.
        delta: Chance that a probabilistic bound does not hold, half of it spent on the layers.
        entropy: Seed of the random starts of such bounds.
        probes: As in `network_bounds`.
    """
    section = v1.LipschitzSection(unbounded=graph.problems, entropy=f"{entropy:x}")
    section.layers.extend(with_shares(layers))
    section.dominant.extend(dominant(section.layers))
    pairs = {}
    for norm in norms:
        composed = compose_bounds(graph, section.layers, norm, delta=delta / 2, entropy=entropy)
        seen = largest_seen(graph, probes, norm)
        section.network.append(network_message(graph, composed, seen, norm, probes))
        pairs[norm] = composed.pairs
    return section, pairs


def with_shares(layers: Sequence[v1.LipschitzLayer]) -> Sequence[v1.LipschitzLayer]:
    """Sets each layer's share of the sum of |log(upper)| in the first norm; infinite ones get 0."""
    logs = [
        abs(math.log(layer.bounds[0].upper)) if 0 < layer.bounds[0].upper < math.inf else 0.0
        for layer in layers
    ]
    total = math.fsum(logs)
    for layer, log in zip(layers, logs, strict=True):
        layer.log_share = log / total if total else 0.0
    return layers


def dominant(layers: Sequence[v1.LipschitzLayer]) -> list[int]:
    """Returns the indices of the layers with the largest shares, at most 20."""
    order = sorted(range(len(layers)), key=lambda i: (-layers[i].log_share, i))
    return [i for i in order if layers[i].log_share > 0][:MOST_DOMINANT]


def largest_seen(graph: Graph, probes: Tensor | None, norm: Norm) -> Seen:
    """Returns the largest amplification of the logits that is seen near the first few probes.

    Args:
        graph: The graph.
        probes: Float64 [n, *probe shape], or None.
        norm: The norm.
    """
    if probes is None or graph.problems:
        return Seen(0.0, -1)
    starts = probes[:_FEW_PROBES].to(graph.device, torch.float64)
    return ascend(graph.logits, starts, norm)


def network_message(
    graph: Graph, composed: Composed, seen: Seen, norm: Norm, probes: Tensor | None
) -> v1.LipschitzNetwork:
    """Returns the network's bounds in one norm.

    They say nothing in practice where the radius that they give the median probe is below one step
    of an 8-bit image in one entry.
    """
    upper, pair = composed.upper, float(composed.pairs.max()) if composed.pairs.numel() else 0.0
    by_recursion = composed.recursion < composed.product
    method = "recursion with centre and radius" if by_recursion else "product over the graph"
    bound = v1.LipschitzBound(
        norm=norm_value(norm), lower=min(seen.ratio, upper), upper=upper,
        proof=v1.PROOF_KIND_PROBABILISTIC if composed.delta else v1.PROOF_KIND_DETERMINISTIC,
        failure_probability=composed.delta,
        method=method if math.isfinite(upper) else "; ".join(graph.problems),
    )  # fmt: skip
    radius = _median_radius(graph, composed.pairs, probes)
    return v1.LipschitzNetwork(
        bound=bound, product=composed.product, recursion=composed.recursion, largest_pair=pair,
        witness_probe=seen.start, vacuous=radius < _ONE_STEP, meaning=_meaning(upper, radius),
    )  # fmt: skip


def _median_radius(graph: Graph, pairs: Tensor, probes: Tensor | None) -> float:
    if probes is None or graph.problems or not len(probes):
        return 0.0
    logits = graph.logits(probes.to(graph.device, torch.float64))
    return float(global_radii(logits, logits.argmax(1), pairs).median())


def _meaning(upper: float, radius: float) -> str:
    if math.isinf(upper):
        return "The network has no global bound; the reasons are listed."
    if radius < _ONE_STEP:
        return (
            "This bound certifies nothing in practice: from it alone the median probe's radius is "
            f"{radius:.2g}, below one step of an 8-bit image in one entry."
        )
    return f"From this bound alone the median probe has a certified radius of {radius:.2g}."
