"""Confirmation beside boundaries that are known, and beside every image of whole levels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import helper
from tests.support import graph_model, save_probes, shared_data

from onnx_audit import v1
from onnx_auditors.context import open_context
from onnx_auditors.distortion import minimal
from onnx_auditors.distortion.confirm import (
    FREE_PUSHES,
    PUSHES,
    Confirmed,
    confirm,
    confirm_by,
    levels_of,
    sizes,
)
from onnx_auditors.network import Session, load

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Answers = Callable[[Floats], npt.NDArray[Any]]
NORMS = ("l2", "linf", "l1", "l0")
LEVELS = 255


def half_space(normal: npt.NDArray[Any], offset: float) -> Answers:
    """Returns a judge that answers 1 where <normal, x> is above the offset, else 0."""
    return lambda x: (x.reshape(len(x), -1).astype(np.float64) @ normal > offset).astype(np.int64)


def ask(
    answers: Answers, inputs: Floats, examples: Floats, norm: str = "l2", **given: Any
) -> Confirmed:
    """Confirms inputs of class 0 in the unit box."""
    zeros = np.zeros(len(inputs), dtype=np.int64)
    return confirm_by(answers, inputs, examples, zeros, zeros, (0.0, 1.0), norm=norm, **given)


def check(
    told: Confirmed, answers: Answers, inputs: Floats, norm: str, wanted: Callable[[Ints], Any]
) -> None:
    """Checks that what is called confirmed is: box, answers, sizes, and the input elsewhere."""
    yes = told.confirmed
    assert ((told.examples >= 0) & (told.examples <= 1)).all()
    assert (answers(told.examples) == told.predictions)[yes].all()
    assert wanted(told.predictions[yes]).all()
    np.testing.assert_array_equal(told.examples[~yes], inputs[~yes])
    np.testing.assert_array_equal(told.distance[yes], sizes(inputs, told.examples, norm)[yes])
    assert np.isinf(told.distance[~yes]).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("short", [0.0, 1e-5, 5e-4, 6e-3, 0.04])
def test_push_goes_to_the_boundary_and_not_far_past(norm: str, short: float) -> None:
    """An example that falls short is confirmed a sixteenth of the last push past the boundary."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(30)
    inputs = rng.uniform(0.4, 0.6, (20, 30)).astype(np.float32)
    change = 0.1 * np.sign(normal) * (rng.random((20, 30)) < 0.5)
    # The first entry, which never changes, numbers the rows.
    inputs[:, 0], change[:, 0] = np.arange(20) / 20, 0.0
    gains = change @ normal
    # A boundary for each row: reached by the change when lengthened by the share `short`.
    offset = inputs.astype(np.float64) @ normal + (1 + short) * gains

    def answers(x: Floats) -> Ints:
        rows = np.rint(20 * x[:, 0]).astype(np.int64)
        return (x.astype(np.float64) @ normal > offset[rows]).astype(np.int64)

    examples = (inputs + change).astype(np.float32)
    told = ask(answers, inputs, examples, norm)
    assert told.confirmed.all()
    check(told, answers, inputs, norm, lambda classes: classes == 1)
    np.testing.assert_array_equal((told.examples != inputs), (examples != inputs))
    if norm == "l0":
        np.testing.assert_array_equal(told.distance, (change != 0).sum(1))
    else:
        past = told.distance / (sizes(inputs, examples, norm) * (1 + short)) - 1
        pushes = np.array(PUSHES)
        step = np.diff(pushes)[np.searchsorted(pushes[1:], short)]
        assert (past <= (step / 16 if short > 1e-4 else 1e-5) + 2e-6).all()
        assert (past >= -2e-6).all()


def test_what_no_push_reaches_is_not_confirmed() -> None:
    """A candidate far from the boundary stays unconfirmed and comes back as the probe."""
    inputs = np.full((3, 4), 0.5, dtype=np.float32)
    examples = inputs + np.float32(0.1)
    answers = half_space(np.ones(4), 2.0 + 0.4 * 1.2)
    told = ask(answers, inputs, examples)
    assert not told.confirmed.any()
    check(told, answers, inputs, "l2", lambda classes: classes == 1)
    assert (told.predictions == 0).all()


def test_l0_push_goes_to_the_ends_of_the_box_for_nothing() -> None:
    """In L0 the changed entries may go as far as the box allows, and no others change."""
    inputs = np.full((1, 4), 0.5, dtype=np.float32)
    examples = inputs.copy()
    examples[0, 1] = 0.52
    answers = half_space(np.array([0.0, 1, 0, 0]), 0.99)
    assert FREE_PUSHES[-1] * 0.02 > 0.5
    told = ask(answers, inputs, examples, "l0")
    assert told.examples.tolist() == [[0.5, 1.0, 0.5, 0.5]]
    assert told.distance.tolist() == [1.0]


