"""Which hidden values an audit asks about, and how far they are from another answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.context import Context
from onnx_auditors.distortion.batch import Batch, Indices
from onnx_auditors.distortion.exact import ancestors
from onnx_auditors.distortion.hidden import hidden, value_box
from onnx_auditors.distortion.searching import Floats, name_of
from onnx_auditors.errors import InvalidConfig, UnsupportedOperator
from onnx_auditors.estimates import mean, quantile
from onnx_auditors.network import Layer, Network

_SEED, _BOOTSTRAP_SEED = 6, 7
_BOX_PROBES = 64
_COMPARED_PROBES = 2
_CLOSE = 1e-3

Part = v1.DistortionPartial.HiddenPart
Box = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Cut:
    """A value that every path from the input to the logits goes through.

    Attributes:
        layer: The node that makes it.
        depth: Its place among the nodes in between, 0 to 1.
    """

    layer: Layer
    depth: float


def cuts(network: Network) -> dict[str, Cut]:
    """Returns the values that every path from the input to the logits goes through, in order.

    Raises:
        InvalidConfig: The shapes of the network depend on the content of its input.
    """
    try:
        layers = ancestors(network.layers, network.logits)
    except UnsupportedOperator as error:
        raise InvalidConfig(
            f"this model's hidden values cannot be asked about: {error}", field="hidden_values"
        ) from error
    # How many of the later nodes read a value; the logits are read by the answer.
    last = {name: i for i, layer in enumerate(layers) for name in layer.inputs}
    last[network.logits] = len(layers)
    found, live = {}, {network.input.name}
    for i, layer in enumerate(layers):
        live |= set(layer.outputs)
        live = {name for name in live if last.get(name, -1) > i}
        if live == {layer.output}:
            found[layer.output] = Cut(layer, i / max(1, len(layers) - 1))
    return found


def choose(context: Context, config: v1.DistortionConfig) -> list[str]:
    """Returns the names of the values to ask about.

    A number of them is spread evenly over the outputs of nonlinear nodes that every path goes
    through, the first and the last among them; the logits themselves are not taken.

    Raises:
        InvalidConfig: A name that is no value, or that paths lead around.
    """
    network = context.network
    if config.hidden_count:
        names = [n for n, cut in cuts(network).items() if not cut.layer.linear]
        names = [name for name in names if name != network.logits and _usable(context, name)]
        count = min(config.hidden_count, len(names))
        chosen = np.unique(np.linspace(0, len(names) - 1, count).round().astype(int))
        return [names[i] for i in chosen]
    if config.hidden_values:
        offered = cuts(network)
        for name in config.hidden_values:
            if name not in offered or not _usable(context, name):
                raise InvalidConfig(_refusal(network, name, list(offered)), field="hidden_values")
    return list(config.hidden_values)


def boxes(context: Context, names: Sequence[str]) -> dict[str, Box]:
    """Returns the boxes of hidden values, from some probes, the same for every shard."""
    if not names:
        return {}
    rng = np.random.default_rng([context.seed, _SEED])
    total = context.summary.count
    rows = np.sort(rng.choice(total, size=min(total, _BOX_PROBES), replace=False))
    with torch.no_grad():
        at = context.network.values(_fed(context, context.inputs(rows)), list(names))
    return {name: value_box(context.network, name, at[name]) for name in names}


def search_hidden(
    context: Context,
    config: v1.DistortionConfig,
    batch: Batch,
    name: str,
    norm: v1.Norm.ValueType,
    *,
    box: Box,
    progress: Callable[[float], object],
) -> Part:
    """Looks for the smallest changes of a hidden value at the probes of a batch."""
    distances, relative = np.full((2, len(batch.rows)), np.nan)
    rows = np.flatnonzero(batch.searched)
    if not len(rows):
        return Part(distances=distances, relative_distances=relative)
    aimed = (batch.targets[rows] >= 0).all()

    def to(values: Indices) -> Tensor:
        return torch.from_numpy(values).to(context.device)

    state = np.random.SeedSequence([context.seed, _SEED]).generate_state(1, np.uint64)
    result = hidden(
        context.network,
        _fed(context, batch.inputs[rows]),
        to(batch.labels[rows]),
        name,
        name_of(norm),
        config.budget,
        box=box,
        targets=to(batch.targets[rows]) if aimed else None,
        seed=(state + batch.rows[rows].astype(np.uint64)).view(np.int64).tolist(),
        progress=progress,
    )
    distances[rows] = result.result.distance.cpu().numpy()
    relative[rows] = result.relative.cpu().numpy()
    return Part(
        distances=distances,
        relative_distances=relative,
        evaluations=int(result.result.evaluations.sum()),
    )


def summarise(
    config: v1.DistortionConfig,
    context: Context,
    partials: Sequence[v1.DistortionPartial],
    units: dict[v1.Norm.ValueType, str],
    *,
    quantiles: Sequence[float],
    listed: int,
) -> list[v1.HiddenDistortion]:
    """Returns the figures of every hidden value and norm.

    Args:
        config: The resolved configuration.
        context: The network and the seed.
        partials: Results of the shards.
        units: Units of distances.
        quantiles: Probabilities of the quantiles.
        listed: Probes up to which single distances are listed.
    """
    known = cuts(context.network) if config.hidden_values else {}
    pairs = [(name, norm) for name in config.hidden_values for norm in config.norms]
    found = []
    for i, (name, norm) in enumerate(pairs):
        parts = [partial.hidden[i] for partial in partials]
        distances = np.concatenate([np.array(part.distances) for part in parts])
        relative = np.concatenate([np.array(part.relative_distances) for part in parts])
        searched = ~np.isnan(distances)
        reached = np.isfinite(distances)
        shares = relative[searched & ~np.isnan(relative)]
        seed = int(np.random.SeedSequence([context.seed, _BOOTSTRAP_SEED, i]).generate_state(1)[0])
        few = len(distances) <= listed
        found.append(
            v1.HiddenDistortion(
                value=name,
                norm=norm,
                op_type=known[name].layer.op_type,
                dimension=math.prod(known[name].layer.output_shape) // (context.network.batch or 1),
                depth=known[name].depth,
                quantiles=_quantiles(distances[searched], quantiles, units[norm]),
                mean=mean(distances[reached], units[norm], seed),
                relative_quantiles=_quantiles(shares, quantiles, "1"),
                relative_mean=mean(shares[np.isfinite(shares)], "1", seed),
                found=int(reached.sum()),
                not_found=int((searched & ~reached).sum()),
                evaluations=sum(part.evaluations for part in parts),
                distances=distances if few else [],
                relative_distances=relative if few else [],
            )
        )
    return found


def _quantiles(values: Floats, probabilities: Sequence[float], unit: str) -> list[v1.Quantile]:
    return [v1.Quantile(probability=p, estimate=quantile(values, p, unit)) for p in probabilities]


def _fed(context: Context, inputs: npt.NDArray[np.float32]) -> Tensor:
    """Returns the model's input for probes."""
    with torch.no_grad():
        return context.input_map(torch.from_numpy(inputs).to(context.device))


def _usable(context: Context, name: str) -> bool:
    """Returns whether a value is of floats, one row per sample, and gives the logits back."""
    rows = np.arange(min(_COMPARED_PROBES, context.summary.count)).repeat(_COMPARED_PROBES)
    fed = _fed(context, context.inputs(rows))
    with torch.no_grad():
        at = context.network.values(fed, [name])[name]
        if not at.is_floating_point() or at.dim() < 2 or len(at) != len(fed):  # noqa: PLR2004 - rows and entries
            return False
        expected, got = context.network(fed), context.network.from_value(name, at)
    size = float(expected.abs().max())
    return bool(torch.allclose(got, expected, rtol=_CLOSE, atol=_CLOSE * size))


def _refusal(network: Network, name: str, offered: list[str]) -> str:
    if name not in network.value_names():
        what = f"the model has no value '{name}'"
    elif name in offered:
        what = f"value '{name}' is not a batch of floating-point rows"
    else:
        what = f"paths from the input to the answer lead around value '{name}'"
    return f"{what}; available: {', '.join(offered) or 'none'}"
