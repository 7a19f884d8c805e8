"""The paper's average minimal distortions (Szegedy et al. 2013, table 1) beside ours.

Distortion is the root of the mean square over the pixels, on training images that the network
answers rightly, as in the paper: the least that takes the accuracy on them to nought. The networks
are trained here on 10,000 images (`trained.py`), the paper's on 60,000.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import trained

from onnx_auditors import distortion
from onnx_auditors.network import Network, load

PAPER = {
    "fc10_1e-4": 0.062,
    "fc10_1e-2": 0.1,
    "fc10_1": 0.14,
    "fc100-100-10": 0.058,
    "fc200-200-10": 0.065,
    "ae400-10": 0.086,
}


@dataclass(frozen=True)
class Row:
    """Average distortions of one network.

    Attributes:
        least: The paper's method, the smallest over all targets.
        target: The paper's method, the mean over images and targets.
        engine: The main engine, any other class.
    """

    least: float
    target: float
    engine: float


def measure(network: Network, inputs: Tensor, labels: Tensor, budget: int) -> Row:
    """Measures on images that the network answers rightly; `budget` is for each target."""
    pixels = math.sqrt(inputs[0].numel())
    by_target = torch.stack(
        [
            distortion.minimal(
                network, inputs, labels, norm="l2", budget=budget,
                targets=(labels + shift) % 10, methods=("lbfgs",),
            ).distance
            for shift in range(1, 10)
        ]
    )  # fmt: skip
    engine = distortion.minimal(network, inputs, labels, norm="l2", budget=budget).distance
    return Row(
        least=float(by_target.amin(0).mean()) / pixels,
        target=float(by_target.mean()) / pixels,
        engine=float(engine.mean()) / pixels,
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--budget", type=int, default=500)
    parser.add_argument("--models", default=",".join(PAPER))
    parser.add_argument("--trained", type=Path, default=trained.CACHE, help="networks trained here")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    images = trained.mnist("train_10000")
    print("average minimal distortion; L-BFGS is the paper's method: least and mean over targets")
    print(f"{'':14}{'paper':>8}{'L-BFGS least':>14}{'L-BFGS mean':>13}{'main engine':>13}")
    for name in options.models.split(","):
        network = load(trained.ensure(name, options.trained))
        with torch.no_grad():
            right = network(images.x).argmax(1) == images.y
        inputs, labels = (t[right][: options.samples] for t in (images.x, images.y))
        row = measure(network, inputs, labels, options.budget)
        print(f"{name:14}{PAPER[name]:8.3f}{row.least:14.4f}{row.target:13.4f}{row.engine:13.4f}",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
