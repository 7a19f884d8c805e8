"""Our batched L-BFGS beside scipy's L-BFGS-B, one sample at a time, in the paper's method.

Both minimise c ||r||^2 + cross-entropy to a target in the box. scipy runs in three ways: plainly,
as attacks use it (twenty c from 1 on, by factors of 4 and then by bisection, each with a twentieth
of the budget, from where the last one ended); and with our first c, rule for the next c, end of the
search over c and last stretch to the boundary, by its own stopping rule or cut off after a few
iterations for each c, the cheapest way to use it. Then what differs is the minimiser, that ours
runs all samples at once, and that it repeats the search with sharper losses, from a smoother one.
scipy sees the first few of the samples; distances are compared on these, CPU time per sample is
that of each batch.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import optimize
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import distortion_attacks, trained
from benchmarks.distortion_attacks import Plain, Problem
from benchmarks.distortion_cases import Case, open_case
from benchmarks.distortion_peers import checked

from onnx_auditors.distortion import lbfgs, minimal

_BUDGET = 1000
_BISECTIONS = 16
_FEW_ITERATIONS = 15
_SHARPNESS = 100.0
"""Excess of a probe in the loss that scipy minimises."""
_MODELS = ("fc100-100-10", "cnn", "cifar_resnet_2b")

Network = Callable[[Tensor], Tensor]
Floats = npt.NDArray[np.float64]


@dataclass
class Sample:
    """One targeted problem for scipy, in the box [0, 1].

    Attributes:
        network: From inputs [n, ...] to logits [n, classes].
        shape: Shape of an input.
        origin: The input, [d].
        target: The class to be reached.
        sharpness: Factor of the logits in the loss.
        distance: The least L2 distance of the points that reached it.
        best: The nearest of these points.
        spent: (forward + backward passes) / 2.
    """

    network: Network
    shape: tuple[int, ...]
    origin: Floats
    target: int
    best: Floats
    sharpness: float = 1.0
    distance: float = math.inf
    spent: float = 0.0

    def loss(self, x: Floats) -> tuple[float, Floats]:
        """Returns the cross-entropy of a point and its gradient; keeps the point if it is good."""
        leaf = torch.from_numpy(x.astype(np.float32)).reshape(1, *self.shape).requires_grad_()
        scores = self.network(leaf)
        loss = functional.cross_entropy(self.sharpness * scores, torch.tensor([self.target]))
        (gradient,) = torch.autograd.grad(loss, leaf)
        self.spent += 1
        distance = float(np.linalg.norm(x - self.origin))
        if distance < self.distance and int(scores.argmax()) == self.target:
            self.distance, self.best = distance, x.copy()
        return loss.item(), gradient.numpy().ravel().astype(np.float64)

    def excess(self, x: Floats) -> float:
        """Returns the margin to the target; negative where the point reaches it."""
        with torch.no_grad():
            scores = self.network(torch.from_numpy(x.astype(np.float32)).reshape(1, *self.shape))
        self.spent += 0.5
        others = scores[0].clone()
        others[self.target] = -math.inf
        return float(others.max() - scores[0, self.target])

    def penalised(self, x: Floats, c: float) -> tuple[float, Floats]:
        """Returns c ||r||^2 + loss and its gradient."""
        r = x - self.origin
        loss, gradient = self.loss(x)
        return c * float(r @ r) + loss, 2 * c * r + gradient


def by_scipy(sample: Sample, iterations: int, budget: int) -> float:
    """Searches over c with scipy's L-BFGS-B as the minimiser, warm starts; returns the distance.

    Args:
        sample: The problem.
        iterations: Most iterations for one c.
        budget: Most evaluations, the last stretch included.
    """
    last = _BISECTIONS / 2
    first = sample.excess(sample.origin)
    sample.sharpness = _SHARPNESS / first
    loss, gradient = sample.loss(sample.origin)
    free = ~np.where(gradient > 0, sample.origin <= 0, sample.origin >= 1)
    c, low, high = float(gradient[free] @ gradient[free]) / (4 * loss), 0.0, math.inf
    x = reached = sample.origin
    while sample.spent < budget - last and high > lbfgs.CLOSE * low:
        found = optimize.minimize(
            sample.penalised, x, (c,), method="L-BFGS-B", jac=True,
            bounds=[(0, 1)] * len(x),
            options={"maxiter": iterations, "maxfun": int(budget - last - sample.spent)},
        )  # fmt: skip
        x = found.x
        excess = sample.excess(x)
        if excess < 0:
            low, reached = c, x
        else:
            high, x = c, reached if low else x
        if 0 <= -excess < lbfgs.NEAR * first:
            break
        c = _next(c, sample.sharpness * excess, low, high)
    return _to_boundary(sample)


def _next(c: float, excess: float, low: float, high: float) -> float:
    """Returns the next c by the same rule as ours."""
    factor = (1 + math.exp(min(-excess, 50.0))) / 2
    if low and math.isfinite(high):
        ratio = high / low
        least, most = low * ratio**lbfgs.INNER, low * ratio ** (1 - lbfgs.INNER)
        return float(min(max(c * factor, least), most))
    if low:
        return c * min(max(factor, lbfgs.GROWTH[0]), lbfgs.GROWTH[1])
    return c * min(factor, lbfgs.RETREAT)


def _to_boundary(sample: Sample) -> float:
    if math.isinf(sample.distance):
        return math.inf
    change, low, high = sample.best - sample.origin, 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if sample.excess(sample.origin + middle * change) < 0:
            high = middle
        else:
            low = middle
    return high * sample.distance


def compare(name: str, samples: int, few: int, folder: Path) -> None:
    """Prints a line for ours, and one for each way to use scipy."""
    case = open_case(name, samples, folder)
    minimal(case.network, case.inputs[:2], case.labels[:2], targets=case.targets[:2], budget=20)
    begin = time.process_time()
    ours = minimal(
        case.network, case.inputs, case.labels, targets=case.targets, budget=_BUDGET,
        methods=("lbfgs",),
    )  # fmt: skip
    cost = (time.process_time() - begin) / len(case.inputs)
    _line(name, "ours", ours.distance[:few].numpy(), cost,
          float(ours.evaluations[:few].double().mean()))  # fmt: skip
    _plainly(case, few, cost)
    ways = {"scipy, its own stopping rule": 15_000, "scipy, cut off": _FEW_ITERATIONS}
    for way, iterations in ways.items():
        problems = [
            Sample(case.network, tuple(x.shape), x.double().numpy().ravel(), int(target), x.numpy())
            for x, target in zip(case.inputs[:few], case.targets[:few], strict=True)
        ]
        begin = time.process_time()
        distances = np.array([by_scipy(problem, iterations, _BUDGET) for problem in problems])
        theirs = (time.process_time() - begin) / len(problems)
        spent = float(np.mean([problem.spent for problem in problems]))
        _line(name, way, distances, theirs, spent, theirs / cost)


def _plainly(case: Case, few: int, cost: float) -> None:
    """Prints a line for scipy as the peers' attack uses it."""
    problem = Problem(
        Plain(case.job["steps"]), case.inputs[:few], case.labels[:few], case.targets[:few],
        case.job["starts_targeted"][:few], 2.0, _BUDGET,
    )  # fmt: skip
    begin = time.process_time()
    found = distortion_attacks.lbfgs(problem)
    theirs = (time.process_time() - begin) / few
    spent = problem.evaluations
    distance = problem.distance(checked(problem, found))
    _line(case.name, "scipy, plainly", distance, theirs, spent, theirs / cost)


def _line(
    name: str, way: str, distance: Floats, cost: float, spent: float, ratio: float | None = None
) -> None:
    missed = int(np.isinf(distance).sum())
    mean = float(distance[np.isfinite(distance)].mean())
    times = "" if ratio is None else f", {ratio:.0f} times ours"
    print(
        f"{name:16} {way:28} mean {mean:.4f}, {missed} missed, {spent:4.0f} evaluations, "
        f"{1000 * cost:7.1f} ms CPU a sample{times}",
        flush=True,
    )


def main() -> None:
    """Runs the comparison on each network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--scipy-samples", type=int, default=20, help="of these, for scipy")
    parser.add_argument("--models", default=",".join(_MODELS))
    parser.add_argument("--folder", type=Path, default=trained.CACHE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.models.split(","):
        compare(name, options.samples, options.scipy_samples, options.folder)


if __name__ == "__main__":
    main()
