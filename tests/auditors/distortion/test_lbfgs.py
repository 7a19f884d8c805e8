"""The paper's method beside exact optima and scipy's L-BFGS-B."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import optimize
from torch import Tensor, nn
from torch.nn import functional

from onnx_auditors.distortion import lbfgs, minimal

Floats = npt.NDArray[np.float64]


def linear(classes: int = 4, width: int = 15) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(1)
    return rng.standard_normal((classes, width)), 0.3 * rng.standard_normal(classes)


def nearest(weights: Floats, bias: Floats, origin: Floats, target: int, label: int | None) -> float:
    """Returns the distance to the target's region in the box [0, 1]: a quadratic program.

    With a label only the boundary to it counts.
    """
    others = [k for k in range(len(bias)) if k != target] if label is None else [label]
    normals, offsets = weights[target] - weights[others], bias[target] - bias[others]
    inside = optimize.linprog(
        -np.append(np.zeros(len(origin)), 1.0),
        A_ub=np.column_stack([-normals, np.ones(len(others))]), b_ub=offsets,
        bounds=[(0, 1)] * len(origin) + [(None, None)],
    )  # fmt: skip
    if inside.x[-1] < 0:
        return np.inf
    result = optimize.minimize(
        lambda x: 0.5 * np.sum((x - origin) ** 2), inside.x[:-1], jac=lambda x: x - origin,
        bounds=[(0, 1)] * len(origin),
        constraints={"type": "ineq", "fun": lambda x: normals @ x + offsets,
                     "jac": lambda _: normals},
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert result.success
    return float(np.linalg.norm(result.x - origin))


def small() -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    """Returns a smooth random network, inputs of which some touch the box, labels and targets."""
    generator = torch.Generator().manual_seed(3)
    network = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 6)).requires_grad_(False)
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    x = (1.6 * torch.rand(24, 40, generator=generator) - 0.3).clamp(0, 1)
    labels = network(x).argmax(1)
    targets = (labels + torch.randint(1, 6, (24,), generator=generator)) % 6
    return network, x, labels, targets


def by_scipy(network: nn.Module, origin: Tensor, target: int) -> float:
    """Returns the distance of the paper's method with scipy's L-BFGS-B, at double precision."""
    start = origin.double().numpy()
    best = [np.inf]

    def reaches(x: Floats) -> bool:
        return int(network(torch.from_numpy(x)).argmax()) == target

    def penalised(x: Floats, c: float) -> tuple[float, Floats]:
        leaf = torch.from_numpy(x).requires_grad_()
        loss = functional.cross_entropy(network(leaf), torch.tensor(target))
        (gradient,) = torch.autograd.grad(loss, leaf)
        return c * np.sum((x - start) ** 2) + loss.item(), 2 * c * (x - start) + gradient.numpy()

    low, high, x = 1e-4, 10.0, start
    for _ in range(14):
        c = (low * high) ** 0.5
        x = optimize.minimize(
            penalised, x, (c,), jac=True, method="L-BFGS-B", bounds=[(0, 1)] * len(start)
        ).x
        if reaches(x):
            low = c
            near, far = 0.0, 1.0
            for _ in range(20):
                middle = (near + far) / 2
                good = reaches(start + middle * (x - start))
                near, far = (near, middle) if good else (middle, far)
            best.append(far * float(np.linalg.norm(x - start)))
        else:
            high = c
    return min(best)


@pytest.mark.parametrize("targeted", [False, True])
def test_linear_classifier(targeted: bool) -> None:
    """In the convex case the distance is that of the quadratic program, in the box.

    Where several classes compete, the loss is up to log(classes - 1) from their largest margin.
    """
    slack = 1 + math.log(3) / lbfgs.SHARPNESS if targeted else 1.001
    weights, bias = linear()
    inputs = np.random.default_rng(5).random((16, 15)).astype(np.float32)
    inputs[:, :4] = inputs[:, :4].round()
    w, b = torch.from_numpy(weights).float(), torch.from_numpy(bias).float()
    x = torch.from_numpy(inputs)
    labels = (x @ w.T + b).argmax(1)
    targets = (labels + 1) % 4 if targeted else None
    result = minimal(
        lambda x: x @ w.T + b, x, labels, targets=targets, budget=300, methods=("lbfgs",)
    )
    for i, label in enumerate(labels.tolist()):
        origin = inputs[i].astype(np.float64)
        if targets is None:
            exact = min(nearest(weights, bias, origin, k, label) for k in range(4) if k != label)
        else:
            exact = nearest(weights, bias, origin, int(targets[i]), None)
        found = float(result.distance[i])
        assert exact * (1 - 1e-5) <= found <= exact * slack or found == exact == np.inf


def test_beside_scipy() -> None:
    """At 300 evaluations the mean distance is at most 1.005 of scipy's with a search over c."""
    network, x, labels, targets = small()
    result = minimal(network, x, labels, targets=targets, budget=300, methods=("lbfgs",))
    network.double()
    theirs = np.array([by_scipy(network, x[i], int(targets[i])) for i in range(len(x))])
    ours = result.distance.numpy()
    assert np.isfinite(theirs).sum() > len(x) // 2
    assert np.isfinite(ours[np.isfinite(theirs)]).all()
    both = np.isfinite(theirs)
    assert ours[both].mean() <= 1.005 * theirs[both].mean()


