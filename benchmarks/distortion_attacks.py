"""The peers' attacks on one network: how each is called so that it keeps its budget.

Runs in the peers' environment: torch, adv-lib, Foolbox, numba and scipy, nothing of this project.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


class Plain(nn.Module):
    """A network as a list of plain operators; counts rows that go forwards and backwards.

    Attributes:
        forwards: Rows computed so far.
        backwards: Rows of gradients computed so far.
    """

    def __init__(self, steps: list[dict[str, Any]]) -> None:
        super().__init__()
        self._steps = steps
        self.forwards = self.backwards = 0
        # adv-lib and Foolbox ask the parameters for the device.
        self.device = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits [n, classes] of images [n, ...] in [0, 1]."""
        self.forwards += len(x)
        values, logits = {"": x}, x
        for step in self._steps:
            given = [values[name] for name in step["from"]]
            values[step["to"]] = logits = _OPERATORS[step["op"]](step, *given)
        if logits.requires_grad:
            logits.register_hook(self._went_back)  # type: ignore[no-untyped-call] # torch
        return logits

    def _went_back(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "scale": lambda step, x: (x - step["mean"]) / step["std"],
    "conv": lambda step, x: functional.conv2d(
        x, step["weight"], step["bias"], step["stride"], step["padding"]
    ),
    "linear": lambda step, x: functional.linear(x, step["weight"], step["bias"]),
    "max_pool": lambda step, x: functional.max_pool2d(x, step["kernel"], step["stride"]),
    "relu": lambda _, x: torch.relu(x),
    "sigmoid": lambda _, x: torch.sigmoid(x),
    "flatten": lambda _, x: x.flatten(1),
    "add": lambda _, x, y: x + y,
}


@dataclass(frozen=True)
class Problem:
    """What an attack gets.

    Attributes:
        model: The network.
        x: Images [n, ...] in [0, 1].
        labels: What the network answers rightly, [n].
        targets: Classes to reach [n]; None if any other will do.
        starts: For each image one that the network answers otherwise (as the target), [n, ...].
        order: Order of the norm.
        budget: Evaluations, (forward + backward rows) / 2 per image.
    """

    model: Plain
    x: Tensor
    labels: Tensor
    targets: Tensor | None
    starts: Tensor
    order: float
    budget: int

    @property
    def goal(self) -> dict[str, Any]:
        """The arguments of adv-lib's attacks that say what to reach."""
        return {
            "model": self.model,
            "inputs": self.x,
            "labels": self.labels if self.targets is None else self.targets,
            "targeted": self.targets is not None,
        }

    @property
    def evaluations(self) -> float:
        """What was spent so far per image."""
        return (self.model.forwards + self.model.backwards) / 2 / len(self.x)

    def reached(self, x: Tensor) -> Tensor:
        """Returns whether these are examples, bool [n]."""
        with torch.no_grad():
            answers: Tensor = self.model(x).argmax(1)
        return answers != self.labels if self.targets is None else answers == self.targets

    def distance(self, found: Tensor) -> Any:  # noqa: ANN401 - a numpy array
        """Returns float64 [n]; inf where there is no example."""
        change = (found.double() - self.x.double()).flatten(1)
        size = torch.linalg.vector_norm(change, ord=self.order, dim=1)
        return np.where(self.reached(found).numpy(), size.numpy(), math.inf)


def _adv_lib(p: Problem, name: str, **arguments: Any) -> Tensor:  # noqa: ANN401 - as each takes
    """Runs one of adv-lib's attacks."""
    from adv_lib import attacks  # type: ignore[import-not-found] # noqa: PLC0415

    module = attacks.auto_pgd if name == "minimal_apgd" else attacks
    found: Tensor = getattr(module, name)(**p.goal, **arguments)
    return found


def alma(p: Problem, first: float | None) -> Tensor:
    """ALMA (Rony et al. 2021); its average is shorter where steps are few."""
    alpha = 0.9 if p.budget >= 500 else 0.5
    distance = {2.0: "l2", 1.0: "l1"}[p.order]
    return _adv_lib(
        p, "alma", num_steps=p.budget, distance=distance, init_lr_distance=first, α=alpha
    )


def ddn(p: Problem) -> Tensor:
    """DDN (Rony et al. 2019), without rounding to 8 bits."""
    return _adv_lib(p, "ddn", steps=p.budget, levels=None)


