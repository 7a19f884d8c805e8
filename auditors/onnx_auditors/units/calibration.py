"""What a seeded sample of the probes says of a layer: scale, live units, plateaus, bases.

Every shard works it out for itself from the same sample, so that all use the same directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from onnx_auditors.errors import InvalidConfig, ModelFailed
from onnx_auditors.network import Network
from onnx_auditors.units.source import Bools, Floats, Indices, Order, Source
from onnx_auditors.units.values import Value

_SAMPLE = 2048
_SAMPLE_VALUES = 2**26
_FEWEST_IN_SAMPLE = 128
_STEP_BYTES = 2**27
_LARGEST_STEP = 256
_LIVE_SHARE = 1 / 200
"""Share of probes on which a live unit is active at least; with fewer a hundredth of the probes
could not be top inputs."""
_CONSTANT = 1e-6
_COLUMNS = 64
_PLATEAU = 1e-6
"""Share of a unit's range within which values count as equal to its largest."""
_PLATEAU_SHARE = 1 / 100


@dataclass(frozen=True, eq=False)
class Scale:
    """How the live units of a value are standardised.

    Attributes:
        live: Their indices, [d].
        mean: Mean over probes and positions, float64 [d].
        divisor: What they are divided by; see `tempered`, float64 [d].
        sign: 1, or -1 for a unit that speaks on its lower side, float32 [d].
        plateau: Number of live units with a plateau at the top.
        active: Whether a unit is active on a probe of the sample, over all units, bool.
    """

    live: Indices
    mean: Floats
    divisor: Floats
    sign: Tensor
    plateau: int
    active: Bools

    def apply(self, units: Tensor) -> Tensor:
        """Returns the live units of [n, p, units], standardised, float32 [n, p, d]."""
        device = units.device
        picked = units if len(self.live) == units.shape[2] else units[:, :, self.live]
        mean = torch.from_numpy(self.mean).float().to(device)
        inverse = torch.from_numpy(1 / self.divisor).float().to(device)
        return (picked - mean) * inverse


def steps(
    source: Source, network: Network, names: Sequence[str], ranks: Indices, order: Order, size: int
) -> Iterator[dict[str, Tensor]]:
    """Yields values of the network for probes by rank, in steps of a fixed size.

    Raises:
        ModelFailed: They hold NaN or infinite entries.
    """
    for begin in range(0, len(ranks), size):
        rows = order.probes[ranks[begin : begin + size]]
        with torch.no_grad():
            found = network.values(source.feed(rows), names)
        for name, tensor in found.items():
            if not torch.isfinite(tensor).all():
                raise ModelFailed(f"value '{name}' holds NaN or infinite entries on the probes")
        yield found


