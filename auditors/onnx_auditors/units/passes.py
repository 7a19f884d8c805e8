"""One shard: the probes of some blocks go through once, and top inputs are kept on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.network import Network
from onnx_auditors.units import calibration, receptive, secondary
from onnx_auditors.units.concepts import Concepts, best_auroc, best_iou
from onnx_auditors.units.directions import Family
from onnx_auditors.units.setup import Prepared, Setup
from onnx_auditors.units.source import Bools, Floats, Indices, Single
from onnx_auditors.units.top import Top

Tell = Callable[[float], None]
_TIES_SEED = 111
LayerPartial = v1.UnitsPartial.LayerPartial
_AFTER = (Family.NATURAL_AFTER, Family.RANDOM_AFTER)


@dataclass(eq=False)
class _Layer:
    """A layer while the blocks go by."""

    prepared: Prepared
    tops: dict[int, Top]
    active: Bools

    def take(self, units: Tensor, after: Tensor | None, first_rank: int) -> None:
        """Takes the standardised units of a block, and those after the rectifier."""
        directions = self.prepared.directions
        for family, top in self.tops.items():
            given = after if family in _AFTER and after is not None else units
            for begin, end in directions.chunks(family):
                top.add(begin, directions.project(given, family, begin, end), first_rank)


def run(setup: Setup, numbers: Sequence[int], blocks: range, tell: Tell) -> v1.UnitsPartial:
    """Does some layers on some blocks of probes.

    Args:
        setup: What all shards agree on.
        numbers: Numbers of the jobs.
        blocks: The blocks.
        tell: Takes the share that is done, up to 1.

    Raises:
        AuditError: A value is constant or not finite.
    """
    partial = v1.UnitsPartial(begin=blocks.start, end=blocks.stop)
    layers, work = [], len(numbers) + len(blocks)
    for done, number in enumerate(numbers):
        prepared = setup.prepare(setup.jobs[number])
        part = LayerPartial(layer=number, chunks=_chunks(setup, prepared, blocks))
        partial.layers.append(part)
        tops = {
            family: Top(
                prepared.directions.count(family), setup.width(family), setup.source.network.device
            )
            for family in setup.families(prepared)
        }
        layers.append(_Layer(prepared, tops, np.zeros(prepared.job.value.dimension, dtype=bool)))
        layers[-1].prepared = replace(prepared, sample=prepared.sample[:0])
        tell((done + 1) / work)
    for done, block in enumerate(blocks):
        ranks = range(block * setup.block, min((block + 1) * setup.block, len(setup.order.probes)))
        _block(setup, layers, ranks)
        if 0 in numbers:
            partial.features += _features(setup, ranks)
        tell((len(numbers) + done + 1) / work)
    for part, layer in zip(partial.layers, layers, strict=True):
        part.active = layer.active.tobytes()
        part.tops.extend(
            v1.UnitsPartial.TopPartial(
                family=family,
                keys=top.keys.cpu().numpy().astype("<i8").tobytes(),
                width=top.keys.shape[1],
            )
            for family, top in layer.tops.items()
        )
    return partial


def _block(setup: Setup, layers: Sequence[_Layer], ranks: range) -> None:
    networks: dict[int, Network] = {
        id(x.prepared.job.network): x.prepared.job.network for x in layers
    }
    for network in networks.values():
        mine = [layer for layer in layers if layer.prepared.job.network is network]
        values = [layer.prepared.job.value for layer in mine]
        after = [x.prepared.job.value.rectified for x in mine if x.prepared.after is not None]
        names = list(dict.fromkeys([*(value.measured for value in values), *after]))
        parts: dict[tuple[int, bool], list[Tensor]] = {}
        numbers = np.arange(ranks.start, ranks.stop)
        for found in calibration.steps(
            setup.source, network, names, numbers, setup.order, setup.step
        ):
            for i, layer in enumerate(mine):
                value, prepared = values[i], layer.prepared
                units = value.units(found[value.measured])
                if value.rectified:
                    layer.active |= (units.amax((0, 1)) > 0).cpu().numpy()
                standard = prepared.scale.apply(value.looked_at(units))
                parts.setdefault((i, False), []).append(standard)
                if prepared.after is not None:
                    rectified = value.looked_at(value.units(found[value.rectified]))
                    parts.setdefault((i, True), []).append(prepared.after.apply(rectified))
        for i, layer in enumerate(mine):
            beyond = torch.cat(parts.pop((i, True))) if (i, True) in parts else None
            layer.take(torch.cat(parts.pop((i, False))), beyond, ranks.start)


def _features(setup: Setup, ranks: range) -> bytes:
    size = setup.step
    rows = setup.order.probes[ranks.start : ranks.stop]
    parts = [setup.reference(rows[i : i + size]) for i in range(0, len(rows), size)]
    return np.concatenate(parts).astype("<f4").tobytes()


def _chunks(setup: Setup, prepared: Prepared, blocks: range) -> list[v1.UnitsPartial.ChunkPartial]:
    """Scores directions on the sample, those chunks that belong to the blocks."""
    known = _Known.of(setup, prepared)
    chunks, number = [], -1
    for family in setup.families(prepared):
        if family in _AFTER:
            continue
        for begin, end in prepared.directions.chunks(family):
            number += 1
            if number % setup.blocks in blocks:
                chunks += _scored(setup, prepared, known, family, begin, end)
    return chunks


@dataclass(frozen=True, eq=False)
class _Known:
    """What is known of the probes of a sample; None for what no score can be made of.

    Attributes:
        concepts: Concepts, or labels in their place.
        masks: Which places see a concept, bool [m * positions, c].
        labels: Labels, [m].
        embedding: The reference embedding, [m, e].
    """

    concepts: Concepts | None
    masks: Tensor | None
    labels: Indices | None
    embedding: Single | None

    @classmethod
    def of(cls, setup: Setup, prepared: Prepared) -> _Known:
        """Looks it up."""
        source, count = setup.source, len(prepared.sample)
        rows = setup.order.probes[:count]
        labels = source.labels[rows] if source.labels is not None else None
        shown = source.concepts[rows] if source.concepts is not None else None
        seen = source.masks is not None and prepared.job.value.grid
        enough = count >= 4 * secondary.SHOWN
        trained = not prepared.job.untrained
        return cls(
            concepts=Concepts.of(labels, shown, source.seed),
            masks=receptive.grown(source, prepared.job, rows) if seen else None,
            labels=labels if trained else None,
            embedding=setup.seen[:count] if enough and trained else None,
        )


def _scored(
    setup: Setup, prepared: Prepared, known: _Known, family: int, begin: int, end: int
) -> list[v1.UnitsPartial.ChunkPartial]:
    """Scores one chunk."""
    chunks = []

    def keep(kind: v1.UnitScoreKind.ValueType, scores: Floats, best: Indices) -> None:
        chunks.append(
            v1.UnitsPartial.ChunkPartial(
                family=family,
                begin=begin,
                kind=kind,
                scores=scores.astype("<f8").tobytes(),
                best=best.astype("<i4").tobytes(),
            )
        )

    rng = np.random.default_rng([setup.source.seed, _TIES_SEED, family, begin])
    values = prepared.directions.project(prepared.sample, family, begin, end)
    if known.concepts is not None:
        parts = family in {Family.NATURAL, Family.RANDOM}
        keep(v1.UNIT_SCORE_KIND_CONCEPT, *best_auroc(values, known.concepts, rng, parts=parts))
    if known.masks is not None:
        places = _places(prepared, family, begin, end)
        keep(v1.UNIT_SCORE_KIND_IOU, *best_iou(places, known.masks, rng))
    if known.labels is not None:
        keep(v1.UNIT_SCORE_KIND_SELECTIVITY, *secondary.selectivity(values, known.labels))
    if known.embedding is not None:
        told = secondary.two_afc(values, known.embedding)
        keep(v1.UNIT_SCORE_KIND_TWO_AFC, told, np.zeros(len(told), dtype=np.int64))
    return chunks


def _places(prepared: Prepared, family: int, begin: int, end: int) -> Tensor:
    """Returns values at every place of the sample, [directions, probes * positions]."""
    flat = prepared.sample.reshape(-1, 1, prepared.sample.shape[2])
    return prepared.directions.project(flat, family, begin, end)
