"""Trains the small MNIST networks that the benchmarks of distortion look at, and exports them.

The paper's nets (Szegedy et al. 2013, table 1) with its weight decay, `lambda * sum w^2 / k` for a
layer of k units; a CNN, plain and trained adversarially (Madry et al. 2018); one hidden layer of 20
ReLUs, small enough for exact solvers. Every input is [n, 1, 28, 28] in [0, 1]; outputs are logits.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor, nn

CACHE = Path(__file__).resolve().parent / ".cache" / "trained"
_BATCH = 100
_ATTACK_STEPS = 7


@dataclass(frozen=True)
class Images:
    """Float32 images [n, 1, 28, 28] in [0, 1] and int64 labels [n]."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Recipe:
    """How a network is made and trained.

    Attributes:
        make: Returns the untrained network.
        epochs: Passes over the training images.
        rate: Adam's first learning rate; it falls to nought as a cosine.
        decay: The paper's lambda of each linear layer, in order; none at all if empty.
        radius: Linf radius of the adversarial examples to train on, 0 for plain images.
        coded: Whether all but the last layer is an autoencoder's code, trained on its own.
    """

    make: Callable[[], nn.Sequential]
    epochs: int
    rate: float
    decay: tuple[float, ...] = ()
    radius: float = 0.0
    coded: bool = False


def perceptron(*widths: int, activation: type[nn.Module] = nn.Sigmoid) -> nn.Sequential:
    """Returns an untrained network of linear layers on 784 pixels."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width, following in zip((784, *widths[:-1]), widths, strict=True):
        layers += [nn.Linear(width, following), activation()]
    return nn.Sequential(*layers[:-1])


def _convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


RECIPES = {
    "fc10_1e-4": Recipe(lambda: perceptron(10), 30, 5e-3, (1e-4,)),
    "fc10_1e-2": Recipe(lambda: perceptron(10), 30, 5e-3, (1e-2,)),
    "fc10_1": Recipe(lambda: perceptron(10), 30, 5e-3, (1.0,)),
    "fc100-100-10": Recipe(lambda: perceptron(100, 100, 10), 40, 3e-3, (1e-5, 1e-5, 1e-6)),
    "fc200-200-10": Recipe(lambda: perceptron(200, 200, 10), 40, 3e-3, (1e-5, 1e-5, 1e-6)),
    "ae400-10": Recipe(lambda: perceptron(400, 10), 40, 3e-3, (1e-6, 1e-6), coded=True),
    "cnn": Recipe(_convolutional, 8, 2e-3),
    "cnn_adversarial": Recipe(_convolutional, 16, 2e-3, radius=0.25),
    "relu20": Recipe(lambda: perceptron(20, 10, activation=nn.ReLU), 15, 3e-3),
}


def shared_data() -> Path:
    """Returns the folder of real images."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("ONNX_AUDIT_SHARED", default))


def mnist(part: str) -> Images:
    """Returns "train_10000" or "test_1000" of MNIST."""
    with np.load(shared_data() / f"mnist_{part}.npz", allow_pickle=False) as file:
        x = torch.from_numpy(file["images"][:, None].astype(np.float32) / np.float32(255))
        return Images(x, torch.from_numpy(file["labels"].astype(np.int64)))


