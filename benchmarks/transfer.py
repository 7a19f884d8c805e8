"""Transfer between MNIST networks beside the paper's tables (Szegedy et al. 2013, tables 2 and 4).

The networks are trained here on 10,000 images (`trained.py`) and on two halves of 5,000, the
paper's on 60,000 and two halves of 30,000. Probes are test images.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import trained
from benchmarks.trained import Images

from onnx_audit import v1
from onnx_auditors import audit
from onnx_auditors.context import open_context

TABLE_2 = ("fc10_1e-4", "fc10_1e-2", "fc10_1", "fc100-100-10", "fc200-200-10", "ae400-10")
PAPER_2 = (
    (100, 11.7, 22.7, 2, 3.9, 2.7),
    (87.1, 100, 35.2, 35.9, 27.3, 9.8),
    (71.9, 76.2, 100, 48.1, 47, 34.4),
    (28.9, 13.7, 21.1, 100, 6.6, 2),
    (38.2, 14, 23.8, 20.3, 100, 2.7),
    (23.4, 16, 24.8, 9.4, 6.6, 100),
)
PAPER_2_NOISE = {0.1: (5.0, 10.1, 18.3, 0, 0, 0.8), 0.3: (15.6, 11.3, 22.7, 5, 4.3, 3.1)}
TABLE_4 = ("fc100-100-10_first", "fc123-456-10_first", "fc100-100-10_second")
PAPER_4 = ((100, 26.2, 5.9), (6.25, 100, 5.1), (8.2, 8.2, 100))
PAPER_4_MAGNIFIED = ((100, 98, 43), (96, 100, 22), (27, 50, 100))
"""At a distortion of 0.1; see the paper's table 4."""


def half(name: str) -> Path:
    """Returns a network trained on one half of the images; trains it where it is missing."""
    path = trained.CACHE / f"{name}.onnx"
    if not path.exists():
        form, _, part = name.partition("_")
        recipe = trained.RECIPES.get(form, trained.RECIPES["fc100-100-10"])
        images = trained.mnist("train_10000")
        rows = slice(0, 5000) if part == "first" else slice(5000, 10000)
        torch.manual_seed(1 if part == "second" else 0)
        if form in trained.RECIPES:
            network = recipe.make()
        else:
            network = trained.perceptron(*(int(w) for w in form.removeprefix("fc").split("-")))
        trained.train(network, recipe, Images(images.x[rows], images.y[rows]))
        trained.export(network.eval(), path)
    return path


def measure(
    paths: Sequence[Path],
    names: Sequence[str],
    probes: int,
    images: Images | None = None,
    **settings: object,
) -> tuple[v1.TransferSection, float, float]:
    """Audits the first model beside the others; returns the section, seconds and CPU seconds.

    Probes are drawn from the test images where no others are given.
    """
    images = images or trained.mnist("test_1000")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(
            {"inputs": images.x.numpy(), "labels": images.y.numpy()}, folder / "probes.safetensors"
        )
        peers = {f"models/{i:064x}": path for i, path in enumerate(paths) if i}
        config = v1.TransferConfig(
            display_name=names[0],
            peers=[
                v1.PeerModel(model=model, display_name=other)
                for model, other in zip(peers, names[1:], strict=True)
            ],
            max_probes=probes,
            **settings,  # type: ignore[arg-type] # fields of the message
        )
        start, used = time.monotonic(), time.process_time()
        context = open_context(
            paths[0],
            folder / "probes.safetensors",
            v1.InputSpec(lower=[0.0], upper=[1.0]),
            peers=peers,
            threads=torch.get_num_threads(),
        )
        plan = audit.plan(v1.AuditorConfigs(transfer=config), context)
        partials = []
        for shard in range(plan.plans[0].shards):
            partials.append(folder / f"{shard}")
            partials[-1].write_bytes(
                audit.run_shard(plan.auditors, context, v1.AUDITOR_TRANSFER, shard, lambda *_: None)
            )
        result = audit.merge(plan.auditors, context, v1.AUDITOR_TRANSFER, partials, folder)
        return result.transfer, time.monotonic() - start, time.process_time() - used


