"""The network beside the torch modules it was exported from: time, overhead, loading, memory.

Both are timed in turn in one run; ratios are medians over the rounds.
"""

from __future__ import annotations

import itertools
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.auditors.network import zoo
from tests.auditors.network.exports import exported
from tests.support import shared_data

from onnx_auditors.network import load

_THREADS = 2
_ROUNDS = 25
_BATCH = 32
_NODES = 200
_WEIGHT_MEGABYTES = 256
_MEMORY = """
import sys
import torch
from onnx_auditors.network import load

def status(field):
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field))

torch.set_num_threads(1)
load(sys.argv[2])
before = status("VmRSS")
load(sys.argv[1])
print(status("VmHWM") - before)
"""
"""Linux alone: a child's `ru_maxrss` would start at its parent's."""


def both_passes(network: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Returns the seconds of one forward and one backward pass."""
    leaf = x.clone().requires_grad_()
    begin = time.perf_counter()
    torch.autograd.grad(network(leaf).sum(), leaf)
    return time.perf_counter() - begin


def compare(name: str, *, dynamo: bool, fixed: int) -> float:
    """Prints and returns the time of ours over the original's, taken in turn."""
    module, shape = zoo.make(name), zoo.ZOO[name][1]
    network = load(exported(name, dynamo=dynamo, fixed=fixed))
    x = torch.rand(_BATCH, *shape)
    ours, theirs = [], []
    for _ in range(_ROUNDS):
        ours.append(both_passes(network, x))
        theirs.append(both_passes(module, x))
    ratio = statistics.median(ours[3:]) / statistics.median(theirs[3:])
    print(
        f"{name:12} {'dynamo' if dynamo else 'script':6} "
        f"{'fixed batch 1' if fixed else 'open batch':13} "
        f"original {1e3 * statistics.median(theirs):7.2f} ms, ratio {ratio:.2f}"
    )
    return ratio


def chain(nodes: int) -> onnx.ModelProto:
    """Returns a chain of rectifiers."""
    names = ["x", *(f"h{i}" for i in range(nodes - 1)), "y"]
    made = [helper.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(names)]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("x", "y")]
    graph = helper.make_graph(made, "chain", info[:1], info[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def overhead() -> None:
    """Prints the time per node of a chain of tiny nodes, beside the same calls written by hand."""
    network, x = load(chain(_NODES)), torch.rand(1, 4)

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


def loading() -> None:
    """Prints how long SqueezeNet takes to load."""
    path = shared_data() / "models" / "squeezenet1_1_fp32.onnx"
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        load(path)
        seconds.append(time.perf_counter() - begin)
    print(f"SqueezeNet loads in {statistics.median(seconds):.3f} s (first: {seconds[0]:.3f} s)")


def memory() -> None:
    """Prints the growth of the peak of resident memory while a large model is loaded."""
    width = 2048
    count = _WEIGHT_MEGABYTES * 2**20 // (4 * width * width)
    names = [f"h{i}" for i in range(count)]
    nodes = [
        helper.make_node("MatMul", [names[i - 1] if i else "x", f"w{i}"], [name])
        for i, name in enumerate(names)
    ]
    weight = np.zeros((width, width), np.float32)
    weights = [numpy_helper.from_array(weight + i, f"w{i}") for i in range(count)]
    info = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", width]) for n in ("x", names[-1])
    ]
    graph = helper.make_graph(nodes, "large", info[:1], info[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder) / "large.onnx", Path(folder) / "small.onnx"
        onnx.save(model, large)
        onnx.save(chain(2), small)
        result = subprocess.run(
            [sys.executable, "-c", _MEMORY, large, small],
            capture_output=True,
            text=True,
            check=True,
        )
    growth = int(result.stdout) / (count * weight.nbytes)
    print(f"loading {_WEIGHT_MEGABYTES} MiB of weights takes {growth:.2f} times their size")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(_THREADS)
    torch.manual_seed(0)
    ratios = []
    for fixed in (0, 1):
        for name in zoo.ZOO:
            ratios += [compare(name, dynamo=dynamo, fixed=fixed) for dynamo in (True, False)]
    half = len(ratios) // 2
    print(f"median ratio: open batch {statistics.median(ratios[:half]):.2f}, "
          f"fixed batch {statistics.median(ratios[half:]):.2f}")  # fmt: skip
    overhead()
    loading()
    memory()