def step_size(values: Sequence[Value]) -> int:
    """Returns how many probes go through the network at once: it depends on the values alone."""
    entries = sum(value.dimension * max(1, math.prod(value.grid)) for value in values)
    fits = max(1, _STEP_BYTES // (4 * entries))
    return min(_LARGEST_STEP, 1 << (fits.bit_length() - 1))


def sample_size(value: Value, count: int) -> int:
    """Returns the number of probes in the sample: at most 2,048, fewer for large maps."""
    fits = _SAMPLE_VALUES // (len(value.positions) * value.dimension)
    return min(count, _SAMPLE, max(_FEWEST_IN_SAMPLE, fits))


def sample(
    source: Source, network: Network, value: Value, name: str, order: Order, step: int
) -> tuple[Tensor, Bools]:
    """Returns a value on the sample, [m, p, units], and on which probes units are above 0."""
    ranks = np.arange(sample_size(value, len(order.probes)))
    parts, active = [], []
    for found in steps(source, network, [name], ranks, order, step):
        units = value.units(found[name])
        active.append((units.amax(1) > 0).cpu())
        parts.append(value.looked_at(units))
    return torch.cat(parts), torch.cat(active).numpy()


def scale_of(value: Value, found: Tensor, active: Bools) -> Scale:
    """Returns scale and live units.

    Args:
        value: The value.
        found: Its sample, [m, p, units].
        active: On which probes its units are above 0, [m, units].

    Raises:
        InvalidConfig: No unit, or a single one, is live.
    """
    std, mean = _moments(found)
    varies = std > _CONSTANT * np.maximum(np.abs(mean), 1e-30)
    if not varies.any():
        raise InvalidConfig(
            f"value '{value.name}' is constant over the probes: there are no units to measure",
            field="values",
        )
    live = varies
    if value.rectified:
        live = varies & (active.sum(0) >= max(2, math.ceil(_LIVE_SHARE * len(active))))
    chosen = np.flatnonzero(live)
    if len(chosen) < 2:  # noqa: PLR2004 - one unit has no random directions
        raise InvalidConfig(
            f"value '{value.name}' has {len(chosen)} live units of {value.dimension}; at least 2 "
            "are needed for random directions",
            field="values",
        )
    top, bottom = (_plateau(side[:, chosen]) for side in (found.amax(1), -found.amin(1)))
    flipped = (top > max(_PLATEAU_SHARE * len(found), 1)) & (bottom < top)
    return Scale(
        live=chosen,
        mean=mean[chosen],
        divisor=tempered(found[:, :, chosen], mean[chosen], std[chosen]),
        sign=torch.from_numpy(np.where(flipped, -1, 1).astype(np.float32)),
        plateau=int((top > max(_PLATEAU_SHARE * len(found), 1)).sum()),
        active=np.asarray(active.any(0) if value.rectified else varies),
    )


def tempered(found: Tensor, mean: Floats, std: Floats) -> Floats:
    """Returns what units are divided by: standard deviations, drawn to each other.

    Units whose weights are alike in size differ in their standard deviations all the same, by how
    far they follow the strongest common components. Dividing by that takes these components from
    random directions and leaves them to units: networks with Gaussian weights then look meaningful
    (index 0.51). So the logarithms of the standard deviations are drawn to their mean by the share
    of their variance that units with Gaussian weights have (Efron & Morris 1973, "Stein's
    estimation rule and its competitors"): sum l^2 / (2 (sum l)^2) for components with variances l,
    as the delta method gives it, where sum l^2 / (sum l)^2 is estimated by the mean square
    correlation of pairs of units.

    Args:
        found: The sample of the units, [m, p, d].
        mean: Their means, [d].
        std: Their standard deviations, above 0, [d].
    """
    rows, size = len(found), len(std)
    every = torch.arange(rows, device=found.device)
    single = found[every, every % found.shape[1]]
    centre, inverse = (torch.from_numpy(a).float().to(found.device) for a in (mean, 1 / std))
    standard = (single - centre) * inverse
    product = standard.T @ standard if size <= rows else standard @ standard.T
    squares = float((product / rows).double().square().sum())
    # Without a unit's correlation with itself, and what chance adds over so many probes.
    shared = max(0.0, (squares / size - 1) / max(size - 1, 1) - 1 / rows)
    logarithms = np.log(std)
    spread = float(logarithms.var())
    kept = max(0.0, 1 - shared / (2 * spread)) if spread > 0 else 0.0
    return np.asarray(np.exp(logarithms.mean() + kept * (logarithms - logarithms.mean())))


def rescaled(scale: Scale, found: Tensor) -> Scale:
    """Returns the scale of the same units after the rectifier, from its sample [m, p, units]."""
    std, mean = _moments(found[:, :, scale.live])
    return replace(scale, mean=mean, divisor=np.where(std > 0, std, 1.0))


def _moments(found: Tensor) -> tuple[Floats, Floats]:
    """Returns standard deviations and means over probes and positions, in double precision."""
    flat = found.reshape(-1, found.shape[2])
    pairs = [
        torch.std_mean(flat[:, i : i + _COLUMNS].double(), 0, correction=0)
        for i in range(0, flat.shape[1], _COLUMNS)
    ]
    std, mean = (torch.cat(column).cpu().numpy() for column in zip(*pairs, strict=True))
    return std, mean


def _plateau(largest: Tensor) -> Floats:
    """Returns on how many probes a unit has its largest value; [m, d] to [d]."""
    high, low = largest.amax(0), largest.amin(0)
    near = largest >= high - _PLATEAU * (high - low)
    return near.sum(0).cpu().double().numpy()
