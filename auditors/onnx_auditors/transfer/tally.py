"""Counts of the matrix, taken from one partial after the other."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from onnx_audit import v1
from onnx_auditors.transfer.kinds import Kind

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

EVERYBODY = -1
"""The source of ensembles."""


@dataclass(frozen=True)
class Block:
    """The part of an attack in a partial, as arrays; see `v1.TransferPartial`."""

    columns: list[int]
    begin: int
    exists: Bools
    lacking: Bools
    l2: Doubles
    right: Bytes
    errors: Bytes
    noise_errors: Bytes
    shuffled: Bytes
    answers: Counts
    aimed: Counts | None
    matches: Bytes | None
    noise_matches: Bytes | None
    levels: list[tuple[Doubles, Bytes, Bytes]]

    @classmethod
    def of(
        cls, partial: v1.TransferPartial, part: v1.TransferPartial.AttackPart, models: int
    ) -> Block:
        """Reads the arrays of one attack; `models` is their number."""
        columns = [partial.model] if partial.ensemble else list(range(models))
        shape = (partial.end - partial.begin, len(columns))

        def table(content: bytes) -> Bytes:
            return np.frombuffer(content, dtype=np.uint8).reshape(shape)

        return cls(
            columns=columns,
            begin=partial.begin,
            exists=np.frombuffer(part.exists, dtype=np.uint8) == 1,
            lacking=np.frombuffer(part.lacking, dtype=np.uint8) == 1,
            l2=np.frombuffer(part.l2, dtype="<f8"),
            right=table(partial.right),
            errors=table(part.errors),
            noise_errors=table(part.noise_errors),
            shuffled=table(part.shuffled),
            answers=np.frombuffer(part.answers, dtype="<i8").reshape(shape),
            aimed=np.frombuffer(part.aimed, dtype="<i8") if part.aimed else None,
            matches=table(part.matches) if part.matches else None,
            noise_matches=table(part.noise_matches) if part.noise_matches else None,
            levels=[
                (np.frombuffer(level.rms, dtype="<f8"), table(level.errors),
                 table(level.noise_errors))
                for level in part.levels
            ],
        )  # fmt: skip

    def judged(self, column: int) -> Bools:
        """Whether a probe has an example and the target answers it rightly without, [n]."""
        found: Bools = self.exists & (self.right[:, column] == 1)
        return found


@dataclass
class Cell:
    """Counts of one cell.

    Attributes:
        table: Probes by error of the example and number of draws of noise with an error,
            int64 [2, draws + 1].
        shuffled: Wrong and all answers under another probe's change.
        matches: Answers that are the class aimed at, those to noise, over all draws.
        levels: Per size: wrong answers, those to noise; int64 [levels, 2].
        rms: Sums of the sizes that were reached, float64 [levels].
    """

    table: Counts
    shuffled: Counts
    matches: Counts
    levels: Counts
    rms: Doubles

    @classmethod
    def empty(cls, draws: int, levels: int) -> Cell:
        """Returns a cell without probes."""
        return cls(
            np.zeros((2, draws + 1), dtype=np.int64),
            np.zeros(2, dtype=np.int64),
            np.zeros(2, dtype=np.int64),
            np.zeros((levels, 2), dtype=np.int64),
            np.zeros(levels),
        )

    def add(self, block: Block, column: int) -> None:
        """Adds the probes of a block."""
        rows = block.judged(column)
        errors, noise = block.errors[rows, column], block.noise_errors[rows, column]
        np.add.at(self.table, (errors.astype(np.int64), noise.astype(np.int64)), 1)
        shuffled = block.shuffled[rows, column]
        self.shuffled += (np.count_nonzero(shuffled == 1), np.count_nonzero(shuffled <= 1))
        if block.matches is not None and block.noise_matches is not None:
            found = (block.matches[rows, column], block.noise_matches[rows, column])
            self.matches += [int(f.sum(dtype=np.int64)) for f in found]
        for i, (rms, wrong, noisy) in enumerate(block.levels):
            self.rms[i] += rms[rows].sum()
            pair = (wrong[rows, column], noisy[rows, column])
            self.levels[i] += [int(p.sum(dtype=np.int64)) for p in pair]


@dataclass
class Row:
    """Examples of one source: lengths, and how many probes lack one."""

    l2: list[Doubles] = field(default_factory=list)
    lacking: int = 0


Pairs = frozenset[tuple[int, int]]


@dataclass
class Group:
    """Pairs of models whose cells are pooled, by probe.

    Attributes:
        pairs: Source and target.
        sums: Errors, cells, and errors of noise as means over draws; float64 [3, probes].
    """

    pairs: Pairs
    sums: Doubles

    def add(self, block: Block, source: int, draws: int) -> None:
        """Adds the cells of a source."""
        part = slice(block.begin, block.begin + len(block.exists))
        for i, column in enumerate(block.columns):
            if (source, column) in self.pairs:
                rows = block.judged(i)
                self.sums[0, part] += rows * block.errors[:, i]
                self.sums[1, part] += rows
                self.sums[2, part] += rows * block.noise_errors[:, i] / draws


class Tally:
    """All counts of one attack.

    Attributes:
        cells: By source and target; the source is -1 for ensembles.
        rows: By source and left-out target (-1 for single sources).
        groups: Pooled cells, by what they have in common.
    """

    def __init__(self, config: v1.TransferConfig, probes: int, groups: dict[Kind, Pairs]) -> None:
        self._draws, self._levels = config.noise_draws, len(config.rms_levels)
        self.cells: dict[tuple[int, int], Cell] = {}
        self.rows: dict[tuple[int, int], Row] = {}
        self.groups = {key: Group(pairs, np.zeros((3, probes))) for key, pairs in groups.items()}

    def add(self, partial: v1.TransferPartial, block: Block) -> None:
        """Adds what a partial has of the attack."""
        source = EVERYBODY if partial.ensemble else partial.model
        row = self.rows.setdefault(
            (source, partial.model if partial.ensemble else EVERYBODY), Row()
        )
        row.l2.append(block.l2[block.exists])
        row.lacking += int(block.lacking.sum())
        for i, column in enumerate(block.columns):
            cell = self.cells.get((source, column))
            if cell is None:
                cell = self.cells[source, column] = Cell.empty(self._draws, self._levels)
            cell.add(block, i)
        for group in self.groups.values():
            group.add(block, source, self._draws)
