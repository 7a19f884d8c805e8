"""The auditor `lipschitz`: how much each layer and the network can amplify a change."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch

from onnx_audit import v1
from onnx_auditors import configs
from onnx_auditors.auditor import Plan, Progress, SaveArtefact
from onnx_auditors.context import Context
from onnx_auditors.distortion import drawing
from onnx_auditors.lipschitz import merging
from onnx_auditors.lipschitz.bound import Norm
from onnx_auditors.lipschitz.building import graph_of
from onnx_auditors.lipschitz.certify import BallNorm, certificates, local_bounds, refusals
from onnx_auditors.lipschitz.graph import Graph
from onnx_auditors.lipschitz.layer_bounds import layer_bounds
from onnx_auditors.lipschitz.pieces import Piece, pieces
from onnx_auditors.network import Network

_NAMES: dict[v1.Norm.ValueType, Norm] = {
    v1.NORM_L2: "l2", v1.NORM_LINF: "linf", v1.NORM_L1: "l1",
}  # fmt: skip
_CERTIFIED: dict[v1.Norm.ValueType, BallNorm] = {v1.NORM_L2: "l2", v1.NORM_LINF: "linf"}
"""The norms with certificates of single probes."""
_DELTA, _PROBES, _NO_PROBES = 1e-12, 64, -1
_BLOCK, _LAYER_SHARDS = 8, 16


class LipschitzAuditor:
    """Bounds each layer, the network, and its change around single probes."""

    kind = v1.AUDITOR_LIPSCHITZ
    partial_type = v1.LipschitzPartial

    def resolve(self, config: v1.LipschitzConfig, context: Context) -> v1.LipschitzConfig:
        """Returns a copy with every default filled in.

        Raises:
            InvalidConfig: A field is out of range.
        """
        configs.check(config)
        del context
        return v1.LipschitzConfig(
            norms=list(config.norms) or list(_NAMES),
            max_probes=config.max_probes or _PROBES,
            radii=config.radii,
            failure_probability=config.failure_probability or _DELTA,
        )

    def plan(self, config: v1.LipschitzConfig, context: Context) -> Plan:
        """Cuts the layers into at most 16 shards of like cost, the probes into blocks of 8."""
        work = _Work(config, context)
        count = len(work.layers) + len(work.blocks)
        return Plan(shards=count, items=count, unit="layer groups and probe blocks")

    def run(
        self, config: v1.LipschitzConfig, context: Context, shard: int, progress: Progress
    ) -> v1.LipschitzPartial:
        """Bounds some layers, or certifies some probes in one norm."""
        work = _Work(config, context)
        if shard < len(work.layers):
            return _bound_layers(config, context, work, shard, progress)
        norm, rows = work.blocks[shard - len(work.layers)]
        return _certify(config, context, norm, rows, progress)

    def merge(
        self,
        config: v1.LipschitzConfig,
        context: Context,
        partials: Sequence[v1.LipschitzPartial],
        save: SaveArtefact,
    ) -> v1.LipschitzSection:
        """Joins the layers into bounds of the network, and the probes into the certificates."""
        norms = {_NAMES[norm]: norm for norm in config.norms}
        probes = torch.from_numpy(context.inputs(audited(config, context)))
        return merging.section(
            config, graph(context), norms, partials, probes, entropy(context), context.seed, save
        )

    def warnings(self, section: v1.LipschitzSection, context: Context) -> list[v1.ReportWarning]:
        """Says why there is no global bound, or no certificate, and that a bound is vacuous."""
        return merging.warnings(section, refusals(graph(context)))


class _Work:
    """What the shards do: groups of layers first, then blocks of probes norm by norm."""

    def __init__(self, config: v1.LipschitzConfig, context: Context) -> None:
        self.pieces = pieces(graph(context))
        self.layers = groups(self.pieces)
        rows = audited(config, context)
        self.blocks = [
            (norm, rows[i : i + _BLOCK])
            for norm in config.norms
            if norm in _CERTIFIED
            for i in range(0, len(rows), _BLOCK)
        ]


def audited(config: v1.LipschitzConfig, context: Context) -> npt.NDArray[np.int64]:
    """Returns the probes that get certificates, rising: as many of `distortion` are the same."""
    if config.max_probes == _NO_PROBES:
        return np.empty(0, dtype=np.int64)
    return drawing.probes(context, config.max_probes)


def groups(found: Sequence[Piece]) -> list[list[int]]:
    """Returns the indices of the layers in runs of about the same cost, at most 16."""
    costs = [_cost(piece) for piece in found]
    share = max(math.fsum(costs) / _LAYER_SHARDS, 1.0)
    runs: list[list[int]] = []
    spent = math.inf
    for i, cost in enumerate(costs):
        if spent + cost > share and len(runs) < _LAYER_SHARDS:
            runs.append([])
            spent = 0.0
        runs[-1].append(i)
        spent += cost
    return runs


def _cost(piece: Piece) -> float:
    """About what a layer costs: a linear one grows with the smaller side of its matrix."""
    sides = math.prod(piece.input_shape), math.prod(piece.output_shape)
    if piece.kind != "linear":
        return float(max(sides))
    return float(max(sides)) * min(*sides, 1024)


def entropy(context: Context) -> int:
    """Returns the seed of the random starts of probabilistic bounds, below 2^63.

    A digest of the model's content and the audit's seed: the same audit draws the same starts, and
    who makes a model cannot choose its weights after them without changing them.
    """
    text = f"{context.network.summary.sha256} {context.seed}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


_graphs: WeakKeyDictionary[Network, Graph] = WeakKeyDictionary()


def graph(context: Context) -> Graph:
    """Returns the graph of the network from probe space on; made once for each network."""
    found = _graphs.get(context.network)
    if found is None:
        shape = tuple(context.input_map.probe_shape)
        found = _graphs[context.network] = graph_of(context.network, shape, context.input_map)
    return found


def _bound_layers(
    config: v1.LipschitzConfig, context: Context, work: _Work, shard: int, progress: Progress
) -> v1.LipschitzPartial:
    delta, chosen = config.failure_probability / (2 * len(work.pieces)), work.layers[shard]
    norms = [_NAMES[norm] for norm in config.norms]
    partial = v1.LipschitzPartial()
    for done, index in enumerate(chosen):
        progress(done / len(chosen), 1)
        layer, shown = layer_bounds(
            graph(context), work.pieces[index], norms, delta=delta, entropy=entropy(context)
        )
        part = partial.layers.add(index=index, layer=layer)
        for norm, name in zip(config.norms, norms, strict=True):
            if name in shown:
                entries = shown[name].cpu().numpy().astype("<f8")
                part.witnesses.add(norm=norm, shape=entries.shape, entries=entries.tobytes())
    progress(1, 1)
    return partial


def _certify(
    config: v1.LipschitzConfig,
    context: Context,
    norm: v1.Norm.ValueType,
    rows: npt.NDArray[np.int64],
    progress: Progress,
) -> v1.LipschitzPartial:
    network, inputs, name = graph(context), context.inputs(rows), _CERTIFIED[norm]
    answers = context.scores(inputs).argmax(1)
    given = context.labels(rows)
    labels = answers if given is None else given
    box = context.input_map.box()
    progress(0, 1)
    found = certificates(network, inputs, labels, name, box)
    progress(1 / 2, 1)
    local = local_bounds(network, inputs, labels, name, list(config.radii), box)
    progress(1, 1)
    partial = v1.LipschitzPartial()
    part = partial.certificates.add(norm=norm)
    for i, row in enumerate(rows.tolist()):
        right = answers[i] == labels[i]
        part.probes.add(
            probe=row, label=int(labels[i]), clean_prediction=int(answers[i]),
            radius=found.radius[i] if right else 0.0, method=found.method[i] if right else "",
            local=local[i], found=math.nan,
        )  # fmt: skip
    return partial
