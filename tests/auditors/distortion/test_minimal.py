"""Minimal distortion beside exact optima and proved radii."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import optimize
from tests.support import shared_data
from torch import Tensor

from onnx_auditors.distortion import minimal, starts
from onnx_auditors.distortion.norms import NORMS, nearest_l2
from onnx_auditors.distortion.search import Search
from onnx_auditors.network import load

Floats = npt.NDArray[np.float64]


def nearest_by_slsqp(
    normal: Floats, needed: float, origin: Floats, lower: float, upper: float
) -> float:
    """Returns the distance from origin to {x: <normal, x - origin> <= -needed} in the box."""
    start = np.where(normal > 0, lower, upper)
    if normal @ (start - origin) > -needed:
        return np.inf
    result = optimize.minimize(
        lambda x: 0.5 * np.sum((x - origin) ** 2),
        start,
        jac=lambda x: x - origin,
        bounds=[(lower, upper)] * len(origin),
        constraints={
            "type": "ineq",
            "fun": lambda x: -needed - normal @ (x - origin),
            "jac": lambda _: -normal,
        },
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert result.success
    return float(np.linalg.norm(result.x - origin))


def test_projection_is_the_exact_optimum() -> None:
    """The nearest point of a half-space in a box is that of a general solver."""
    rng = np.random.default_rng(0)
    origin = rng.random((60, 12))
    normal = rng.standard_normal((60, 12)) * rng.choice([0, 1], (60, 12), p=[0.2, 0.8])
    needed = rng.uniform(0, 1, 60) * (normal * (origin - np.where(normal > 0, 0, 1))).sum(1)
    tensors = [torch.from_numpy(a) for a in (normal, needed, -origin, 1 - origin)]
    step = nearest_l2(*tensors).numpy()
    assert ((origin + step >= -1e-12) & (origin + step <= 1 + 1e-12)).all()
    np.testing.assert_allclose((normal * step).sum(1), -needed, atol=1e-5)
    for i in range(60):
        best = nearest_by_slsqp(normal[i], needed[i], origin[i], 0, 1)
        np.testing.assert_allclose(np.linalg.norm(step[i]), best, rtol=1e-4, atol=1e-5)


def test_projection_from_the_ends_of_the_box() -> None:
    """Entries that lie at an end of the box move away from it as freely as others."""
    rng = np.random.default_rng(4)
    origin = rng.choice([0.0, 1.0, 0.5], (60, 12), p=[0.6, 0.2, 0.2])
    normal = rng.standard_normal((60, 12))
    needed = rng.uniform(0, 1, 60) * (normal * (origin - np.where(normal > 0, 0, 1))).sum(1)
    tensors = [torch.from_numpy(a) for a in (normal, needed, -origin, 1 - origin)]
    step = nearest_l2(*tensors).numpy()
    for i in range(60):
        best = nearest_by_slsqp(normal[i], needed[i], origin[i], 0, 1)
        np.testing.assert_allclose(np.linalg.norm(step[i]), best, rtol=1e-4, atol=1e-5)


def test_projection_out_of_reach() -> None:
    """Where the box does not reach the half-space, the step goes as far as the box allows."""
    normal = torch.tensor([[1.0, -2.0, 0.0]])
    step = nearest_l2(normal, torch.tensor([100.0]), -torch.ones(1, 3), torch.ones(1, 3))
    assert step.tolist() == [[-1.0, 1.0, 0.0]]


def test_projection_that_needs_nothing() -> None:
    """A point that is already in the half-space stays."""
    step = nearest_l2(torch.ones(1, 3), torch.tensor([-0.1]), -torch.ones(1, 3), torch.ones(1, 3))
    assert step.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("budget", [50, 500])
def test_linear_classifier(budget: int) -> None:
    """For a linear classifier the found distance is within 0.1 % of the exact one."""
    rng = np.random.default_rng(1)
    weights, bias = rng.standard_normal((4, 15)), 0.3 * rng.standard_normal(4)
    inputs = rng.random((25, 15)).astype(np.float32)
    w, b = torch.from_numpy(weights).float(), torch.from_numpy(bias).float()

    def network(x: Tensor) -> Tensor:
        return x @ w.T + b

    x = torch.from_numpy(inputs)
    labels = network(x).argmax(1)
    result = minimal(network, x, labels, budget=budget)
    for i, label in enumerate(labels.tolist()):
        origin = inputs[i].astype(np.float64)
        exact = min(
            nearest_by_slsqp(d, float(d @ origin + bias[label] - bias[k]), origin, 0, 1)
            for k in range(4)
            if k != label
            for d in [weights[label] - weights[k]]
        )
        found = float(result.distance[i])
        assert exact * (1 - 1e-5) <= found <= exact * 1.001 or found == exact == np.inf
    check_examples(network, x, labels, result.examples, result.distance)
    assert int(result.evaluations.max()) <= budget


def check_examples(
    network: Callable[[Tensor], Tensor],
    inputs: Tensor,
    labels: Tensor,
    examples: Tensor,
    distance: Tensor,
) -> None:
    """Checks box, answers and distances of examples."""
    found = distance.isfinite()
    assert bool(((examples >= 0) & (examples <= 1)).all())
    assert bool((network(examples).argmax(1) != labels)[found].all())
    assert torch.equal(examples[~found], inputs[~found])
    measured = (examples - inputs).double().flatten(1).norm(dim=1)
    torch.testing.assert_close(measured[found], distance[found], rtol=1e-6, atol=1e-9)


def digits(count: int) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    folder = shared_data()
    network = load(folder / "models" / "mnist-net_256x2.onnx")
    data = np.load(folder / "mnist_test_1000.npz")
    x = torch.from_numpy(data["images"][:count].astype(np.float32) / 255)
    labels = torch.from_numpy(data["labels"][:count].astype(np.int64))
    return lambda x: network(x.reshape(-1, 784, 1)), x, labels


def test_examples_of_a_real_network() -> None:
    """Examples lie in the box and are misclassified; wrong inputs have distance 0."""
    network, x, labels = digits(20)
    labels[3] = (labels[3] + 1) % 10
    result = minimal(network, x, labels, budget=120)
    assert float(result.distance[3]) == 0
    assert torch.equal(result.examples[3], x[3])
    right = result.distance > 0
    assert bool(result.distance.isfinite().all())
    check_examples(network, x[right], labels[right], result.examples[right], result.distance[right])
    assert int(result.evaluations.max()) <= 120


def test_budget_pays() -> None:
    """More evaluations never find a farther example on average, and stay within the budget."""
    network, x, labels = digits(20)
    means = []
    for budget in (20, 100, 400):
        result = minimal(network, x, labels, budget=budget)
        assert int(result.evaluations.max()) <= budget
        means.append(float(result.distance.clamp_max(30).mean()))
    assert means == sorted(means, reverse=True)


def test_scale_of_the_box() -> None:
    """In a box that is 256 times as wide, distances are 256 times as large."""
    network, x, labels = digits(12)
    unit = minimal(network, x, labels, budget=60)
    bytes_ = minimal(lambda x: network(x / 256), 256 * x, labels, budget=60, box=(0.0, 256.0))
    torch.testing.assert_close(bytes_.distance, 256 * unit.distance, rtol=0.05, atol=0)


def test_same_seed_same_bytes() -> None:
    """The search is repeatable; another seed takes another way."""
    network, x, labels = digits(8)
    first, second, other = (minimal(network, x, labels, budget=60, seed=s) for s in (5, 5, 6))
    assert first.examples.numpy().tobytes() == second.examples.numpy().tobytes()
    assert first.examples.numpy().tobytes() != other.examples.numpy().tobytes()


def test_rows_do_not_depend_on_each_other() -> None:
    """With seeds of their own, probes get the same result in any company, up to rounding."""
    network, x, labels = digits(12)
    together = minimal(network, x, labels, budget=60, seed=range(12))
    parts = [minimal(network, x[i : i + 6], labels[i : i + 6], budget=60, seed=range(i, i + 6))
             for i in (0, 6)]  # fmt: skip
    apart = torch.cat([part.distance for part in parts])
    torch.testing.assert_close(together.distance, apart, rtol=0.05, atol=0)
    assert float((together.distance / apart).log().abs().median()) < 1e-3


@pytest.mark.parametrize("name", ["mnist-net_256x2", "cifar_base_kw", "mnist_convnet_maxpool"])
def test_proved_radii_are_never_contradicted(name: str) -> None:
    """No example lies inside a ball that a sound verifier has proved free of them."""
    folder = shared_data()
    facts = {
        key.removeprefix(f"{name}/"): values
        for key, values in np.load(folder / "verified_linf.npz").items()
        if key.startswith(f"{name}/")
    }
    rows = facts["robust"] & (facts["targets"] < 0)
    assert rows.any()
    network = load(folder / "models" / f"{name}.onnx")
    x = torch.from_numpy(facts["images"][rows].astype(np.float32) / 255)
    labels = torch.from_numpy(facts["labels"][rows])
    shape = tuple(network.input.shape[1:])
    mean, std = torch.zeros(1), 1.0
    if name.startswith("cifar"):
        x = x.permute(0, 3, 1, 2)
        mean, std = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1), 0.225
    result = minimal(
        lambda p: network(((p - mean) / std).reshape(-1, *shape)), x, labels, budget=100
    )
    found = result.distance.isfinite() & (result.distance > 0)
    assert int(found.sum()) > len(x) // 2
    sizes = (result.examples - x).flatten(1).abs().amax(1).double()
    eps = torch.from_numpy(facts["eps"][rows])
    assert bool((sizes[found] > eps[found]).all())


def test_what_is_not_offered() -> None:
    """Other norms, methods and budgets, and targets that are labels, are refused with a reason."""
    x, labels = torch.rand(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="norm is 'l3'; available: 'l2', 'linf', 'l1', 'l0'"):
        minimal(lambda x: x, x, labels, norm="l3")
    with pytest.raises(ValueError, match="method is 'magic'; available: 'projected'"):
        minimal(lambda x: x, x, labels, methods=["magic"])
    with pytest.raises(ValueError, match="target 0 of input 1 is its label"):
        minimal(lambda x: x, x, labels, targets=torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="at least 2"):
        minimal(lambda x: x, x, labels, budget=1)


def test_vanishing_gradients_around_the_probe() -> None:
    """Where the network is flat around the probes, an anchor leads to the near boundary.

    The margin is 1 wherever |x_0 - 1/2| >= 1/4, and falls steeply in between, so that no gradient
    at a probe shows the way to the boundary at x_0 = 1/4 + 1/16.
    """

    def network(x: torch.Tensor) -> torch.Tensor:
        inside = torch.relu(0.25 - (x[:, :1] - 0.5).abs())
        return torch.cat([torch.ones_like(inside), 16 * inside], 1)

    rng = np.random.default_rng(2)
    inputs = torch.from_numpy(rng.random((20, 30)).astype(np.float32))
    inputs[:, 0] = torch.linspace(0.0, 0.2, 20)
    anchor = torch.from_numpy(rng.random((1, 30)).astype(np.float32))
    anchor[:, 0] = 0.5
    result = minimal(
        network,
        inputs,
        torch.zeros(20, dtype=torch.int64),
        budget=200,
        anchors=(anchor, torch.ones(1, dtype=torch.int64)),
    )
    exact = 0.25 + 1 / 16 - inputs[:, 0].numpy()
    np.testing.assert_allclose(result.distance.numpy(), exact, rtol=1e-2)


@pytest.mark.parametrize(("norm", "budget"), [("l2", 300), ("l0", 100)])
def test_anchors_lead_no_probe_astray(norm: str, budget: int) -> None:
    """Other inputs as second starts cost hardly anything where the first way was the better one."""
    folder = shared_data()
    data = np.load(folder / "mnist_test_1000.npz")
    inputs = torch.from_numpy((data["images"][:60] / 255).astype(np.float32))[:, None]
    labels = torch.from_numpy(data["labels"][:60].astype(np.int64))
    network = load(folder / "models" / "mnist_convnet_maxpool.onnx")
    anchors = (inputs, network(inputs).argmax(1).detach())
    alone, anchored = (
        minimal(network, inputs, labels, norm=norm, budget=budget, anchors=points).distance
        for points in (None, anchors)
    )
    assert anchored.mean() <= 1.01 * alone.mean()


def test_progress_rises_to_the_whole() -> None:
    """The share that is told grows and ends near 1."""
    weights = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    shares: list[float] = []
    inputs = torch.rand(4, 10, generator=torch.Generator().manual_seed(1))
    labels = (inputs @ weights).argmax(1)
    minimal(lambda x: x @ weights, inputs, labels, budget=100, progress=shares.append)
    assert shares == sorted(shares)
    assert 0.5 < shares[-1] <= 1


def test_last_stretch_ends_at_the_boundary() -> None:
    """Along a line the margin 1 - exp(2 t) / 8 of the distance t is zero at log(8) / 2."""

    def logits(x: Tensor) -> Tensor:
        return torch.stack([1 - (2 * x[:, 0]).exp() / 8, torch.zeros_like(x[:, 0])], dim=1)

    far = torch.tensor([[4.0], [1.2]])
    rows = torch.arange(2)
    ends = torch.tensor(0.0), torch.tensor(4.0)
    labels = torch.zeros(2, dtype=torch.int64)
    search = Search(logits, torch.zeros(2, 1), labels, ends, norm=NORMS["l2"], seeds=rows)
    search.offer(far, rows, torch.ones(2, dtype=torch.bool))
    starts.to_boundary(search, rows, starts.FAR_CROSSING)
    assert (search.distance > math.log(8) / 2).all()
    assert search.distance.numpy() == pytest.approx(math.log(8) / 2, rel=1e-4)


def test_noise_of_a_probe_is_its_own() -> None:
    """Draws that only some probes need do not move those of the others."""
    rows, ends = torch.arange(3), (torch.tensor(0.0), torch.tensor(1.0))

    def noise(*asked: list[int]) -> list[Tensor]:
        search = Search(
            lambda x: x, torch.zeros(3, 8), torch.zeros_like(rows), ends,
            norm=NORMS["l2"], seeds=rows,
        )  # fmt: skip
        return [search.noise(torch.tensor(some)) for some in asked]

    first, second = noise([0, 1, 2], [0, 1, 2])
    _, between, after = noise([0, 1, 2], [1, 1], [2, 0, 1])
    assert torch.equal(between, second[[1, 1]])
    assert torch.equal(after[:2], second[[2, 0]])
    assert not torch.isin(after[2], torch.cat([first[1], second[1]])).any()
