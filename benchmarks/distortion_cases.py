"""The networks and images of `distortion.py`: opened for ours, and packed for the peers."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import clock, trained

from onnx_auditors.network import Session, load

_MAPS = {
    "cifar_resnet_2b": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar_base_kw": ((0.485, 0.456, 0.406), (0.225, 0.225, 0.225)),
}
"""Mean and standard deviation of the inputs, where the network does not take [0, 1]."""
MODELS = (
    "fc100-100-10", "cnn", "cnn_adversarial", "cifar_resnet_2b", "fc10_1e-4", "fc200-200-10",
    "cifar_base_kw", "mnist-net_256x2",
)  # fmt: skip
DEFENDED = ("cnn_adversarial", "cifar_resnet_2b", "cifar_base_kw")
"""Networks trained to resist."""


@dataclass(frozen=True)
class Case:
    """A network and the images that it answers rightly.

    Attributes:
        name: Name of the network.
        network: From images [n, ...] in [0, 1] to logits [n, 10].
        session_answers: From the same to ONNX Runtime's answers, int64 [n].
        inputs: Images, float32 [n, ...].
        labels: Their classes, int64 [n].
        targets: For each another class, drawn at random, int64 [n].
        job: What the peers get.
        device: Where the network computes, and where the tensors are.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    session_answers: Callable[[Tensor], npt.NDArray[np.int64]]
    inputs: Tensor
    labels: Tensor
    targets: Tensor
    job: dict[str, Any]
    device: str = "cpu"


def open_case(name: str, samples: int, folder: Path, seed: int = 0) -> Case:
    """Opens a network, and draws images that it answers rightly.

    Args:
        name: One of `MODELS`.
        samples: Number of images.
        folder: Where the networks trained here are kept.
        seed: Seed of the draw and of the targets.
    """
    path = _path(name, folder)
    session, images = Session(path, threads=1), _images(name)
    fed, logits = _functions(name, path, "cpu")
    mean, std = _map(name)
    with torch.no_grad():
        scores = logits(images.x)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images.x), generator=generator)
    chosen = order[(scores.argmax(1) == images.y)[order]][:samples]
    inputs, labels = images.x[chosen], images.y[chosen]
    shift = torch.randint(1, scores.shape[1], labels.shape, generator=generator)
    targets = (labels + shift) % scores.shape[1]
    answers = scores.argmax(1)
    job = {
        "steps": _plain(path, mean, std), "inputs": inputs, "labels": labels, "targets": targets,
        "logits": scores[chosen], "key": _digest(path, inputs, targets),
        "starts": _nearest(inputs, images.x, answers[None] != labels[:, None]),
        "starts_targeted": _nearest(inputs, images.x, answers[None] == targets[:, None]),
    }  # fmt: skip
    return Case(
        name, logits, lambda x: session.run(fed(x).numpy()).argmax(1), inputs, labels, targets, job
    )


def moved(case: Case, count: int, folder: Path, device: str) -> Case:
    """Returns a case with a number of images, some of them several times, on a device."""
    rows = torch.arange(count) % len(case.labels)
    _, logits = _functions(case.name, _path(case.name, folder), device)
    inputs, labels, targets = (t[rows].to(device) for t in (case.inputs, case.labels, case.targets))
    return replace(
        case, network=logits, inputs=inputs, labels=labels, targets=targets, device=device
    )


def _functions(
    name: str, path: Path, device: str
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Returns the maps from images to what the network takes, and to logits."""
    network = load(path, device)
    mean, std = (end.to(device) for end in _map(name))
    shape = tuple(network.input.shape[1:])

    def fed(x: Tensor) -> Tensor:
        return ((x - mean) / std).reshape(-1, *shape) if name in _MAPS else x.reshape(-1, *shape)

    def logits(x: Tensor) -> Tensor:
        scores: Tensor = network(fed(x))
        return scores

    return fed, logits


def _map(name: str) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in _MAPS.get(name, ((0.0,), (1.0,))))
    return mean, std


def _path(name: str, folder: Path) -> Path:
    if name in trained.RECIPES:
        return trained.ensure(name, folder)
    return trained.shared_data() / "models" / f"{name}.onnx"


def _images(name: str) -> trained.Images:
    if not name.startswith("cifar"):
        return trained.mnist("test_1000")
    path = trained.shared_data() / "cifar10_test_exact.npz"
    with np.load(path, allow_pickle=False) as file:
        x = torch.from_numpy(file["images"].astype(np.float32) / np.float32(255))
        return trained.Images(x.movedim(3, 1).contiguous(), torch.from_numpy(file["labels"]).long())


def _nearest(inputs: Tensor, images: Tensor, allowed: Tensor) -> Tensor:
    """Returns for each input the nearest of the allowed images, bool [n, images]."""
    apart = torch.cdist(inputs.flatten(1), images.flatten(1))
    return images[apart.masked_fill(~allowed, torch.inf).argmin(1)]


def _digest(path: Path, *tensors: Tensor) -> str:
    digest = hashlib.sha256(path.read_bytes())
    for tensor in tensors:
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _plain(path: Path, mean: Tensor, std: Tensor) -> list[dict[str, Any]]:
    """Returns the network as steps of the few operators that these files use."""
    graph = onnx.load(path).graph
    weights = {w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in graph.initializer}
    fed = next(i.name for i in graph.input if i.name not in weights)
    steps: list[dict[str, Any]] = [{"op": "scale", "from": [""], "to": fed,
                                    "mean": mean, "std": std}]  # fmt: skip
    for node in graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        constants = [weights[name] for name in node.input if name in weights]
        steps.append(
            {
                "from": [name for name in node.input if name not in weights],
                "to": node.output[0],
                **_step(node.op_type, attributes, constants),
            }
        )
    return steps


def _step(op_type: str, attributes: dict[str, Any], constants: list[Tensor]) -> dict[str, Any]:
    """Returns what a step of `distortion_peers.py` needs, which checks the logits that result."""
    if op_type == "Conv":
        weight, bias = constants
        return {"op": "conv", "weight": weight, "bias": bias, "stride": attributes["strides"],
                "padding": attributes["pads"][:2]}  # fmt: skip
    if op_type == "Gemm":
        weight, bias = constants
        weight = weight if attributes.get("transB") else weight.T.contiguous()
        return {"op": "linear", "weight": weight, "bias": bias}
    if op_type == "MaxPool":
        return {"op": "max_pool", "kernel": attributes["kernel_shape"],
                "stride": attributes["strides"]}  # fmt: skip
    names = {"Relu": "relu", "Sigmoid": "sigmoid", "Add": "add",
             "Flatten": "flatten", "Reshape": "flatten"}  # fmt: skip
    return {"op": names[op_type]}


def bare_passes(case: Case, rounds: int) -> list[float]:
    """Returns the seconds of one forward and one backward pass of all images, several times."""
    times = []
    for _ in range(rounds):
        leaf = case.inputs.clone().requires_grad_()
        begin = clock.seconds(case.device)
        torch.autograd.grad(case.network(leaf).sum(), leaf)
        times.append(clock.seconds(case.device) - begin)
    return times
