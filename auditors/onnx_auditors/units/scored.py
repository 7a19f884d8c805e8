"""From partials to the scores of every direction of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_audit import v1
from onnx_auditors.units import lists
from onnx_auditors.units.directions import Family
from onnx_auditors.units.lists import ListScore
from onnx_auditors.units.setup import LEAST_TOP, Setup
from onnx_auditors.units.source import EIGHTHS, Bools, Floats, Indices
from onnx_auditors.units.top import joined

LayerPartial = v1.UnitsPartial.LayerPartial
_WITH_CONCEPTS = (v1.UNIT_SCORE_KIND_CONCEPT, v1.UNIT_SCORE_KIND_IOU)


@dataclass(eq=False)
class Tops:
    """Top inputs of a layer's directions, and what else its partials hold.

    Attributes:
        ranks: Per family, best first, [directions, width].
        chunks: Scores that are made of all inputs, by score and family, [directions, 9 or 1].
        best: The best concept, likewise, [directions].
        active: Whether a unit is active on any probe.
    """

    ranks: dict[int, Indices]
    chunks: dict[tuple[v1.UnitScoreKind.ValueType, int], Floats]
    best: dict[tuple[v1.UnitScoreKind.ValueType, int], Indices]
    active: Bools


def collect(setup: Setup, number: int, partials: Sequence[v1.UnitsPartial]) -> Tops:
    """Joins the partials of a job, in any order."""
    parts = [part for partial in partials for part in partial.layers if part.layer == number]
    keys: dict[int, list[np.ndarray[tuple[int, int], np.dtype[np.int64]]]] = {}
    chunks: dict[tuple[v1.UnitScoreKind.ValueType, int], list[v1.UnitsPartial.ChunkPartial]] = {}
    for part in parts:
        for top in part.tops:
            found = np.frombuffer(top.keys, dtype="<i8").reshape(-1, top.width)
            keys.setdefault(top.family, []).append(found)
        for chunk in part.chunks:
            chunks.setdefault((chunk.kind, chunk.family), []).append(chunk)
    scores, best = {}, {}
    for key, pieces in chunks.items():
        pieces.sort(key=lambda chunk: chunk.begin)
        best[key] = np.concatenate([np.frombuffer(c.best, "<i4") for c in pieces]).astype(np.int64)
        all_scores = np.concatenate([np.frombuffer(c.scores, "<f8") for c in pieces])
        scores[key] = all_scores.reshape(len(best[key]), -1)
    active = [np.frombuffer(part.active, dtype=bool) for part in parts]
    return Tops(
        ranks={family: joined(list(found), setup.width(family)) for family, found in keys.items()},
        chunks=scores,
        best=best,
        active=np.logical_or.reduce(active),
    )


@dataclass(eq=False)
class Scored:
    """One score of all directions of a layer.

    Attributes:
        kind: The score.
        top: Inputs that it is made of; 0 for all.
        families: Scores by family, [directions].
        without: Scores of units and random directions without each eighth, [8, directions]; none
            for scores without a jackknife.
        curve: Scores of units and random directions over the number of top inputs.
        best: The best concept of each unit; None for scores without concepts.
    """

    kind: v1.UnitScoreKind.ValueType
    top: int
    families: dict[int, Floats]
    without: dict[int, Floats] = field(default_factory=dict)
    curve: dict[int, tuple[Floats, Floats]] = field(default_factory=dict)
    best: Indices | None = None

    @property
    def natural(self) -> Floats:
        """Scores of the units."""
        return self.families[Family.NATURAL]

    @property
    def random(self) -> Floats:
        """Scores of the random directions."""
        return self.families[Family.RANDOM]


def of_list(setup: Setup, kind: v1.UnitScoreKind.ValueType, score: ListScore, tops: Tops) -> Scored:
    """Scores top inputs."""
    families, without = {}, {}
    curve: dict[int, list[Floats]] = {k: [] for k in setup.curve}
    for family, ranks in tops.ranks.items():
        families[family] = score(ranks, lists.first(ranks, setup.top))
        if family not in {Family.NATURAL, Family.RANDOM}:
            continue
        without[family] = np.stack(
            [
                score(ranks, lists.without_eighth(ranks, part, setup.top, LEAST_TOP))
                for part in range(EIGHTHS)
            ]
        )
        for k, found in curve.items():
            found.append(score(ranks, lists.first(ranks, k)))
    return Scored(
        kind=kind,
        top=setup.top,
        families=families,
        without=without,
        curve={k: (found[0], found[1]) for k, found in curve.items()},
    )


def of_chunks(kind: v1.UnitScoreKind.ValueType, tops: Tops) -> Scored | None:
    """Takes scores that are made of all inputs; None where there are none."""
    families = {family: s[:, 0] for (k, family), s in tops.chunks.items() if k == kind}
    if not families:
        return None
    pairs = ((f, tops.chunks[kind, f]) for f in (Family.NATURAL, Family.RANDOM))
    return Scored(
        kind=kind,
        top=0,
        families=families,
        without={f: s[:, 1:].T for f, s in pairs if s.shape[1] > 1},
        best=tops.best[kind, Family.NATURAL] if kind in _WITH_CONCEPTS else None,
    )
