"""How models group together by whose examples fool whom."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from onnx_audit import v1


def grouped(rates: npt.NDArray[np.float64]) -> tuple[list[int], list[v1.TransferMerge]]:
    """Returns an order of the models in which similar ones are neighbours, and their groups.

    Average linkage of the distance 1 - (rate from a to b + rate from b to a) / 2, with the leaves
    in the optimal order of Bar-Joseph, Gifford and Jaakkola 2001.

    Args:
        rates: Error rates, float64 [n, n] by source and target; NaN counts as 0. n is at least 2.
    """
    known = np.nan_to_num(rates)
    distance = 1 - (known + known.T) / 2
    np.fill_diagonal(distance, 0.0)
    tree = hierarchy.linkage(
        squareform(distance, checks=False), method="average", optimal_ordering=True
    )
    merges = [
        v1.TransferMerge(left=int(left), right=int(right), distance=float(height))
        for left, right, height, _ in tree
    ]
    return [int(leaf) for leaf in hierarchy.leaves_list(tree)], merges
