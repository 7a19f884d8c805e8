"""Random noise beside adversarial changes, over the probes of an audit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.context import Context
from onnx_auditors.distortion.batch import Batch
from onnx_auditors.distortion.noise_level import CONFIDENCE, noise_level
from onnx_auditors.distortion.searching import name_of
from onnx_auditors.distortion.table import Table
from onnx_auditors.estimates import quantile

_SEED = 8
_KINDS = {
    v1.NOISE_KIND_GAUSSIAN: "gaussian",
    v1.NOISE_KIND_UNIFORM: "uniform",
    v1.NOISE_KIND_SALT_AND_PEPPER: "salt-and-pepper",
}
_UNITS = {v1.NOISE_KIND_SALT_AND_PEPPER: "1"}

Part = v1.DistortionPartial.NoisePart


def add_noise(
    context: Context, config: v1.DistortionConfig, batch: Batch, kind: v1.NoiseKind.ValueType
) -> Part:
    """Looks for the noise that changes ONNX Runtime's answers to the probes of a batch.

    Any answer but the label counts, whatever class the audit aims at.
    """
    right = batch.clean == batch.labels
    rows = np.flatnonzero(right)
    missing = v1.Estimate(value=math.nan, unit=_unit(kind))
    probes = [
        v1.ProbeNoise(probe=int(row), scale=missing, sizes=[math.nan] * len(config.norms))
        for row in batch.rows
    ]
    if not len(rows):
        return Part(probes=probes)

    def answers(x: Tensor) -> Tensor:
        return torch.from_numpy(context.scores(x.cpu().numpy())).to(x.device)

    state = np.random.SeedSequence([context.seed, _SEED, kind]).generate_state(1, np.uint64)
    level = noise_level(
        answers,
        torch.from_numpy(batch.inputs[rows]).to(context.device),
        torch.from_numpy(batch.labels[rows]).to(context.device),
        _KINDS[kind],
        draws=config.noise_draws,
        box=(context.input_map.lower, context.input_map.upper),
        seed=(state + batch.rows[rows].astype(np.uint64)).view(np.int64).tolist(),
    )
    sizes = torch.stack([level.sizes[name_of(norm)] for norm in config.norms], 1).tolist()
    ends = zip(level.scale.tolist(), level.lower.tolist(), level.upper.tolist(), strict=True)
    for row, (scale, lower, upper), own in zip(rows, ends, sizes, strict=True):
        interval = v1.Interval(
            lower=lower, upper=upper, confidence=CONFIDENCE, method="order-statistics"
        )
        probes[row].scale.CopyFrom(
            v1.Estimate(value=scale, interval=interval, count=config.noise_draws, unit=_unit(kind))
        )
        probes[row].sizes[:] = own
    return Part(probes=probes)


def summarise(
    config: v1.DistortionConfig,
    partials: Sequence[v1.DistortionPartial],
    tables: Sequence[Table],
    units: dict[v1.Norm.ValueType, str],
    *,
    quantiles: Sequence[float],
    listed: int,
) -> list[v1.NoiseDistortion]:
    """Returns the figures of every kind of noise.

    Args:
        config: The resolved configuration.
        partials: Results of the shards.
        tables: What the searches found, one for each norm.
        units: Units of distances.
        quantiles: Probabilities of the quantiles.
        listed: Probes up to which they are listed.
    """
    found = []
    for i, kind in enumerate(config.noise):
        probes = [probe for partial in partials for probe in partial.noise[i].probes]
        scale = np.array([probe.scale.value for probe in probes])
        sizes = np.array([probe.sizes for probe in probes]).reshape(len(probes), len(tables))
        right = ~np.isnan(scale)
        found.append(
            v1.NoiseDistortion(
                kind=kind,
                scale=[
                    v1.Quantile(probability=p, estimate=quantile(scale[right], p, _unit(kind)))
                    for p in quantiles
                ],
                unmoved=int(np.isinf(scale).sum()),
                sizes=[
                    v1.NoiseSize(
                        norm=norm,
                        size=quantile(size[right], 0.5, units[norm]),
                        ratio=quantile(
                            size[right & table.confirmed] / table.distance[right & table.confirmed],
                            0.5,
                            "1",
                        ),
                    )
                    for norm, size, table in zip(config.norms, sizes.T, tables, strict=True)
                ],
                probes=probes if len(probes) <= listed else [],
            )
        )
    return found


def _unit(kind: v1.NoiseKind.ValueType) -> str:
    return _UNITS.get(kind, "box")
