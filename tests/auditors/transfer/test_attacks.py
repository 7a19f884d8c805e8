"""Attacks of a fixed size beside their papers' formulas, on losses whose gradient is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from onnx import helper
from tests.auditors.transfer.planted import images, network, run, weights
from tests.support import graph_model
from torch import Tensor

from onnx_audit import v1
from onnx_auditors.errors import InvalidConfig
from onnx_auditors.transfer.ascent import Images, Task, ascend
from onnx_auditors.transfer.attacks import (
    Surrogate,
    diverse,
    intermediate,
    momentum,
    scale_invariant,
    shrunk,
)

Doubles = npt.NDArray[np.float64]
ROWS, SIDE, PATH, COPIES = 3, 12, 2.5, 5
WIDE = 100.0


def task(images: Images | None = None, **changes: Any) -> Task:
    """Returns random images in the middle of a box that is out of the way."""
    inputs = torch.rand(ROWS, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    made = Task(
        inputs=inputs,
        lower=torch.tensor(-WIDE),
        upper=torch.tensor(WIDE),
        radius=2.0,
        steps=6,
        seeds=torch.arange(ROWS),
        seed=[1],
        images=images,
    )
    return dataclasses.replace(made, **changes)


def quadratic() -> tuple[Surrogate, Doubles]:
    """Returns two classes whose margin is x' diag(a) x, and a; label 1 leads by less of it."""
    a = torch.linspace(-1, 1, SIDE * SIDE, dtype=torch.float64).float()

    def logits(x: Tensor) -> Tensor:
        lead = (a * x.flatten(1) ** 2).sum(1)
        return torch.stack([lead, torch.zeros_like(lead)], 1)

    labels = torch.ones(ROWS, dtype=torch.int64)
    return Surrogate(logits, lambda x: x.flatten(1), labels, None), a.double().numpy()


def unit_rows(x: Doubles) -> Doubles:
    """Returns rows of length 1; zeros as they are."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def test_scale_invariant_steps_are_the_papers() -> None:
    """Algorithm 1 of Lin et al. 2020 in numpy, whose gradient at x / 2^i is 2 a x / 4^i."""
    surrogate, a = quadratic()
    asked = task(lower=torch.tensor(0.0))
    x = clean = asked.inputs.flatten(1).double().numpy()
    step, so_far = asked.radius * PATH / asked.steps, np.zeros_like(x)
    for _ in range(asked.steps):
        ahead = x + step * unit_rows(so_far)
        gradient = sum(2 * a * ahead / 4**i for i in range(COPIES)) / COPIES
        so_far = so_far + gradient / np.abs(gradient).mean(1, keepdims=True)
        change = x + step * unit_rows(so_far) - clean
        length = np.linalg.norm(change, axis=1, keepdims=True)
        x = np.maximum(clean + change * np.minimum(1, asked.radius / length), 0)
    found = scale_invariant(surrogate, asked).flatten(1).double().numpy()
    np.testing.assert_allclose(found, x, atol=2e-5)


def test_images_are_shrunk_as_torch_does() -> None:
    """A frame of zeros holds what torch's interpolation makes of the image, at any place."""
    rng, places = np.random.default_rng(0), set()
    image = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    for layout, axes in ((v1.LAYOUT_CHW, (0, 1, 2, 3)), (v1.LAYOUT_HWC, (0, 2, 3, 1))):
        for _ in range(10):
            framed = shrunk(Images(layout, SIDE, SIDE), rng, image.device)
            found = framed(image.permute(axes)).permute(np.argsort(axes).tolist())
            rows, columns = (found.sum((0, 1, axis)).nonzero()[:, 0] for axis in (3, 2))
            size = len(rows)
            assert 0.9 * SIDE - 1 <= size < SIDE
            small = torch.nn.functional.interpolate(
                image, size=(size, size), mode="bilinear", antialias=True
            )
            top, left = int(rows[0]), int(columns[0])
            expected = torch.zeros_like(image)
            expected[:, :, top : top + size, left : left + size] = small
            torch.testing.assert_close(found, expected)
            places.add((top, left))
    assert len(places) > 3


