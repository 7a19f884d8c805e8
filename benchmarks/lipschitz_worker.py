"""Radii that auto_LiRPA's CROWN certifies, for `lipschitz.py`; runs in an environment of its own.

    python lipschitz_worker.py JOB.npz

JOB holds the model's path, probes [n, *shape] in probe space, labels, mean and std. Prints one line
of JSON: radii and processor seconds per probe.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import onnx
import torch
from auto_LiRPA import (  # type: ignore[import-not-found]
    BoundedModule,
    BoundedTensor,
    PerturbationLpNorm,
)
from onnx import numpy_helper

PRECISION = 0.004


class Graph(torch.nn.Module):
    """The few operators of the models that are compared."""

    def __init__(self, path: str, mean: np.ndarray, std: np.ndarray) -> None:
        super().__init__()
        graph = onnx.load(path).graph
        weights = {t.name: numpy_helper.to_array(t).copy() for t in graph.initializer}
        self.names = {name: f"w{i}" for i, name in enumerate(weights)}
        for name, value in weights.items():
            self.register_parameter(self.names[name], torch.nn.Parameter(torch.from_numpy(value)))
        self.nodes, self.output = list(graph.node), graph.output[0].name
        self.input = next(i.name for i in graph.input if i.name not in weights)
        self.scaling = None if mean.size == 1 else _scaling(mean, std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the logits."""
        values = {self.input: x if self.scaling is None else self.scaling(x)}
        values.update({name: getattr(self, held) for name, held in self.names.items()})
        for node in self.nodes:
            a = {p.name: onnx.helper.get_attribute_value(p) for p in node.attribute}
            given = [values[name] for name in node.input]
            if node.op_type == "Conv":
                bias = given[2] if len(given) > 2 else None
                result = torch.nn.functional.conv2d(
                    given[0], given[1], bias, list(a["strides"]), list(a["pads"][:2])
                )
            elif node.op_type == "Gemm":
                result = torch.nn.functional.linear(*given)
            elif node.op_type == "Flatten":
                result = torch.flatten(given[0], 1)
            else:
                result = torch.relu(given[0]) if node.op_type == "Relu" else given[0] + given[1]
            values[node.output[0]] = result
        return values[self.output]


def _scaling(mean: np.ndarray, std: np.ndarray) -> torch.nn.Module:
    """Returns (x - mean) / std as a 1x1 convolution.

    As a subtraction and a division auto_LiRPA 0.7.1 gave radii in L2 that are far too large.
    """
    conv = torch.nn.Conv2d(mean.size, mean.size, 1)
    scale = torch.from_numpy(1 / std.ravel())
    conv.weight.data = torch.diag(scale)[..., None, None].float()
    assert conv.bias is not None  # noqa: S101 - it has one
    conv.bias.data = (-torch.from_numpy(mean.ravel()) * scale).float()
    return conv


def radius(model: BoundedModule, x: torch.Tensor, label: int) -> float:
    """Largest radius in L2 that CROWN certifies, by doubling and halving."""
    classes = model(x).shape[1]
    rows = torch.eye(classes)[label][None] - torch.eye(classes)
    rows = rows[torch.arange(classes) != label][None]

    def certified(size: float) -> bool:
        ball = BoundedTensor(x, PerturbationLpNorm(norm=2, eps=size))
        low, _ = model.compute_bounds(x=(ball,), C=rows, method="CROWN", bound_upper=False)
        return bool((low > 0).all())

    low, high = 0.0, 0.05
    while certified(high):
        low, high = high, 2 * high
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        low, high = (middle, high) if certified(middle) else (low, middle)
    return low


def main() -> None:
    torch.set_num_threads(1)
    job = np.load(sys.argv[1])
    inputs = torch.from_numpy(job["inputs"]).float()
    model = BoundedModule(Graph(str(job["path"]), job["mean"], job["std"]), inputs[:1])
    found, seconds = [], []
    with torch.no_grad():
        for x, label in zip(inputs, job["labels"], strict=True):
            started = time.process_time()
            found.append(radius(model, x[None], int(label)))
            seconds.append(time.process_time() - started)
    sys.stdout.write(json.dumps({"radii": found, "seconds": seconds}) + "\n")


if __name__ == "__main__":
    main()
