"""Over many networks without distinguished units the tests reject as often as they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.auditors.units import planted

from onnx_audit import v1
from onnx_auditors import units

TWINS, NETWORKS = 200, 50
KINDS = (v1.UNIT_SCORE_KIND_LABEL, v1.UNIT_SCORE_KIND_CONCEPT, v1.UNIT_SCORE_KIND_COHERENCE)
QUICK: dict[str, Any] = {
    "values": ["fc1_relu"],
    "directions": 256,
    "rotations": 59,
    "bases": [v1.UNIT_BASIS_PCA],
}


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_rotated_twins_are_rejected_as_often_as_the_level_says() -> None:
    """Of 200 rotated twins 2 to 8 % are rejected at 5 %, by each score and on each side."""
    world = planted.world(800)
    found: dict[tuple[int, str], list[float]] = {}
    verdicts: list[bool] = []
    for seed in range(TWINS):
        mix = planted.rotation(2 * planted.CONCEPTS, 100 + seed)
        network = planted.opened(planted.network(world, mix))
        section = units.measure(network, world.images, labels=world.labels, seed=seed, **QUICK)
        for kind in KINDS:
            score = planted.score(section, kind)
            found.setdefault((kind, "high"), []).append(score.p_rotation)
            found.setdefault((kind, "low"), []).append(score.p_rotation_low)
            verdicts.append(score.verdict in {v1.UNIT_VERDICT_MORE, v1.UNIT_VERDICT_LESS})
    rates = {key: float(np.mean(np.array(p) <= 0.05)) for key, p in found.items()}
    print(rates, np.mean(verdicts))  # noqa: T201 - figures for whoever runs it
    assert all(0.02 <= rate <= 0.08 for rate in rates.values()), rates
    # Holm's level holds for each network; three scores of one are nearly one.
    assert np.mean(verdicts) <= 0.015


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_untrained_networks_stay_at_the_null() -> None:
    """Of 50 networks with Gaussian weights none leaves 0.38 to 0.62 on any score.

    Their mean is 0.5, as far as 50 of them can tell.
    """
    world = planted.world(1600)
    indices, p = [], []
    for seed in range(NETWORKS):
        network = planted.opened(planted.gaussian(seed, 128))
        section = units.measure(network, world.images, labels=world.labels, seed=seed, **QUICK)
        scores = [planted.score(section, kind) for kind in KINDS]
        indices.append([score.index_auc.value for score in scores])
        p.append([score.p_rotation for score in scores])
    print(np.min(indices, 0), np.max(indices, 0), (np.array(p) <= 0.05).mean(0))  # noqa: T201
    assert np.min(indices) > 0.38
    assert np.max(indices) < 0.62
    error = np.std(indices, 0, ddof=1) / np.sqrt(NETWORKS)
    assert (np.abs(np.mean(indices, 0) - 0.5) < 3 * error).all()
