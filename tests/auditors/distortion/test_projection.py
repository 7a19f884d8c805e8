"""The nearest points of half-spaces inside a box, beside slow ways to the same."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from onnx_auditors.distortion.cuts import Cuts
from onnx_auditors.distortion.norms import NORMS, highest

Floats = npt.NDArray[np.float64]
ROWS, OUT_OF_REACH = 40, 3


def problem(width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns normals, needed, lower and upper; half of the entries can go one way alone."""
    generator = torch.Generator().manual_seed(width)
    normal = torch.randn(ROWS, width, generator=generator) ** 3
    origin = torch.rand(ROWS, width, generator=generator)
    origin[:, ::2] = origin[:, ::2].round()
    lower, upper = -origin, 1 - origin
    most = -torch.minimum(normal * lower, normal * upper).sum(1)
    needed = most * torch.linspace(-0.02, 0.98, ROWS)
    needed[OUT_OF_REACH] = 2 * most[OUT_OF_REACH]
    return normal, needed, lower, upper


def along(direction: Floats, normal: Floats, needed: float, ends: tuple[Floats, Floats]) -> Floats:
    """Returns the clipped multiple of a direction that is just enough, by bisection."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        enough = -(normal @ np.clip(-middle * direction, *ends)) >= needed
        low, high = (low, middle) if enough else (middle, high)
    step: Floats = np.clip(-high * direction, *ends) if needed > 0 else np.zeros_like(normal)
    return step


def filled(
    rank: Floats, normal: Floats, needed: float, ends: tuple[Floats, Floats], *, whole: bool
) -> Floats:
    """Returns the step that moves one entry after the other to its end."""
    end, step = np.where(normal > 0, *ends), np.zeros_like(normal)
    for place in np.argsort(-rank, kind="stable"):
        missing, gain = needed + normal @ step, -normal[place] * end[place]
        if missing <= 0:
            break
        step[place] = end[place] * (1 if whole or gain <= missing else missing / gain)
    return step


def expected(norm: str, normal: Floats, needed: float, ends: tuple[Floats, Floats]) -> Floats:
    """Returns the nearest point in a norm."""
    if norm in ("l2", "linf"):
        return along(normal if norm == "l2" else np.sign(normal), normal, needed, ends)
    gain = -normal * np.where(normal > 0, *ends)
    rank = gain if norm == "l0" else np.abs(normal)
    return filled(rank, normal, needed, ends, whole=norm == "l0")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("width", [7, 800, 4096])
def test_nearest_point_of_a_half_space(norm: str, width: int) -> None:
    """Few entries or most of them, none, and half-spaces out of reach."""
    normal, needed, lower, upper = problem(width)
    step = NORMS[norm].nearest(normal, needed, lower, upper).double().numpy()
    for row in range(ROWS):
        w, low, high = (each[row].double().numpy() for each in (normal, lower, upper))
        exact = expected(norm, w, float(needed[row]), (low, high))
        assert (step[row] >= low).all()
        assert (step[row] <= high).all()
        size = max(float(np.linalg.norm(exact)), 1e-3)
        if norm == "l0":  # rounding may add an entry, or leave one out
            assert abs(np.count_nonzero(step[row]) - np.count_nonzero(exact)) <= 2
        elif row != OUT_OF_REACH:  # there entries of next to no weight may be anywhere
            assert np.linalg.norm(step[row] - exact) <= 2e-3 * size
        reach = min(float(needed[row]), float(-(w @ exact)))
        assert -(w @ step[row]) >= reach - 2e-3 * abs(reach) - 1e-6


@pytest.mark.parametrize(("width", "count"), [(64, 5), (63, 5), (800, 32), (800, 90)])
def test_highest_entries_are_those_of_a_sort(width: int, count: int) -> None:
    """Also where groups do not divide the row, or are too few to choose from."""
    rank = torch.rand(9, width, generator=torch.Generator().manual_seed(1))
    order = rank.argsort(dim=1, descending=True)
    assert (highest(rank, count) == order[:, :count]).all()


def test_several_half_spaces_are_met_at_once() -> None:
    """After a few steps the point lies beyond all of them, and none that is clear of it pulls."""
    generator = torch.Generator().manual_seed(0)
    width, classes = 200, 4
    normals = torch.randn(ROWS, classes, width, generator=generator)
    normals /= normals.norm(dim=2, keepdim=True)
    needed = 0.3 * torch.rand(ROWS, classes, generator=generator)
    cuts, ends = Cuts(ROWS, normals[:, 0]), torch.full((ROWS, width), 0.1)
    step = torch.zeros(ROWS, width)
    for turn in range(3 * classes):
        against = torch.full((ROWS,), turn % classes)
        # Some pairs know fewer half-spaces than others.
        against = torch.where(torch.arange(ROWS) % classes >= against, against, 0)
        each = torch.arange(ROWS)
        slot, _ = cuts.renew(against, normals[each, against], 0.5)
        cuts.needed[each, slot] = needed[each, against]
        step = cuts.nearest(torch.zeros(ROWS), -ends, ends)
    known = torch.arange(classes) <= torch.arange(ROWS)[:, None] % classes
    reach = -(normals @ step[:, :, None])[:, :, 0]
    assert (step.abs() <= ends).all()
    assert (reach - needed)[known].min() > -1e-3
    pulling = torch.zeros(ROWS, classes, dtype=torch.bool)
    pulling.scatter_(1, cuts.classes.clamp_min(0), cuts.multipliers > 1e-4)
    assert (reach - needed)[pulling & known].abs().max() < 1e-3
