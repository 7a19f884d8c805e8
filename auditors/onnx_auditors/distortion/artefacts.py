"""The files beside the section: all examples, and those to train on.

They are written shard by shard, so that no more than one shard's examples are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from onnx_audit import v1
from onnx_auditors.context import Context
from onnx_auditors.distortion.table import Bools, Part, Table
from onnx_auditors.tensor_files import Array, Tensor, whole, written

_INTEGERS = (
    "probe", "label", "clean_prediction", "adversarial_prediction", "outcome", "found_by",
    "black_box_runs",
)  # fmt: skip
_FLOATS = ("distance", "rms", "clean_confidence", "adversarial_confidence")
_LARGEST_BYTE = 255


class Files:
    """The files of one norm.

    Args:
        context: Probes and box.
        table: The results of all n probes.
        parts: The results shard by shard, examples included; each is looked at by itself.
    """

    def __init__(self, context: Context, table: Table, parts: Sequence[Part]) -> None:
        self._context, self._table, self._parts = context, table, parts
        self._shape = tuple(context.input_map.probe_shape)

    def examples(self) -> Iterator[bytes]:
        """Returns a safetensors file with a row for every audited probe, in pieces."""
        table, rows = self._table, (len(self._table.rows), *self._shape)

        def originals() -> Iterator[Array]:
            return (original for original, _ in self._pairs("examples"))

        tensors = {name: whole(table.integers(name)) for name in _INTEGERS}
        tensors |= {name: whole(table.floats(name)) for name in _FLOATS}
        tensors["target"] = whole(table.target)
        tensors["original"] = Tensor("<f4", rows, originals)
        tensors["example"] = Tensor("<f4", rows, lambda: (e for _, e in self._pairs("examples")))
        tensors["perturbation"] = Tensor(
            "<f4", rows, lambda: (e - original for original, e in self._pairs("examples"))
        )
        if table.class_distance is not None:
            tensors["class_distance"] = whole(table.class_distance)
        if table.rounded_distance is not None:
            tensors["rounded_distance"] = whole(table.rounded_distance)
            tensors["rounded_example"] = Tensor(
                "<f4", rows, lambda: (e for _, e in self._pairs("rounded_examples"))
            )
        if (table.certified & ~np.isnan(table.certified_lower)).any():
            tensors["certified_lower"] = whole(table.certified_lower)
            tensors["optimum"] = whole(table.optimum)
        return written(tensors)

    def training_set(self) -> Iterator[bytes] | None:
        """Returns the confirmed examples and their right labels as a probe set; None without."""
        return self._probe_set("examples", self._table.confirmed, None)

    def rounded_training_set(self) -> Iterator[bytes] | None:
        """Returns the same of whole levels; uint8 as the probes are, where that holds them."""
        context, divisor = self._context, self._context.spec.divisor
        ends = [end * divisor for end in (*context.spec.lower, *context.spec.upper)]
        fits = min(ends) >= 0 and max(ends) <= _LARGEST_BYTE
        bytewise = context.summary.dtype == "uint8" and fits
        return self._probe_set(
            "rounded_examples", self._table.rounded, divisor if bytewise else None
        )

    def _probe_set(
        self, field: str, chosen: Bools, divisor: float | None
    ) -> Iterator[bytes] | None:
        if not chosen.any():
            return None
        shape = (int(chosen.sum()), *self._shape)

        def inputs() -> Iterator[Array]:
            begin = 0
            for _, found in self._pairs(field):
                rows = found[chosen[begin : begin + len(found)]]
                begin += len(found)
                yield rows if divisor is None else np.rint(rows * divisor).astype(np.uint8)

        dtype = "<f4" if divisor is None else "|u1"
        labels = whole(self._table.label[chosen])
        return written({"inputs": Tensor(dtype, shape, inputs), "labels": labels})

    def _pairs(self, field: str) -> Iterator[tuple[Array, Array]]:
        """Yields probes and examples in probe space, shard by shard."""
        for part in self._parts:
            rows = np.array([probe.probe for probe in part.probes], dtype=np.int64)
            found = np.frombuffer(getattr(part, field), dtype="<f4")
            yield self._context.inputs(rows), found.reshape(len(rows), *self._shape)


class NormParts(Sequence[Part]):
    """The results of one norm, shard by shard; takes each from its partial when it is asked for."""

    def __init__(self, partials: Sequence[v1.DistortionPartial], number: int) -> None:
        self._partials, self._number = partials, number

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - one part, or a slice that is never asked for
        return self._partials[index].norms[self._number]

    def __len__(self) -> int:
        return len(self._partials)
