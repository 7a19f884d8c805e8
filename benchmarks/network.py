"""Forward and backward passes: our network beside the torch module it was exported from."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from onnx_auditors.network import load

_THREADS = 2
_ROUNDS = 15
_NODES = 200


def cnn() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if before == after else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 8 * 8, 10))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
        nn.Linear(256, 10),
    )  # fmt: skip


def both_passes(network: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Returns the seconds of one forward and one backward pass."""
    leaf = x.clone().requires_grad_()
    begin = time.perf_counter()
    torch.autograd.grad(network(leaf).sum(), leaf)
    return time.perf_counter() - begin


def compare(name: str, module: nn.Module, shape: tuple[int, ...], batch: int, fixed: bool) -> None:
    """Prints the time of ours over the original's, taken in turn."""
    module.eval().requires_grad_(requires_grad=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        shapes = None if fixed else ({0: torch.export.Dim("batch")},)
        sample = torch.rand(1 if fixed else 2, *shape)
        torch.onnx.export(
            module, (sample,), path, dynamo=True, dynamic_shapes=shapes, verbose=False
        )
        network = load(path)
    x = torch.rand(batch, *shape)
    ours, theirs = [], []
    for _ in range(_ROUNDS):
        ours.append(both_passes(network, x))
        theirs.append(both_passes(module, x))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        f"{name:4} batch {batch:4} exported with {'fixed batch 1' if fixed else 'open batch'}: "
        f"original {1e3 * statistics.median(theirs):8.2f} ms, ratio {ratio:.2f}"
    )


def overhead() -> None:
    """Prints the time per node of a chain of tiny nodes, beside the same calls written by hand."""
    nodes = [
        helper.make_node(
            "Relu", ["x" if i == 0 else f"h{i}"], ["y" if i == _NODES - 1 else f"h{i + 1}"]
        )
        for i in range(_NODES)
    ]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", info[:1], info[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    network, x = load(model), torch.rand(1, 4)

    def by_hand(x: Tensor) -> Tensor:
        for _ in range(_NODES):
            x = torch.relu(x)
        return x

    seconds: dict[str, list[float]] = {"ours": [], "by hand": []}
    with torch.no_grad():
        for _ in range(20 * _ROUNDS):
            for name, function in (("ours", network), ("by hand", by_hand)):
                begin = time.perf_counter()
                function(x)
                seconds[name].append(time.perf_counter() - begin)
    microseconds = {name: 1e6 * np.median(times) / _NODES for name, times in seconds.items()}
    print(", ".join(f"{name} {value:.2f} us per node" for name, value in microseconds.items()))


if __name__ == "__main__":
    torch.set_num_threads(_THREADS)
    torch.manual_seed(0)
    for fixed in (False, True):
        for batch in (1, 128):
            compare("MLP", mlp(), (1, 28, 28), batch, fixed)
            compare("CNN", cnn(), (3, 32, 32), batch, fixed)
    overhead()
