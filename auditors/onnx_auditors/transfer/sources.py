"""The examples of one source, or of an ensemble, for a block of probes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnx_audit import v1
from onnx_auditors.context import Context, Searched
from onnx_auditors.distortion import drawing
from onnx_auditors.distortion.batch import Batch, look
from onnx_auditors.distortion.memory import batch_rows
from onnx_auditors.distortion.projected import ANCHORED_BUDGET
from onnx_auditors.distortion.searching import search
from onnx_auditors.transfer import reuse
from onnx_auditors.transfer.config import MINIMAL, TARGETED
from onnx_auditors.transfer.examples import Bools, Examples, Indices, box_of
from onnx_auditors.transfer.fixed_size import FixedSize
from onnx_auditors.transfer.models import Labels, Models
from onnx_auditors.transfer.sizes import Floats, lengths

_OVERSHOOT = 1e-3
"""Share of the change by which the smallest ones go past the boundary, where that still fools."""
_TARGET_SEED = 20
_BLACK_BOX_RUNS = 1000


class Source:
    """Makes examples of a model, or of all models but it.

    Args:
        models: All models.
        config: The resolved configuration.
        model: Index of the source; of the one left out for ensembles.
        searched: What `distortion` has found for the audited model.
    """

    def __init__(
        self,
        models: Models,
        config: v1.TransferConfig,
        model: int,
        searched: Searched | None,
    ) -> None:
        self._models, self._config, self._model = models, config, model
        self._searched = searched
        self._base = models.open(0)
        self._fixed_size = FixedSize(models, config, model)

    def make(
        self,
        attack: v1.TransferAttack.ValueType,
        rows: Indices,
        progress: Callable[[float], object],
    ) -> Examples:
        """Makes the examples of an attack.

        Args:
            attack: The attack.
            rows: Indices of the probes.
            progress: Told which share is done.

        Raises:
            ModelFailed: ONNX Runtime could not run a model.
        """
        aimed = _aims(self._models, rows, self._base.seed) if attack in TARGETED else None
        if attack in MINIMAL:
            return self._minimal(rows, aimed, progress)
        return self._fixed_size.make(attack, rows, aimed, progress)

    def _minimal(
        self, rows: Indices, aimed: Indices | None, progress: Callable[[float], object]
    ) -> Examples:
        context = self._models.open(self._model)
        inputs = self._base.inputs(rows)
        made = Examples(
            np.zeros(len(rows), dtype=bool),
            np.zeros(len(rows), dtype=bool),
            inputs.copy(),
            np.zeros(len(rows)),
            aimed,
        )
        labels = self._models.translated(self._model, self._models.labels[rows])
        places = np.flatnonzero(labels >= 0)
        if aimed is None and self._model == 0:
            places = places[~self._reused(context, rows, made)[places]]
        step, total = batch_rows(context), len(places)
        for begin in range(0, total, step):
            part = places[begin : begin + step]

            def tell(share: float, begin: int = begin) -> None:
                progress((begin + share * min(step, total - begin)) / total)

            goals = None if aimed is None else aimed[part]
            made.exists[part], made.lacking[part], made.examples[part] = self._search(
                context, rows[part], goals, tell
            )
        made.l2[:] = lengths(inputs, made.examples)
        return made

    def _asked(self) -> v1.DistortionConfig:
        """Returns the search for the smallest changes as a configuration of `distortion`."""
        return v1.DistortionConfig(
            norms=[v1.NORM_L2],
            budget=self._config.budget,
            methods=[v1.SEARCH_METHOD_PROJECTED],
            black_box_runs=_BLACK_BOX_RUNS,
            target_mode=v1.TARGET_MODE_UNTARGETED,
        )

    def _reused(self, context: Context, rows: Indices, made: Examples) -> Bools:
        """Takes over what `distortion` has found in the same audit; returns for which probes."""
        asked = self._asked()
        found = reuse.found(self._searched, asked, made.examples.shape[1:])
        known = np.zeros(len(rows), dtype=bool)
        if found is None:
            return known
        _, here, there = np.intersect1d(rows, found.rows, return_indices=True)
        known[here] = True
        made.exists[here], made.lacking[here] = found.confirmed[there], found.lacking[there]
        made.examples[here] = found.examples[there]
        made.examples[:] = _past(context, look(context, asked, rows), made.examples, made.exists)
        return known

    def _search(
        self,
        context: Context,
        rows: Indices,
        aimed: Indices | None,
        progress: Callable[[float], object],
    ) -> tuple[Bools, Bools, Floats]:
        """Looks for the smallest changes as `distortion` does; returns what exists and lacks."""
        config = self._asked()
        batch = look(context, config, rows)
        if aimed is not None:
            config.target_mode = v1.TARGET_MODE_GIVEN
            batch = _aimed_at(batch, self._models.translated(self._model, aimed))
        step = batch_rows(context)
        anchors = drawing.anchors(context, step) if config.budget >= ANCHORED_BUDGET else None
        found = search(
            context,
            config,
            batch,
            v1.NORM_L2,
            twice=np.zeros(len(rows), dtype=bool),
            anchors=anchors,
            size=step,
            progress=progress,
        )
        exists = found.outcome == v1.PROBE_OUTCOME_CONFIRMED
        return exists, batch.searched & ~exists, _past(context, batch, found.best.examples, exists)


def _past(context: Context, batch: Batch, examples: Floats, exists: Bools) -> Floats:
    """Pushes examples a little past the boundary, where ONNX Runtime still gives a wanted answer.

    On the boundary itself the rounding of sums would decide what a twin of the source answers.
    """
    rows = np.flatnonzero(exists)
    if not len(rows):
        return examples
    inputs = batch.inputs[rows]
    change = examples[rows].astype(np.float64) - inputs
    pushed = np.clip((inputs + (1 + _OVERSHOOT) * change).astype(np.float32), *box_of(context))
    answers = context.scores(pushed).argmax(axis=1)
    wanted = batch.targets[rows]
    fools = np.where(wanted >= 0, answers == wanted, answers != batch.labels[rows])
    result = examples.copy()
    result[rows[fools]] = pushed[fools]
    return result


def _aimed_at(batch: Batch, targets: Labels) -> Batch:
    """Returns the batch with a class to reach for each probe; those without one are left out."""
    return Batch(
        rows=batch.rows,
        inputs=batch.inputs,
        labels=batch.labels,
        clean=batch.clean,
        # Aimed at its own label, a probe is not searched.
        targets=np.where(targets >= 0, targets, batch.labels),
        confidence=batch.confidence,
        vanishes=batch.vanishes,
    )


def _aims(models: Models, rows: Indices, seed: int) -> Indices:
    """Draws a class for each probe that every model has and tells from the label.

    Returns:
        Classes in the audited model's numbers, int64 [n]; -1 where there is none.
    """
    labels = models.labels
    rng = np.random.default_rng([seed, _TARGET_SEED])
    classes = np.arange(models.open(0).network.classes)
    order = rng.random((len(labels), len(classes)))[rows]
    own = labels[rows]
    fits = np.ones(order.shape, dtype=bool)
    for m in range(len(models)):
        mapped, mine = models.translated(m, classes), models.translated(m, own)
        fits &= (mapped >= 0)[None, :] & (mapped[None, :] != mine[:, None])
    best = np.where(fits, order, -1.0).argmax(axis=1)
    return np.where(fits.any(axis=1), best, -1)
