"""The noise that changes half of the answers, beside closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from onnx_auditors.distortion.noise_level import LARGEST, NoiseLevel, noise_level
from onnx_auditors.distortion.search import Logits

WIDTH = 40
WIDE = (-500.0, 500.0)
"""A box that clips none of the noise in question."""


def two_sided(margin: float) -> tuple[Tensor, Logits]:
    """Returns a direction and a network whose answer is 0 exactly while |<w, x>| < margin."""
    w = torch.from_numpy(np.random.default_rng(0).standard_normal(WIDTH).astype(np.float32))

    def network(x: Tensor) -> Tensor:
        along = x @ w
        return torch.stack([torch.zeros_like(along), along - margin, -along - margin], 1)

    return w, network


def level(kind: str, count: int, draws: int, margin: float = 3.0, seed: int = 0) -> NoiseLevel:
    _, network = two_sided(margin)
    labels = torch.zeros(count, dtype=torch.int64)
    return noise_level(
        network, torch.zeros(count, WIDTH), labels, kind, draws=draws, box=WIDE, seed=seed
    )


def test_gaussian_threshold_of_a_linear_model() -> None:
    """Half of the answers change where 2 Phi(-margin / (s |w|)) = 1/2."""
    w, _ = two_sided(3.0)
    exact = 3.0 / (float(w.norm()) * stats.norm.ppf(0.75)) / (WIDE[1] - WIDE[0])
    found = level("gaussian", 40, 101)
    assert float(found.scale.mean()) == pytest.approx(exact, rel=0.05)
    covered = (found.lower <= exact) & (exact <= found.upper)
    assert covered.double().mean() >= 0.85
    assert bool((found.lower <= found.scale).all() & (found.scale <= found.upper).all())
    expected = exact * (WIDE[1] - WIDE[0]) * math.sqrt(WIDTH)
    assert float(found.sizes["l2"].mean()) == pytest.approx(expected, rel=0.06)
    assert bool((found.sizes["l0"] == WIDTH).all())


@pytest.mark.parametrize("kind", sorted(LARGEST))
def test_larger_margins_need_more_noise(kind: str) -> None:
    """A wider margin needs more of the same noise; where noise scales, in proportion."""
    near, far = (
        level(kind, 10, 15, margin) for margin in ((400.0, 800.0) if "salt" in kind else (3, 6))
    )
    assert bool((near.thresholds <= far.thresholds).all())
    if "salt" not in kind:
        torch.testing.assert_close(far.scale, 2 * near.scale, rtol=2e-2, atol=0)
    assert bool((near.scale < far.scale).any())


def test_uniform_noise_has_its_own_size() -> None:
    """Uniform noise of half-width s has Linf size near s and the rms s / sqrt(3)."""
    found = level("uniform", 10, 25)
    half_width = found.scale * (WIDE[1] - WIDE[0])
    assert bool((found.sizes["linf"] <= half_width).all())
    assert bool((found.sizes["linf"] > 0.9 * half_width).all())
    rms = found.sizes["l2"] / math.sqrt(WIDTH)
    torch.testing.assert_close(rms, half_width / math.sqrt(3), rtol=0.1, atol=0)


def test_salt_and_pepper_replaces_its_share() -> None:
    """With one sensitive entry the answer changes once that entry is replaced by the upper end."""

    def network(x: Tensor) -> Tensor:
        return torch.stack([torch.full_like(x[:, 0], 0.75), x[:, 0]], 1)

    x = torch.full((300, WIDTH), 0.5)
    found = noise_level(network, x, torch.zeros(300, dtype=torch.int64), "salt-and-pepper", draws=1)
    reached = found.thresholds[:, 0].isfinite()
    assert float(reached.double().mean()) == pytest.approx(0.5, abs=0.1)
    # The entry's own turn is uniform in (0, 1).
    assert stats.kstest(found.thresholds[reached, 0].numpy(), "uniform").pvalue > 1e-3
    share = found.sizes["l0"][reached] / WIDTH
    assert float((share - found.scale[reached]).abs().mean()) < 0.1


def test_clipped_noise_that_never_changes_the_answer() -> None:
    """Where no point of the box is answered otherwise the scale is inf, and so are its ends."""
    w = torch.ones(WIDTH)
    found = noise_level(
        lambda x: torch.stack([torch.full_like(x[:, 0], WIDTH + 1.0), x @ w], 1),
        torch.full((3, WIDTH), 0.5),
        torch.zeros(3, dtype=torch.int64),
        draws=7,
    )
    for values in (found.scale, found.lower, found.upper, *found.sizes.values()):
        assert bool(values.isinf().all())


def test_wrong_answers_need_no_noise() -> None:
    """Wrong answers have scale and sizes 0; a linear model's ratio to distortion is known."""
    w, network = two_sided(3.0)
    x = torch.zeros(4, WIDTH)
    labels = torch.tensor([0, 1, 0, 2])
    found = noise_level(network, x, labels, draws=201, box=WIDE)
    assert (found.scale == 0).tolist() == [False, True, False, True]
    assert (found.sizes["l2"] == 0).tolist() == [False, True, False, True]
    distance = torch.full((4,), 3.0 / float(w.norm()), dtype=torch.float64)
    expected = math.sqrt(WIDTH) / stats.norm.ppf(0.75)
    assert float(found.ratio("l2", distance)[0]) == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("kind", sorted(LARGEST))
def test_seeds(kind: str) -> None:
    """A seed gives the same figures in any company; another seed gives others."""
    _, network = two_sided(1.0)
    x = torch.from_numpy(np.random.default_rng(1).random((6, WIDTH)).astype(np.float32))
    labels = network(x).argmax(1)

    def run(rows: slice, seeds: range) -> Tensor:
        return noise_level(network, x[rows], labels[rows], kind, draws=5, seed=seeds).thresholds

    together = run(slice(6), range(6))
    assert torch.equal(together[2:5], run(slice(2, 5), range(2, 5)))
    assert not torch.equal(together, run(slice(6), range(10, 16)))


def test_what_is_not_offered() -> None:
    """Other kinds, no draws and boxes without an end are refused with a reason."""
    x, labels = torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="kind is 'pink'; available: 'gaussian'"):
        noise_level(lambda x: x, x, labels, "pink")
    with pytest.raises(ValueError, match="draws is 0"):
        noise_level(lambda x: x, x, labels, draws=0)
    with pytest.raises(ValueError, match="box has no end"):
        noise_level(lambda x: x, x, labels, box=(0.0, math.inf))
