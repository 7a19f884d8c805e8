"""From the layers and certificates of all shards to the section of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.auditor import SaveArtefact
from onnx_auditors.estimates import curve, mean, quantile
from onnx_auditors.lipschitz.bound import Norm
from onnx_auditors.lipschitz.certify import LayerBounds, layer_certificates, refusals
from onnx_auditors.lipschitz.graph import Graph
from onnx_auditors.lipschitz.section import joined_layers
from onnx_auditors.sandwich import bootstrap_seed
from onnx_auditors.tensor_files import MEDIA_TYPE

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
_UNITS = {v1.NORM_L1: "L1", v1.NORM_L2: "L2", v1.NORM_LINF: "Linf"}
_NAMED = 5
"""Reasons that a warning lists."""


def section(
    config: v1.LipschitzConfig,
    graph: Graph,
    norms: Mapping[Norm, v1.Norm.ValueType],
    partials: Sequence[v1.LipschitzPartial],
    probes: Tensor,
    entropy: int,
    seed: int,
    save: SaveArtefact,
) -> v1.LipschitzSection:
    """Joins the partials of all shards, in their order.

    Args:
        config: The resolved configuration.
        graph: The graph.
        norms: The norms by name, in the configuration's order.
        partials: Results of the shards.
        probes: Those with certificates, [n, *probe shape].
        entropy: Seed of the random starts of probabilistic bounds.
        seed: The audit's seed.
        save: Keeps the artefact.
    """
    layers, tensors, rows = _parts(partials, norms)
    result, pairs = joined_layers(
        graph, layers, norms, delta=config.failure_probability, entropy=entropy,
        probes=probes.to(torch.float64),
    )  # fmt: skip
    result.config.CopyFrom(config)
    for name, norm in norms.items():
        tensors[f"pairs_{name}"] = pairs[name].cpu().numpy().astype("<f8")
        if norm in rows:
            known = LayerBounds(result.layers, pairs[name])
            _by_layers(graph, known, name, config.radii, (rows[norm], probes))
            result.certificates.append(_certificates(norm, rows[norm], seed))
    result.artefact.CopyFrom(save([safetensors.numpy.save(tensors)], MEDIA_TYPE))
    return result


def _by_layers(
    graph: Graph, known: LayerBounds, norm: Norm, radii: Sequence[float],
    probes: tuple[Sequence[v1.ProbeCertificate], Tensor],
) -> None:  # fmt: skip
    """Betters certificates by what takes the bounds of all layers."""
    rows, inputs = probes[0], probes[1].cpu().numpy()
    if norm == "l1" or refusals(graph) or not rows:
        return
    labels = np.array([row.label for row in rows])
    found, steepest = layer_certificates(graph, inputs, labels, norm, known, radii)
    for i, row in enumerate(rows):
        if row.clean_prediction == row.label and found.radius[i] > row.radius:
            row.radius, row.method = found.radius[i], found.method[i]
        for k, bound in enumerate(row.local):
            row.local[k] = min(bound, steepest[i, k])


def _parts(
    partials: Sequence[v1.LipschitzPartial], norms: Mapping[Norm, v1.Norm.ValueType]
) -> tuple[
    list[v1.LipschitzLayer],
    dict[str, np.ndarray],
    dict[v1.Norm.ValueType, list[v1.ProbeCertificate]],
]:
    """Returns layers in order, witnesses by their name in the artefact, certificates by norm."""
    layers: dict[int, v1.LipschitzLayer] = {}
    tensors: dict[str, np.ndarray] = {}
    rows: dict[v1.Norm.ValueType, list[v1.ProbeCertificate]] = {}
    names = {norm: name for name, norm in norms.items()}
    for shard, partial in enumerate(partials):
        for part in partial.layers:
            part.layer.shard = shard
            layers[part.index] = part.layer
            for shown in part.witnesses:
                entries = np.frombuffer(shown.entries, dtype="<f8").reshape(list(shown.shape))
                tensors[f"witness_{names[shown.norm]}_{part.index}"] = entries
        for found in partial.certificates:
            rows.setdefault(found.norm, []).extend(found.probes)
    return [layers[i] for i in sorted(layers)], tensors, rows


def _certificates(
    norm: v1.Norm.ValueType, rows: Sequence[v1.ProbeCertificate], seed: int
) -> v1.LipschitzCertificates:
    radius = np.array([row.radius for row in rows], dtype=np.float64)
    right = np.array([row.clean_prediction == row.label for row in rows], dtype=bool)
    counts: dict[str, int] = {}
    for row in rows:
        if row.method:
            counts[row.method] = counts.get(row.method, 0) + 1
    unit = _UNITS[norm]
    return v1.LipschitzCertificates(
        norm=norm,
        mean=mean(radius[right], unit, bootstrap_seed(seed, norm)),
        quantiles=[
            v1.Quantile(probability=p, estimate=quantile(radius[right], p, unit)) for p in QUANTILES
        ],
        certified_accuracy=curve(radius, right),
        probes=rows,
        methods=counts,
    )


def warnings(section: v1.LipschitzSection, refused: Sequence[str]) -> list[v1.ReportWarning]:
    """Returns what a reader must know to judge the section.

    Args:
        section: The section.
        refused: Why nothing can be certified; empty if something can.
    """
    found = []
    if section.unbounded:
        found.append(
            v1.ReportWarning(
                code="NO_GLOBAL_BOUND",
                message=(
                    "no bound of the whole network exists or is known, whatever its layers' bounds "
                    f"are: {_listed(section.unbounded)}"
                ),
            )
        )
    if refused and section.certificates:
        found.append(
            v1.ReportWarning(
                code="NO_CERTIFICATES",
                message=(
                    "no probe has a certified radius, which says nothing about how robust the "
                    f"model is: {_listed(refused)}"
                ),
            )
        )
    vacuous = [row for row in section.network if row.vacuous and math.isfinite(row.bound.upper)]
    if vacuous:
        names = ", ".join(_UNITS[row.bound.norm] for row in vacuous)
        found.append(
            v1.ReportWarning(
                code="VACUOUS_GLOBAL_BOUND",
                message=(
                    f"the network's global bound in {names} certifies less than one step of an "
                    "8-bit image for the median probe: compare it between releases, and do not "
                    "take it for a certificate; the probes' own certificates are in `certificates`"
                ),
            )
        )
    return found


def _listed(reasons: Sequence[str]) -> str:
    more = len(reasons) - _NAMED
    return "; ".join(reasons[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
