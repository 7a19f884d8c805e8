"""Certified norms of every linear layer of AlexNet and ResNet-50 with random weights.

    python benchmarks/lipschitz_layers.py [alexnet] [resnet50] [--device cuda:0]

The shapes are those of Krizhevsky et al. 2012 (one column, as Szegedy et al. 2013 audited it) and
of He et al. 2016, table 1 (stride in the 3x3 convolution). Weights are drawn as He et al. 2015.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import clock

from onnx_auditors.lipschitz import OperatorSpec, operator_bounds

Layer = tuple[str, OperatorSpec]


def conv(name: str, cin: int, cout: int, kernel: int, stride: int, pad: int, side: int) -> Layer:
    fan_in = cin * kernel * kernel
    weight = torch.randn(cout, cin, kernel, kernel) * (2 / fan_in) ** 0.5
    strides = (stride, stride)
    spec = OperatorSpec("conv", (cin, side, side), weight, stride=strides, pads=(pad,) * 4)
    return name, spec


def dense(name: str, taken: int, given: int) -> Layer:
    return name, OperatorSpec("dense", (taken,), torch.randn(given, taken) * (2 / taken) ** 0.5)


def alexnet() -> list[Layer]:
    return [
        conv("conv1", 3, 96, 11, 4, 0, 227),
        conv("conv2", 96, 256, 5, 1, 2, 27),
        conv("conv3", 256, 384, 3, 1, 1, 13),
        conv("conv4", 384, 384, 3, 1, 1, 13),
        conv("conv5", 384, 256, 3, 1, 1, 13),
        dense("fc1", 9216, 4096),
        dense("fc2", 4096, 4096),
        dense("fc3", 4096, 1000),
    ]


def resnet50() -> list[Layer]:
    layers = [conv("conv1", 3, 64, 7, 2, 3, 224)]
    channels, side = 64, 56
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=2):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 2 else 1
            name = f"conv{stage}_{block + 1}"
            layers += [
                conv(f"{name}.1", channels, width, 1, 1, 0, side),
                conv(f"{name}.2", width, width, 3, stride, 1, side),
                conv(f"{name}.3", width, 4 * width, 1, 1, 0, side // stride),
            ]
            if block == 0:
                layers.append(conv(f"{name}.0", channels, 4 * width, 1, stride, 0, side))
            channels, side = 4 * width, side // stride
    return [*layers, dense("fc", 2048, 1000)]


def audit(name: str, layers: list[Layer], device: str) -> None:
    print(f"\n## {name}, {clock.name_of(device)}")
    print("| layer | shape | lower | upper | gap | proof | method | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    gaps = []
    started, used = time.perf_counter(), time.process_time()
    for layer, spec in layers:
        before = clock.seconds(device)
        bound = operator_bounds(spec.to(torch.device(device)), entropy=0)
        seconds = clock.seconds(device) - before
        gaps.append(bound.gap)
        kernel = "x".join(map(str, spec.w.shape))
        side = "x".join(map(str, spec.input_shape))
        print(
            f"| {layer} | {kernel} on {side} | {bound.lower:.6g} | {bound.upper:.6g} "
            f"| {bound.gap:.1e} | {bound.proof} | {bound.method} | {seconds:.1f} |",
            flush=True,
        )
    seconds, used = time.perf_counter() - started, time.process_time() - used
    print(
        f"\n{len(layers)} layers, {seconds:.0f} s on {torch.get_num_threads()} threads, "
        f"{used:.0f} s of CPU time; gap "
        f"median {statistics.median(gaps):.1e}, largest {max(gaps):.1e}"
    )


def main() -> None:
    networks = {"alexnet": alexnet, "resnet50": resnet50}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("networks", nargs="*", default=list(networks), help=", ".join(networks))
    parser.add_argument("--device", default="cpu", help="cpu or a CUDA device")
    options = parser.parse_args()
    torch.manual_seed(0)
    for name in options.networks:
        audit(name, networks[name](), options.device)


if __name__ == "__main__":
    main()
