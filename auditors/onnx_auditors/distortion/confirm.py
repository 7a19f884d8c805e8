"""ONNX Runtime's word on adversarial examples, as they are and as image files can hold them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_auditors.context import Context
from onnx_auditors.distortion.boundary import SIZES, Answers, Doubles, Floats, Ints, Walk
from onnx_auditors.distortion.rounding import round_examples

PUSHES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1)
"""Shares of the change by which an example is pushed past the boundary, tried in turn."""
FREE_PUSHES = (0.0, 1e-3, 1e-1, 1e1, 1e9)
"""The same for L0, where a longer change costs nothing: in the end to the ends of the box."""
_COARSE_PUSH = 1e-4
_BISECTIONS = 4
_UNLIMITED = 2**62


@dataclass(frozen=True)
class Confirmed:
    """What ONNX Runtime says.

    Attributes:
        examples: Float32 [n, ...]; the probe itself where no example was confirmed.
        predictions: Its answer to the examples, int64 [n].
        confirmed: Whether the answer is the wanted one, bool [n].
        distance: Float64 [n], in the norm; inf where not confirmed.
        rounded: The same for examples of whole levels; None unless asked for.
    """

    examples: Floats
    predictions: Ints
    confirmed: npt.NDArray[np.bool_]
    distance: Doubles
    rounded: Confirmed | None = None


def confirm(
    context: Context,
    inputs: Floats,
    examples: Floats,
    labels: Ints,
    clean: Ints,
    *,
    norm: str = "l2",
    targets: Ints | None = None,
    levels: float | None = None,
) -> Confirmed:
    """Asks ONNX Runtime, on the file as uploaded; see `confirm_by`.

    Args:
        context: Session and map.
        inputs: The probes in probe space, [n, ...].
        examples: Candidates, likewise.
        labels: The classes that count as right, [n].
        clean: ONNX Runtime's answers to the probes, [n].
        norm: "l2", "linf", "l1" or "l0".
        targets: The classes that the answer has to become, [n]; any but the label if None.
        levels: Levels per unit that an image file can hold, as `levels_of` says; None to leave
            the rounded examples out.

    Raises:
        ModelFailed: ONNX Runtime could not run the model.
    """
    lower, upper = (end.cpu().numpy() for end in (context.input_map.lower, context.input_map.upper))
    return confirm_by(
        judge(context),
        inputs,
        examples,
        labels,
        clean,
        (lower, upper),
        norm=norm,
        targets=targets,
        levels=levels,
    )


def judge(context: Context) -> Answers:
    """Returns ONNX Runtime's answers to batches in probe space, as `black_box` asks for them."""
    return lambda points: context.scores(points).argmax(axis=1)


def levels_of(context: Context) -> float | None:
    """Returns how many levels per unit of probe space the inputs have; None where any value goes.

    For uint8 probes the divisor. Else, where the model takes integers as they come (mean 0 and one
    std), 1 / std; with other means the model's levels are no multiples of one number in probe
    space, and None is returned.
    """
    spec = context.spec
    if context.summary.dtype == "uint8":
        return float(spec.divisor)
    plain = not any(spec.mean) and len(set(spec.std)) == 1
    return 1 / spec.std[0] if "int" in context.network.input.dtype and plain else None


def confirm_by(
    answers: Answers,
    inputs: Floats,
    examples: Floats,
    labels: Ints,
    clean: Ints,
    box: tuple[npt.ArrayLike, npt.ArrayLike],
    *,
    norm: str = "l2",
    targets: Ints | None = None,
    levels: float | None = None,
) -> Confirmed:
    """Pushes what a judge does not confirm a little further, and asks again.

    Entries that an example does not change stay as they are, and all stay in the box. Where a push
    by more than 1e-4 of the change was needed, bisection takes back what was too much. A rounded
    example that is the smaller one, or the only one, counts as the example too.

    Args:
        answers: From a batch in the box to classes.
        inputs: The probes, float32 [n, ...].
        examples: Candidates in the box, likewise.
        labels: The classes that count as right, [n].
        clean: The answers to the probes, [n].
        box: Lower and upper end; broadcast to a probe.
        norm: "l2", "linf", "l1" or "l0".
        targets: The classes that the answer has to become, [n]; any but the label if None.
        levels: Levels per unit of the rounded examples; None for no such examples.
    """

    def walk() -> Walk:
        nothing = np.zeros(len(inputs), dtype=np.int64)
        return Walk(
            answers, inputs, labels, box, _UNLIMITED, norm=norm, targets=targets, seeds=nothing
        )

    flat = examples.reshape(len(examples), int(np.prod(inputs.shape[1:])))
    pushed = walk()
    _push(pushed, flat, FREE_PUSHES if norm == "l0" else PUSHES)
    if levels is None:
        return _told(pushed, clean)
    whole = walk()
    found = np.isfinite(pushed.distance)
    round_examples(whole, np.where(found[:, None], pushed.best, flat), levels)
    nearer = whole.distance < pushed.distance
    for mine, other in (
        (pushed.best, whole.best),
        (pushed.distance, whole.distance),
        (pushed.answer, whole.answer),
    ):
        mine[nearer] = other[nearer]
    return _told(pushed, clean, _told(whole, clean))


def sizes(inputs: Floats, examples: Floats, norm: str = "l2") -> Doubles:
    """Returns the distances of float32 rows [n, ...] in a norm, computed in float64."""
    change = examples.astype(np.float64) - inputs.astype(np.float64)
    return SIZES[norm](change.reshape(len(change), -1))


def _told(walk: Walk, clean: Ints, rounded: Confirmed | None = None) -> Confirmed:
    confirmed = np.isfinite(walk.distance)
    return Confirmed(
        walk.best.reshape(walk.shape),
        np.where(confirmed, walk.answer, clean).astype(np.int64),
        confirmed,
        walk.distance,
        rounded,
    )


def _push(walk: Walk, examples: Floats, pushes: tuple[float, ...]) -> None:
    """Tries pushes in turn until one is confirmed; bisects where a coarse one was needed."""
    rows = np.arange(len(examples))
    low, high = np.zeros(len(rows)), np.zeros(len(rows))

    def confirmed(rows: Ints, push: Doubles) -> npt.NDArray[np.bool_]:
        start = walk.origin[rows]
        change = examples[rows].astype(np.float64) - start
        points = np.clip(start + (1 + push[:, None]) * change, walk.lower[rows], walk.upper[rows])
        return walk.tries(points.astype(np.float32), rows)

    for before, push in zip((0.0, *pushes[:-1]), pushes, strict=True):
        done = confirmed(rows, np.full(len(rows), push))
        low[rows[done]], high[rows[done]] = before, push
        rows = rows[~done]
        if not len(rows):
            break
    rows = np.flatnonzero(np.isfinite(walk.distance) & (high > _COARSE_PUSH))
    for _ in range(_BISECTIONS if walk.norm != "l0" else 0):
        middle = (low[rows] + high[rows]) / 2
        done = confirmed(rows, middle)
        high[rows[done]], low[rows[~done]] = middle[done], middle[~done]
