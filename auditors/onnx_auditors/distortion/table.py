"""The rows of all shards in one norm as columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from onnx_audit import v1

Part = v1.DistortionPartial.NormPartial
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

SEARCHED = (v1.PROBE_OUTCOME_CONFIRMED, v1.PROBE_OUTCOME_UNCONFIRMED, v1.PROBE_OUTCOME_NOT_FOUND)
"""Outcomes of probes that are answered rightly and were searched."""


@dataclass(frozen=True)
class Table:
    """Results of n probes.

    Attributes:
        rows: As messages.
        parts: What they came in, shard by shard; without examples.
    """

    rows: Sequence[v1.ProbeDistortion]
    parts: Sequence[Part]

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Table:
        """Joins the parts of the shards, in their order, and leaves their examples behind."""
        light = [_light(part) for part in parts]
        return cls([row for part in light for row in part.probes], light)

    def integers(self, name: str) -> Indices:
        """Returns a field of all rows, int64 [n]."""
        return np.array([getattr(row, name) for row in self.rows], dtype=np.int64)

    def floats(self, name: str) -> Floats:
        """Returns a field of all rows, float64 [n]."""
        return np.array([getattr(row, name) for row in self.rows], dtype=np.float64)

    @cached_property
    def outcome(self) -> Indices:
        """What happened, [n]."""
        return self.integers("outcome")

    @cached_property
    def distance(self) -> Floats:
        """Distances, [n]."""
        return self.floats("distance")

    @cached_property
    def label(self) -> Indices:
        """Labels, [n]."""
        return self.integers("label")

    @cached_property
    def target(self) -> Indices:
        """Classes aimed at, [n]; -1 where there is no single one."""
        found = [row.target if row.HasField("target") else -1 for row in self.rows]
        return np.array(found, dtype=np.int64)

    @property
    def confirmed(self) -> Bools:
        """Whether there is a confirmed example, [n]."""
        return np.equal(self.outcome, v1.PROBE_OUTCOME_CONFIRMED)

    @property
    def searched(self) -> Bools:
        """Whether a probe is answered rightly and was searched, [n]."""
        return np.isin(self.outcome, SEARCHED)

    @property
    def takes_part(self) -> Bools:
        """Whether a probe is in the figures: all but those whose label is the target, [n]."""
        return np.not_equal(self.outcome, v1.PROBE_OUTCOME_TARGET_IS_LABEL)

    @cached_property
    def class_distance(self) -> Floats | None:
        """Distances to each class, [n, classes]; None unless every other class was aimed at."""
        content = b"".join(part.class_distances for part in self.parts)
        if not content:
            return None
        return np.frombuffer(content, dtype="<f8").reshape(len(self.rows), -1)

    @cached_property
    def rounded_distance(self) -> Floats | None:
        """Distances of the examples of whole levels, [n]; None where inputs have no levels."""
        if not self.rows or not self.rows[0].HasField("rounded_distance"):
            return None
        return self.floats("rounded_distance")

    @property
    def rounded(self) -> Bools:
        """Whether there is a confirmed example of whole levels, [n]."""
        if self.rounded_distance is None:
            return np.zeros(len(self.rows), dtype=bool)
        return self.searched & np.isfinite(self.rounded_distance)

    @cached_property
    def certified(self) -> Bools:
        """Whether something is proved, [n]."""
        return np.array([row.HasField("certified") for row in self.rows], dtype=bool)

    @cached_property
    def certified_lower(self) -> Floats:
        """Proved lower bounds, [n]; NaN where nothing is proved."""
        lower = [row.certified.lower for row in self.rows]
        return np.where(self.certified, np.array(lower, dtype=np.float64), np.nan)

    @cached_property
    def optimum(self) -> Floats:
        """Exact optima, [n]; NaN where they are not known."""
        known = [
            row.certified.optimum if row.certified.HasField("optimum") else math.nan
            for row in self.rows
        ]
        return np.array(known, dtype=np.float64)

    def repeated(self) -> tuple[Floats, Floats]:
        """Returns the distances of the probes searched twice: first and second search, [m] each."""
        first: list[float] = []
        second: list[float] = []
        for part in self.parts:
            first += [part.probes[i].distance for i in part.repeated_positions]
            second += part.repeated_distances
        return np.array(first, dtype=np.float64), np.array(second, dtype=np.float64)


def most_fragile(table: Table, count: int) -> list[int]:
    """Returns the indices of the probes with the smallest positive distances, nearest first."""
    positive = [row for row in table.rows if 0 < row.distance < math.inf]
    positive.sort(key=lambda row: (row.distance, row.probe))
    return [row.probe for row in positive[:count]]


def _light(part: Part) -> Part:
    """Returns a part without its examples."""
    return Part(
        norm=part.norm,
        probes=part.probes,
        class_distances=part.class_distances,
        repeated_positions=part.repeated_positions,
        repeated_distances=part.repeated_distances,
    )
