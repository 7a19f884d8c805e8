"""Global bounds and certified radii in L2 beside auto_LiRPA's CROWN, on real networks and images.

    python benchmarks/lipschitz.py [PYTHON]

PYTHON is that of an environment with auto_LiRPA (README.md); without it ours are printed alone.
Seconds are processor seconds on one thread, one run after the other.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.trained import shared_data

from onnx_auditors.lipschitz import certificates, graph_of, network_bounds
from onnx_auditors.network import load

GREY = ((0.0,), (1.0,))
CIFAR_KW = ((0.485, 0.456, 0.406), (0.225, 0.225, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
CASES: tuple[tuple[str, int, Any, bool], ...] = (
    ("mnist-net_256x2", 5, GREY, False),
    ("mnist-net_256x4", 3, GREY, False),
    ("mnist-net_256x2", 5, GREY, True),
    ("mnist-net_256x4", 3, GREY, True),
    ("cifar_base_kw", 2, CIFAR_KW, False),
    ("cifar_resnet_2b", 2, CIFAR, False),
)
"""Network, images, mean and std, and whether the images are those of the competition."""


def images(folder: Path, name: str, competition: bool) -> tuple[Any, Any]:
    """Returns test images in probe space and labels.

    In the order of the original test set; or those of the verification competition's instances for
    mnist-net_256x2, each once and in their order.
    """
    if competition:
        with np.load(folder / "verified_linf.npz") as facts:
            shown = facts["mnist-net_256x2/images"].reshape(-1, 784, 1)
            labels = facts["mnist-net_256x2/labels"]
        first = np.sort(np.unique(shown, axis=0, return_index=True)[1])
        return shown[first] / 255.0, labels[first]
    if name.startswith("mnist"):
        data = np.load(folder / "mnist_test_1000.npz")
        order = np.argsort(data["index"])
        return data["images"][order].reshape(-1, 784, 1) / 255.0, data["labels"][order]
    data = np.load(folder / "cifar10_test_exact.npz")
    rows = np.flatnonzero(data["first100"])
    rows = rows[np.argsort(data["test_index"][rows])]
    return data["images"][rows].transpose(0, 3, 1, 2) / 255.0, data["labels"][rows]


def peer(python: str, job: dict[str, Any]) -> dict[str, Any]:
    """Returns what auto_LiRPA certifies."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.npz"
        np.savez(path, **job)
        command = [python, str(Path(__file__).with_name("lipschitz_worker.py")), str(path)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def compare(folder: Path, case: tuple[str, int, Any, bool], python: str | None) -> None:
    """Prints one network's lines."""
    name, count, spec, competition = case
    path = folder / "models" / f"{name}.onnx"
    network = load(path)
    x, labels = images(folder, name, competition)
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in spec)
    if name.startswith("mnist"):
        mean, std = mean[0], std[0]
    graph = graph_of(network, x.shape[1:], lambda p: (p - mean) / std)
    answers = graph.logits(torch.from_numpy(x[:60])).argmax(1).numpy()
    rows = np.flatnonzero(answers == labels[:60])[:count]
    whole = network_bounds(network, ("l2",), entropy=0).network[0]
    chosen = "competition" if competition else "test"
    print(f"{name}, {chosen} images: global {whole.bound.upper:.5g}, ", end="")
    print(f"product {whole.product:.5g} (model's input)")
    started = time.process_time()
    ours = certificates(graph, x[rows], labels[rows], "l2").radius
    seconds = (time.process_time() - started) / count
    print(f"  ours     {ours.mean():.4f}  {seconds:.2f} s  {np.round(ours, 4)}")
    if python is None:
        return
    job = {"path": str(path), "inputs": x[rows], "labels": labels[rows],
           "mean": mean.numpy(), "std": std.numpy()}  # fmt: skip
    found = peer(python, job)
    theirs, took = np.array(found["radii"]), float(np.mean(found["seconds"]))
    print(f"  CROWN    {theirs.mean():.4f}  {took:.2f} s  {np.round(theirs, 4)}")
    print(f"  ratio    {ours.mean() / theirs.mean():.3f}  {seconds / took:.2f}")


def main() -> None:
    """Compares all networks."""
    torch.set_num_threads(1)
    folder = shared_data()
    for case in CASES:
        compare(folder, case, sys.argv[1] if len(sys.argv) > 1 else None)


if __name__ == "__main__":
    main()
