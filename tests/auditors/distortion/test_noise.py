"""Random noise in an audit, beside draws of its own and beside the adversarial distortion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.auditors.distortion.audits import audit, linear_model
from tests.support import save_probes

from onnx_audit import v1
from onnx_auditors.context import Context, open_context
from onnx_auditors.distortion.auditor import DistortionAuditor
from onnx_auditors.errors import InvalidConfig

COUNT, WIDTH, CLASSES, DRAWS = 16, 8, 10, 128
KINDS = [v1.NOISE_KIND_GAUSSIAN, v1.NOISE_KIND_UNIFORM, v1.NOISE_KIND_SALT_AND_PEPPER]


def opened(tmp_path: Path) -> Context:
    """Opens a linear model of many classes, three of whose probes are answered wrongly."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((CLASSES, WIDTH))
    onnx.save_model(linear_model(weights), tmp_path / "m.onnx")
    inputs = rng.uniform(0.2, 0.8, (COUNT, WIDTH)).astype(np.float32)
    labels = (inputs @ weights.T).argmax(1)
    labels[:3] = (labels[:3] + 1) % CLASSES
    return open_context(tmp_path / "m.onnx", save_probes(tmp_path / "p", inputs, labels), seed=4)


def noisy(kind: int, x: np.ndarray, scale: float, count: int) -> np.ndarray:
    """Returns draws of noise around a probe, by numpy's generators."""
    rng = np.random.default_rng(99)
    if kind == v1.NOISE_KIND_SALT_AND_PEPPER:
        ends = rng.integers(0, 2, (count, WIDTH))
        drawn = np.where(rng.random((count, WIDTH)) < scale, ends, x)
    elif kind == v1.NOISE_KIND_GAUSSIAN:
        drawn = x + scale * rng.standard_normal((count, WIDTH))
    else:
        drawn = x + scale * rng.uniform(-1, 1, (count, WIDTH))
    return np.clip(drawn, 0, 1).astype(np.float32)


def test_half_of_the_answers_change(tmp_path: Path) -> None:
    """Up to the reported scale, about half of independent draws change ONNX Runtime's answer."""
    context = opened(tmp_path)
    norms = [v1.NORM_L2, v1.NORM_LINF]
    config = v1.DistortionConfig(budget=40, norms=norms, noise=KINDS, noise_draws=DRAWS)
    result, _ = audit(context, config)
    inputs, labels = context.inputs(np.arange(COUNT)), np.asarray(context.probes.labels)
    assert [entry.kind for entry in result.noise] == KINDS
    for entry in result.noise:
        rows = list(entry.probes)
        assert [row.probe for row in rows] == list(range(COUNT))
        scale = np.array([row.scale.value for row in rows])
        assert np.isnan(scale).tolist() == [True] * 3 + [False] * (COUNT - 3)
        assert entry.unmoved == np.isinf(scale).sum()
        moved = np.flatnonzero(np.isfinite(scale))
        shares, sizes = [], []
        for i in moved:
            points = noisy(entry.kind, inputs[i], scale[i], 2000)
            changed = [
                context.scores(noisy(entry.kind, inputs[i], share * scale[i], 2000)).argmax(1)
                != labels[i]
                for share in np.linspace(0.05, 1, 20)
            ]
            shares.append(np.any(changed, axis=0).mean())
            change = points.astype(np.float64) - inputs[i]
            sizes.append(
                [np.median(np.linalg.norm(change, order, axis=1)) for order in (2, np.inf)]
            )
            interval = rows[i].scale.interval
            assert interval.lower <= scale[i] <= interval.upper
        assert len(moved) >= 5
        # The draws of the median leave a standard deviation of 4 % each.
        assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
        assert np.max(np.abs(np.array(shares) - 0.5)) <= 0.2
        ours = np.array([list(rows[i].sizes) for i in moved])
        off = np.abs(ours / sizes - 1)  # few entries change under salt and pepper
        assert np.quantile(off, 0.9) <= 0.2
        assert off.max() <= 0.4
        median = next(q.estimate for q in entry.scale if q.probability == 0.5)
        ordered = np.sort(scale[3:])
        assert median.value == ordered[(len(ordered) + 1) // 2 - 1]
        for j, (size, norm) in enumerate(zip(entry.sizes, result.norms, strict=True)):
            distance = np.array([row.distance for row in norm.probes])[3:]
            own = np.array([row.sizes[j] for row in rows])[3:]
            ratio = np.sort(own / distance)
            assert size.ratio.value == pytest.approx(ratio[(len(ratio) + 1) // 2 - 1])
            assert size.ratio.value > 1  # an adversarial direction is shorter than most
            assert size.norm == norm.norm


def test_same_seed_same_noise(tmp_path: Path) -> None:
    """The figures are those of the seed; no noise is measured unless asked for."""
    context = opened(tmp_path)
    config = v1.DistortionConfig(budget=5, noise=KINDS[:1], noise_draws=8)
    first, second = (audit(context, config)[0].noise for _ in range(2))
    assert first == second
    assert not audit(context, v1.DistortionConfig(budget=5))[0].noise


def test_refused_noise(tmp_path: Path) -> None:
    """Kinds that are not offered or come twice, and too few draws, are named."""
    context = opened(tmp_path)
    for config, field in (
        (v1.DistortionConfig(noise=[9]), "noise"),  # type: ignore[list-item]
        (v1.DistortionConfig(noise=[KINDS[0], KINDS[0]]), "noise"),
        (v1.DistortionConfig(noise_draws=7), "noise_draws"),
        (v1.DistortionConfig(black_box_runs=19), "black_box_runs"),
        (v1.DistortionConfig(exact_probes=-1), "exact_probes"),
    ):
        with pytest.raises(InvalidConfig) as error:
            DistortionAuditor().resolve(config, context)
        assert error.value.metadata["field"] == field
