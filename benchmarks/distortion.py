"""Our minimal distortion beside the peers', on the same images, one thread each.

The peers need an environment of their own (README.md); what they find is kept, and taken again with
`--reuse`. A ratio is the mean over the images of a distance over the smallest that any peer found
within 1,000 evaluations, capped at 5. An evaluation is one forward and one backward pass.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import distortion_peers as peers
from benchmarks import trained
from benchmarks.distortion_attacks import ATTACKS, ONE_BUDGET, SLOW
from benchmarks.distortion_cases import DEFENDED, MODELS, Case, bare_passes, open_case

from onnx_auditors import distortion

CACHE = Path(__file__).resolve().parent / ".cache" / "distortion"
NORMS = ("l2", "linf", "l1", "l0", "l2_targeted")
PEER_BUDGETS = (100, 1000)
CAP = 5.0
OVER = 1.02
"""How far a peer may go over its budget."""
BARS_RATIO = {1000: (1.0, 1.0), 100: (1.02, 1.05)}
"""Largest mean ratio at a budget: of undefended networks, of those trained to resist."""
BARS_OPTIMALITY = {100: 0.98, 500: 0.995, 1000: 0.998}
"""Least mean of the best known distance over the one found."""

Distances = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What an attack found, and at what cost.

    Attributes:
        name: Attack and budget.
        budget: Evaluations allowed.
        distance: Float64 [n]; inf where there is no example or the image was left out.
        seen: Number of images that the attack got.
        evaluations: Mean evaluations per image.
        seconds: CPU seconds.
    """

    name: str
    budget: int
    distance: Distances
    seen: int
    evaluations: float
    seconds: float

    def within(self, budget: int) -> bool:
        """Whether this was found within a budget, whatever the one that was asked for."""
        return self.evaluations <= OVER * budget

    def ratio(self, best: Distances) -> float:
        """Returns the mean ratio to the best, over images seen that any peer has an example of."""
        rows = np.isfinite(best) & (np.arange(len(best)) < self.seen)
        return float(np.minimum(self.distance[rows] / best[rows], CAP).mean())


def run_peers(case: Case, norms: list[str], options: argparse.Namespace) -> None:
    """Runs the attacks whose results are missing or belong to other images."""
    folder = options.folder / case.name
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(case.job, folder / "job.pt")
    wanted = [
        f"{norm}-{name}-{budget}"
        for norm in norms
        for name, budgets in _attacks(norm, slow=options.slow).items()
        for budget in budgets
    ]
    missing = [w for w in wanted if not (options.reuse and _fresh(folder / f"{w}.npz", case))]
    if missing:
        command = [options.peers_python, Path(peers.__file__), folder / "job.pt", folder, *missing]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment)
    for norm in norms:
        keep_best(case, norm, folder)


def _attacks(norm: str, *, slow: bool) -> dict[str, tuple[int, ...]]:
    attacks: dict[str, tuple[int, ...]] = {
        name: (ONE_BUDGET[name],) if name in ONE_BUDGET else PEER_BUDGETS for name in ATTACKS[norm]
    }
    if slow:
        attacks |= dict.fromkeys(SLOW.get(norm, {}), PEER_BUDGETS[-1:])
    return attacks


def _fresh(path: Path, case: Case) -> bool:
    if not path.exists():
        return False
    with np.load(path) as file:
        return bool(file["key"] == case.job["key"])


def peers_found(case: Case, norm: str, folder: Path) -> list[Found]:
    """Returns what is kept of the peers for these images."""
    found = []
    for path in sorted(folder.glob(f"{norm}-*.npz")):
        if not _fresh(path, case):
            continue
        with np.load(path) as file:
            distance, missing = file["distance"], len(case.labels) - len(file["distance"])
            name, budget = path.stem.split("-")[1:]
            found.append(
                Found(
                    name, int(budget),
                    np.pad(distance, (0, missing), constant_values=np.inf), len(distance),
                    float(file["evaluations"]), float(file["seconds"]),
                )
            )  # fmt: skip
    return found


