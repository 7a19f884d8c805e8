"""Time of the search for smallest changes beside the bare passes that it is made of.

A search of a batch as large as an audit takes it, in CPU seconds of one thread or seconds of a GPU,
over its gradient evaluations times one forward and one backward pass of as many images, timed
before and after it.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import clock, trained
from benchmarks.distortion_cases import Case, bare_passes, moved, open_case

from onnx_auditors import distortion
from onnx_auditors.context import fix_numerics
from onnx_auditors.distortion.memory import LARGEST_BATCH

MODELS = ("fc10_1e-4", "fc100-100-10", "cnn", "cifar_resnet_2b")
NORMS = ("l2", "linf", "l1", "l0", "l2_targeted")
BAR = 1.3
_ROUNDS = 5


def compare(case: Case, norm: str, budget: int) -> float:
    """Prints and returns the time of an evaluation over that of the bare passes."""
    targets = case.targets if norm.endswith("_targeted") else None
    passes = bare_passes(case, _ROUNDS)
    begin = clock.seconds(case.device)
    result = distortion.minimal(
        case.network, case.inputs, case.labels, norm=norm.removesuffix("_targeted"),
        budget=budget, targets=targets,
    )  # fmt: skip
    seconds = clock.seconds(case.device) - begin
    bare = float(np.median(passes + bare_passes(case, _ROUNDS)))
    evaluations = float(result.evaluations.double().mean())
    ratio = seconds / (evaluations * bare)
    finite = result.distance.isfinite()
    print(
        f"{case.name:16} {norm:12} {len(case.labels):4} images, budget {budget:4}: "
        f"{seconds:7.2f} s, bare {evaluations * bare:7.2f} s, ratio {ratio:5.2f}; "
        f"{len(case.labels) / seconds:.0f} images a second; "
        f"mean distance {float(result.distance[finite].mean()):.5f}, found {int(finite.sum())}",
        flush=True,
    )
    return ratio


def main() -> None:
    """Compares on every model, norm and budget asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--norms", default=",".join(NORMS))
    parser.add_argument("--budgets", default="100,500")
    parser.add_argument("--samples", type=int, default=LARGEST_BATCH["cpu"])
    parser.add_argument("--device", default="cpu", help="cpu or a CUDA device")
    parser.add_argument("--trained", type=Path, default=trained.CACHE, help="networks trained here")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    fix_numerics(1)
    print(clock.name_of(options.device))
    ratios = []
    for name in options.models.split(","):
        case = open_case(name, options.samples, options.trained)
        case = moved(case, options.samples, options.trained, options.device)
        # What is set up once is not in the times.
        bare_passes(case, _ROUNDS)
        distortion.minimal(case.network, case.inputs, case.labels, budget=4)
        for norm in options.norms.split(","):
            ratios += [compare(case, norm, int(b)) for b in options.budgets.split(",")]
    met = sum(ratio <= BAR for ratio in ratios)
    print(f"\n{met} of {len(ratios)} at most {BAR}")


if __name__ == "__main__":
    main()
