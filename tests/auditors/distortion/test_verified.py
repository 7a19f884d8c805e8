"""Linf distortion beside radii that sound verifiers have proved, and beside known examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.support import shared_data
from torch import Tensor

from onnx_auditors.distortion import Result, minimal
from onnx_auditors.network import Network, Session, load

BUDGET = 500
"""Evaluations in which the known-broken instances have to be found."""
CIFAR_MEAN, CIFAR_STD = (0.485, 0.456, 0.406), 0.225


@dataclass(frozen=True)
class Facts:
    """Instances of one network that a verifier has decided, in [0, 1].

    Attributes:
        network: The differentiable network.
        session: ONNX Runtime on the same file.
        x: Images, float32 [n, ...].
        labels: Int64 [n].
        eps: Radii, float64 [n].
        robust: Whether no point of the ball is misclassified, bool [n].
    """

    network: Network
    session: Session
    x: Tensor
    labels: Tensor
    eps: npt.NDArray[np.float64]
    robust: npt.NDArray[np.bool_]

    def fed(self, p: Tensor) -> Tensor:
        """Returns the model's input for images in [0, 1]."""
        if p.shape[1] == len(CIFAR_MEAN):
            p = (p - torch.tensor(CIFAR_MEAN).reshape(-1, 1, 1)) / CIFAR_STD
        return p.reshape(-1, *self.network.input.shape[1:])

    def search(self, budget: int, rows: npt.NDArray[np.int64]) -> tuple[Result, Tensor]:
        """Returns the examples of some rows, and their Linf sizes in float64."""
        x, labels = self.x[rows], self.labels[rows]
        result = minimal(lambda p: self.network(self.fed(p)), x, labels, "linf", budget)
        return result, (result.examples.double() - x.double()).flatten(1).abs().amax(1)

    def fooled(self, examples: Tensor, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Returns whether ONNX Runtime misclassifies examples."""
        answers = self.session.run(self.fed(examples).numpy()).argmax(1)
        return np.asarray(answers != self.labels[rows].numpy())


def facts(name: str) -> Facts:
    folder = shared_data()
    table = {
        key.removeprefix(f"{name}/"): values
        for key, values in np.load(folder / "verified_linf.npz").items()
        if key.startswith(f"{name}/")
    }
    assert (table["targets"] == -1).all(), "instances with a target need a targeted search"
    images = table["images"].astype(np.float32) / 255
    if images.ndim == 4:
        images = images.transpose(0, 3, 1, 2)
    path = folder / "models" / f"{name}.onnx"
    network = load(path)
    return Facts(
        network,
        Session(path, threads=1, classes=network.classes),
        torch.from_numpy(np.ascontiguousarray(images.reshape(len(images), -1, *images.shape[-2:]))),
        torch.from_numpy(table["labels"]),
        table["eps"],
        table["robust"],
    )


def check(known: Facts, rows: npt.NDArray[np.int64], budget: int) -> tuple[int, int]:
    """Checks the examples of some rows.

    Returns:
        How many of them are known to be broken, and for how many of those an example lies inside.
    """
    result, sizes = known.search(budget, rows)
    found = result.distance.isfinite().numpy()
    size, eps, robust = sizes.numpy(), known.eps[rows], known.robust[rows]
    assert found.mean() >= 0.95
    # A point on the boundary in one arithmetic may lie on the other side of it in another.
    assert known.fooled(result.examples, rows)[found].mean() >= 0.95
    assert (size[found & robust] > eps[found & robust]).all()
    inside = found & ~robust & (size <= eps) & known.fooled(result.examples, rows)
    return int((~robust).sum()), int(inside.sum())


@pytest.mark.parametrize(
    ("name", "count"), [("mnist-net_256x2", 12), ("cifar_base_kw", 3), ("mnist_convnet_maxpool", 5)]
)
def test_some_proved_radii_and_known_examples(name: str, count: int) -> None:
    """No example lies inside a proved ball, and those of known-broken balls are found."""
    known = facts(name)
    robust, broken = np.flatnonzero(known.robust), np.flatnonzero(~known.robust)
    rows = np.concatenate([robust[: count - count // 3], broken[: max(1, count // 3)]])
    there, inside = check(known, rows, 100)
    assert inside >= 0.95 * there


@pytest.mark.slow
def test_all_proved_radii_and_known_examples() -> None:
    """The same for all instances, at least 95 % of the known-broken ones within the budget."""
    total = np.zeros(2, dtype=np.int64)
    for name in ("mnist-net_256x2", "cifar_base_kw", "mnist_convnet_maxpool"):
        known = facts(name)
        total += check(known, np.arange(len(known.x)), BUDGET)
    assert total[1] >= 0.95 * total[0]
