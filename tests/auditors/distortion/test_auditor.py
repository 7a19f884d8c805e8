"""The distortion auditor from end to end, and its statistics beside closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from scipy import stats
from tests.auditors.distortion.audits import CLASSES, COUNT, WIDTH, audit
from tests.support import save_probes

from onnx_audit import v1
from onnx_auditors import estimates
from onnx_auditors.audit import plan as plan_audit
from onnx_auditors.context import open_context
from onnx_auditors.distortion import section
from onnx_auditors.distortion.auditor import DistortionAuditor
from onnx_auditors.errors import InvalidConfig, ProbesDoNotFit
from onnx_auditors.provenance import provenance


def test_section_of_a_linear_classifier(files: tuple[Path, Path]) -> None:
    """Counts, figures, artefact and model agree with each other."""
    context = open_context(*files, seed=3)
    assert context.parity().passed
    result, blobs = audit(context)
    norm = result.norms[0]
    artefact = blobs[norm.artefact.sha256]
    assert (result.probe_count, result.misclassified, result.dimension) == (COUNT, 10, WIDTH)
    assert result.clean_accuracy.value == 0.75
    assert norm.confirmed + norm.unconfirmed + norm.not_found == 30
    assert norm.confirmed >= 25
    distances = np.array([p.distance for p in norm.probes])
    confirmed = np.array([p.outcome == v1.PROBE_OUTCOME_CONFIRMED for p in norm.probes])
    assert norm.mean.value == pytest.approx(distances[confirmed].mean())
    assert norm.mean_rms.value == pytest.approx(distances[confirmed].mean() / math.sqrt(WIDTH))
    assert (distances[-10:] == 0).all()

    stored = np.asarray(context.probes.inputs)
    change = artefact["example"].astype(np.float64) - stored
    np.testing.assert_array_equal(artefact["distance"], distances)
    np.testing.assert_allclose(np.linalg.norm(change, axis=1)[confirmed], distances[confirmed])
    assert artefact["example"].min() >= 0
    assert artefact["example"].max() <= 1
    answers = context.session.run(artefact["example"]).argmax(1)
    np.testing.assert_array_equal(answers, artefact["adversarial_prediction"])
    assert (answers != artefact["label"])[confirmed].all()
    order = [norm.probes[i].distance for i in norm.most_fragile]
    assert order == sorted(order)
    assert min(order) > 0

    for point in norm.robust_accuracy:
        assert point.y.value == (distances > point.x).sum() / COUNT
    assert norm.robust_accuracy[0].y.value == 0.75
    assert len(norm.robust_accuracy) == 33


def test_same_seed_same_section(files: tuple[Path, Path]) -> None:
    """Run twice, the section has the same bytes; so has the provenance."""
    runs = []
    for _ in range(2):
        context = open_context(*files, seed=3)
        section_, _ = audit(context)
        parts = (section_, provenance(context))
        runs.append([part.SerializeToString(deterministic=True) for part in parts])
    assert runs[0] == runs[1]


def test_without_labels_the_model_is_right(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Without labels the model's own answer counts as right."""
    inputs = np.random.default_rng(5).random((6, WIDTH), dtype=np.float32)
    context = open_context(files[0], save_probes(tmp_path / "q", inputs))
    result, _ = audit(context)
    assert result.clean_accuracy.value == 1
    assert not result.clean_accuracy.HasField("interval")
    assert result.misclassified == 0
    assert all(p.label == p.clean_prediction for p in result.norms[0].probes)


def test_max_probes_draws_with_the_seed(files: tuple[Path, Path]) -> None:
    """A subset is drawn without repetition, rising, and by the seed."""
    config = v1.DistortionConfig(budget=5, max_probes=7)
    drawn = [
        [p.probe for p in audit(open_context(*files, seed=seed), config)[0].norms[0].probes]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] == sorted(set(drawn[0]))
    assert drawn[0] != drawn[2]
    assert [len(rows) for rows in drawn] == [7, 7, 7]


def test_refused_configurations(files: tuple[Path, Path]) -> None:
    """Fields out of range are named, with what is offered."""
    context = open_context(*files)
    for config, field in (
        (v1.DistortionConfig(norms=[v1.NORM_L2, v1.NORM_L2]), "norms"),
        (v1.DistortionConfig(norms=[7]), "norms"),  # type: ignore[list-item]
        (v1.DistortionConfig(methods=[v1.SEARCH_METHOD_UNSPECIFIED]), "methods"),
        (
            v1.DistortionConfig(norms=[v1.NORM_LINF], methods=[v1.SEARCH_METHOD_LBFGS]),
            "methods",
        ),
        (v1.DistortionConfig(target_mode=9), "target_mode"),  # type: ignore[arg-type]
        (v1.DistortionConfig(target_mode=v1.TARGET_MODE_GIVEN), "target_class"),
        (v1.DistortionConfig(target_class=1), "target_class"),
        (v1.DistortionConfig(target_mode=v1.TARGET_MODE_GIVEN, target_class=-1), "target_class"),
        (
            v1.DistortionConfig(target_mode=v1.TARGET_MODE_GIVEN, target_class=CLASSES),
            "target_class",
        ),
        (v1.DistortionConfig(budget=1), "budget"),
        (v1.DistortionConfig(budget=100_001), "budget"),
        (v1.DistortionConfig(max_probes=-1), "max_probes"),
    ):
        with pytest.raises(InvalidConfig) as error:
            DistortionAuditor().resolve(config, context)
        assert error.value.metadata["field"] == field