def ensure(name: str, folder: Path = CACHE, seed: int = 0) -> Path:
    """Returns the ONNX file of a network; trains it if the folder does not hold it."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        recipe = RECIPES[name]
        network = recipe.make()
        train(network, recipe, mnist("train_10000"))
        export(network.eval(), path)
    return path


def train(network: nn.Sequential, recipe: Recipe, images: Images) -> None:
    """Trains a network as a recipe says; the caller seeds torch."""
    trained: nn.Module = network
    layers = [m for m in network if isinstance(m, nn.Linear)]
    if recipe.coded:
        encoder, trained = nn.Sequential(*list(network)[:-1]), layers.pop()
        _train_code(encoder, layers[0], images, recipe)
        with torch.no_grad():
            images = Images(encoder(images.x), images.y)
        layers = [trained]
    decays = recipe.decay[-len(layers) :] if recipe.decay else (0.0,) * len(layers)

    def loss(x: Tensor, y: Tensor, done: float) -> Tensor:
        if recipe.radius:
            x = _attacked(trained, x, y, recipe.radius * min(1.0, 2 * done))
        entropy = nn.functional.cross_entropy(trained(x), y)
        return entropy + _decay(layers, decays)

    _minimise(loss, list(trained.parameters()), images, recipe)


def _train_code(encoder: nn.Module, first: nn.Linear, images: Images, recipe: Recipe) -> None:
    """Trains an encoder of one layer to rebuild the images (mean over the batch of squares)."""
    decoder = nn.Linear(first.out_features, first.in_features)

    def loss(x: Tensor, _: Tensor, __: float) -> Tensor:
        rebuilt = torch.sigmoid(decoder(encoder(x)))
        error = (rebuilt - x.flatten(1)).square().sum(1).mean()
        return error + _decay([first, decoder], (recipe.decay[0],) * 2)

    _minimise(loss, [*encoder.parameters(), *decoder.parameters()], images, recipe)


def _decay(layers: list[nn.Linear], decays: tuple[float, ...]) -> Tensor:
    terms = [
        d * m.weight.square().sum() / m.out_features for m, d in zip(layers, decays, strict=True)
    ]
    return torch.stack(terms).sum()


def _minimise(
    loss: Callable[[Tensor, Tensor, float], Tensor],
    parameters: list[nn.Parameter],
    images: Images,
    recipe: Recipe,
) -> None:
    """Runs Adam on `loss(x, y, share of the training done)` over seeded random batches."""
    optimizer = torch.optim.Adam(parameters, lr=recipe.rate)
    steps = recipe.epochs * (len(images.x) // _BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    step = 0
    for _ in range(recipe.epochs):
        for rows in torch.split(torch.randperm(len(images.x)), _BATCH):
            optimizer.zero_grad()
            loss(images.x[rows], images.y[rows], step / steps).backward()  # type: ignore[no-untyped-call] # torch
            optimizer.step()
            schedule.step()
            step += 1


def _attacked(network: nn.Module, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Returns examples of projected gradient descent in Linf, from a random start in the ball."""
    lower, upper = (x - radius).clamp_min(0), (x + radius).clamp_max(1)
    attacked = lower + (upper - lower) * torch.rand_like(x)
    for _ in range(_ATTACK_STEPS):
        leaf = attacked.requires_grad_()
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(network(leaf), y), leaf)
        stepped = leaf.detach() + 2.5 * radius / _ATTACK_STEPS * slope.sign()
        attacked = torch.minimum(torch.maximum(stepped, lower), upper)
    return attacked


def export(network: nn.Module, path: Path) -> None:
    """Writes a network as ONNX with an open batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own say nothing about the network
        torch.onnx.export(
            network, (torch.rand(2, 1, 28, 28),), path, dynamo=True, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False,
        )  # fmt: skip


def answers(path: Path, x: Tensor) -> npt.NDArray[np.int64]:
    """Returns ONNX Runtime's answers [n]."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    found: npt.NDArray[np.int64] = np.asarray(scores).argmax(1)
    return found


def main() -> None:
    """Trains what is missing and prints accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=CACHE)
    parser.add_argument("--models", default=",".join(RECIPES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if not (shared_data() / "mnist_train_10000.npz").is_file():
        sys.exit(f"images are not at {shared_data()}; set ONNX_AUDIT_SHARED")
    parts = {part: mnist(part) for part in ("train_10000", "test_1000")}
    for name in options.models.split(","):
        path = ensure(name, options.folder, options.seed)
        errors = {p: 100 * (answers(path, i.x) != i.y.numpy()).mean() for p, i in parts.items()}
        print(f"{name:16} train error {errors['train_10000']:5.2f} %, "
              f"test error {errors['test_1000']:5.2f} %", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
