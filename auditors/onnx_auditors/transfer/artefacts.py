"""The files beside the section: examples with the answers of all models, and those to train on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from onnx_audit import v1
from onnx_auditors.tensor_files import Array, Tensor, written
from onnx_auditors.transfer.models import Models
from onnx_auditors.transfer.tally import EVERYBODY, Block

Partials = Sequence[v1.TransferPartial]
Indices = npt.NDArray[np.int64]
UNASKED = -1
_NOBODY = 255


class Files:
    """The files of one attack; partials are read one at a time.

    Args:
        models: All models.
        partials: Of all shards.
        rows: Indices of the audited probes.
        attack: The attack.
    """

    def __init__(
        self,
        models: Models,
        partials: Partials,
        rows: Indices,
        attack: v1.TransferAttack.ValueType,
    ) -> None:
        self._models, self._partials, self._rows = models, partials, rows
        self._attack = attack
        self._shape = tuple(models.open(0).input_map.probe_shape)
        self._count, self._transferred, self._aimed = 0, 0, False
        for partial, _, block in self._blocks():
            self._count += int(block.exists.sum())
            self._transferred += int(_fools_another(partial, block).sum())
            self._aimed |= block.aimed is not None

    def examples(self) -> Iterator[bytes]:
        """Returns a safetensors file with a row per example; see `v1.TransferArtefact`."""
        root = math.sqrt(math.prod(self._shape))
        models = len(self._models)

        def column(dtype: str, make: Callable[[v1.TransferPartial, Block], Array]) -> Tensor:
            def blocks() -> Iterator[Array]:
                for partial, _, block in self._blocks():
                    yield make(partial, block)[block.exists]

            return Tensor(dtype, (self._count,), blocks)

        def same(value: int, block: Block) -> Array:
            return np.full(len(block.exists), value)

        def wide(make: Callable[[Block], Array], dtype: str, fill: int) -> Tensor:
            def blocks() -> Iterator[Array]:
                for _, _, block in self._blocks():
                    table = np.full((len(block.exists), models), fill)
                    table[:, block.columns] = make(block)
                    yield table[block.exists]

            return Tensor(dtype, (self._count, models), blocks)

        tensors = {
            "source": column("<i8", lambda p, b: same(EVERYBODY if p.ensemble else p.model, b)),
            "left_out": column("<i8", lambda p, b: same(p.model if p.ensemble else EVERYBODY, b)),
            "probe": column("<i8", lambda p, _: self._rows[p.begin : p.end]),
            "label": column("<i8", lambda p, _: self._models.labels[self._rows[p.begin : p.end]]),
            "l2": column("<f8", lambda _, b: b.l2),
            "rms": column("<f8", lambda _, b: b.l2 / root),
            "answers": wide(lambda b: b.answers, "<i8", UNASKED),
            "fooled": wide(lambda b: (b.errors == 1) & (b.right == 1), "|u1", _NOBODY),
            "example": Tensor(
                "<f4",
                (self._count, *self._shape),
                lambda: (self._points(p, part)[b.exists] for p, part, b in self._blocks()),
            ),
        }
        if self._aimed:
            tensors["aimed"] = column(
                "<i8", lambda _, b: same(UNASKED, b) if b.aimed is None else b.aimed
            )
        return written(tensors)

    def training_set(self) -> Iterator[bytes] | None:
        """Returns the examples that fool another model than their source as a probe set."""
        if not self._transferred:
            return None

        def inputs() -> Iterator[Array]:
            for partial, part, block in self._blocks():
                yield self._points(partial, part)[_fools_another(partial, block)]

        def labels() -> Iterator[Array]:
            for partial, _, block in self._blocks():
                own = self._models.labels[self._rows[partial.begin : partial.end]]
                yield own[_fools_another(partial, block)]

        count = self._transferred
        return written(
            {
                "inputs": Tensor("<f4", (count, *self._shape), inputs),
                "labels": Tensor("<i8", (count,), labels),
            }
        )

    def _blocks(
        self,
    ) -> Iterator[tuple[v1.TransferPartial, v1.TransferPartial.AttackPart, Block]]:
        for i in range(len(self._partials)):
            partial = self._partials[i]
            for part in partial.attacks:
                if part.attack == self._attack:
                    yield partial, part, Block.of(partial, part, len(self._models))

    def _points(self, partial: v1.TransferPartial, part: v1.TransferPartial.AttackPart) -> Array:
        count = partial.end - partial.begin
        return np.frombuffer(part.examples, dtype="<f4").reshape(count, *self._shape)


def _fools_another(partial: v1.TransferPartial, block: Block) -> npt.NDArray[np.bool_]:
    fooled = (block.errors == 1) & (block.right == 1)
    if not partial.ensemble:
        fooled[:, block.columns.index(partial.model)] = False
    found: npt.NDArray[np.bool_] = block.exists & fooled.any(axis=1)
    return found
