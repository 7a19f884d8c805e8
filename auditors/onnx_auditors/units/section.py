"""From the partials of all shards to the section of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_audit import v1
from onnx_auditors.auditor import SaveArtefact
from onnx_auditors.units import (
    connectivity,
    embedding,
    galleries,
    lists,
    places,
    scored,
    sprites,
    statistics,
    words,
)
from onnx_auditors.units.directions import Family
from onnx_auditors.units.lists import CoherenceScore, LabelScore, first
from onnx_auditors.units.places import Rows
from onnx_auditors.units.scored import Scored, Tops
from onnx_auditors.units.setup import Job, Prepared, Setup
from onnx_auditors.units.source import Floats, Indices
from onnx_auditors.units.statistics import holm, index, jackknife

_LISTED_UNITS = 512
_TOP_PROBES = 9
_DISCOVERIES = 0.05
_PERMUTATIONS, _PERMUTATION_SEED = 20, 71
_BINS = 24
_TAIL = 0.025
_SECONDARY = (v1.UNIT_SCORE_KIND_SELECTIVITY, v1.UNIT_SCORE_KIND_TWO_AFC)


@dataclass(eq=False)
class Measured:
    """A layer with all that was measured on it.

    Attributes:
        prepared: The layer with its directions.
        tops: Top inputs.
        scores: The scores.
        message: Its entry in the section.
        spreads: Per score: jackknife error, standard deviation of the rotated index, and p before
            Holm's correction.
    """

    prepared: Prepared
    tops: Tops
    scores: list[Scored]
    message: v1.UnitsLayer
    spreads: list[tuple[float, float, float]]


def merge(
    setup: Setup, partials: Sequence[v1.UnitsPartial], save: SaveArtefact | None
) -> v1.UnitsSection:
    """Joins partials into the section.

    Args:
        setup: What all shards agree on.
        partials: Results of the shards.
        save: Keeps the pictures; None makes none.
    """
    labels = setup.source.labels
    by_rank = labels[setup.order.probes] if labels is not None else None
    space = _embedded(setup, partials)
    seen = embedding.check(setup.source, space, by_rank)
    section = v1.UnitsSection(
        config=setup.config,
        probe_count=len(setup.order.probes),
        near_duplicates=setup.order.near_duplicates,
        left_out=setup.left_out,
        embedding=seen,
    )
    section.config.values[:] = [job.value.name for job in setup.jobs if not job.untrained]
    measures: list[tuple[v1.UnitScoreKind.ValueType, lists.ListScore]] = [
        *([(v1.UNIT_SCORE_KIND_LABEL, LabelScore(by_rank))] if by_rank is not None else []),
        (v1.UNIT_SCORE_KIND_COHERENCE, CoherenceScore(space)),
    ]
    everything = [_measure(setup, job, partials, measures) for job in setup.jobs]
    layers = [found for found in everything if not found.prepared.job.untrained]
    for found, untrained in zip(layers, everything[len(layers) :], strict=False):
        _compare(found, untrained)
    _judge(
        layers, len(setup.order.probes), blind=seen.HasField("sees_labels") and not seen.sees_labels
    )
    for found in layers:
        found.message.summary = words.summary(found.message)
        if save is not None:
            galleries.draw(setup, found.prepared, found.tops, found.scores, found.message, save)
    section.layers.extend(found.message for found in layers)
    depth = galleries.depth(section.layers) if save is not None else None
    if depth is not None and save is not None:
        section.depth.CopyFrom(
            v1.UnitGallery(kind=v1.UNIT_GALLERY_KIND_CURVE, image=save([depth], sprites.PNG))
        )
    return section


def _embedded(
    setup: Setup, partials: Sequence[v1.UnitsPartial]
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    parts = sorted((p for p in partials if p.features), key=lambda partial: partial.begin)
    content = b"".join(partial.features for partial in parts)
    return np.frombuffer(content, dtype="<f4").reshape(len(setup.order.probes), -1)


def _measure(
    setup: Setup,
    job: Job,
    partials: Sequence[v1.UnitsPartial],
    measures: Sequence[tuple[v1.UnitScoreKind.ValueType, lists.ListScore]],
) -> Measured:
    prepared = setup.prepare(job)
    tops = scored.collect(setup, job.number, partials)
    listed = {kind: scored.of_list(setup, kind, score, tops) for kind, score in measures}
    order = (
        v1.UNIT_SCORE_KIND_LABEL, v1.UNIT_SCORE_KIND_CONCEPT,
        v1.UNIT_SCORE_KIND_IOU, v1.UNIT_SCORE_KIND_COHERENCE,
    )  # fmt: skip
    all_scores = [listed.get(kind) or scored.of_chunks(kind, tops) for kind in order]
    scores = [score for score in all_scores if score is not None]
    message = v1.UnitsLayer(
        value=job.value.name,
        measured_value=job.value.measured,
        dimension=job.value.dimension,
        dead=int((~tops.active).sum())
        if job.value.rectified
        else job.value.dimension - len(prepared.scale.live),
        live=len(prepared.scale.live),
        plateau=prepared.scale.plateau,
        positions=len(job.value.positions),
        rotation_rows=prepared.directions.rows,
    )
    message.near_dead = message.dimension - message.live - message.dead
    found = Measured(prepared, tops, scores, message, [])
    if job.untrained:
        return found
    for score in scores:
        entry, spread = _score(score, prepared, len(setup.order.probes))
        if score.kind == v1.UNIT_SCORE_KIND_LABEL:
            _permute(setup, tops, entry)
        message.scores.append(entry)
        found.spreads.append(spread)
    for kind in _SECONDARY:
        if (other := scored.of_chunks(kind, tops)) is not None:
            message.secondary.append(_score(other, prepared, len(setup.order.probes))[0])
    message.bases.extend(_bases(prepared, scores))
    message.units.extend(_units(setup, found))
    connectivity.describe(setup, prepared, message)
    return found


def _score(
    score: Scored, prepared: Prepared, probes: int
) -> tuple[v1.UnitScore, tuple[float, float, float]]:
    natural, random = score.natural, score.random
    value = index(natural, random)
    rotated = score.families[Family.ROTATED].reshape(prepared.directions.rotations, -1)
    indices = np.array([index(row, random) for row in rotated])
    tested = index(natural[prepared.directions.tested_rows()], random)
    z, high, low, p = statistics.rotation_test(tested, indices)
    entry = v1.UnitScore(
        kind=score.kind,
        top=score.top,
        index_auc=v1.Estimate(value=value, count=probes, unit="1"),
        natural_mean=v1.Estimate(value=float(natural.mean()), count=len(natural), unit="1"),
        random_mean=v1.Estimate(value=float(random.mean()), count=len(random), unit="1"),
        z=z,
        p_rotation=high,
        p_rotation_low=low,
        cliffs_delta=2 * value - 1,
        rotated_index=statistics.band(indices),
        index_by_top=[
            v1.CurvePoint(x=k, y=v1.Estimate(value=index(*pair), count=probes, unit="1"))
            for k, pair in score.curve.items()
        ],
        histogram=_histogram(natural, random, rotated),
    )
    error = 0.0
    if score.without:
        parts, others = score.without[Family.NATURAL], score.without[Family.RANDOM]
        without = np.array([index(a, b) for a, b in zip(parts, others, strict=True)])
        error = statistics.jackknife_error(without)
        entry.index_auc.CopyFrom(jackknife(value, without, probes, 0, 1))
        for target, values, groups in (
            (entry.natural_mean, natural, parts),
            (entry.random_mean, random, others),
        ):
            target.CopyFrom(jackknife(float(values.mean()), groups.mean(1), len(values), -1, 1))
    corrected = statistics.benjamini_hochberg(statistics.unit_p(natural, random))
    above = corrected < _DISCOVERIES
    entry.units_above_random = int(above.sum())
    if score.best is not None:
        entry.distinct_concepts = len(np.unique(score.best[above]))
    if Family.NATURAL_AFTER in score.families:
        pair = (score.families[Family.NATURAL_AFTER], score.families[Family.RANDOM_AFTER])
        entry.after_rectifier.CopyFrom(v1.Estimate(value=index(*pair), count=probes, unit="1"))
    return entry, (error, float(indices.std(ddof=1)), p)


def _permute(setup: Setup, tops: Tops, entry: v1.UnitScore) -> None:
    """Adds what the label score is with permuted labels."""
    if setup.source.labels is None:
        return
    rng = np.random.default_rng([setup.source.seed, _PERMUTATION_SEED])
    labels = setup.source.labels[setup.order.probes]
    found = []
    for _ in range(_PERMUTATIONS):
        score = LabelScore(rng.permutation(labels))
        natural, random = (
            score(tops.ranks[family], first(tops.ranks[family], setup.top))
            for family in (Family.NATURAL, Family.RANDOM)
        )
        found.append((index(natural, random), float(natural.mean())))
    values = np.array(found)
    entry.permuted_labels.CopyFrom(statistics.band(values[:, 0]))
    entry.permuted_mean.CopyFrom(statistics.band(values[:, 1]))


def _judge(layers: Sequence[Measured], probes: int, *, blind: bool) -> None:
    """Corrects p over all layers and scores, and says what follows."""
    pairs = [
        (entry, spread)
        for found in layers
        for entry, spread in zip(found.message.scores, found.spreads, strict=True)
    ]
    corrected = holm(np.array([spread[2] for _, spread in pairs]))
    for (entry, (error, spread, _)), p in zip(pairs, corrected, strict=True):
        entry.p_holm = float(p)
        said, needed = statistics.verdict(entry.index_auc.value, float(p), error, spread, probes)
        if (
            blind
            and entry.kind == v1.UNIT_SCORE_KIND_COHERENCE
            and said == v1.UNIT_VERDICT_NO_DISTINCTION
        ):
            said, needed = v1.UNIT_VERDICT_UNDECIDED, 0
        entry.verdict, entry.probes_to_decide = said, needed


def _compare(found: Measured, untrained: Measured) -> None:
    """Adds the index of the untrained twin."""
    others = {score.kind: score for score in untrained.scores}
    for entry in found.message.scores:
        if (other := others.get(entry.kind)) is not None:
            value = index(other.natural, other.random)
            entry.untrained.CopyFrom(
                v1.Estimate(value=value, count=entry.index_auc.count, unit="1")
            )


def _histogram(natural: Floats, random: Floats, rotated: Floats) -> v1.UnitHistogram:
    everything = np.concatenate([natural, random, rotated.ravel()])
    edges = np.linspace(everything.min(), max(everything.max(), everything.min() + 1e-9), _BINS + 1)

    def shares(values: Floats) -> Floats:
        return np.histogram(values, edges)[0] / len(values)

    each = np.stack([shares(row) for row in rotated])
    return v1.UnitHistogram(
        edges=edges,
        natural=shares(natural),
        random=shares(random),
        rotated_lower=np.quantile(each, _TAIL, axis=0),
        rotated_upper=np.quantile(each, 1 - _TAIL, axis=0),
    )


def _bases(prepared: Prepared, scores: Sequence[Scored]) -> list[v1.UnitBasisScores]:
    descriptive = (v1.UNIT_BASIS_WHITENED, v1.UNIT_BASIS_NONNEGATIVE)
    return [
        v1.UnitBasisScores(
            basis=v1.UnitBasis.ValueType(family - Family.BASES),
            count=prepared.directions.count(family),
            descriptive=family - Family.BASES in descriptive,
            index_auc=[index(score.families[family], score.random) for score in scores],
            mean=[float(score.families[family].mean()) for score in scores],
        )
        for family in prepared.directions.bases
    ]


def _units(setup: Setup, found: Measured) -> list[v1.UnitRow]:
    """Returns the rows of single units, best first by the first score."""
    p = np.stack([statistics.unit_p(s.natural, s.random) for s in found.scores], 1)
    q = np.stack([statistics.benjamini_hochberg(column) for column in p.T], 1)
    values = np.stack([score.natural for score in found.scores], 1)
    concepts = next((score.best for score in found.scores if score.best is not None), None)
    scale, top = found.prepared.scale, found.tops.ranks[Family.NATURAL][:, :_TOP_PROBES]
    chosen: Indices = np.argsort(-values[:, 0], kind="stable")[:_LISTED_UNITS]
    positions = np.zeros((len(chosen), 0), dtype=np.int64)
    if found.prepared.job.value.grid:
        rows = Rows(Family.NATURAL, chosen, top[chosen])
        positions = places.largest(setup, found.prepared, rows)
    return [
        v1.UnitRow(
            unit=int(scale.live[i]),
            flipped=bool(scale.sign[i] < 0),
            score=values[i],
            p=p[i],
            q=q[i],
            concept=int(concepts[i]) if concepts is not None else None,
            top_probes=setup.order.probes[top[i]],
            top_positions=positions[place],
        )
        for place, i in enumerate(chosen)
    ]