def table(
    section: v1.TransferSection, attack: v1.TransferAttack.ValueType, level: float | None = None
) -> list[list[float]]:
    """Returns error rates in per cent by source and target; at one rms where it is given."""
    count = len(section.models)
    rows = [[float("nan")] * count for _ in range(count)]
    for cell in section.cells:
        if cell.attack == attack and cell.source >= 0:
            rate = cell.error_rate
            if level is not None:
                rate = next(p.error_rate for p in cell.curve if abs(p.rms - level) < 1e-9)
            rows[cell.source][cell.target] = 100 * rate.value
    return rows


def show(
    title: str, names: Sequence[str], ours: Sequence[Sequence[float]],
    paper: Sequence[Sequence[float]] | None,
) -> None:  # fmt: skip
    """Prints a matrix, the paper's figures in brackets."""
    print(f"\n{title}")
    print(" " * 22 + "".join(f"{name[:14]:>16}" for name in names))
    for i, name in enumerate(names):
        cells = (
            f"{rate:.1f}" + (f" ({paper[i][j]:g})" if paper else "")
            for j, rate in enumerate(ours[i])
        )
        print(f"{name:22}" + "".join(f"{cell:>16}" for cell in cells))


def report(title: str, names: Sequence[str], section: v1.TransferSection, paper: object) -> None:
    """Prints the matrices of a section, with distortions, accuracies and noise."""
    show(
        f"{title}: error rate in per cent (paper), smallest changes", names,
        table(section, v1.TRANSFER_ATTACK_MINIMAL),
        paper,  # type: ignore[arg-type] # one of the tables above
    )  # fmt: skip
    for row in section.rows:
        if row.attack == v1.TRANSFER_ATTACK_MINIMAL:
            accuracy = section.details[row.source].clean_accuracy.value
            noise = ", ".join(
                f"{n.sigma:g}: {100 * n.error_rate.value:.1f}"
                for n in section.details[row.source].noise
            )
            print(
                f"{names[row.source]:22} rms {row.mean_rms.value:.4f}, test error "
                f"{100 * (1 - accuracy):.1f}, error under noise of {noise}"
            )
    off = [c for c in section.cells if c.source != c.target and c.source >= 0]
    above = sum(c.corrected_p_value < 0.05 for c in off)
    print(f"{above} of {len(off)} cells above noise at 5 % (Holm)")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--probes", type=int, default=300)
    parser.add_argument("--budget", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    attacks = [v1.TRANSFER_ATTACK_MINIMAL, v1.TRANSFER_ATTACK_MOMENTUM]
    settings = {"budget": options.budget, "attacks": attacks}
    paths = [trained.ensure(name) for name in TABLE_2]
    section, *_ = measure(paths, TABLE_2, options.probes, **settings)
    report("Table 2", TABLE_2, section, PAPER_2)
    for level in (0.06, 0.1):
        show(f"all changes brought to rms {level}", TABLE_2,
             table(section, v1.TRANSFER_ATTACK_MINIMAL, level), None)  # fmt: skip
    show("changes of rms 0.06 that aim at transfer", TABLE_2,
         table(section, v1.TRANSFER_ATTACK_MOMENTUM), None)  # fmt: skip
    for sigma, rates in PAPER_2_NOISE.items():
        print(f"the paper's error under noise of {sigma}: {rates}")
    paths = [half(name) for name in TABLE_4]
    section, *_ = measure(paths, TABLE_4, options.probes, **settings)
    report("Table 4", TABLE_4, section, PAPER_4)
    show("all changes brought to rms 0.1 (paper: standard deviation 0.1)", TABLE_4,
         table(section, v1.TRANSFER_ATTACK_MINIMAL, 0.1), PAPER_4_MAGNIFIED)  # fmt: skip


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
