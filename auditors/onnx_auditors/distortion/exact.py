"""The exact minimal distortion of small models: the truth beside which a search is judged.

A linear model's is a convex program; that of a model with one layer of ReLUs is one for each
pattern of active units, and the patterns are searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from onnx_auditors.distortion.activations import Problem, shortest
from onnx_auditors.distortion.norms import NORMS
from onnx_auditors.distortion.polyhedra import Floats
from onnx_auditors.errors import InvalidModel
from onnx_auditors.network import Layer, Network

MOST_UNITS, MOST_INPUTS, MOST_CLASSES = 24, 4096, 100
"""Largest models that count as small."""
_ROUNDING = 1e-4
_SLACK = 1e-6
_CHECKED_POINTS = 8


@dataclass(frozen=True)
class SmallModel:
    """A linear model, or one with a single layer of ReLUs.

    z = outer relu(inner x + inner_bias) + outer_bias, or outer x + outer_bias where `inner` is
    None.

    Attributes:
        outer: Float64 [classes, h], or [classes, d] in a linear model.
        outer_bias: Float64 [classes].
        inner: Float64 [h, d]; None in a linear model.
        inner_bias: Float64 [h].
    """

    outer: Floats
    outer_bias: Floats
    inner: Floats | None = None
    inner_bias: Floats | None = None

    def logits(self, x: Floats) -> Floats:
        """Returns the logits [n, classes] of flat inputs [n, d]."""
        if self.inner is not None and self.inner_bias is not None:
            x = np.maximum(x @ self.inner.T + self.inner_bias, 0)
        logits: Floats = x @ self.outer.T + self.outer_bias
        return logits


@dataclass(frozen=True)
class Exact:
    """Optima and their proofs.

    Attributes:
        distance: Float64 [n]; inf where no point of the box is adversarial, 0 where the input is.
        lower: Proved lower bound of the distance, float64 [n]; in L2 at least 1 - 1e-6 of
            it where the search was finished; in Linf and L1 up to the tolerances of HiGHS (1e-6).
        examples: Float64 [n, ...], on the boundary: the label ties with the other class, up to a
            share of 1e-7 of the logits' parts. The input itself where there is no example.
    """

    distance: Floats
    lower: Floats
    examples: Floats


def small_model(
    network: Network,
    shape: tuple[int, ...],
    to_input: Callable[[Tensor], Tensor] = lambda x: x,
) -> SmallModel | None:
    """Returns the weights of a network if it is small enough for the exact optimum, else None.

    Args:
        network: The network.
        shape: Shape of one input in probe space.
        to_input: The affine map from probe space [n, *shape] to the model's input.
    """
    if math.prod(shape) > MOST_INPUTS or network.classes > MOST_CLASSES:
        return None
    layers = ancestors(network.layers, network.logits)
    bent = [layer for layer in layers if not layer.linear]
    if len(bent) > 1 or any(layer.op_type != "Relu" for layer in bent):
        return None
    if not bent:
        model = SmallModel(*_affine(lambda x: network(to_input(x)), torch.zeros(1, *shape)))
    else:
        before, after = bent[0].inputs[0], bent[0].output
        hidden = network.values(to_input(torch.zeros(1, *shape)), [after])[after]
        if hidden[0].numel() > MOST_UNITS:
            return None
        try:
            outer = _affine(lambda h: network.from_value(after, h), torch.zeros_like(hidden))
        except InvalidModel:
            return None
        inner = _affine(
            lambda x: network.values(to_input(x), [before])[before], torch.zeros(1, *shape)
        )
        model = SmallModel(*outer, *inner)
    return model if _same(model, network, shape, to_input) else None


def exact(
    model: SmallModel,
    inputs: npt.NDArray[np.floating],
    labels: npt.NDArray[np.int64],
    norm: str = "l2",
    targets: npt.NDArray[np.int64] | None = None,
    *,
    box: tuple[float | Floats, float | Floats] = (0.0, 1.0),
    known: npt.NDArray[np.floating] | None = None,
    slack: float = 0.0,
) -> Exact:
    """Returns the smallest changes of inputs that change the answer, with lower bounds.

    A tie counts as a changed answer. Inputs are taken one after the other: each is a program of
    its own.

    Args:
        model: The model, on flat inputs.
        inputs: [n, ...] inside the box.
        labels: The classes that count as right, [n].
        norm: "l2", "linf" or "l1".
        targets: The classes that the answer has to become, [n]; any but the label if None.
        box: Finite lower and upper end, numbers or arrays that broadcast to an input.
        known: Examples [n, ...] that spare the search what is farther; those that are not
            adversarial are ignored.
        slack: What a logit may still lack of the other for the answer to count as changed. With a
            bound of the rounding errors of two logits, `lower` holds for the rounded model too.

    Raises:
        ValueError: A norm that is not offered, or a box without an end.
    """
    if norm not in {"l2", "linf", "l1"}:
        raise ValueError(f"norm is {norm!r}; available: 'l2', 'linf', 'l1'")
    x = inputs.reshape(len(inputs), -1).astype(np.float64)
    lower, upper = (np.broadcast_to(e, inputs.shape).reshape(x.shape).astype(float) for e in box)
    if not np.isfinite(upper - lower).all():
        raise ValueError("the box has no end; exact optima need a finite box")
    best, bounds, changes = np.full(len(x), np.inf), np.full(len(x), np.inf), np.zeros_like(x)
    sets = _conditions(model, x, labels, targets)
    offers = None if known is None else known.reshape(x.shape).astype(np.float64) - x
    for i, conditions in enumerate(sets):
        ends = lower[i] - x[i], upper[i] - x[i]
        problems = [_problem(model, x[i], c, *ends, slack) for c in conditions]
        trials = [np.zeros_like(x[i])] if offers is None else [np.zeros_like(x[i]), offers[i]]
        for trial in trials:
            inside = (lower[i] <= x[i] + trial).all() and (x[i] + trial <= upper[i]).all()
            if inside and any(problem.met(trial) for problem in problems):
                size = _size(trial, norm)
                if size < best[i]:
                    best[i], changes[i] = size, trial
        for problem in problems if best[i] > 0 else []:
            found = shortest(problem, norm, best[i] * (1 + _SLACK))
            bounds[i] = min(bounds[i], found.bound)
            if found.change is not None and _size(found.change, norm) < best[i]:
                best[i], changes[i] = _size(found.change, norm), found.change
    return Exact(best, np.minimum(bounds, best), (x + changes).reshape(inputs.shape))


def _conditions(
    model: SmallModel,
    x: Floats,
    labels: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64] | None,
) -> list[list[Floats]]:
    """Returns, for each input, alternatives of conditions C [q, classes]: C z >= 0.

    Without targets each rival is one, the nearest in score first.
    """
    eye = np.eye(len(model.outer_bias))
    if targets is not None:
        return [[eye[t] - np.delete(eye, t, axis=0)] for t in targets]
    order = (-model.logits(x)).argsort(axis=1, kind="stable")
    return [
        [eye[k : k + 1] - eye[y] for k in ranked if k != y]
        for ranked, y in zip(order, labels, strict=True)
    ]


def _problem(
    model: SmallModel, x: Floats, condition: Floats, lower: Floats, upper: Floats, slack: float
) -> Problem:
    outer, offset = condition @ model.outer, condition @ model.outer_bias + slack
    if model.inner is None or model.inner_bias is None:
        none = np.zeros((len(condition), 0))
        return Problem(
            np.zeros((0, len(x))), np.zeros(0), none, outer, offset + outer @ x, lower, upper
        )
    start = model.inner_bias + model.inner @ x
    direct = np.zeros((len(condition), len(x)))
    return Problem(model.inner, start, outer, direct, offset, lower, upper)


def _size(change: Floats, norm: str) -> float:
    return float(NORMS[norm].size(torch.from_numpy(change)[None])[0])


def ancestors(layers: list[Layer], value: str) -> list[Layer]:
    """Returns the layers that a value is made by, in order."""
    needed, found = {value}, []
    for layer in reversed(layers):
        if needed & set(layer.outputs):
            needed.update(layer.inputs)
            found.append(layer)
    return found[::-1]


def _affine(function: Callable[[Tensor], Tensor], zero: Tensor) -> tuple[Floats, Floats]:
    """Returns matrix [m, k] and bias [m] of an affine function of a batch of one."""
    bias = function(zero).flatten()
    matrix = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call] # torch's own
        lambda x: function(x).flatten(), zero
    )
    return (
        matrix.reshape(len(bias), -1).double().cpu().numpy(),
        bias.detach().double().cpu().numpy(),
    )


def _same(
    model: SmallModel,
    network: Network,
    shape: tuple[int, ...],
    to_input: Callable[[Tensor], Tensor],
) -> bool:
    """Returns whether model and network agree on random points, as an operator may round."""
    points = torch.randn(_CHECKED_POINTS, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(to_input(points)).double().cpu().numpy()
    got = model.logits(points.flatten(1).double().numpy())
    return bool(np.allclose(got, expected, rtol=_ROUNDING, atol=_ROUNDING * np.abs(got).max()))
