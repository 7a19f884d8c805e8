"""Examples that fool several models, and the fewest that show the weakness of all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize

from onnx_audit import v1
from onnx_auditors.transfer.tally import Block

_MOST_CANDIDATES = 4096

Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Found:
    attack: v1.TransferAttack.ValueType
    source: int
    probes: Indices
    fooled: Bools
    all_right: Bools


class Fooling:
    """Collects whom the examples of single sources fool."""

    def __init__(self) -> None:
        self._found: list[_Found] = []

    def add(
        self, attack: v1.TransferAttack.ValueType, source: int, block: Block, probes: Indices
    ) -> None:
        """Adds the examples of a block; `probes` are the indices of its probes."""
        rows = block.exists
        self._found.append(
            _Found(
                attack,
                source,
                probes[rows],
                ((block.errors == 1) & (block.right == 1))[rows],
                (block.right == 1).all(axis=1)[rows],
            )
        )

    def summary(self, models: int) -> v1.FoolingSet:
        """Returns how many examples fool how many models, and a smallest set that fools all."""
        if not self._found:
            return v1.FoolingSet()
        fooled = np.concatenate([found.fooled for found in self._found])
        everywhere = np.concatenate([found.all_right for found in self._found])
        numbers = fooled.sum(axis=1)
        chosen, proved = smallest_cover(fooled)
        origin = [(f.attack, f.source, int(probe)) for f in self._found for probe in f.probes]
        return v1.FoolingSet(
            examples=len(fooled),
            fool_all=int(((numbers == models) & everywhere).sum()),
            by_models_fooled=np.bincount(numbers, minlength=models + 1).tolist(),
            smallest=[
                v1.FoolingExample(
                    attack=origin[i][0],
                    source=origin[i][1],
                    probe=origin[i][2],
                    fooled=np.flatnonzero(fooled[i]).tolist(),
                )
                for i in chosen
            ],
            proved=proved,
        )


def smallest_cover(fooled: Bools) -> tuple[list[int], bool]:
    """Returns a smallest set of rows in which each column that has a true entry has one.

    The set-cover problem, solved exactly as an integer program over the different rows (HiGHS); of
    equal rows the first is taken.

    Args:
        fooled: Bool [examples, models].

    Returns:
        Rows, rising, and whether there is provably no smaller set.
    """
    columns = np.flatnonzero(fooled.any(axis=0))
    if not len(columns):
        return [], True
    patterns, first = np.unique(fooled[:, columns], axis=0, return_index=True)
    # Those that fool most come first, so that what is left out fools few.
    order = np.lexsort((first, -patterns.sum(axis=1)))
    complete = len(order) <= _MOST_CANDIDATES
    kept = order[:_MOST_CANDIDATES]
    for column in np.flatnonzero(~patterns[kept].any(axis=0)):
        kept = np.append(kept, order[patterns[order, column].argmax()])
    result = optimize.milp(
        # The earlier of two sets of the same size costs less.
        c=1 + np.arange(len(kept)) / (len(kept) ** 2 * (len(columns) + 1)),
        constraints=optimize.LinearConstraint(patterns[kept].T.astype(np.float64), lb=1),
        integrality=np.ones(len(kept)),
        bounds=optimize.Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    taken = kept[result.x > 0.5]  # noqa: PLR2004 - 0 or 1 within the solver's tolerance
    return sorted(first[taken].tolist()), complete and bool(result.status == 0)