def test_diverse_steps_look_at_framed_images() -> None:
    """With a linear margin a step's gradient is the adjoint of the map, and plain steps are mixed.

    The frame is dark, at the lower end of the box, and not zero.
    """
    weight = torch.rand(1, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    lower, seen = torch.tensor(-3.0), []

    def logits(x: Tensor) -> Tensor:
        seen.append(x.detach())
        lead = (x * weight).flatten(1).sum(1)
        return torch.stack([lead, torch.zeros_like(lead)], 1)

    labels = torch.ones(ROWS, dtype=torch.int64)
    asked = task(Images(v1.LAYOUT_CHW, SIDE, SIDE), lower=lower, steps=40)
    diverse(Surrogate(logits, lambda x: x, labels, None), asked)
    framed = [bool((x[:, :, [0, -1], :] == lower).any()) for x in seen]
    assert 10 < sum(framed) < 30
    one = dataclasses.replace(asked, steps=1, seed=[next(s for s in range(9) if _framed(s))])
    change = (diverse(Surrogate(logits, lambda x: x, labels, None), one) - one.inputs)[0, 0]
    rng = np.random.default_rng(one.seed)
    rng.random()
    probe = torch.eye(SIDE * SIDE).reshape(-1, 1, SIDE, SIDE)
    mapped = shrunk(Images(v1.LAYOUT_CHW, SIDE, SIDE), rng, probe.device)(probe)
    expected = (mapped * weight).flatten(1).sum(1).reshape(SIDE, SIDE)
    torch.testing.assert_close(change / change.norm(), expected / expected.norm())


def _framed(seed: int) -> bool:
    return bool(np.random.default_rng([seed]).random() < 0.5)


def test_intermediate_goes_where_the_guide_went() -> None:
    """Algorithm 1 of Huang et al. 2019 in numpy, whose steps for a layer W are along W'W guide.

    They come close to the largest projection that the ball allows.
    """
    w = np.random.default_rng(3).normal(size=(20, SIDE * SIDE))
    weight = torch.from_numpy(w).float()
    linear = dataclasses.replace(quadratic()[0], features=lambda x: x.flatten(1) @ weight.T)
    asked = task(steps=40)
    guide = momentum([lambda: linear], dataclasses.replace(asked, steps=20)) - asked.inputs
    x = first = guide.flatten(1).double().numpy()
    slope = unit_rows(first @ w.T @ w)
    for _ in range(20):
        x = x + asked.radius * PATH / 20 * slope
        x = x * np.minimum(1, asked.radius / np.linalg.norm(x, axis=1, keepdims=True))
    found = (intermediate(linear, asked) - asked.inputs).flatten(1).double().numpy()
    np.testing.assert_allclose(found, x, atol=2e-5)
    reached, before = ((change * slope).sum(1) / asked.radius for change in (found, first))
    assert (reached > 0.97).all()
    assert (before < 0.9).all()


def test_one_step_of_each_is_along_the_gradient() -> None:
    """Without anything to vary, momentum's first step is the normalised gradient (Dong 2018)."""
    surrogate, a = quadratic()
    asked = task(lower=torch.tensor(0.0), steps=1)
    found = ascend(asked, lambda x, _: 2 * torch.from_numpy(a).float().reshape(x[0].shape) * x)
    gradient = a * asked.inputs.flatten(1).double().numpy()
    moved = asked.inputs.flatten(1).numpy() + asked.radius * unit_rows(gradient)
    np.testing.assert_allclose(found.flatten(1), np.maximum(moved, 0), atol=1e-5)
    aimed = dataclasses.replace(surrogate, targets=torch.ones(ROWS, dtype=torch.int64))
    towards = momentum([lambda: aimed], asked) - asked.inputs
    away = momentum([lambda: surrogate], asked) - asked.inputs
    assert ((towards * away).flatten(1).sum(1) < 0).all()


def test_ensembles_alone_group_nothing(tmp_path: Path) -> None:
    """Without an attack on single sources there are no rates between two models."""
    models = [network(weights(n)) for n in range(3)]
    config = v1.TransferConfig(
        attacks=[v1.TRANSFER_ATTACK_ENSEMBLE],
        attack_steps=2,
        noise_draws=1,
        peers=[v1.PeerModel(), v1.PeerModel()],
    )
    section = run(tmp_path, models, config, images(4), None).section
    assert {cell.source for cell in section.cells} == {-1}
    assert list(section.order) == [0, 1, 2]
    assert not section.merges
    assert not section.grouped_by


def test_vectors_have_no_input_diversity(tmp_path: Path) -> None:
    """What is no image cannot be resized, and the error says which setting is at fault."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    proto = graph_model(nodes, {"x": ["n", 20]}, {"w": np.eye(20, 3, dtype=np.float32)})
    config = v1.TransferConfig(peers=[v1.PeerModel()], attacks=[v1.TRANSFER_ATTACK_DIVERSE])
    spec = v1.InputSpec(lower=[0.0], upper=[1.0])
    with pytest.raises(InvalidConfig, match=r"probes \[20\] are not") as caught:
        run(tmp_path, [proto, proto], config, np.zeros((2, 20), np.float32), None, spec)
    assert caught.value.metadata["field"] == "attacks"