@pytest.mark.parametrize("method", ["lbfgs", "penalised"])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("budget", [2, 12, 60, 250])
def test_box_budget_and_answers(method: str, targeted: bool, budget: int) -> None:
    """Examples lie in the box and reach their class, distances are theirs, the bill is kept."""
    network, x, labels, aims = small()
    targets = aims if targeted else None
    shape = (2, 4, 5)
    result = minimal(
        lambda x: network(x.flatten(1)), x.reshape(-1, *shape), labels,
        targets=targets, budget=budget, methods=(method,),
    )  # fmt: skip
    examples, found = result.examples.flatten(1), result.distance.isfinite()
    assert bool(((examples >= 0) & (examples <= 1)).all())
    scores, own = network(examples), (aims if targeted else labels)[:, None]
    lead = scores.gather(1, own)[:, 0] - scores.scatter(1, own, -torch.inf).amax(1)
    # Examples lie on the boundary, where products of other batch sizes round either way.
    assert bool(((lead if targeted else -lead)[found] >= -1e-6).all())
    assert torch.equal(examples[~found], x[~found])
    torch.testing.assert_close((examples - x).double().norm(dim=1)[found], result.distance[found])
    assert int(result.evaluations.max()) <= budget
    if budget >= 60:
        assert int(found.sum()) > len(x) // 2


@pytest.mark.parametrize("method", ["lbfgs", "penalised"])
def test_evaluations_are_what_the_network_saw(method: str) -> None:
    """The bill is the rows that went forward and backward through the network, halved."""
    network, x, labels, targets = small()
    passes = 0.0

    def counted(x: Tensor) -> Tensor:
        nonlocal passes
        passes += len(x) * (1.0 if x.requires_grad else 0.5)
        scores: Tensor = network(x)
        return scores

    result = minimal(counted, x, labels, targets=targets, budget=100, methods=(method,))
    assert passes <= float(result.evaluations.sum()) < passes + len(x)


@pytest.mark.parametrize("method", ["lbfgs", "penalised"])
@pytest.mark.parametrize("targeted", [False, True])
def test_rows_do_not_depend_on_each_other(method: str, targeted: bool) -> None:
    """A probe gets the same result in any company, in double precision up to rounding."""
    network, x, labels, aims = small()
    network.double()
    x = x.double()

    def run(rows: slice) -> Tensor:
        targets = aims[rows] if targeted else None
        return minimal(
            network, x[rows], labels[rows], targets=targets, budget=250, methods=(method,)
        ).distance

    apart = torch.cat([run(slice(0, 1)), run(slice(1, 9)), run(slice(9, 24))])
    torch.testing.assert_close(run(slice(0, 24)), apart, rtol=1e-6, atol=0)


def test_units_of_the_logits() -> None:
    """Logits that are a thousand times as large, or as small, change nothing."""
    network, x, labels, targets = small()
    network.double()
    x = x.double()

    def distance(factor: float) -> Tensor:
        return minimal(
            lambda x: factor * network(x), x, labels,
            targets=targets, budget=200, methods=("lbfgs",),
        ).distance  # fmt: skip

    plain, large, tiny = distance(1.0), distance(1e3), distance(1e-3)
    torch.testing.assert_close(large, plain, rtol=1e-4, atol=0)
    torch.testing.assert_close(tiny, plain, rtol=1e-4, atol=0)


def test_flat_network() -> None:
    """Where no gradient shows a way nothing is found, and nothing breaks."""
    x, labels = torch.rand(3, 5), torch.zeros(3, dtype=torch.int64)

    def network(x: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0]) + 0 * x[:, :1]

    result = minimal(network, x, labels, budget=50, methods=("lbfgs", "penalised"))
    assert torch.equal(result.examples, x)
    assert bool(result.distance.isinf().all())


def test_methods_share_the_budget() -> None:
    """Each of two methods has half; together they are as good as the better at half."""
    network, x, labels, targets = small()
    both = minimal(network, x, labels, targets=targets, budget=208, methods=("penalised", "lbfgs"))
    one = minimal(network, x, labels, targets=targets, budget=108, methods=("penalised",))
    assert int(both.evaluations.max()) <= 208
    assert bool((both.distance <= one.distance * 1.001).all())
    assert float(both.distance.clamp_max(9).mean()) < float(one.distance.clamp_max(9).mean())


@pytest.mark.parametrize("norm", ["linf", "l1", "l0"])
@pytest.mark.parametrize("method", ["lbfgs", "penalised"])
def test_other_norms_are_refused(norm: str, method: str) -> None:
    """What knows L2 alone says so."""
    x, labels = torch.rand(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"method '{method}' knows the norm 'l2' alone"):
        minimal(lambda x: x, x, labels, norm=norm, methods=("projected", method))