def keep_best(case: Case, norm: str, folder: Path) -> None:
    """Writes each image's best example of all peers beside their results, as best_NORM.npz."""
    kept = [
        (f, folder / f"{norm}-{f.name}-{f.budget}.npz") for f in peers_found(case, norm, folder)
    ]
    kept = [(f, path) for f, path in kept if f.within(PEER_BUDGETS[-1])]
    if not kept:
        return
    distance = np.stack([f.distance for f, _ in kept])
    winner = distance.argmin(0)
    examples = case.inputs.numpy().copy()
    for i, (found, path) in enumerate(kept):
        with np.load(path) as file:
            rows = np.flatnonzero((winner == i) & np.isfinite(found.distance))
            examples[rows] = file["examples"][rows]
    np.savez_compressed(
        folder / f"best_{norm}.npz", inputs=case.inputs.numpy(), labels=case.labels.numpy(),
        targets=case.targets.numpy(), examples=examples, distance=distance.min(0),
        attack=np.array([kept[i][0].name for i in winner]),
    )  # fmt: skip


@dataclass(frozen=True)
class Ours:
    """What our search found, and how it stands.

    Attributes:
        found: Distances and cost.
        confirmed: Share of the examples that fool ONNX Runtime as they are.
        overhead: CPU seconds of an evaluation over those of one bare forward and backward pass.
    """

    found: Found
    confirmed: float
    overhead: float


class _Counted:
    """A network that counts rows that go forwards and backwards, as the peers' does."""

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        self._network = network
        self.rows = 0

    def __call__(self, x: Tensor) -> Tensor:
        self._count(x)
        logits = self._network(x)
        if logits.requires_grad:
            logits.register_hook(self._count)  # type: ignore[no-untyped-call] # torch
        return logits

    def _count(self, x: Tensor) -> None:
        self.rows += len(x)


def run_ours(case: Case, norm: str, budget: int, bare: float) -> Ours:
    """Runs our search; `bare` is the time of both passes for all images at once.

    Distances, answers and cost are taken here, not from what the search says of itself.
    """
    targets = case.targets if norm.endswith("_targeted") else None
    network, name = _Counted(case.network), norm.removesuffix("_targeted")
    begin = time.process_time()
    result = distortion.minimal(
        network, case.inputs, case.labels, norm=name, budget=budget, box=(0.0, 1.0),
        targets=targets, seed=0,
    )  # fmt: skip
    seconds = time.process_time() - begin
    evaluations = network.rows / 2 / len(case.labels)
    with torch.no_grad():
        inside = ((result.examples >= 0) & (result.examples <= 1)).flatten(1).all(1)
        hit = inside & _reached(case, targets, case.network(result.examples).argmax(1))
    change = (result.examples.double() - case.inputs.double()).flatten(1)
    size = torch.linalg.vector_norm(change, ord=peers.ORDER[name], dim=1)
    distance = torch.where(hit, size, torch.inf).numpy()
    confirmed = _reached(case, targets, torch.from_numpy(case.session_answers(result.examples)))
    return Ours(
        Found("ours", budget, distance, len(distance), evaluations, seconds),
        float(confirmed[hit].double().mean()),
        seconds / evaluations / bare,
    )


def _reached(case: Case, targets: Tensor | None, answers: Tensor) -> Tensor:
    return answers != case.labels if targets is None else answers == targets


