"""One shard of `distortion`: its probes in batches, and every question asked of each batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_audit import v1
from onnx_auditors.auditor import Progress
from onnx_auditors.context import Context
from onnx_auditors.distortion import inside, noisy, proofs
from onnx_auditors.distortion.attempts import Anchors
from onnx_auditors.distortion.batch import Batch, Indices, look
from onnx_auditors.distortion.searching import Found, search
from onnx_auditors.distortion.section import UNITS
from onnx_auditors.distortion.table import SEARCHED
from onnx_auditors.estimates import quantile

Bools = npt.NDArray[np.bool_]
Partial = v1.DistortionPartial


@dataclass(frozen=True)
class Rows:
    """The probes of a shard.

    Attributes:
        probes: Their indices in the probe set, int64 [n].
        twice: Which are searched twice, bool [n].
        proved: Which get an exact optimum where the model is small enough, bool [n].
    """

    probes: Indices
    twice: Bools
    proved: Bools

    def part(self, chosen: slice) -> Rows:
        """Returns some of them."""
        return Rows(self.probes[chosen], self.twice[chosen], self.proved[chosen])


class Shard:
    """Answers the questions of a configuration about some probes."""

    def __init__(
        self,
        config: v1.DistortionConfig,
        context: Context,
        anchors: Anchors | None,
        size: int,
        progress: Progress,
    ) -> None:
        self._config, self._context, self._progress = config, context, progress
        self._anchors, self._size = anchors, size
        self._prover = proofs.Prover.of(context) if config.exact_probes else None
        self._boxes = inside.boxes(context, config.hidden_values)
        self._parts = [Partial.NormPartial(norm=norm) for norm in config.norms]
        self._examples: list[list[bytes]] = [[] for _ in self._parts]
        self._rounded: list[list[bytes]] = [[] for _ in self._parts]
        hidden = len(config.hidden_values) * len(config.norms)
        self._hidden = [Partial.HiddenPart() for _ in range(hidden)]
        self._noise = [Partial.NoisePart() for _ in config.noise]

    def run(self, rows: Rows) -> v1.DistortionPartial:
        """Audits the probes, batch by batch.

        Raises:
            ModelFailed: ONNX Runtime could not run the model.
            BoundsCrossed: An example contradicts a proof.
        """
        count = len(rows.probes)
        for first in range(0, count, self._size):
            part = rows.part(slice(first, first + self._size))
            batch = look(self._context, self._config, part.probes)
            self._audit(batch, part, first, count)
        for i, part_ in enumerate(self._parts):
            part_.examples = b"".join(self._examples[i])
            part_.rounded_examples = b"".join(self._rounded[i])
        return Partial(
            norms=self._parts,
            dimension=math.prod(self._context.input_map.probe_shape),
            hidden=self._hidden,
            noise=self._noise,
        )

    def _audit(self, batch: Batch, rows: Rows, first: int, count: int) -> None:
        """Asks all questions about a batch that begins at a position of the shard."""
        norms, config = self._config.norms, self._config
        questions = len(norms) + len(self._hidden) + len(self._noise)
        length = len(batch.rows) / questions

        def teller(number: int, part: Partial.NormPartial) -> Callable[[float], None]:
            label, running = f"median {UNITS[part.norm]}", _running_median(part)

            def tell(share: float) -> None:
                # The whole is only reported done once its last figure is there.
                done = min(first + (number + share) * length, math.nextafter(count, 0))
                self._progress(done, count, running, label)

            return tell

        for i, part in enumerate(self._parts):
            self._search(batch, rows, i, first, teller(i, part))
        pairs = [(name, norm) for name in config.hidden_values for norm in norms]
        for i, (name, norm) in enumerate(pairs):
            tell = teller(len(norms) + i, self._parts[0])
            self._hidden[i].MergeFrom(
                inside.search_hidden(
                    self._context,
                    config,
                    batch,
                    name,
                    norm,
                    box=self._boxes[name],
                    progress=tell,
                )
            )
        for i, kind in enumerate(config.noise):
            tell = teller(len(norms) + len(pairs) + i, self._parts[0])
            tell(0.0)
            self._noise[i].MergeFrom(noisy.add_noise(self._context, config, batch, kind))
        last = self._parts[-1]
        done = first + len(batch.rows)
        self._progress(done, count, _running_median(last), f"median {UNITS[last.norm]}")

    def _search(
        self, batch: Batch, rows: Rows, number: int, first: int, tell: Callable[[float], None]
    ) -> None:
        part = self._parts[number]
        found = search(
            self._context,
            self._config,
            batch,
            part.norm,
            twice=rows.twice,
            anchors=self._anchors,
            size=self._size,
            progress=tell,
        )
        proved = {}
        if self._prover is not None:
            proved = self._prover.prove(self._context, batch, part.norm, found, rows.proved)
            proofs.check(batch, part.norm, found, proved)
        _add(part, batch, found, first, proved)
        self._examples[number].append(found.best.examples.tobytes())
        if found.rounded is not None:
            self._rounded[number].append(found.rounded.examples.tobytes())


def _running_median(part: Partial.NormPartial) -> v1.Estimate | None:
    """Returns the median distance of the probes that were searched so far; None before any."""
    if not part.probes:
        return None
    right = [p.distance for p in part.probes if p.outcome in SEARCHED]
    return quantile(np.array(right, dtype=np.float64), 0.5, UNITS[part.norm])


def _add(
    part: Partial.NormPartial,
    batch: Batch,
    found: Found,
    first: int,
    proved: dict[int, v1.CertifiedRadius],
) -> None:
    """Adds what was found for a batch, which begins at a position of the shard."""
    rounded = found.rounded
    part.probes.extend(
        v1.ProbeDistortion(
            probe=int(batch.rows[i]),
            outcome=v1.ProbeOutcome.ValueType(int(found.outcome[i])),
            label=int(batch.labels[i]),
            clean_prediction=int(batch.clean[i]),
            adversarial_prediction=int(found.best.predictions[i]),
            distance=float(found.best.distance[i]),
            rms=float(found.rms[i]),
            evaluations=int(found.spent[i]),
            target=int(batch.targets[i]) if batch.targets[i] >= 0 else None,
            clean_confidence=float(batch.confidence[i]),
            adversarial_confidence=float(found.confidence[i]),
            gradient_vanishes=bool(batch.vanishes[i]),
            found_by=v1.ExampleSource.ValueType(int(found.source[i])),
            black_box_runs=int(found.runs[i]),
            rounded_distance=None if rounded is None else float(rounded.distance[i]),
            certified=proved.get(i),
        )
        for i in range(len(batch.rows))
    )
    if found.by_class is not None:
        part.class_distances += found.by_class.tobytes()
    again = np.flatnonzero(~np.isnan(found.again))
    part.repeated_positions.extend((again + first).tolist())
    part.repeated_distances.extend(found.again[again].tolist())
