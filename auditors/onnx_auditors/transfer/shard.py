"""One shard of `transfer`: a source's examples for a block of probes, and every target's answers.

Examples are made once; each target then runs them, their noise, the shuffled changes and the
changes of fixed sizes in large batches of ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from onnx_audit import v1
from onnx_auditors.context import Context, Searched
from onnx_auditors.distortion import noise
from onnx_auditors.transfer.examples import Examples, box_of
from onnx_auditors.transfer.models import Models
from onnx_auditors.transfer.sizes import Floats, lengths, scaled
from onnx_auditors.transfer.sources import Source

_NOISE_SEED, _SHUFFLE_SEED, _FIXED_SEED, _LEVEL_SEED = 23, 24, 25, 26
_MAKING = 0.8
"""Share of the work that is reported as done once the examples are made."""
_FEWEST_TO_SHUFFLE = 2
UNKNOWN = 2
"""Where an outcome is neither: no class for the label, or no other change to take."""

Part = v1.TransferPartial.AttackPart
Bytes = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


class Shard:
    """Works on some probes with one source.

    Args:
        models: All models.
        config: The resolved configuration.
        model: Index of the source; of the one left out for ensembles.
        columns: Indices of the targets.
        rows: Indices of the probes.
        searched: What `distortion` has found for the audited model.
    """

    def __init__(
        self,
        models: Models,
        config: v1.TransferConfig,
        model: int,
        columns: list[int],
        rows: Indices,
        searched: Searched | None,
    ) -> None:
        self._searched = searched
        self._models, self._config, self._model = models, config, model
        self._columns, self._rows = columns, rows
        self._base = models.open(0)
        self._inputs = self._base.inputs(rows)
        self._box = box_of(self._base)
        self._root = math.sqrt(math.prod(self._inputs.shape[1:]))
        self._labels = np.stack([models.translated(t, models.labels[rows]) for t in columns], 1)

    def run(
        self, attacks: list[v1.TransferAttack.ValueType], progress: Callable[[float], object]
    ) -> v1.TransferPartial:
        """Makes the examples of all attacks and has the targets answer them.

        Raises:
            ModelFailed: ONNX Runtime could not run a model.
        """
        clean = self._answers([self._inputs])[0]
        right = np.where(self._labels < 0, UNKNOWN, clean == self._labels).astype(np.uint8)
        source = Source(self._models, self._config, self._model, self._searched)
        partial = v1.TransferPartial(model=self._model, right=right.tobytes())
        for i, attack in enumerate(attacks):

            def tell(share: float, i: int = i) -> None:
                progress((i + _MAKING * share) / len(attacks))

            made = source.make(attack, self._rows, tell)
            partial.attacks.append(self._judge(attack, made))
            progress((i + 1) / len(attacks))
        return partial

    def fixed_noise(self) -> list[bytes]:
        """Returns for each standard deviation whether noise makes the source's answer wrong."""
        own = self._labels[:, self._columns.index(self._model)]
        context = self._models.open(self._model)
        result = []
        for level, sigma in enumerate(self._config.noise_levels):
            moved = np.clip(
                (self._inputs + sigma * self._gaussian(_FIXED_SEED, 0, level)).astype(np.float32),
                *self._box,
            )
            result.append((_answer(context, moved) != own).astype(np.uint8).tobytes())
        return result

    def _judge(self, attack: v1.TransferAttack.ValueType, made: Examples) -> Part:
        """Returns how the targets answer the examples of an attack, and what stands for chance."""
        draws = [
            scaled(self._inputs, self._gaussian(_NOISE_SEED, draw, attack), made.l2, self._box)
            for draw in range(self._config.noise_draws)
        ]
        levels = self._levels(attack, made)
        sets = [made.examples, self._shuffled(attack, made), *draws]
        answers = self._answers(sets + [points for pair in levels for points in pair])
        wrong = (answers != self._labels).astype(np.uint8)
        alone = np.count_nonzero(made.exists) < _FEWEST_TO_SHUFFLE
        count = len(draws)
        part = Part(
            attack=attack,
            exists=made.exists.astype(np.uint8).tobytes(),
            lacking=made.lacking.astype(np.uint8).tobytes(),
            examples=made.examples.tobytes(),
            l2=made.l2.tobytes(),
            answers=answers[0].tobytes(),
            errors=wrong[0].tobytes(),
            shuffled=(np.full_like(wrong[1], UNKNOWN) if alone else wrong[1]).tobytes(),
            noise_errors=wrong[2 : 2 + count].sum(axis=0, dtype=np.uint8).tobytes(),
            levels=[
                v1.TransferPartial.LevelPart(
                    rms=(lengths(self._inputs, moved) / self._root).tobytes(),
                    errors=wrong[2 + count + 2 * i].tobytes(),
                    noise_errors=wrong[3 + count + 2 * i].tobytes(),
                )
                for i, (moved, _) in enumerate(levels)
            ],
        )
        if made.aimed is not None:
            aims = np.stack([self._models.translated(t, made.aimed) for t in self._columns], 1)
            matches = (answers[: 2 + count] == aims).astype(np.uint8)
            part.aimed = made.aimed.tobytes()
            part.matches = matches[0].tobytes()
            part.noise_matches = matches[2:].sum(axis=0, dtype=np.uint8).tobytes()
        return part

    def _shuffled(self, attack: v1.TransferAttack.ValueType, made: Examples) -> Floats:
        """Returns the probes with the change of another probe of the block, of their own size."""
        rng = np.random.default_rng(
            [self._base.seed, _SHUFFLE_SEED, attack, self._model, int(self._rows[0])]
        )
        order = rng.permutation(np.flatnonzero(made.exists))
        change = np.zeros(self._inputs.shape, dtype=np.float64)
        change[order] = (made.examples.astype(np.float64) - self._inputs)[np.roll(order, 1)]
        return scaled(self._inputs, change, made.l2, self._box)

    def _levels(
        self, attack: v1.TransferAttack.ValueType, made: Examples
    ) -> list[tuple[Floats, Floats]]:
        """Returns the probes with the changes, and with noise, brought to fixed sizes."""
        change = made.examples.astype(np.float64) - self._inputs
        direction = self._gaussian(_LEVEL_SEED, 0, attack)
        found = []
        for rms in self._config.rms_levels:
            size = np.where(made.exists, rms * self._root, 0.0)
            moved = scaled(self._inputs, change, size, self._box)
            # Where the box does not hold the size along the change, noise gets no more than that.
            reached = np.minimum(lengths(self._inputs, moved), size)
            found.append((moved, scaled(self._inputs, direction, reached, self._box)))
        return found

    def _answers(self, sets: list[Floats]) -> Indices:
        """Returns ONNX Runtime's answers to sets of points, int64 [sets, n, targets].

        One target after the other, so that each is opened once.
        """
        columns = []
        for target in self._columns:
            context = self._models.open(target)
            columns.append(np.stack([_answer(context, points) for points in sets]))
        return np.stack(columns, axis=2)

    def _gaussian(self, purpose: int, draw: int, kind: int) -> Floats:
        """Returns standard Gaussian numbers like the inputs, seeded by source and probe."""
        state = np.random.SeedSequence([self._base.seed, purpose, kind, self._model])
        seeds = state.generate_state(1, np.uint64) + self._rows.astype(np.uint64)
        width = math.prod(self._inputs.shape[1:])
        numbers = noise.gaussian(torch.from_numpy(seeds.view(np.int64)), draw, width)
        found: Floats = numbers.numpy().reshape(self._inputs.shape)
        return found


def _answer(context: Context, points: Floats) -> Indices:
    answers: Indices = context.scores(points).argmax(axis=1).astype(np.int64)
    return answers
