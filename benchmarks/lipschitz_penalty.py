"""A small MNIST network trained with and without the spectral penalty, both audited.

    python benchmarks/lipschitz_penalty.py [weight ...]

Each is trained on 10,000 images from the same seed; the audit proves a bound on every layer with
its batch normalisation folded in. ReLUs and pooling without overlap do not amplify, so that the
product bounds the network, and margin / (sqrt(2) * product) is a distance without a change of
answer. Without the images at ../shared/data (or ONNX_AUDIT_SHARED) there is nothing to do.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.trained import Images, mnist, shared_data

from onnx_auditors import lipschitz

_EPOCHS = 4
_BATCH = 100
_WEIGHTS = (0.0, 1e-3, 1e-2, 3e-2)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 10),
    )  # fmt: skip


def train(weight: float, images: Images) -> nn.Sequential:
    """Returns a network trained on cross-entropy + weight * penalty; 0 leaves the penalty out."""
    torch.manual_seed(0)
    trained = network()
    spectral = lipschitz.penalty(trained)
    optimizer = torch.optim.Adam(trained.parameters(), lr=2e-3)
    steps = _EPOCHS * (len(images.x) // _BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(_EPOCHS):
        for rows in torch.split(torch.randperm(len(images.x)), _BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(trained(images.x[rows]), images.y[rows])
            if weight:
                loss = loss + weight * spectral()
            loss.backward()  # type: ignore[no-untyped-call] # torch
            optimizer.step()
            schedule.step()
    return trained.eval()


def norms(trained: nn.Sequential) -> list[float]:
    """Returns certified bounds on the layers' norms in L2."""
    bounds, layers = [], list(trained)
    x = torch.zeros(1, 1, 28, 28)
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d):
            pads = tuple(int(p) for p in layer.padding)
            spec = lipschitz.OperatorSpec("conv", tuple(x.shape[1:]), layer.weight, pads=pads * 2)
            operator = lipschitz.from_spec(spec)
            if isinstance(following, nn.BatchNorm2d):
                variance = torch.as_tensor(following.running_var).double()
                scale = following.weight.double() / (variance + following.eps).sqrt()
                factors = scale.detach().reshape(-1, 1, 1)
                folded = lipschitz.OperatorSpec("diagonal", spec.output_shape, factors)
                operator = lipschitz.compose(operator, lipschitz.from_spec(folded))
            bounds.append(lipschitz.operator_bounds(operator, entropy=0).upper)
        elif isinstance(layer, nn.Linear):
            spec = lipschitz.OperatorSpec("dense", tuple(x.shape[1:]), layer.weight)
            bounds.append(lipschitz.operator_bounds(spec, entropy=0).upper)
        x = layer(x)
    return bounds


def margins(scores: Tensor, y: Tensor) -> Tensor:
    """Returns the right score minus the best of the others, [n]."""
    right = scores.gather(1, y[:, None]).squeeze(1)
    return right - scores.scatter(1, y[:, None], -math.inf).amax(1)


def main() -> None:
    if not (shared_data() / "mnist_train_10000.npz").is_file():
        print(f"skipped: no images at {shared_data()}; set ONNX_AUDIT_SHARED")
        return
    images, test = mnist("train_10000"), mnist("test_1000")
    print("| weight | accuracy | norms of the layers | product | mean radius | training |")
    print("|---|---|---|---|---|---|")
    for weight in [float(w) for w in sys.argv[1:]] or _WEIGHTS:
        started = time.process_time()
        trained = train(weight, images)
        seconds = time.process_time() - started
        with torch.no_grad():
            found = margins(trained(test.x), test.y)
            bounds = norms(trained)
        product = math.prod(bounds)
        radius = float(found.clamp(min=0).mean()) / (math.sqrt(2) * product)
        print(
            f"| {weight:g} | {float((found > 0).double().mean()):.1%} "
            f"| {', '.join(f'{b:.3g}' for b in bounds)} | {product:.4g} | {radius:.3g} "
            f"| {seconds:.0f} s of CPU time |",
            flush=True,
        )


if __name__ == "__main__":
    main()
