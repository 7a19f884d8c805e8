"""What was found for some tasks so far: only what ONNX Runtime confirms, and of that the nearest.

Two searches offer examples: that by gradients, and, where those cannot be relied on, that by
answers alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.context import Context
from onnx_auditors.distortion.batch import Batch, Indices
from onnx_auditors.distortion.black_box import black_box
from onnx_auditors.distortion.boundary import Bools, Doubles, Floats
from onnx_auditors.distortion.confirm import confirm, judge, levels_of
from onnx_auditors.distortion.gradients import differentiable
from onnx_auditors.distortion.minimal import minimal

Anchors = tuple[Tensor, Tensor]
_MOST_POINTS = 384
"""Points that the search by answers alone may start from."""


@dataclass(frozen=True)
class Tasks:
    """What is to be searched.

    Attributes:
        places: Positions of the probes in the batch, int64 [m].
        targets: Classes to reach, int64 [m]; -1 for any but the label.
        seeds: Seeds of the noise, int64 [m].
        again: Whether it is the second search of a probe, bool [m].
    """

    places: Indices
    targets: Indices
    seeds: Indices
    again: Bools

    def part(self, chosen: slice) -> Tasks:
        """Returns some of the tasks."""
        return Tasks(
            self.places[chosen], self.targets[chosen], self.seeds[chosen], self.again[chosen]
        )


@dataclass(frozen=True)
class Nearest:
    """The nearest confirmed examples of some kind, one for each row.

    Attributes:
        examples: Float32 [m, ...]; the probe itself where there is none.
        predictions: ONNX Runtime's answers to them, int64 [m].
        distance: Float64 [m]; inf where there is none.
    """

    examples: Floats
    predictions: Indices
    distance: Doubles

    @classmethod
    def none(cls, inputs: Floats, clean: Indices) -> Nearest:
        """Returns rows without examples."""
        return cls(inputs.copy(), clean.copy(), np.full(len(inputs), math.inf))

    def rows(self, chosen: Indices) -> Nearest:
        """Returns some of the rows."""
        return Nearest(self.examples[chosen], self.predictions[chosen], self.distance[chosen])

    def take(self, rows: Indices, other: Nearest) -> Indices:
        """Takes what is nearer in `other`, whose rows go to `rows`; returns where it was.

        A row may come several times: the nearest of equals stays, the first of those.
        """
        better = np.flatnonzero(other.distance < self.distance[rows])
        # Of several assignments to one index the last stays.
        better = better[np.argsort(-other.distance[better], kind="stable")]
        self.examples[rows[better]] = other.examples[better]
        self.predictions[rows[better]] = other.predictions[better]
        self.distance[rows[better]] = other.distance[better]
        return better


class Attempts:
    """The examples of tasks in one norm.

    Attributes:
        tasks: The tasks, m of them.
        best: The nearest confirmed examples.
        rounded: The nearest of whole levels; None where inputs have no levels.
        source: `v1.ExampleSource` of the best, int64 [m].
        offered: Whether a search found an example, confirmed or not, bool [m].
        evaluations: Gradient evaluations spent, int64 [m].
        runs: Answers of ONNX Runtime that the search by answers asked for, int64 [m].
    """

    def __init__(
        self,
        context: Context,
        config: v1.DistortionConfig,
        batch: Batch,
        norm: str,
        tasks: Tasks,
    ) -> None:
        self.tasks = tasks
        self._context, self._config, self._norm = context, config, norm
        self._inputs, self._labels = batch.inputs[tasks.places], batch.labels[tasks.places]
        self._clean = batch.clean[tasks.places]
        self._batch = batch
        aimed = config.target_mode != v1.TARGET_MODE_UNTARGETED
        self._targets = tasks.targets if aimed else None
        self._levels = levels_of(context)
        self.best = Nearest.none(self._inputs, self._clean)
        rounded = self._levels is not None
        self.rounded = Nearest.none(self._inputs, self._clean) if rounded else None
        self.source = np.zeros(len(tasks.places), dtype=np.int64)
        self.offered = np.zeros(len(tasks.places), dtype=bool)
        self.evaluations = np.zeros(len(tasks.places), dtype=np.int64)
        self.runs = np.zeros(len(tasks.places), dtype=np.int64)

    def by_gradients(self, anchors: Anchors | None, progress: Callable[[float], object]) -> None:
        """Searches with the methods of the configuration."""
        context, config = self._context, self._config

        def to(values: npt.NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(values).to(context.device)

        result = minimal(
            differentiable(context.logits),
            to(self._inputs),
            to(self._labels),
            norm=self._norm,
            budget=config.budget,
            box=(context.input_map.lower, context.input_map.upper),
            targets=None if self._targets is None else to(self._targets),
            seed=self.tasks.seeds.tolist(),
            methods=[
                v1.SearchMethod.Name(method).removeprefix("SEARCH_METHOD_").lower()
                for method in config.methods
            ],
            anchors=self._useful(anchors),
            progress=progress,
        )
        self.evaluations += result.evaluations.cpu().numpy()
        found = np.flatnonzero(result.distance.isfinite().cpu().numpy())
        self._offer(found, result.examples.cpu().numpy()[found], v1.EXAMPLE_SOURCE_GRADIENTS)

    def by_answers(self, anchors: Anchors | None) -> None:
        """Searches by ONNX Runtime's answers alone where gradients cannot be relied on.

        That is where no example was confirmed, where the gradient at the probe vanishes, and
        everywhere in a network whose gradients are surrogates. It starts from what is known: the
        examples of all tasks, the probes of the batch, and the anchors.
        """
        doubtful = np.isinf(self.best.distance) | self._batch.vanishes[self.tasks.places]
        rows = np.flatnonzero(doubtful | self._context.network.surrogate)
        if not len(rows):
            return
        lower, upper = self._context.input_map.lower, self._context.input_map.upper
        result = black_box(
            judge(self._context),
            self._inputs[rows],
            self._labels[rows],
            self._norm,
            self._config.black_box_runs,
            (lower.cpu().numpy(), upper.cpu().numpy()),
            None if self._targets is None else self._targets[rows],
            self.tasks.seeds[rows].tolist(),
            self._points(anchors),
        )
        self.runs[rows] += result.queries
        # What is no nearer is known already.
        nearer = result.distance < self.best.distance[rows]
        self._offer(rows[nearer], result.examples[nearer], v1.EXAMPLE_SOURCE_BLACK_BOX)

    def _offer(self, rows: Indices, candidates: Floats, source: v1.ExampleSource.ValueType) -> None:
        """Has candidates confirmed, and rounded where inputs have levels; keeps the nearest."""
        self.offered[rows] = True
        if not len(rows):
            return
        told = confirm(
            self._context,
            self._inputs[rows],
            candidates,
            self._labels[rows],
            self._clean[rows],
            norm=self._norm,
            targets=None if self._targets is None else self._targets[rows],
            levels=self._levels,
        )
        better = self.best.take(rows, Nearest(told.examples, told.predictions, told.distance))
        self.source[rows[better]] = source
        if self.rounded is not None and told.rounded is not None:
            whole = told.rounded
            self.rounded.take(rows, Nearest(whole.examples, whole.predictions, whole.distance))

    def _useful(self, anchors: Anchors | None) -> Anchors | None:
        """Returns the anchors; None where they hold no start for any of the tasks."""
        if anchors is None:
            return None
        answers = np.unique(anchors[1].cpu().numpy())
        if self._targets is None:
            useful = len(answers) > 1 or bool((self._labels != answers[0]).any())
        else:
            useful = bool(np.isin(self._targets, answers).any())
        return anchors if useful else None

    def _points(self, anchors: Anchors | None) -> tuple[Floats, Indices]:
        """Returns points and the answers to them, as starts of the search by answers."""
        found = np.isfinite(self.best.distance)
        points = [self.best.examples[found], self._batch.inputs]
        answers = [self.best.predictions[found], self._batch.clean]
        if anchors is not None:
            points.append(anchors[0].cpu().numpy())
            answers.append(anchors[1].cpu().numpy())
        return np.concatenate(points)[:_MOST_POINTS], np.concatenate(answers)[:_MOST_POINTS]
