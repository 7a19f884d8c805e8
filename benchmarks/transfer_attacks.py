"""Attacks that aim at transfer beside each other, and the choice of the smoothing of gradients.

Networks are trained on the first half of the training images, and probes are from the second half:
nothing here looks at the test images, on which the other tables are. Rates are of targets other
than the source, in per cent, over the probes that the target answers rightly.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import trained
from benchmarks.trained import Images
from benchmarks.transfer import half, measure

from onnx_audit import v1
from onnx_auditors.transfer import attacks

MODELS = ("fc100-100-10_first", "fc123-456-10_first", "relu20_first", "cnn_first")
UNTARGETED = (
    v1.TRANSFER_ATTACK_MOMENTUM,
    v1.TRANSFER_ATTACK_DIVERSE,
    v1.TRANSFER_ATTACK_SCALE_INVARIANT,
    v1.TRANSFER_ATTACK_INTERMEDIATE,
    v1.TRANSFER_ATTACK_ENSEMBLE,
)
TARGETED = (
    v1.TRANSFER_ATTACK_MOMENTUM_TARGETED,
    v1.TRANSFER_ATTACK_DIVERSE_TARGETED,
    v1.TRANSFER_ATTACK_SCALE_INVARIANT_TARGETED,
    v1.TRANSFER_ATTACK_INTERMEDIATE_TARGETED,
    v1.TRANSFER_ATTACK_ENSEMBLE_TARGETED,
)
SMOOTHINGS = (0.0, 1 / 128, 1 / 64, 1 / 32, 1 / 16)


def sections(asked: Sequence[v1.TransferAttack.ValueType], probes: int) -> v1.TransferSection:
    """Audits the networks on images that they have not seen."""
    images = trained.mnist("train_10000")
    unseen = Images(images.x[5000:], images.y[5000:])
    paths = [half(name) for name in MODELS]
    section, *_ = measure(paths, MODELS, probes, unseen, attacks=list(asked), noise_draws=1)
    return section


def rates(section: v1.TransferSection, attack: v1.TransferAttack.ValueType) -> list[float]:
    """Returns the mean error rate, that under noise, and of answers that are the class aimed at."""
    cells = [c for c in section.cells if c.attack == attack and c.source != c.target]
    fields = ("error_rate", "noise_error_rate", "match_rate")
    return [100 * sum(getattr(c, field).value for c in cells) / len(cells) for field in fields]


def main() -> None:
    """Prints a line for each attack, or for each smoothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--probes", type=int, default=200)
    parser.add_argument("--smoothing", action="store_true", help="compare smoothings")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if options.smoothing:
        for smoothing in SMOOTHINGS:
            # No smoothing is a deviation so small that a pixel keeps its own gradient.
            attacks.SMOOTHING = smoothing or 1e-3
            asked = (v1.TRANSFER_ATTACK_MOMENTUM, v1.TRANSFER_ATTACK_ENSEMBLE)
            section = sections(asked, options.probes)
            one, several = (rates(section, attack)[0] for attack in asked)
            print(f"smoothing of {smoothing:.4f} of the side: {one:.1f}, ensembles {several:.1f}")
        return
    section = sections((*UNTARGETED, *TARGETED), options.probes)
    for attack in (*UNTARGETED, *TARGETED):
        error, noise, match = rates(section, attack)
        name = v1.TransferAttack.Name(attack).removeprefix("TRANSFER_ATTACK_").lower()
        aimed = f", as aimed {match:.1f}" if attack in TARGETED else ""
        print(f"{name:28} {error:5.1f}, noise {noise:.1f}{aimed}")


if __name__ == "__main__":
    main()
