"""Audits in every norm and towards every kind of target, beside closed forms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper
from scipy import optimize
from tests.auditors.distortion.audits import CLASSES, COUNT, WIDTH, audit, linear_model
from tests.support import save_probes

from onnx_audit import v1
from onnx_auditors.context import Context, open_context
from onnx_auditors.distortion.auditor import DistortionAuditor
from onnx_auditors.errors import InvalidConfig

ALL_NORMS = [v1.NORM_L2, v1.NORM_LINF, v1.NORM_L1, v1.NORM_L0]
CONFIRMED = v1.PROBE_OUTCOME_CONFIRMED

Files = tuple[Path, Path]


def weights_of(files: Files) -> npt.NDArray[np.float64]:
    """Returns the weights of the linear classifier, float64 [classes, width]."""
    (stored,) = onnx.load(files[0]).graph.initializer
    return numpy_helper.to_array(stored).astype(np.float64)


def inputs_of(context: Context) -> npt.NDArray[np.float64]:
    return np.asarray(context.probes.inputs, dtype=np.float64)


def fewest_entries(x: Any, normal: Any, margin: float) -> int:
    """Returns how many entries, each at the better end of [0, 1], undo a margin, by sorting."""
    gains = np.sort(np.where(normal > 0, x * normal, (x - 1) * normal))[::-1]
    return int(np.argmax(np.cumsum(gains) > margin)) + 1


def half_space(norm: v1.Norm.ValueType, x: Any, normal: Any) -> float:
    """Returns the distance from x to <normal, x> = 0 without a box; for L0 with the box [0, 1]."""
    margin = float(x @ normal)
    if norm == v1.NORM_L0:
        return fewest_entries(x, normal, margin)
    dual = {v1.NORM_L2: 2, v1.NORM_LINF: 1, v1.NORM_L1: np.inf}[norm]
    return margin / float(np.linalg.norm(normal, dual))


@pytest.fixture
def two_classes(tmp_path: Path) -> Files:
    """Returns a linear model of two classes, and probes so near its boundary that no box binds."""
    rng = np.random.default_rng(4)
    normal = rng.standard_normal(WIDTH)
    inputs = rng.uniform(0.4, 0.6, (24, WIDTH))
    inputs -= np.outer(inputs @ normal - rng.uniform(0.01, 0.2, 24), normal) / (normal @ normal)
    onnx.save_model(linear_model(np.stack([normal, np.zeros(WIDTH)])), tmp_path / "two.onnx")
    labels = np.zeros(24, np.int64)
    return tmp_path / "two.onnx", save_probes(tmp_path / "t", inputs.astype(np.float32), labels)


def test_every_norm_of_one_audit_is_its_closed_form(two_classes: Files) -> None:
    """Of two classes the distance is margin / dual norm; L0 the fewest entries; rms is of L2."""
    context = open_context(*two_classes, seed=1)
    result, blobs = audit(context, v1.DistortionConfig(norms=ALL_NORMS, budget=100))
    normal = np.subtract(*weights_of(two_classes))
    inputs = inputs_of(context)
    assert [norm.norm for norm in result.norms] == ALL_NORMS
    for norm in result.norms:
        assert norm.confirmed == len(inputs), v1.Norm.Name(norm.norm)
        found = np.array([p.distance for p in norm.probes])
        exact = np.array([half_space(norm.norm, x, normal) for x in inputs])
        assert (found >= exact * (1 - 1e-5)).all()
        assert found == pytest.approx(exact, rel=2e-3)
        assert norm.mean.unit == norm.quantiles[0].estimate.unit
        tensors = blobs[norm.artefact.sha256]
        change = tensors["example"].astype(np.float64) - tensors["original"]
        order = {v1.NORM_L2: 2, v1.NORM_LINF: np.inf, v1.NORM_L1: 1, v1.NORM_L0: 0}[norm.norm]
        np.testing.assert_allclose(np.linalg.norm(change, order, axis=1), found, rtol=1e-12)
        rms = [p.rms for p in norm.probes]
        np.testing.assert_allclose(rms, np.sqrt((change**2).mean(axis=1)))
        assert norm.mean_rms.value == pytest.approx(np.mean(rms))


def margins(context: Context, weights: Any, targets: Sequence[int]) -> npt.NDArray[np.float64]:
    """Returns the L2 distances of all probes to where a target overtakes the label, no box."""
    inputs, labels = inputs_of(context), np.asarray(context.probes.labels)
    return np.array(
        [
            half_space(v1.NORM_L2, x, weights[y] - weights[t]) if y != t else np.nan
            for x, y, t in zip(inputs, labels, targets, strict=True)
        ]
    )


def reachable(weights: Any, target: int) -> bool:
    """Returns whether some point of [0, 1] gets a class, by a linear programme on its lead."""
    rows = np.delete(weights, target, axis=0) - weights[target]
    lead = np.hstack([rows, np.ones((len(rows), 1))])
    cost = np.zeros(WIDTH + 1)
    cost[-1] = -1
    box = [(0, 1)] * WIDTH + [(None, None)]
    return bool(-optimize.linprog(cost, lead, np.zeros(len(rows)), bounds=box).fun > 1e-6)


def test_least_likely_class(files: Files, tmp_path: Path) -> None:
    """Each probe goes to its lowest score where it can, and no distance is too small."""
    rng = np.random.default_rng(9)
    weights = rng.standard_normal((CLASSES, WIDTH))
    onnx.save_model(linear_model(weights), tmp_path / "m.onnx")
    inputs = rng.random((COUNT, WIDTH), dtype=np.float32)
    files = tmp_path / "m.onnx", save_probes(tmp_path / "q", inputs, (inputs @ weights.T).argmax(1))
    context = open_context(*files, seed=3)
    mode = v1.TARGET_MODE_LEAST_LIKELY
    result, blobs = audit(context, v1.DistortionConfig(budget=200, target_mode=mode))
    norm, weights = result.norms[0], weights_of(files)
    lowest = (inputs_of(context) @ weights.T).argmin(axis=1)
    assert [p.target for p in norm.probes] == lowest.tolist()
    exact = margins(context, weights, lowest)
    reached = [i for i, p in enumerate(norm.probes) if p.outcome == CONFIRMED]
    assert len(reached) >= 20
    assert reached == [i for i in range(COUNT) if reachable(weights, int(lowest[i]))]
    for i in reached:
        assert norm.probes[i].adversarial_prediction == lowest[i]
        assert norm.probes[i].distance >= exact[i] * (1 - 1e-5)
    tensors = blobs[norm.artefact.sha256]
    answers = context.session.run(tensors["example"]).argmax(1)
    np.testing.assert_array_equal(answers[reached], lowest[reached])
    np.testing.assert_array_equal(tensors["target"], lowest)
    untargeted, _ = audit(context, v1.DistortionConfig(budget=200))
    nearest = np.array([p.distance for p in untargeted.norms[0].probes])
    assert all(norm.probes[i].distance >= nearest[i] * (1 - 1e-3) for i in reached)


def test_every_other_class(files: Files) -> None:
    """The matrix has each class of each probe, bounded by its half-space; the nearest counts."""
    context = open_context(*files, seed=3)
    config = v1.DistortionConfig(budget=100, target_mode=v1.TARGET_MODE_EVERY_OTHER_CLASS)
    result, blobs = audit(context, config)
    norm, weights = result.norms[0], weights_of(files)
    table = blobs[norm.artefact.sha256]["class_distance"]
    labels = np.asarray(context.probes.labels)
    assert table.shape == (COUNT, CLASSES)
    assert np.isnan(table[-10:]).all()  # answered wrongly from the start
    assert (np.isnan(table[:-10]) == np.eye(CLASSES, dtype=bool)[labels[:-10]]).all()
    for target in range(CLASSES):
        exact = margins(context, weights, [target] * COUNT)
        aimed = ~np.isnan(table[:, target])
        assert np.isfinite(table[aimed, target]).all() == reachable(weights, target)
        assert (table[aimed, target] >= exact[aimed] * (1 - 1e-5)).all()
    distance = np.array([p.distance for p in norm.probes])[:-10]
    np.testing.assert_array_equal(np.nanmin(table[:-10], axis=1), distance)
    for row, probe in zip(table[:-10], list(norm.probes)[:-10], strict=True):
        if probe.outcome == CONFIRMED:
            assert row[probe.adversarial_prediction] == probe.distance
            assert not probe.HasField("target")
        assert 3 * 2 <= probe.evaluations <= 3 * 100

    cells = {(c.label, c.adversarial_class): c for c in norm.class_pairs}
    assert len(cells) == len(set(labels[:-10])) * (CLASSES - 1)
    for (label, target), cell in cells.items():
        column = table[:-10][labels[:-10] == label, target]
        assert cell.aimed == len(column)
        assert cell.confirmed == np.isfinite(column).sum()
        assert cell.median.value == np.sort(column)[(len(column) + 1) // 2 - 1]
    untargeted, _ = audit(context, v1.DistortionConfig(budget=300))
    nearest = np.array([p.distance for p in untargeted.norms[0].probes])[:-10]
    assert distance == pytest.approx(nearest, rel=0.02)


def test_a_given_class_leaves_out_its_own_probes(files: Files) -> None:
    """Probes labelled with the target have an outcome and a count of their own, and no figure."""
    context = open_context(*files, seed=3)
    config = v1.DistortionConfig(budget=60, target_mode=v1.TARGET_MODE_GIVEN, target_class=1)
    result, _ = audit(context, config)
    norm, labels = result.norms[0], np.asarray(context.probes.labels)
    out = [i for i, p in enumerate(norm.probes) if p.outcome == v1.PROBE_OUTCOME_TARGET_IS_LABEL]
    assert out == np.flatnonzero(labels == 1).tolist()
    assert out
    assert all(np.isnan(norm.probes[i].distance) and not norm.probes[i].evaluations for i in out)
    assert norm.target_is_label == len(out)
    assert norm.robust_accuracy[0].y.count == COUNT - len(out)
    assert result.clean_accuracy.value == 0.75  # of all probes, as without targets
    assert {c.label for c in norm.by_class} == set(labels.tolist()) - {1}
    assert {c.adversarial_class for c in norm.class_pairs} == {1}
    right = sum(c.aimed for c in norm.class_pairs)
    assert norm.confirmed + norm.unconfirmed + norm.not_found == right
    for probe in norm.probes:
        assert (probe.outcome == CONFIRMED) == (
            probe.adversarial_prediction == 1 and probe.clean_prediction == probe.label != 1
        )


def test_every_probe_labelled_with_the_target(files: Files, tmp_path: Path) -> None:
    """An audit with nothing to look for ends well, without a training set."""
    inputs = np.random.default_rng(0).random((5, WIDTH), dtype=np.float32)
    probes = save_probes(tmp_path / "q", inputs, np.full(5, 2))
    config = v1.DistortionConfig(budget=5, target_mode=v1.TARGET_MODE_GIVEN, target_class=2)
    result, _ = audit(open_context(files[0], probes), config)
    norm = result.norms[0]
    assert norm.target_is_label == 5
    assert not norm.HasField("training_set")
    assert not norm.class_pairs
    assert not norm.by_class


def test_too_many_classes_for_all_of_them(tmp_path: Path) -> None:
    """Every other class is refused beyond 100 classes, with what to use instead."""
    rng = np.random.default_rng(0)
    for classes in (100, 101):
        onnx.save_model(linear_model(rng.standard_normal((classes, WIDTH))), tmp_path / "m.onnx")
        probes = save_probes(tmp_path / "q", np.zeros((1, WIDTH), np.float32))
        context = open_context(tmp_path / "m.onnx", probes)
        config = v1.DistortionConfig(target_mode=v1.TARGET_MODE_EVERY_OTHER_CLASS)
        if classes == 100:
            assert DistortionAuditor().resolve(config, context).budget == 500
            continue
        with pytest.raises(InvalidConfig, match="101 classes") as error:
            DistortionAuditor().resolve(config, context)
        assert error.value.metadata["field"] == "target_mode"


def test_methods_share_the_budget(files: Files) -> None:
    """The paper's method finds its own distances; the configuration says which methods ran."""
    context = open_context(*files, seed=3)
    methods = [v1.SEARCH_METHOD_LBFGS, v1.SEARCH_METHOD_PROJECTED]
    both, _ = audit(context, v1.DistortionConfig(budget=100, methods=methods))
    alone, _ = audit(context, v1.DistortionConfig(budget=100, methods=methods[:1]))
    default, _ = audit(context, v1.DistortionConfig(budget=100))
    assert list(both.config.methods) == methods
    assert list(default.config.methods) == [v1.SEARCH_METHOD_PROJECTED]
    assert alone.norms[0].mean.value != default.norms[0].mean.value
    for section in (both, alone):
        assert section.norms[0].mean.value == pytest.approx(default.norms[0].mean.value, rel=0.05)
        assert max(p.evaluations for p in section.norms[0].probes) <= 100