def report(case: Case, norm: str, others: list[Found], ours: list[Ours]) -> list[bool]:
    """Prints a model and norm: peers, ours, bars; returns which bars are met."""
    known = np.stack([o.found.distance for o in ours] + [f.distance for f in others]).min(0)
    fair = [f for f in others if f.within(PEER_BUDGETS[-1])]
    best = np.stack([f.distance for f in fair]).min(0) if fair else known
    note = "" if fair else "; no peers: ratios are to our own best"
    print(f"\n{case.name}, {norm}: mean of the peers' best {_mean(best):.4f}, "
          f"median {np.median(best):.4f}{note}")  # fmt: skip
    for budget in PEER_BUDGETS:
        print(f"  within {budget} evaluations")
        ranked = sorted((f for f in fair if f.within(budget)), key=lambda f: f.ratio(best))
        for f in ranked[:3]:
            print(f"    {f.name + '@' + str(f.budget):20} ratio {f.ratio(best):.4f}, "
                  f"mean {_mean(f.distance):.4f}, found {np.isfinite(f.distance).sum()}"
                  f"/{f.seen}, CPU {f.seconds:.2f} s")  # fmt: skip
    bars = []
    for o in ours:
        f, optimal = o.found, _optimality(o.found.distance, known)
        print(f"  {'ours@' + str(f.budget):20} ratio {f.ratio(best):.4f}, "
              f"mean {_mean(f.distance):.4f}, found {np.isfinite(f.distance).sum()}/{f.seen}, "
              f"CPU {f.seconds:.2f} s; evaluations {f.evaluations:.0f}, optimality {optimal:.4f}, "
              f"ONNX Runtime confirms {100 * o.confirmed:.0f} %, "
              f"{o.overhead:.2f} bare passes an evaluation")  # fmt: skip
        for text, met in _bars(case, f, optimal, best, fair):
            print(f"    {'met   ' if met else 'MISSED'} {text}", flush=True)
            bars.append(met)
    return bars


def _bars(
    case: Case, found: Found, optimal: float, best: Distances, fair: list[Found]
) -> list[tuple[str, bool]]:
    bars = []
    ratio = found.ratio(best)
    if fair and found.budget in BARS_RATIO:
        bar = BARS_RATIO[found.budget][case.name in DEFENDED]
        bars.append((f"ratio {ratio:.4f} at most {bar}", ratio <= bar))
    single = [f.ratio(best) for f in fair if f.within(found.budget) and f.seen == found.seen]
    if single:
        bars.append((f"no single peer is better ({min(single):.4f})", ratio <= min(single)))
    if found.budget in BARS_OPTIMALITY:
        bar = BARS_OPTIMALITY[found.budget]
        bars.append((f"optimality {optimal:.4f} at least {bar}", optimal >= bar))
    return bars


def _mean(distance: Distances) -> float:
    finite = distance[np.isfinite(distance)]
    return float(finite.mean()) if len(finite) else float("nan")


def _optimality(distance: Distances, known: Distances) -> float:
    rows = np.isfinite(known) & (known > 0)
    return float((known[rows] / distance[rows]).mean())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--peers-python", default=os.environ.get("ONNX_AUDIT_PEERS_PYTHON"),
        help="python of the peers' environment; only ours runs without it",
    )  # fmt: skip
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--norms", default=",".join(NORMS))
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--budgets", default="100,500,1000", help="ours; none if empty")
    parser.add_argument("--reuse", action="store_true", help="keep what peers have found before")
    parser.add_argument("--slow", action="store_true", help="with the peers that take minutes")
    parser.add_argument("--folder", type=Path, default=CACHE, help="what peers find")
    parser.add_argument("--trained", type=Path, default=trained.CACHE, help="networks trained here")
    return parser.parse_args()


def main() -> None:
    """Compares on every model and norm asked for."""
    options = _options()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    budgets = [int(b) for b in options.budgets.split(",") if b]
    norms = options.norms.split(",")
    if not options.peers_python:
        print("no python for the peers (--peers-python): what they found before counts")
    bars = []
    for name in options.models.split(","):
        case = open_case(name, options.samples, options.trained)
        if options.peers_python:
            run_peers(case, norms, options)
        bare = float(np.median(bare_passes(case, 15)))
        for norm in norms if budgets else ():
            others = peers_found(case, norm, options.folder / name)
            ours = [run_ours(case, norm, b, bare) for b in budgets]
            bars += report(case, norm, others, ours)
    if bars:
        print(f"\n{sum(bars)} of {len(bars)} bars met")


if __name__ == "__main__":
    main()
