"""CPU time of `transfer` over the number of models, part by part.

Examples of single sources are made once for each model, whatever the number of others; only the
targets' answers, which are forward passes, grow with its square. Ensembles cost as many gradients
as they have members, at most 8. Everything that runs by default, on MNIST test images. To show how
time grows, all models are copies of one network; `--different` takes up to ten networks.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import trained
from benchmarks.transfer import TABLE_2, TABLE_4, half, measure

from onnx_audit import v1
from onnx_auditors.transfer.examples import Examples, Indices
from onnx_auditors.transfer.shard import Shard
from onnx_auditors.transfer.sources import Source

COPIED = "fc100-100-10"
DIFFERENT = (*TABLE_2, "cnn", *TABLE_4)

Spent = dict[str, float]
"""CPU seconds by part."""


@contextmanager
def parts() -> Iterator[Spent]:
    """Counts CPU seconds of making examples, by attack, and of all answers and nulls of shards."""
    spent: Spent = defaultdict(float)
    old_make, old_run, old_noise = Source.make, Shard.run, Shard.fixed_noise

    def make(
        source: Source,
        attack: v1.TransferAttack.ValueType,
        rows: Indices,
        progress: Callable[[float], object],
    ) -> Examples:
        begin = time.process_time()
        made = old_make(source, attack, rows, progress)
        name = v1.TransferAttack.Name(attack).removeprefix("TRANSFER_ATTACK_").lower()
        spent[name] += time.process_time() - begin
        return made

    def run(
        shard: Shard,
        attacks: list[v1.TransferAttack.ValueType],
        progress: Callable[[float], object],
    ) -> v1.TransferPartial:
        begin = time.process_time() - total(spent)
        partial = old_run(shard, attacks, progress)
        spent["answers"] += time.process_time() - total(spent) - begin
        print(f"  {text(spent)}", file=sys.stderr, flush=True)
        return partial

    def noise(shard: Shard) -> list[bytes]:
        begin = time.process_time()
        found = old_noise(shard)
        spent["answers"] += time.process_time() - begin
        return found

    with (
        patch.object(Source, "make", make),
        patch.object(Shard, "run", run),
        patch.object(Shard, "fixed_noise", noise),
    ):
        yield spent


def total(spent: Spent) -> float:
    """Returns the seconds of all parts."""
    return sum(spent.values())


def text(spent: Spent) -> str:
    """Returns seconds by part."""
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items())


def main() -> None:
    """Prints a line for each number of models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default="2,5,10", help="numbers of models")
    parser.add_argument("--probes", type=int, default=1000)
    parser.add_argument("--budget", type=int, default=500)
    parser.add_argument("--different", action="store_true", help="take networks that differ")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    for count in (int(number) for number in options.models.split(",")):
        names = DIFFERENT[:count] if options.different else (COPIED,) * count
        paths = [half(name) if name in TABLE_4 else trained.ensure(name) for name in names]
        with parts() as spent:
            _, seconds, used = measure(paths, names, options.probes, budget=options.budget)
        rest = used - total(spent)
        print(
            f"{len(names)} models x {options.probes} probes: {used:.1f} s of CPU time "
            f"({seconds:.0f} s in all): {text(spent)}, loading and merging {rest:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
