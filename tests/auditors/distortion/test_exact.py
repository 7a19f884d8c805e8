"""Exact optima beside brute force and closed forms, and the search beside exact optima."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from scipy import optimize
from tests.support import graph_model, shared_data
from torch import Tensor, nn

from onnx_auditors.distortion import minimal
from onnx_auditors.distortion.exact import MOST_UNITS, SmallModel, exact, small_model
from onnx_auditors.network import load

Floats = npt.NDArray[np.float64]
LENGTHS = {"l2": 2, "linf": np.inf, "l1": 1}


def random_model(seed: int, classes: int = 3, units: int = 4, width: int = 3) -> SmallModel:
    rng = np.random.default_rng(seed)
    inner = rng.standard_normal((units, width))
    return SmallModel(
        rng.standard_normal((classes, units)),
        0.1 * rng.standard_normal(classes),
        inner,
        0.3 * rng.standard_normal(units) - inner @ np.full(width, 0.5),
    )


def nearest(a: Floats, c: Floats, x: Floats, norm: str) -> float:
    """Returns the least norm of d with a d <= c and 0 <= x + d <= 1, by a general solver."""
    width = len(x)
    # Rises and falls of each entry, and the largest of them.
    wide = np.hstack([a, -a, np.zeros((len(a), 1))])
    cost = np.r_[np.ones(2 * width), 0.0] if norm == "l1" else np.r_[np.zeros(2 * width), 1.0]
    below = np.hstack([np.eye(2 * width), -np.ones((2 * width, 1))])
    bounds = [*zip(np.zeros(2 * width), np.r_[1 - x, x], strict=True), (0, None)]
    found = optimize.linprog(
        cost, np.vstack([wide, below]), np.r_[c, np.zeros(2 * width)], bounds=bounds
    )
    if found.status == 2:
        return np.inf
    assert found.status == 0
    if norm != "l2":
        return float(found.fun)
    start = found.x[:width] - found.x[width : 2 * width]
    result = optimize.minimize(
        lambda d: 0.5 * d @ d,
        start,
        jac=lambda d: d,
        bounds=list(zip(-x, 1 - x, strict=True)),
        constraints={"type": "ineq", "fun": lambda d: c - a @ d, "jac": lambda _: -a},
        options={"ftol": 1e-14, "maxiter": 300},
        method="SLSQP",
    )
    return float(np.linalg.norm(result.x))


def brute_force(model: SmallModel, x: Floats, label: int, norm: str, target: int | None) -> float:
    """Returns the least distance over all patterns of active units and all rivals."""
    assert model.inner is not None
    assert model.inner_bias is not None
    best = np.inf
    z = model.inner @ x + model.inner_bias
    classes = range(len(model.outer_bias))
    for signs in itertools.product([-1, 1], repeat=len(z)):
        side = np.array(signs)
        active = model.outer * (side > 0)
        for k in classes if target is None else [target]:
            if k == label:
                continue
            losers = [label] if target is None else [j for j in classes if j != k]
            ahead = active[k] - active[losers]
            offset = ahead @ z + model.outer_bias[k] - model.outer_bias[losers]
            a = np.vstack([-side[:, None] * model.inner, -ahead @ model.inner])
            best = min(best, nearest(a, np.r_[side * z, offset], x, norm))
    return float(best)


@pytest.mark.parametrize("norm", sorted(LENGTHS))
@pytest.mark.parametrize("targeted", [False, True])
def test_one_hidden_layer_by_brute_force(norm: str, targeted: bool) -> None:
    """Optima are the best over all patterns of active units; the bounds meet them."""
    rng = np.random.default_rng(7)
    for seed in range(3):
        model = random_model(seed)
        x = rng.random((4, 3)).astype(np.float32)
        labels = model.logits(x.astype(np.float64)).argmax(1)
        targets = (labels + 1) % 3 if targeted else None
        found = exact(model, x, labels, norm, targets)
        expected = [
            brute_force(model, x[i].astype(np.float64), int(labels[i]), norm,
                        None if targets is None else int(targets[i]))
            for i in range(len(x))
        ]  # fmt: skip
        np.testing.assert_allclose(found.distance, expected, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(found.lower, found.distance, rtol=1e-5, atol=1e-7)
        check(model, x, labels, norm, found.examples, found.distance, targets)


def check(
    model: SmallModel,
    x: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    norm: str,
    examples: Floats,
    distance: Floats,
    targets: npt.NDArray[np.int64] | None = None,
) -> None:
    """Checks box, answers up to a tie, and distances of examples."""
    reached = np.isfinite(distance)
    assert ((examples >= -1e-12) & (examples <= 1 + 1e-12)).all()
    scores = model.logits(examples)
    own = np.take_along_axis(scores, labels[:, None], 1)[:, 0]
    if targets is None:
        np.put_along_axis(scores, labels[:, None], -np.inf, 1)
        ahead = scores.max(1) - own
    else:
        ahead = np.take_along_axis(scores, targets[:, None], 1)[:, 0] - scores.max(1)
    assert (ahead[reached] >= -1e-5).all()
    sizes = np.linalg.norm(examples - x.astype(np.float64), LENGTHS[norm], axis=1)
    np.testing.assert_allclose(sizes[reached], distance[reached], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("norm", "dual"), [("l2", 2), ("linf", 1), ("l1", np.inf)])
def test_linear_model_in_a_wide_box(norm: str, dual: float) -> None:
    """Where no end of the box binds the distance is the least margin over the dual norm."""
    rng = np.random.default_rng(1)
    model = SmallModel(rng.standard_normal((5, 30)), rng.standard_normal(5))
    x = rng.random((10, 30))
    logits = model.logits(x)
    labels = logits.argmax(1)
    margins = logits.max(1, keepdims=True) - logits
    lengths = np.linalg.norm(model.outer[labels][:, None] - model.outer, dual, axis=2)
    with np.errstate(invalid="ignore"):
        expected = np.nanmin(margins / lengths, axis=1)
    found = exact(model, x, labels, norm, box=(-100.0, 100.0))
    np.testing.assert_allclose(found.distance, expected, rtol=1e-6)
    np.testing.assert_allclose(found.lower, expected, rtol=1e-5)


@pytest.mark.parametrize("norm", sorted(LENGTHS))
def test_classes_out_of_reach_and_wrong_answers(norm: str) -> None:
    """The distance is inf where the box holds no adversarial point, and 0 at one."""
    model = SmallModel(np.array([[1.0, 1.0], [-1.0, -1.0]]), np.array([0.5, -0.5]))
    x = np.full((2, 2), 0.5)
    found = exact(model, x, np.array([0, 1]), norm)
    assert found.distance.tolist() == [np.inf, 0.0]
    assert found.lower.tolist() == [np.inf, 0.0]
    np.testing.assert_array_equal(found.examples, x)


@pytest.mark.parametrize("norm", sorted(LENGTHS))
def test_known_examples_change_nothing(norm: str) -> None:
    """With a known example, a false one or none the optimum is the same."""
    model = random_model(5)
    x = np.random.default_rng(3).random((6, 3))
    labels = model.logits(x).argmax(1)
    alone = exact(model, x, labels, norm)
    for known in (alone.examples, x + 1e-3, np.full_like(x, 9.0)):
        told = exact(model, x, labels, norm, known=known)
        np.testing.assert_allclose(told.distance, alone.distance, rtol=1e-5)


def test_what_is_not_offered() -> None:
    """Other norms and boxes without an end are refused with a reason."""
    model, x, labels = random_model(0), np.zeros((1, 3)), np.zeros(1, dtype=np.int64)
    with pytest.raises(ValueError, match="norm is 'l0'; available: 'l2', 'linf', 'l1'"):
        exact(model, x, labels, "l0")
    with pytest.raises(ValueError, match="no end"):
        exact(model, x, labels, box=(0.0, np.inf))


def relu_graph(units: int, middle: str = "Relu", end: str = "Softmax") -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "w1", "b1"], ["z"]),
        helper.make_node(middle, ["z"], ["a"]),
        helper.make_node("Gemm", ["a", "w2"], ["s"], transB=1),
        helper.make_node(end, ["s"], ["y"]),
    ]
    weights = {
        "mean": np.array(0.4, np.float32),
        "w1": rng.standard_normal((6, units)).astype(np.float32),
        "b1": rng.standard_normal(units).astype(np.float32),
        "w2": rng.standard_normal((4, units)).astype(np.float32),
    }
    return graph_model(nodes, {"x": [1, 2, 3]}, weights)


@pytest.mark.parametrize("middle", ["Relu", "Identity"])
def test_small_models_are_recognised(middle: str) -> None:
    """Weights are read through flattening, centring and a softmax, in probe space."""
    network = load(relu_graph(5, middle))
    model = small_model(network, (3, 2), lambda x: x.reshape(-1, 2, 3) / 2)
    assert model is not None
    assert (model.inner is None) == (middle == "Identity")
    x = torch.rand(20, 3, 2, generator=torch.Generator().manual_seed(0))
    expected = network(x.reshape(-1, 2, 3) / 2).double().detach().numpy()
    np.testing.assert_allclose(model.logits(x.flatten(1).double().numpy()), expected, atol=1e-5)


def test_other_models_are_not() -> None:
    """Too many units, other nonlinearities, two layers of them, or a rounding are not small."""
    rounding = helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64)
    back = helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT)
    for proto in (
        relu_graph(MOST_UNITS + 1),
        relu_graph(5, "Sigmoid"),
        relu_graph(5, "Relu", "Relu"),
        graph_model([rounding, back], {"x": [1, 6]}),
    ):
        network = load(proto)
        assert small_model(network, tuple(network.input.shape[1:])) is None


def trained(hidden: int, side: int) -> tuple[nn.Module, SmallModel, Tensor, Tensor]:
    """Returns a classifier of digits, its weights, and images that it gets right with labels."""
    data = np.load(shared_data() / "mnist_train_10000.npz")
    images = data["images"].astype(np.float32) / 255
    if side != images.shape[1]:
        images = images.reshape(len(images), side, 2, side, 2).mean((2, 4))
    x = torch.from_numpy(images.reshape(len(images), -1))
    labels = torch.from_numpy(data["labels"].astype(np.int64))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ends = [side * side, *([hidden] if hidden else []), 10]
        layers: list[nn.Module] = [nn.Linear(*pair) for pair in itertools.pairwise(ends)]
        network = nn.Sequential(*(m for layer in layers for m in (layer, nn.ReLU())))[:-1]
        optimiser = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(600):
            rows = torch.randint(len(x), (128,))
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    weights = [p.detach().double().numpy() for p in network.parameters()]
    right = network(x).argmax(1) == labels
    return network, SmallModel(*weights[-2:], *weights[:-2]), x[right], labels[right]


def ratios(hidden: int, side: int, count: int, norm: str, budget: int) -> Floats:
    """Returns found distances over exact ones; none may be below 1."""
    network, model, x, labels = trained(hidden, side)
    x, labels = x[:count], labels[:count]
    found = minimal(network, x, labels, norm, budget)
    best = exact(model, x.numpy(), labels.numpy(), norm, known=found.examples.double().numpy())
    # The solvers' tolerance is absolute.
    assert (best.distance - best.lower <= np.maximum(1e-4 * best.distance, 2e-6)).all()
    ratio: Floats = found.distance.numpy() / best.lower
    # Float32 may see a tie a little before float64 does.
    assert (ratio >= 1 - 1e-4).all()
    return ratio


@pytest.mark.parametrize(("norm", "count"), [("l2", 12), ("linf", 5)])
def test_search_on_a_linear_model(norm: str, count: int) -> None:
    """For softmax regression on digits 30 evaluations come within 0.05 % of the optimum."""
    assert ratios(0, 28, count, norm, 30).max() <= 1.0005


@pytest.mark.parametrize(("norm", "side", "count", "bar"), [("l2", 28, 12, 1.002),
                                                            ("linf", 14, 6, 1.01)])  # fmt: skip
def test_search_on_one_hidden_layer(norm: str, side: int, count: int, bar: float) -> None:
    """For 20 ReLUs on digits the mean ratio at 1,000 evaluations stays below the bar."""
    assert ratios(20, side, count, norm, 1000).mean() <= bar


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("norm", "side", "bar"), [("l2", 28, 1.002), ("linf", 14, 1.01),
                                                   ("linf", 28, 1.01)])  # fmt: skip
def test_search_on_one_hidden_layer_for_more_digits(norm: str, side: int, bar: float) -> None:
    """The same for 40 digits."""
    ratio = ratios(20, side, 40, norm, 1000)
    assert ratio.mean() <= bar, f"mean {ratio.mean():.5f}, largest {ratio.max():.5f}"
