"""Figures by class, class by class, over radii, and of the search's own repeatability."""

from __future__ import annotations

import numpy as np

from onnx_audit import v1
from onnx_auditors.distortion.table import Floats, Indices, Table
from onnx_auditors.estimates import mean, proportion, quantile


def by_class(table: Table, unit: str, *, labelled: bool) -> list[v1.ClassDistortion]:
    """Returns the figures of each label.

    Args:
        table: The results.
        unit: Unit of the distances.
        labelled: Whether labels were given.
    """
    found = []
    for label in np.unique(table.label[table.takes_part]).tolist():
        own = table.takes_part & (table.label == label)
        right = own & table.searched
        found.append(
            v1.ClassDistortion(
                label=label,
                count=int(own.sum()),
                accuracy=accuracy(int(right.sum()), int(own.sum()), labelled=labelled),
                median=quantile(table.distance[right], 0.5, unit),
            )
        )
    return found


def accuracy(right: int, count: int, *, labelled: bool) -> v1.Estimate:
    """Returns the share answered rightly; without labels it is 1 by definition."""
    if labelled:
        return proportion(right, count)
    return v1.Estimate(value=1.0, count=count, unit="1")


def class_pairs(table: Table, unit: str) -> list[v1.ClassPairDistortion]:
    """Returns how far it is from each label to each class; see `v1.NormDistortion.class_pairs`."""
    label, other, distance, aimed = _pairs(table)
    classes = 1 + max(label.max(initial=0), other.max(initial=0))
    key = label * classes + other
    found = []
    for pair in np.unique(key).tolist():
        own = distance[key == pair]
        found.append(
            v1.ClassPairDistortion(
                label=pair // classes,
                adversarial_class=pair % classes,
                aimed=len(own) if aimed else 0,
                confirmed=int(np.isfinite(own).sum()),
                median=quantile(own, 0.5, unit),
            )
        )
    return found


def _pairs(table: Table) -> tuple[Indices, Indices, Floats, bool]:
    """Returns labels, classes and distances of all pairs, and whether they were aimed at."""
    if table.class_distance is not None:
        places, classes = np.nonzero(~np.isnan(table.class_distance))
        return table.label[places], classes, table.class_distance[places, classes], True
    aimed = bool((table.target >= 0).any())
    chosen = table.searched if aimed else table.confirmed
    reached = table.target if aimed else table.integers("adversarial_prediction")
    return table.label[chosen], reached[chosen], table.distance[chosen], aimed


def stability(table: Table, seed: int) -> v1.SearchStability:
    """Returns how much two searches of the same probes differ; see `v1.SearchStability`."""
    first, second = table.repeated()
    found = np.isfinite(first).astype(int) + np.isfinite(second)
    first, second = first[found == 2], second[found == 2]  # noqa: PLR2004 - both searches
    difference = np.abs(second - first) / np.minimum(first, second)
    return v1.SearchStability(
        mean_relative_difference=mean(difference, "1", seed),
        repeated=len(found),
        found_once=int((found == 1).sum()),
    )


def rounded(
    table: Table, unit: str, seed: int, training_set: v1.BlobRef | None
) -> v1.RoundedDistortion | None:
    """Returns the figures of examples of whole levels; None where inputs have no levels."""
    if table.rounded_distance is None:
        return None
    found = table.rounded
    distance = table.rounded_distance
    return v1.RoundedDistortion(
        confirmed=int(found.sum()),
        mean=mean(distance[found], unit, seed),
        median=quantile(distance[table.searched], 0.5, unit),
        mean_ratio=mean(distance[found] / table.distance[found], "1", seed),
        training_set=training_set,
    )
