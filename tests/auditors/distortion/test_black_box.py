"""The search by answers alone beside exact distances and models without gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import optimize
from tests.support import shared_data

from onnx_auditors.distortion.black_box import Result, black_box
from onnx_auditors.distortion.confirm import sizes
from onnx_auditors.distortion.directions import directions
from onnx_auditors.network import Session

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Answers = Callable[[Floats], npt.NDArray[Any]]
NORMS = ("l2", "linf", "l1", "l0")


class Counter:
    """A judge that checks the box and counts what it is asked."""

    def __init__(self, answers: Answers, box: tuple[float, float] = (0.0, 1.0)) -> None:
        self.answers, self.box, self.count = answers, box, 0

    def __call__(self, x: Floats) -> npt.NDArray[Any]:
        """Returns the classes of x, which must be float32 and in the box."""
        assert x.dtype == np.float32
        assert self.box[0] <= x.min() <= x.max() <= self.box[1]
        self.count += len(x)
        return self.answers(x)


def check(
    result: Result, judge: Counter, inputs: Floats, wanted: Callable[[Ints], Any], norm: str
) -> None:
    """Checks answers, sizes and the number of queries of a result."""
    assert int(result.queries.sum()) == judge.count
    found = np.isfinite(result.distance)
    assert wanted(judge(result.examples))[found].all()
    np.testing.assert_array_equal(
        result.distance[found], sizes(inputs, result.examples, norm)[found]
    )
    np.testing.assert_array_equal(result.examples[~found], inputs[~found])


def linear(width: int, classes: int, seed: int) -> tuple[npt.NDArray[Any], Answers]:
    """Returns the weights of a linear classifier, and its answers."""
    weights = np.random.default_rng(seed).standard_normal((classes, width))
    return weights, lambda x: (x.reshape(len(x), -1).astype(np.float64) @ weights.T).argmax(1)


def exact(
    weights: npt.NDArray[Any], inputs: Floats, labels: Ints, norm: str, targets: Ints | None = None
) -> npt.NDArray[np.float64]:
    """Returns the distances to a linear classifier's boundary, without the box."""
    scores = inputs.astype(np.float64) @ weights.T
    rows = np.arange(len(inputs))
    gap = scores[rows, labels][:, None] - scores
    order = {"l2": 2, "linf": 1}[norm]
    dual = np.linalg.norm(weights[labels][:, None] - weights[None], ord=order, axis=2)
    dual[rows, labels] = np.nan
    if targets is None:
        distances: npt.NDArray[np.float64] = np.nanmin(gap / dual, axis=1)
        return distances
    chosen: npt.NDArray[np.float64] = (gap / dual)[rows, targets]
    return chosen


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("width", "queries"), [(2, 300), (20, 1000), (60, 2000)])
def test_linear_classifier(norm: str, width: int, queries: int) -> None:
    """The distance to a linear classifier's boundary is met within 5 %, and never undercut."""
    weights, answers = linear(width, 3, seed=1)
    inputs = np.random.default_rng(2).uniform(0.4, 0.6, (25, width)).astype(np.float32)
    labels = answers(inputs)
    truth = exact(weights, inputs, labels, norm)
    near = truth < (0.35 if norm == "linf" else 0.4)  # the box does not matter there
    inputs, labels, truth = inputs[near], labels[near], truth[near]
    assert len(inputs) >= 10
    judge = Counter(answers)
    result = black_box(judge, inputs, labels, norm, queries)
    check(result, judge, inputs, lambda classes: classes != labels, norm)
    assert result.queries.max() <= queries
    ratio = result.distance / truth
    assert ratio.min() >= 1 - 1e-5
    assert ratio.max() <= 1.05


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_targets(norm: str) -> None:
    """With a target, the distance to the target's boundary is met, and only the target counts."""
    weights, answers = linear(10, 3, seed=3)
    weights -= weights.mean(axis=1, keepdims=True)  # every class is about as frequent
    inputs = np.random.default_rng(4).uniform(0.4, 0.6, (12, 10)).astype(np.float32)
    labels = answers(inputs)
    targets = (labels + 1) % 3
    points = np.random.default_rng(5).random((200, 10), dtype=np.float32)
    judge = Counter(answers)
    result = black_box(
        judge, inputs, labels, norm, 1500, targets=targets, anchors=(points, answers(points))
    )
    check(result, judge, inputs, lambda classes: classes == targets, norm)
    order = 2 if norm == "l2" else np.inf
    best = np.array(
        [
            nearest_by_solver(weights, origin, target, order)
            for origin, target in zip(inputs, targets, strict=True)
        ]
    )
    ratio = result.distance / best
    assert ratio.min() >= 1 - 1e-3
    assert np.median(ratio) <= 1.02
    assert ratio.max() <= 1.1  # a target's nearest point may lie on an edge, which takes longer