def fmn(p: Problem, step: float) -> Tensor:
    """FMN (Pintor et al. 2021)."""
    return _adv_lib(p, "fmn", norm=p.order, steps=p.budget, α_init=step)


def pdgd(p: Problem) -> Tensor:
    """PDGD (Matyasko and Chau 2021)."""
    return _adv_lib(p, "pdgd", num_steps=p.budget)


def pdpgd(p: Problem) -> Tensor:
    """PDPGD (Matyasko and Chau 2021); L0 by the proximal operator of L2/3, as its authors do."""
    operator = 23 if p.order == 0 else None
    return _adv_lib(p, "pdpgd", norm=p.order, num_steps=p.budget, proximal_operator=operator)


def sigma_zero(p: Problem) -> Tensor:
    """sigma-zero (Cinà et al. 2025)."""
    return _adv_lib(p, "sigma_zero", num_steps=p.budget)


def fab(p: Problem, classes: int) -> Tensor:
    """Targeted FAB (Croce and Hein 2020): two forward passes and one backward a step and class."""
    steps = int((p.budget - 3) / 1.5 / classes)
    return _adv_lib(p, "fab", norm=p.order, n_iter=steps, targeted_restarts=True, restarts=classes)


def fab_untargeted(p: Problem) -> Tensor:
    """FAB: two forward passes and one backward a class and step."""
    steps = int((p.budget - 3) / 5.5)
    return _adv_lib(p, "fab", norm=p.order, n_iter=steps)


