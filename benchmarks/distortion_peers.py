"""Runs other people's attacks on a network and stores what they find.

`distortion.py` calls this file with the python of an environment that holds torch, adv-lib,
Foolbox, numba and scipy; it imports nothing of this project. The network comes as a list of plain
operators, the images and everything else as tensors in the same file.

What counts as a peer's example: the network, in float32, answers it wrong (or as the target), and
it lies in the box [0, 1]. Some peers end so close to the boundary that rounding undoes the example;
these are pushed away from the image by up to a thousandth, in the peer's favour.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.distortion_attacks import ATTACKS, SLOW, Plain, Problem

PUSHES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3)
ORDER = {"l2": 2.0, "linf": math.inf, "l1": 1.0, "l0": 0.0}
SUBSET = {"lbfgs_scipy": 20}
"""Attacks that take so long that they see only the first few images."""


def checked(p: Problem, found: Tensor) -> Tensor:
    """Returns the examples inside the box, pushed over the boundary where rounding undid them."""
    clean = torch.nan_to_num(found.detach(), nan=0.0)
    kept = clean.clamp(0, 1).float()
    lost = ~p.reached(kept)
    for push in PUSHES:
        pushed = (p.x + (1 + push) * (clean - p.x)).clamp(0, 1).float()
        if p.order == 0:
            pushed = torch.where(clean == p.x, p.x, pushed)
        saved = lost & p.reached(pushed)
        kept[saved] = pushed[saved]
        lost &= ~saved
    return kept


def run(job: dict[str, Any], norm: str, name: str, budget: int, path: Path) -> None:
    """Runs an attack and writes distance, examples, cost and what they belong to."""
    attack = {**ATTACKS[norm], **SLOW.get(norm, {})}[name]
    count = SUBSET.get(name, len(job["inputs"]))
    targeted = norm.endswith("_targeted")
    problem = Problem(
        Plain(job["steps"]), job["inputs"][:count], job["labels"][:count],
        job["targets"][:count] if targeted else None,
        job["starts_targeted" if targeted else "starts"][:count],
        ORDER[norm.removesuffix("_targeted")], budget,
    )  # fmt: skip
    with torch.no_grad():
        gap = (problem.model(problem.x) - job["logits"][:count]).abs().max()
    if gap > 1e-3:
        raise ValueError(f"the network's logits are {gap:.2g} off those of the file")
    problem.model.forwards = 0
    torch.manual_seed(0)
    np.random.seed(0)  # Foolbox draws from it
    begin = time.process_time()
    found = attack(problem)
    seconds = time.process_time() - begin
    spent = problem.evaluations
    kept = checked(problem, found)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path, distance=problem.distance(kept), examples=kept.numpy(), evaluations=spent,
        seconds=seconds, key=job["key"],
    )  # fmt: skip


def main() -> None:
    """Runs the attacks that are asked for, one after the other; says so if none is."""
    if len(sys.argv) == 1:
        print("distortion.py runs this file with the peers' python")
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("job", type=Path, help="what `distortion.py` has written")
    parser.add_argument("folder", type=Path, help="where results go, as NORM-ATTACK-BUDGET.npz")
    parser.add_argument("runs", nargs="+", help="NORM-ATTACK-BUDGET")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    job = torch.load(options.job, weights_only=True)
    for asked in options.runs:
        norm, name, budget = asked.split("-")
        try:
            run(job, norm, name, int(budget), options.folder / f"{asked}.npz")
        except Exception as error:  # noqa: BLE001 - the other peers go on
            print(f"{asked}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