def test_target_must_be_reached() -> None:
    """With a target, an answer that is merely wrong does not count."""
    inputs = np.full((2, 2), 0.5, dtype=np.float32)
    examples = np.array([[0.8, 0.5], [0.8, 0.5]], dtype=np.float32)

    def answers(x: Floats) -> Ints:
        return np.select([x[:, 0] > 0.802, x[:, 0] > 0.6], [2, 1], 0)

    told = ask(answers, inputs, examples, targets=np.array([1, 2]), levels=LEVELS)
    assert told.rounded is not None
    for part in (told, told.rounded):
        assert part.confirmed.all()
        assert part.predictions.tolist() == [1, 2]
    assert told.examples[0, 0] <= 0.802 < told.examples[1, 0]
    missed = ask(answers, inputs, examples, targets=np.array([3, 3]))
    assert not missed.confirmed.any()


def on_levels(x: Floats, levels: float) -> Floats:
    """Returns the values that reading whole levels gives."""
    rounded: Floats = np.rint(x.astype(np.float64) * levels).astype(np.float32)
    return rounded / np.float32(levels)


@pytest.mark.parametrize("norm", NORMS)
def test_rounded_is_nearly_the_best_of_all_images(norm: str) -> None:
    """In five dimensions, the rounded example is close to the best of all images of few levels."""
    levels, width = 6.0, 5
    rng = np.random.default_rng(3)
    grid = np.array(list(itertools.product(range(7), repeat=width))) / levels
    ratios = []
    for _ in range(5):
        normal = rng.standard_normal(width)
        low, high = np.minimum(normal, 0).sum(), np.maximum(normal, 0).sum()
        offset = float(rng.uniform(0.5, 0.7) * (high - low) + low)
        images = grid[grid @ normal > offset].astype(np.float32)
        inputs = rng.permutation(grid[grid @ normal < offset - 0.1])[:12].astype(np.float32)

        def network(x: torch.Tensor, w: Any = normal, offset: float = offset) -> torch.Tensor:
            z = x.double() @ torch.from_numpy(w) - offset
            return torch.stack([-z, z], 1).float()

        zeros = torch.zeros(12, dtype=torch.int64)
        examples = minimal(network, torch.from_numpy(inputs), zeros, norm, 60).examples.numpy()
        told = ask(half_space(normal, offset), inputs, examples, norm, levels=levels)
        assert told.rounded is not None
        assert told.rounded.confirmed.all()
        for origin, distance in zip(inputs, told.rounded.distance, strict=True):
            best = sizes(origin[None], images, norm).min()
            assert distance >= best - 1e-6
            ratios.append(distance / best)
    assert np.median(ratios) <= 1.0 + 1e-6
    assert np.mean(ratios) < 1.1


@pytest.mark.parametrize("norm", NORMS)
def test_rounded_examples_of_a_real_network(norm: str) -> None:
    """Every example of a real network becomes an 8-bit image that fools, hardly any larger."""
    folder = shared_data()
    path = folder / "models" / "mnist_convnet_maxpool.onnx"
    data, network, session = np.load(folder / "mnist_test_1000.npz"), load(path), Session(path)
    inputs = (data["images"][:40].astype(np.float32) / np.float32(LEVELS))[:, None]
    labels = data["labels"][:40].astype(np.int64)
    calls: list[int] = []

    def answers(x: Floats) -> npt.NDArray[Any]:
        calls.append(len(x))
        classes: Ints = session.run(x).argmax(axis=1)
        return classes

    clean = answers(inputs)
    right = clean == labels
    inputs, labels, clean = inputs[right], labels[right], clean[right]
    found = minimal(network, torch.from_numpy(inputs), torch.from_numpy(labels), norm, 60)
    examples = found.examples.numpy()
    naive = (answers(on_levels(examples, LEVELS)) != labels).mean()
    calls.clear()
    told = confirm_by(
        answers, inputs, examples, labels, clean, (0.0, 1.0), norm=norm, levels=LEVELS
    )
    assert len(calls) <= 48
    assert sum(calls) <= 12 * len(inputs)
    assert told.rounded is not None
    for part in (told, told.rounded):
        assert part.confirmed.all()
        check(part, answers, inputs, norm, lambda classes: classes != labels)
    whole = told.rounded.examples
    np.testing.assert_array_equal(whole, on_levels(whole, LEVELS))
    assert (told.distance <= told.rounded.distance).all()
    ratio = told.rounded.distance / told.distance
    if norm == "linf":
        # No image of whole levels is nearer than the next whole level.
        lowest = np.ceil(told.distance * LEVELS - 1e-3) / LEVELS
        assert np.median(told.rounded.distance / lowest) < 1 + 1e-5
    else:
        assert np.median(ratio) < 1.05
    assert naive < 1 or norm == "l0"


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_changes_below_half_a_level_are_scaled_up(norm: str) -> None:
    """An example whose every change rounds to nothing still leads to an image that fools."""
    inputs = np.full((1, 100), 128 / 255, dtype=np.float32)
    examples = (inputs + np.linspace(0.01, 0.3, 100) / 255).astype(np.float32)
    gain = float((examples - inputs).sum())
    answers = half_space(np.ones(100), float(inputs.sum(dtype=np.float64)) + gain * 0.99)
    told = ask(answers, inputs, examples, norm, levels=LEVELS)
    assert told.rounded is not None
    assert told.rounded.confirmed.all()
    assert np.abs(told.rounded.examples - inputs).max() == pytest.approx(1 / 255, rel=1e-3)
    if norm == "l2":  # 15.4 levels in all are needed: 16 entries of one level are the best.
        assert (told.rounded.examples != inputs).sum() <= 20


