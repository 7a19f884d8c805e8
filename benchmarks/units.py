"""Streamed top inputs of all directions beside bare matrix products with top-k, and the plain way.

Ours makes random directions and rotated bases as it goes, and merges exact lists; the bare products
have all directions in memory already and keep torch's top-k; the plain way has all activations in
memory and sorts them. Activations are given to all three: forward passes are not in the times.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import clock

from onnx_auditors.context import fix_numerics
from onnx_auditors.units.directions import Directions, Family
from onnx_auditors.units.top import Top

BLOCK = 4096
FAMILIES = (Family.NATURAL, Family.RANDOM, Family.ROTATED)


def blocks(count: int, size: int, device: str) -> Iterator[Tensor]:
    """Activations block by block, the same for everybody, [n, 1, units]."""
    generator = torch.Generator().manual_seed(0)
    fixed = torch.randn(min(BLOCK, count), 1, size, generator=generator).to(device)
    for begin in range(0, count, BLOCK):
        rows = min(BLOCK, count - begin)
        # Another block without the time of drawing one.
        yield fixed[:rows].roll(begin // BLOCK, 2)


def directions_of(size: int, rotations: int, device: str) -> Directions:
    """1,024 random directions and rotated bases of at most 256 rows."""
    return Directions(
        name="value",
        seed=0,
        size=size,
        random=1024,
        rotations=rotations,
        rows=min(256, size),
        sign=torch.ones(size),
        bases={},
        device=torch.device(device),
    )


def ours(count: int, made: Directions, width: int) -> list[Tensor]:
    """The pass of the auditor over all probes."""
    tops = {f: Top(made.count(f), width, made.device) for f in FAMILIES}
    rank = 0
    for block in blocks(count, made.size, str(made.device)):
        for family, top in tops.items():
            for begin, end in made.chunks(family):
                top.add(begin, made.project(block, family, begin, end), rank)
        rank += len(block)
    return [top.keys for top in tops.values()]


def chunks_of(made: Directions) -> list[Tensor | slice]:
    """All directions in memory, as the columns of matrices; slices for the units themselves."""
    found: list[Tensor | slice] = []
    for family in FAMILIES:
        for begin, end in made.chunks(family):
            columns = made.matrix(family, begin, end)
            found.append(slice(begin, end) if columns is None else columns)
    return found


def bare(
    count: int, size: int, chunks: list[Tensor | slice], width: int, device: str
) -> list[Tensor]:
    """Matrix products and torch's top-k, block by block."""
    best: list[tuple[Tensor, Tensor] | None] = [None] * len(chunks)
    rank = 0
    for block in blocks(count, size, device):
        flat = block[:, 0]
        for i, chunk in enumerate(chunks):
            values = flat[:, chunk].T if isinstance(chunk, slice) else chunk.T @ flat.T
            fresh = values.topk(min(width, values.shape[1]), dim=1)
            merged = (fresh.values, fresh.indices + rank)
            if (before := best[i]) is not None:
                joined = [torch.cat(pair, 1) for pair in zip(before, merged, strict=True)]
                kept = joined[0].topk(width, dim=1)
                merged = (kept.values, joined[1].gather(1, kept.indices))
            best[i] = merged
        rank += len(block)
    return [pair[1] for pair in best if pair is not None]


def plain(count: int, size: int, chunks: list[Tensor | slice], width: int) -> list[Tensor]:
    """All activations in memory, then a sort of each direction; on the CPU."""
    flat = torch.cat([block[:, 0] for block in blocks(count, size, "cpu")])
    found = []
    for chunk in chunks:
        values = flat[:, chunk].T if isinstance(chunk, slice) else chunk.T @ flat.T
        found.append(torch.from_numpy(np.argsort(-values.numpy(), axis=1)[:, :width].copy()))
    return found


def timed(work: Callable[[], object], device: str) -> float:
    """Returns the seconds of some work."""
    begin = clock.seconds(device)
    work()
    return clock.seconds(device) - begin


def _peak(device: str) -> float:
    """Returns the largest memory so far in MiB: of the process, or what torch took on a GPU."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return torch.cuda.max_memory_allocated(device) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rotations", type=int, default=99)
    parser.add_argument("--sizes", default="8192x256,8192x1024,32768x512,8192x4096,50000x10000")
    parser.add_argument(
        "--no-plain", action="store_true", help="leave out the plain way, which needs the memory"
    )
    parser.add_argument("--device", default="cpu", help="cpu or a CUDA device")
    arguments = parser.parse_args()
    fix_numerics(arguments.threads)
    device, rotations = arguments.device, arguments.rotations
    with_plain = device == "cpu" and not arguments.no_plain
    print(f"{rotations} rotations, 1,024 random directions, top 1 % of the probes, seconds on "
          f"{clock.name_of(device)}")  # fmt: skip
    print("probes  units   ours  bare  plain  ours/bare  ours/plain  state MB  peak MB")
    for text in arguments.sizes.split(","):
        count, size = map(int, text.split("x"))
        made, width = directions_of(size, rotations, device), max(9, count // 100)
        streamed = timed(lambda: ours(count, made, width), device)  # noqa: B023 - called at once
        peak = _peak(device)
        chunks = chunks_of(directions_of(size, rotations, device))
        products = timed(lambda: bare(count, size, chunks, width, device), device)  # noqa: B023
        sorted_all = math.nan
        if with_plain:
            sorted_all = timed(lambda: plain(count, size, chunks, width), device)  # noqa: B023
        state = sum(made.count(f) for f in FAMILIES) * width * 8 / 2**20
        print(
            f"{count:6} {size:6} {streamed:6.1f} {products:5.1f} {sorted_all:6.1f} "
            f"{streamed / products:10.2f} {streamed / sorted_all:11.2f} {state:9.0f} {peak:8.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