def deepfool(p: Problem) -> Tensor:
    """DeepFool (Moosavi-Dezfooli et al. 2016)."""
    return _adv_lib(p, "df", steps=(p.budget - 1) // 5, norm=p.order)


def super_deepfool(p: Problem) -> Tensor:
    """SuperDeepFool (Abdollahpour et al. 2024): within the budget or it does not count."""
    steps, inner = (100, 100) if p.budget >= 500 else (5, 10)
    return _adv_lib(p, "sdf", steps=steps, df_steps=inner)


def apgd(p: Problem, classes: int) -> Tensor:
    """APGD (Croce and Hein 2020), radius by bisection below 1.5 times DeepFool's largest distance.

    A search that fails costs all its classes, another about one; of three classes at most 2.2 on
    average were seen.
    """
    found = replace(p, order=max(p.order, 2.0), budget=51)
    apart = p.distance(deepfool(found))
    largest = float(apart[np.isfinite(apart)].max(initial=1e-3))
    bisections = 12 if p.budget >= 500 else 7
    each = (p.budget - p.evaluations) / bisections / (1 + 0.6 * (classes - 1)) - 2
    return _adv_lib(
        p, "minimal_apgd", norm=p.order, max_eps=0.75 * largest, binary_search_steps=bisections,
        targeted_version=classes > 1, num_targets=classes if classes > 1 else None,
        n_iter=int(each), use_large_reps=p.order == 1,
    )  # fmt: skip


def vfga(p: Problem) -> Tensor:
    """VFGA (Hajri et al. 2022): one gradient and twenty forward passes for every pixel."""
    return _adv_lib(p, "vfga", max_iter=int(p.budget / 11), n_samples=10)


def _foolbox(p: Problem) -> tuple[Any, Any]:
    import foolbox  # type: ignore[import-not-found] # noqa: PLC0415

    model = foolbox.PyTorchModel(p.model.eval(), bounds=(0, 1), device="cpu")
    if p.targets is None:
        return model, foolbox.criteria.Misclassification(p.labels)
    return model, foolbox.criteria.TargetedMisclassification(p.targets)


def brendel_bethge(p: Problem) -> Tensor:
    """Brendel-Bethge (Brendel et al. 2019) in L2, from the nearest image answered otherwise."""
    from foolbox.attacks import L2BrendelBethgeAttack  # type: ignore[import-not-found] # noqa: PLC0415

    model, criterion = _foolbox(p)
    attack = L2BrendelBethgeAttack(steps=p.budget - 10)
    found: Tensor = attack.run(model, p.x, criterion, starting_points=p.starts)
    return found


def carlini_wagner(p: Problem) -> Tensor:
    """Carlini and Wagner's (2017) L2 attack, four values of the constant."""
    from foolbox.attacks import L2CarliniWagnerAttack  # noqa: PLC0415

    model, criterion = _foolbox(p)
    attack = L2CarliniWagnerAttack(
        binary_search_steps=4,
        steps=p.budget // 4 - 1,
        stepsize=0.05,
        initial_const=1.0,
        abort_early=False,
    )
    found: Tensor = attack.run(model, p.x, criterion)
    return found


def lbfgs(p: Problem) -> Tensor:
    """The paper's method by scipy's L-BFGS-B, image by image: twenty constants, warm starts."""
    if p.targets is None:
        raise ValueError("the paper's method needs targets")
    return torch.stack([_lbfgs_one(p, x, t) for x, t in zip(p.x, p.targets, strict=True)])


def _lbfgs_one(p: Problem, x: Tensor, target: Tensor) -> Tensor:
    """Minimises c |r|^2 + cross entropy; seeks the largest c that still reaches the target."""
    from scipy.optimize import Bounds, minimize  # noqa: PLC0415

    def objective(flat: Any, c: float) -> tuple[float, Any]:  # noqa: ANN401 - scipy's array
        leaf = torch.from_numpy(flat).to(x).reshape(1, *x.shape).requires_grad_()
        loss = functional.cross_entropy(p.model(leaf), target[None])
        loss = loss + c * (leaf - x).square().sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        return float(loss.detach()), gradient.double().numpy().ravel()

    searches = 20
    low, high, best, point = 0.0, math.inf, x, x.double().numpy().ravel()
    c = 1.0
    for _ in range(searches):
        allowed = p.budget // searches
        point = minimize(objective, point, (c,), "L-BFGS-B", jac=True, bounds=Bounds(0, 1),
                         options={"maxfun": allowed, "maxiter": allowed}).x  # fmt: skip
        candidate = torch.from_numpy(point).to(x).reshape(x.shape)
        if bool(p.model(candidate[None]).argmax(1) == target):
            low = c
            if best is x or (candidate - x).norm() < (best - x).norm():
                best = candidate
        else:
            high = c
        c = 4 * c if math.isinf(high) else c / 4 if low == 0 else math.sqrt(low * high)
    return best


Attack = Callable[[Problem], Tensor]
_COMMON: dict[str, Attack] = {
    "fab_all": lambda p: fab(p, 9),
    "fab_top3": lambda p: fab(p, 3),
    "pdpgd": pdpgd,
}
ATTACKS: dict[str, dict[str, Attack]] = {
    "l2": {
        "alma": lambda p: alma(p, None), "ddn": ddn, "deepfool": deepfool,
        "super_deepfool": super_deepfool, "fmn": lambda p: fmn(p, 1.0),
        "apgd_targeted": lambda p: apgd(p, 3), **_COMMON,
    },
    "linf": {"fmn": lambda p: fmn(p, 10.0), "apgd": lambda p: apgd(p, 1),
             "apgd_targeted": lambda p: apgd(p, 3), "deepfool": deepfool, **_COMMON},
    "l1": {"fab": fab_untargeted, "alma": lambda p: alma(p, None),
           "alma_first": lambda p: alma(p, 0.5), "fmn": lambda p: fmn(p, 1.0),
           "apgd_targeted_l1": lambda p: apgd(p, 3), **_COMMON},
    "l0": {"sigma_zero": sigma_zero, "pdpgd": pdpgd, "fmn": lambda p: fmn(p, 1.0), "vfga": vfga},
    "l2_targeted": {"alma": lambda p: alma(p, None), "ddn": ddn,
                    "pdgd": pdgd, "pdpgd": pdpgd, "fmn": lambda p: fmn(p, 1.0)},
}  # fmt: skip
ONE_BUDGET = {
    "deepfool": 100, "super_deepfool": 100, "fab_top3": 100, "fab_all": 1000, "vfga": 1000,
    "apgd_targeted_l1": 1000,
}  # fmt: skip
"""Attacks that stop by themselves, or of which another form is better at the other budget."""
SLOW: dict[str, dict[str, Attack]] = {
    "l2": {"brendel_bethge": brendel_bethge, "carlini_wagner": carlini_wagner},
    "l2_targeted": {"brendel_bethge": brendel_bethge, "carlini_wagner": carlini_wagner,
                    "lbfgs_scipy": lbfgs},
}  # fmt: skip