def test_labels_beyond_the_classes(files: tuple[Path, Path], tmp_path: Path) -> None:
    """A label without a class score stops the audit before it starts."""
    probes = save_probes(tmp_path / "q", np.zeros((2, WIDTH), np.float32), np.array([0, CLASSES]))
    with pytest.raises(ProbesDoNotFit, match="4 classes"):
        open_context(files[0], probes)


@pytest.mark.parametrize(
    ("count", "shards"), [(1, 1), (31, 1), (32, 4), (50, 4), (512, 4), (513, 5), (10_000, 79)]
)
def test_plan(count: int, shards: int, files: tuple[Path, Path], tmp_path: Path) -> None:
    """Few probes are one shard, more at least four, many 128 to a shard."""
    probes = save_probes(tmp_path / "q", np.zeros((count, WIDTH), "f4"))
    context = open_context(files[0], probes, device="cpu")
    plan = DistortionAuditor().plan(v1.DistortionConfig(budget=5), context)
    assert (plan.shards, plan.items) == (shards, count)


def test_warning_without_a_right_answer() -> None:
    """Few probes, all answered wrongly, prove nothing but leave nothing to measure either."""
    figures = v1.DistortionSection(
        clean_accuracy=estimates.proportion(0, 4), probe_count=4, misclassified=4
    )
    assert [w.code for w in section.warnings(figures, 10)] == ["NO_PROBE_ANSWERED_RIGHTLY"]


def test_warning_at_chance() -> None:
    """An accuracy near chance is called that, whatever the number of classes."""
    for right, count, classes, expected in (
        (10, 100, 10, 1), (60, 100, 10, 0), (50, 100, 2, 1), (90, 100, 2, 0), (1, 500, 1000, 0),
        (1, 5000, 1000, 1), (1, 4, 10, 0),
    ):  # fmt: skip
        accuracy = estimates.proportion(right, count)
        figures = v1.DistortionSection(
            clean_accuracy=accuracy, probe_count=count, misclassified=count - right
        )
        found = section.warnings(figures, classes)
        assert [w.code for w in found] == ["CLEAN_ACCURACY_AT_CHANCE"] * expected


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (3, 10), (10, 10), (250, 1000)])
def test_wilson(successes: int, count: int) -> None:
    """The interval of a share is that of scipy's score interval."""
    ours = estimates.proportion(successes, count).interval
    theirs = stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
    assert (ours.lower, ours.upper) == pytest.approx((theirs.low, theirs.high))


def test_bootstrap_of_a_normal_sample() -> None:
    """The bootstrap interval of a mean is near mean +- 1.96 standard errors, and repeatable."""
    values = np.random.default_rng(0).normal(5, 2, 4000)
    ours = estimates.mean(values, "L2", seed=1)
    half = 1.96 * values.std() / math.sqrt(4000)
    assert ours.value == pytest.approx(values.mean())
    assert ours.interval.lower == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert ours.interval.upper == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert ours == estimates.mean(values, "L2", seed=1)
    assert math.isnan(estimates.mean(np.array([]), "L2", seed=1).value)
    assert not estimates.mean(np.array([1.0]), "L2", seed=1).HasField("interval")


@pytest.mark.parametrize("probability", section.QUANTILES)
@pytest.mark.parametrize("count", [5, 30, 200])
def test_quantile_interval_covers(probability: float, count: int) -> None:
    """The exact probability that the interval holds the quantile is at least 95 %."""
    values = np.arange(1.0, count + 1)
    estimate = estimates.quantile(values, probability, "L2")
    interval = estimate.interval
    below = 0 if interval.lower == -math.inf else int(interval.lower)
    above = count + 1 if interval.upper == math.inf else int(interval.upper)
    tails = stats.binom.cdf(below - 1, count, probability), stats.binom.sf(above - 1, count, probability)  # fmt: skip # noqa: E501 - one formula
    assert sum(tails) <= 0.05
    assert estimate.value == math.ceil(probability * count - 1e-9)


def test_quantile_of_infinite_distances() -> None:
    """A probe without an example counts as Infinity."""
    estimate = estimates.quantile(np.array([1.0, math.inf, math.inf]), 0.5, "L2")
    assert estimate.value == math.inf
    assert estimates.quantile(np.array([math.inf, 1.0, 2.0]), 0.5, "L2").value == 2


def test_quantised_models_are_said_to_have_surrogate_gradients(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    """A model that rounds inside gets a warning in the plan, the same model without gets none."""
    configs = v1.AuditorConfigs(distortion=v1.DistortionConfig(budget=5))
    assert not plan_audit(configs, open_context(*files)).warnings
    proto = onnx.load(files[0])
    scores = proto.graph.output[0].name
    for node in proto.graph.node:
        node.output[:] = ["unrounded" if name == scores else name for name in node.output]
    proto.graph.node.append(onnx.helper.make_node("Round", ["unrounded"], [scores]))
    onnx.save(proto, tmp_path / "rounded.onnx")
    plan = plan_audit(configs, open_context(tmp_path / "rounded.onnx", files[1]))
    assert [warning.code for warning in plan.warnings] == ["SURROGATE_GRADIENTS"]