def nearest_by_solver(
    weights: npt.NDArray[Any], origin: Floats, target: int, order: float
) -> float:
    """Returns the distance to the region of a class in the box, by a convex solver."""
    differences = weights[target] - np.delete(weights, target, axis=0)
    if order == 2:
        result = optimize.minimize(
            lambda x: ((x - origin) ** 2).sum(),
            np.clip(origin + 0.5 * differences.sum(0), 0, 1),
            bounds=[(0, 1)] * len(origin),
            constraints=optimize.LinearConstraint(differences, lb=0),
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert result.success
        return float(np.sqrt(result.fun))
    width = len(origin)
    # Variables x and t: t is at least |x - origin|.
    eye, column = np.eye(width), np.ones((width, 1))
    solution = optimize.linprog(
        np.r_[np.zeros(width), 1.0],
        A_ub=np.block(
            [[eye, -column], [-eye, -column], [-differences, np.zeros((len(differences), 1))]]
        ),
        b_ub=np.r_[origin, -origin, np.zeros(len(differences))],
        bounds=[(0, 1)] * width + [(0, None)],
    )
    assert solution.success
    return float(solution.fun)


@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_few_entries(norm: str) -> None:
    """In L1 and L0 the fractional knapsack's optimum is nearly met."""
    rng = np.random.default_rng(7)
    normal = rng.standard_normal(40)
    inputs = rng.uniform(0.3, 0.7, (20, 40)).astype(np.float32)
    offset = float((inputs @ normal).max() + 1.5)
    labels = np.zeros(20, dtype=np.int64)
    judge = Counter(lambda x: (x.astype(np.float64) @ normal > offset).astype(np.int64))
    result = black_box(judge, inputs, labels, norm, 2000)
    check(result, judge, inputs, lambda classes: classes == 1, norm)
    room = np.where(normal > 0, 1 - inputs, inputs).astype(np.float64)
    needed = offset - inputs.astype(np.float64) @ normal
    gain = np.abs(normal) * room
    if norm == "l0":
        best = (np.cumsum(-np.sort(-gain, axis=1), axis=1) <= needed[:, None]).sum(axis=1) + 1.0
    else:
        order = np.argsort(-np.abs(normal))
        before = np.cumsum(gain[:, order], axis=1) - gain[:, order]
        taken = np.clip((needed[:, None] - before) / gain[:, order], 0, 1)
        best = (taken * room[:, order]).sum(axis=1)
    ratio = result.distance / best
    assert ratio.min() >= 1 - 1e-5
    assert np.mean(ratio) <= 1.1


def test_staircase_without_gradients() -> None:
    """A model of steps, whose gradient is 0 everywhere, is not called robust.

    Entries are rounded to 16 levels before a linear score, and the scores to quarters.
    """
    rng = np.random.default_rng(8)
    weights = rng.standard_normal((2, 50))
    inputs = rng.uniform(0.4, 0.6, (10, 50)).astype(np.float32)

    def answers(x: Floats) -> npt.NDArray[Any]:
        scores = np.rint(16 * x.astype(np.float64)) / 16 @ weights.T
        classes: Ints = np.rint(4 * scores).argmax(1)
        return classes

    labels = answers(inputs)
    judge = Counter(answers)
    result = black_box(judge, inputs, labels, "l2", 2000)
    check(result, judge, inputs, lambda classes: classes != labels, "l2")
    assert np.isfinite(result.distance).all()
    # Without the steps the boundary is at `truth`; steps move it by at most half a level an entry.
    truth = exact(weights, inputs, labels, "l2")
    assert (result.distance <= 1.3 * truth + 0.15).all()


def test_saturated_model() -> None:
    """Where all scores but one underflow to 0, the answers still lead to the boundary."""
    weights, answers = linear(30, 4, seed=9)

    def saturated(x: Floats) -> npt.NDArray[Any]:
        scores = x.astype(np.float32) @ (1e4 * weights.T).astype(np.float32)
        with np.errstate(under="ignore"):
            exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
        classes: Ints = (exponents / exponents.sum(axis=1, keepdims=True)).argmax(axis=1)
        return classes

    inputs = np.random.default_rng(10).uniform(0.3, 0.7, (30, 30)).astype(np.float32)
    labels = answers(inputs)
    truth = exact(weights, inputs, labels, "l2")
    result = black_box(saturated, inputs, labels, "l2", 1500)
    near = truth < 0.6
    assert near.sum() >= 5
    assert (result.distance[near] <= 1.05 * truth[near]).all()


def test_wide_box_and_uneven_ends() -> None:
    """Boxes with ends of their own for each entry are kept; scale does not matter."""
    _, answers = linear(12, 3, seed=11)
    inputs = np.random.default_rng(12).uniform(0.4, 0.6, (8, 12)).astype(np.float32)
    labels = answers(inputs)
    unit = black_box(answers, inputs, labels, "l2", 600)
    wide = black_box(Counter(answers, (0, 256)), 256 * inputs, labels, "l2", 600, (0.0, 256.0))
    np.testing.assert_allclose(wide.distance, 256 * unit.distance, rtol=0.02)
    lower = np.maximum(inputs.min(axis=0) - np.linspace(0, 0.2, 12, dtype=np.float32), 0)
    upper = np.ones(12, dtype=np.float32)
    tight = black_box(answers, inputs, labels, "l2", 600, (lower, upper))
    assert ((tight.examples >= lower) & (tight.examples <= upper)).all()
    assert np.isfinite(tight.distance).any()


@pytest.mark.parametrize("norm", NORMS)
def test_seeds_and_company(norm: str) -> None:
    """The same seed gives the same bytes, another seed others; rows do not depend on company."""
    _, answers = linear(15, 3, seed=13)
    rng = np.random.default_rng(14)
    inputs = rng.uniform(0.3, 0.7, (9, 15)).astype(np.float32)
    labels = answers(inputs)
    labels[4] = (labels[4] + 1) % 3
    points = rng.random((30, 15), dtype=np.float32)
    anchors = (points, answers(points))

    def run(rows: slice, seed: int | range) -> Result:
        return black_box(answers, inputs[rows], labels[rows], norm, 400, seed=seed, anchors=anchors)

    first, second = run(slice(0, 9), range(9)), run(slice(0, 9), 0)
    assert first.examples.tobytes() == second.examples.tobytes()
    if norm != "l0":
        assert first.examples.tobytes() != run(slice(0, 9), 100).examples.tobytes()
    parts = [run(slice(i, i + 3), range(i, i + 3)) for i in (0, 3, 6)]
    np.testing.assert_array_equal(np.concatenate([p.examples for p in parts]), first.examples)
    np.testing.assert_array_equal(np.concatenate([p.queries for p in parts]), first.queries)
    assert first.distance[4] == 0
    assert first.queries[4] == 1
    np.testing.assert_array_equal(first.examples[4], inputs[4])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("queries", [20, 77, 500])
def test_queries_stay_within_the_budget(norm: str, queries: int) -> None:
    """No row asks for more than its budget, whatever it is, and the count is right."""
    _, answers = linear(25, 3, seed=15)
    inputs = np.random.default_rng(16).uniform(0.3, 0.7, (10, 5, 5)).astype(np.float32)
    labels = answers(inputs)
    judge = Counter(answers)
    result = black_box(judge, inputs, labels, norm, queries)
    assert result.queries.max() <= queries
    check(result, judge, inputs, lambda classes: classes != labels, norm)


def test_constant_model() -> None:
    """A model that always answers the same has no examples; a quarter of the queries shows it."""
    inputs = np.full((3, 4), 0.5, dtype=np.float32)
    judge = Counter(lambda x: np.zeros(len(x), dtype=np.int64))
    result = black_box(judge, inputs, np.zeros(3, dtype=np.int64), "l2", 200)
    assert np.isinf(result.distance).all()
    assert result.queries.max() < 100
    check(result, judge, inputs, lambda classes: classes != 0, "l2")


def test_a_single_entry() -> None:
    """One number per input: the boundary is met by bisection alone."""
    inputs = np.array([[0.1], [0.4]], dtype=np.float32)
    judge = Counter(lambda x: (x[:, 0] > 0.7).astype(np.int64))
    result = black_box(judge, inputs, np.zeros(2, dtype=np.int64), "linf", 60)
    np.testing.assert_allclose(result.distance, [0.6, 0.3], rtol=0.05)


def test_directions_are_an_orthonormal_basis() -> None:
    """A basis is orthonormal and spread, the same in parts, and followed by its opposite."""
    seeds = np.array([3, 99], dtype=np.int64)
    whole = directions(seeds, 0, 0, 37, 37).astype(np.float64)
    for basis in whole:
        np.testing.assert_allclose(basis @ basis.T, np.eye(37), atol=1e-5)
    assert np.abs(whole).max() <= np.sqrt(2 / 37) + 1e-6
    parts = [directions(seeds, 0, i, min(10, 37 - i), 37) for i in range(0, 37, 10)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    np.testing.assert_array_equal(directions(seeds[1:], 0, 0, 37, 37)[0], whole[1])
    np.testing.assert_array_equal(directions(seeds, 0, 30, 44, 37)[:, 7:], -whole)
    assert not np.allclose(directions(seeds, 1, 0, 37, 37), whole)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_real_network(norm: str) -> None:
    """On a real network the search beats noise by far, and more queries find nearer examples."""
    folder = shared_data()
    session = Session(folder / "models" / "mnist-net_256x2.onnx")
    data = np.load(folder / "mnist_test_1000.npz")
    images = data["images"].astype(np.float32) / np.float32(255)
    judge = Counter(lambda x: session.run(x.reshape(-1, 784, 1)).argmax(axis=1))
    classes = judge(images)
    right = np.flatnonzero(classes == data["labels"])[::120]
    inputs, labels = images[right], classes[right]
    others = np.setdiff1d(np.arange(len(images)), right)[::3]
    means = []
    for queries in (40, 200, 1000):
        judge.count = 0
        result = black_box(
            judge, inputs, labels, norm, queries, anchors=(images[others], classes[others])
        )
        check(result, judge, inputs, lambda answers: answers != labels, norm)
        means.append(result.distance.mean())
    assert means == sorted(means, reverse=True)
    assert means[-1] < 0.6 * means[0]


def test_what_is_not_offered() -> None:
    """Other norms, too few queries and targets that are labels are refused with a reason."""
    x, labels = np.zeros((2, 3), dtype=np.float32), np.zeros(2, dtype=np.int64)
    with pytest.raises(ValueError, match="norm is 'l3'; available: 'l2', 'linf', 'l1', 'l0'"):
        black_box(lambda x: x, x, labels, "l3")
    with pytest.raises(ValueError, match="queries is 5; at least 20"):
        black_box(lambda x: x, x, labels, queries=5)
    with pytest.raises(ValueError, match="target 0 of input 1 is its label"):
        black_box(lambda x: x, x, labels, targets=np.array([1, 0]))