def test_rounded_rows_do_not_depend_on_each_other() -> None:
    """A row gets the same examples alone and in company."""
    rng = np.random.default_rng(6)
    normal = rng.standard_normal(12)
    inputs = on_levels(rng.uniform(0.3, 0.4, (8, 12)).astype(np.float32), LEVELS)
    answers = half_space(normal, float((inputs @ normal).max()) + 0.2)
    examples = np.clip(inputs + 0.2 * np.sign(normal), 0, 1).astype(np.float32)
    together = ask(answers, inputs, examples, levels=LEVELS)
    assert together.rounded is not None
    for i in range(8):
        alone = ask(answers, inputs[i : i + 1], examples[i : i + 1], levels=LEVELS)
        assert alone.rounded is not None
        np.testing.assert_array_equal(alone.examples[0], together.examples[i])
        np.testing.assert_array_equal(alone.rounded.examples[0], together.rounded.examples[i])


def test_uint8_probes_of_a_context(tmp_path: Path) -> None:
    """ONNX Runtime confirms images that can be saved; uint8 probes say their levels."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((3, 10)).astype(np.float32)
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    onnx.save_model(graph_model([node], {"x": ["n", 10]}, {"w": weights}), tmp_path / "m.onnx")
    stored = rng.integers(60, 200, (12, 10), dtype=np.uint8)
    spec = v1.InputSpec(divisor=127.5, mean=[1.0], std=[1.0], lower=[0.0], upper=[2.0])
    probes = save_probes(tmp_path / "p", stored)
    context = open_context(tmp_path / "m.onnx", probes, spec, device="cpu")
    levels = levels_of(context)
    assert levels == 127.5
    rows = np.arange(12)
    inputs = context.inputs(rows)
    clean = context.scores(inputs).argmax(axis=1).astype(np.int64)
    found = minimal(
        context.logits, torch.from_numpy(inputs), torch.from_numpy(clean), box=(0.0, 2.0), budget=60
    )
    told = confirm(context, inputs, found.examples.numpy(), clean, clean, levels=levels)
    assert told.confirmed.all()
    assert told.rounded is not None
    assert told.rounded.confirmed.all()
    saved = np.rint(told.rounded.examples.astype(np.float64) * levels).astype(np.uint8)
    read = context.input_map.to_probe_space(saved)
    np.testing.assert_array_equal(read, told.rounded.examples)
    answers = context.scores(read).argmax(axis=1)
    assert (answers != clean).all()
    np.testing.assert_array_equal(answers, told.rounded.predictions)


def test_levels_of_float_probes(tmp_path: Path) -> None:
    """Float probes of a float model have no levels, and no rounded examples are looked for."""
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    weights = {"w": np.eye(3, dtype=np.float32)}
    onnx.save_model(graph_model([node], {"x": ["n", 3]}, weights), tmp_path / "m.onnx")
    probes = save_probes(tmp_path / "p", np.random.default_rng(0).random((4, 3), dtype=np.float32))
    context = open_context(tmp_path / "m.onnx", probes)
    assert levels_of(context) is None
    inputs = context.inputs(np.arange(4))
    clean = context.scores(inputs).argmax(axis=1).astype(np.int64)
    assert confirm(context, inputs, inputs, clean, clean).rounded is None
