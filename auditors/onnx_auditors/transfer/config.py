"""What a configuration of `transfer` may say, and its defaults. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from onnx_audit import v1
from onnx_auditors.errors import InvalidConfig

MOST_PEERS = 63
MOST_DRAWS = 32
MOST_LEVELS = 16
MOST_STEPS = 1000
LEAST_BUDGET, LARGEST_BUDGET = 2, 100_000
LONGEST_NAME, MOST_TAGS, LONGEST_TAG = 200, 32, 100
LARGEST_SIDE = 65_536
TARGETED = frozenset(
    (
        v1.TRANSFER_ATTACK_MINIMAL_TARGETED,
        v1.TRANSFER_ATTACK_MOMENTUM_TARGETED,
        v1.TRANSFER_ATTACK_ENSEMBLE_TARGETED,
        v1.TRANSFER_ATTACK_DIVERSE_TARGETED,
        v1.TRANSFER_ATTACK_SCALE_INVARIANT_TARGETED,
        v1.TRANSFER_ATTACK_INTERMEDIATE_TARGETED,
    )
)
"""The attacks that aim at a class."""
MINIMAL = frozenset((v1.TRANSFER_ATTACK_MINIMAL, v1.TRANSFER_ATTACK_MINIMAL_TARGETED))
"""Those that look for the smallest change."""
ENSEMBLE = frozenset((v1.TRANSFER_ATTACK_ENSEMBLE, v1.TRANSFER_ATTACK_ENSEMBLE_TARGETED))
"""Those on all models but the target."""
DIVERSE = frozenset((v1.TRANSFER_ATTACK_DIVERSE, v1.TRANSFER_ATTACK_DIVERSE_TARGETED))
"""Those that resize images."""
FEWEST_FOR_ENSEMBLE = 3
_BUDGET, _DRAWS, _STEPS = 500, 4, 20
_SIGMAS = (0.1, 0.3)
_RMS = (0.04, 0.06, 0.08, 0.1, 0.15)
_ATTACK_RMS = 0.06
"""Of the width of the box."""


def check(config: v1.TransferConfig) -> None:
    """Checks what can be known without the models.

    Raises:
        InvalidConfig: A field is out of range; its path is the metadata's `field`.
    """
    if not 1 <= len(config.peers) <= MOST_PEERS:
        raise InvalidConfig(
            f"{len(config.peers)} peers; transfer needs at least one other model, and takes at "
            f"most {MOST_PEERS}",
            field="peers",
        )
    for field, least, most, what in (
        ("budget", LEAST_BUDGET, LARGEST_BUDGET, "gradient evaluations"),
        ("noise_draws", 1, MOST_DRAWS, "draws of noise"),
        ("attack_steps", 1, MOST_STEPS, "steps"),
    ):
        number = getattr(config, field)
        if number and not least <= number <= most:
            raise InvalidConfig(
                f"{number} {what}; allowed is {least} to {most}, and 0 for the default",
                field=field,
            )
    if config.max_probes < 0:
        raise InvalidConfig(
            f"{config.max_probes} is negative; 0 audits all probes", field="max_probes"
        )
    _check_levels(config.noise_levels, "noise_levels")
    _check_levels(config.rms_levels, "rms_levels")
    if not 0 <= config.attack_rms < math.inf:
        raise InvalidConfig(
            f"{config.attack_rms:g}; expected a positive number, or 0 for the default",
            field="attack_rms",
        )
    _check_attacks(config)
    _check_names(config.display_name, config.tags, "")
    for i, peer in enumerate(config.peers):
        _check_peer(peer, f"peers[{i}].")


def _check_levels(levels: Iterable[float], field: str) -> None:
    found = list(levels)
    if len(found) > MOST_LEVELS or any(not 0 < level < math.inf for level in found):
        raise InvalidConfig(
            f"{found}; expected at most {MOST_LEVELS} positive numbers", field=field
        )
    if len(set(found)) < len(found):
        raise InvalidConfig(f"{found}; a number is given twice", field=field)


def _check_attacks(config: v1.TransferConfig) -> None:
    known = [a for a in v1.TransferAttack.values() if a != v1.TRANSFER_ATTACK_UNSPECIFIED]
    for attack in config.attacks:
        if attack not in known:
            names = ", ".join(v1.TransferAttack.Name(other) for other in known)
            raise InvalidConfig(f"there is no attack {attack}; there are {names}", field="attacks")
    if len(set(config.attacks)) < len(config.attacks):
        raise InvalidConfig("an attack is given twice", field="attacks")
    if len(config.peers) + 1 < FEWEST_FOR_ENSEMBLE and ENSEMBLE & set(config.attacks):
        raise InvalidConfig(
            "an ensemble leaves one model out and needs two more; give at least 2 peers",
            field="attacks",
        )


def _check_names(name: str, tags: Mapping[str, str], prefix: str) -> None:
    if len(name) > LONGEST_NAME:
        raise InvalidConfig(
            f"{len(name)} characters, at most {LONGEST_NAME}", field=f"{prefix}display_name"
        )
    pairs = dict(tags)
    texts = [*pairs, *pairs.values()]
    if len(pairs) > MOST_TAGS or "" in pairs or any(len(text) > LONGEST_TAG for text in texts):
        raise InvalidConfig(
            f"expected at most {MOST_TAGS} tags with keys of 1 to {LONGEST_TAG} characters and "
            f"values of at most {LONGEST_TAG}",
            field=f"{prefix}tags",
        )


def _check_peer(peer: v1.PeerModel, prefix: str) -> None:
    _check_names(peer.display_name, peer.tags, prefix)
    sides = (peer.input_height, peer.input_width)
    if any(not 0 <= side <= LARGEST_SIDE for side in sides) or any(sides) != all(sides):
        raise InvalidConfig(
            f"{sides[0]} x {sides[1]}; expected a height and a width of 1 to {LARGEST_SIDE}, or "
            "neither",
            field=f"{prefix}input_height",
        )
    if peer.label_map and peer.HasField("linear_head"):
        raise InvalidConfig(
            "a linear head is fitted on the labels of the probe set and has the audited model's "
            "classes; leave the map or the head out",
            field=f"{prefix}label_map",
        )
    if any(entry < -1 for entry in peer.label_map):
        raise InvalidConfig(
            f"{min(peer.label_map)} is no class; classes count from 0, and -1 means none",
            field=f"{prefix}label_map",
        )


def filled(config: v1.TransferConfig, width: float) -> v1.TransferConfig:
    """Returns a copy with every default filled in.

    Args:
        config: As requested.
        width: Width of the box in probe space, its mean over channels.
    """
    result = v1.TransferConfig()
    result.CopyFrom(config)
    if not result.attacks:
        result.attacks.extend((v1.TRANSFER_ATTACK_MINIMAL, v1.TRANSFER_ATTACK_MOMENTUM))
        if len(result.peers) + 1 >= FEWEST_FOR_ENSEMBLE:
            result.attacks.append(v1.TRANSFER_ATTACK_ENSEMBLE)
    result.budget = config.budget or _BUDGET
    result.noise_draws = config.noise_draws or _DRAWS
    result.attack_steps = config.attack_steps or _STEPS
    result.attack_rms = config.attack_rms or _ATTACK_RMS * width
    result.noise_levels[:] = sorted(config.noise_levels) or [s * width for s in _SIGMAS]
    result.rms_levels[:] = sorted(config.rms_levels) or [r * width for r in _RMS]
    return result
