"""Smallest changes of hidden values, beside the closed form of the last hidden layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import helper
from tests import models
from tests.auditors.distortion.audits import audit
from tests.support import graph_model, save_probes

from onnx_audit import v1
from onnx_auditors.context import Context, open_context
from onnx_auditors.distortion import inside
from onnx_auditors.distortion.auditor import DistortionAuditor
from onnx_auditors.distortion.hidden import hidden
from onnx_auditors.errors import InvalidConfig
from onnx_auditors.network import load

SIZES, COUNT = (10, 16, 12, 4), 24
NORMS = [v1.NORM_L2, v1.NORM_LINF]


def opened(tmp_path: Path, *device: str) -> Context:
    """Opens an MLP of two hidden layers with random probes that count as answered rightly."""
    path = models.save(models.mlp(SIZES), tmp_path / "m.onnx")
    probes = save_probes(tmp_path / "p", models.probes(COUNT, SIZES[0]))
    return open_context(path, probes, v1.InputSpec(lower=[0.0], upper=[1.0]), 5, *device)


def last_layer(context: Context) -> tuple[npt.NDArray[np.float64], ...]:
    """Returns the last hidden values of all probes, and margins and normals to every class."""
    proto = context.network.original
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    x = torch.from_numpy(context.inputs(np.arange(COUNT))).to(context.device)
    value = context.network.values(x, ["a1"])["a1"].double().cpu().numpy()
    matrix = weights["w2"].astype(np.float64)
    logits = value @ matrix + weights["b2"]
    labels = logits.argmax(1)
    margins = logits[np.arange(COUNT), labels][:, None] - logits
    normals = matrix.T[labels][:, None, :] - matrix.T[None]
    return value, margins, normals, labels


@pytest.mark.parametrize(("norm", "dual"), [("l2", 2), ("linf", 1)])
def test_the_last_hidden_layer_is_linear(norm: str, dual: int, tmp_path: Path) -> None:
    """Its distance is the least margin over the dual norm, where the box lets it be."""
    context = opened(tmp_path, "cpu")
    value, margins, normals, labels = last_layer(context)
    size = np.linalg.norm(normals, dual, axis=2)
    distance = np.divide(margins, size, out=np.full_like(margins, np.inf), where=size > 0)
    nearest = distance.argmin(1)
    exact = distance.min(1)
    chosen = np.arange(COUNT), nearest
    way = -normals[chosen]
    step = way / size[chosen][:, None] if dual == 2 else np.sign(way)
    point = value + exact[:, None] * step
    wide = (torch.full(value.shape[1:], -1e3), torch.full(value.shape[1:], 1e3))
    x = torch.from_numpy(context.inputs(np.arange(COUNT)))
    told = hidden(context.network, x, torch.from_numpy(labels), "a1", norm, 200)
    found, (lower, upper) = told.result.distance.numpy(), told.box
    inner = ((point >= lower.numpy()) & (point <= upper.numpy())).all(1)
    assert (found >= exact * (1 - 1e-5)).all()
    if norm == "l2":
        assert inner.sum() >= 3
    assert found[inner] == pytest.approx(exact[inner], rel=1e-3)
    # In a wide box nothing binds.
    free = hidden(context.network, x, torch.from_numpy(labels), "a1", norm, 200, box=wide)
    assert free.result.distance.numpy() == pytest.approx(exact, rel=2e-3)
    order = 2 if norm == "l2" else np.inf
    own = np.linalg.norm(value, order, axis=1)
    np.testing.assert_allclose(told.relative.numpy(), found / own, rtol=1e-6)
    changed = context.network.from_value("a1", told.result.examples).argmax(1).numpy()
    assert (changed != labels)[np.isfinite(found)].all()


def test_an_audit_of_hidden_values(tmp_path: Path) -> None:
    """A number of values is spread over the depth; the section's figures are those of the rows."""
    context = opened(tmp_path)
    config = v1.DistortionConfig(budget=60, norms=NORMS, hidden_count=5)
    result, _ = audit(context, config)
    assert list(result.config.hidden_values) == ["a0", "a1"]
    assert [(h.value, h.norm) for h in result.hidden] == [
        (value, norm) for value in ("a0", "a1") for norm in NORMS
    ]
    assert [h.dimension for h in result.hidden] == [16, 16, 12, 12]
    assert {h.op_type for h in result.hidden} == {"Relu"}
    assert 0 < result.hidden[0].depth < result.hidden[2].depth < 1
    value, margins, normals, _ = last_layer(context)
    for entry, dual, order in zip(result.hidden[2:], (2, 1), (2, np.inf), strict=True):
        size = np.linalg.norm(normals, dual, axis=2)
        exact = np.divide(margins, size, out=np.full_like(margins, np.inf), where=size > 0).min(1)
        found = np.array(entry.distances)
        assert (found >= exact * (1 - 1e-5)).all()
        assert np.median(found / exact) <= 1.3
        relative = np.array(entry.relative_distances)
        own = np.linalg.norm(value, order, axis=1)
        np.testing.assert_allclose(relative, found / own, rtol=1e-5)
        reached = np.isfinite(found)
        assert (entry.found, entry.not_found) == (reached.sum(), (~reached).sum())
        assert entry.mean.value == pytest.approx(found[reached].mean())
        assert entry.relative_mean.value == pytest.approx(relative[reached].mean())
        median = next(q.estimate for q in entry.relative_quantiles if q.probability == 0.5)
        assert median.value == np.sort(relative)[COUNT // 2 - 1]
        assert median.interval.lower <= median.value <= median.interval.upper
        assert 2 * COUNT <= entry.evaluations <= 60 * COUNT
    again, _ = audit(context, result.config)
    assert again.hidden == result.hidden


def test_values_that_paths_lead_around(tmp_path: Path) -> None:
    """In a residual network only what every path goes through is offered."""
    nodes = [
        helper.make_node("Relu", ["x"], ["before"]),
        helper.make_node("Gemm", ["before", "w"], ["side"]),
        helper.make_node("Relu", ["side"], ["branch"]),
        helper.make_node("Add", ["before", "branch"], ["joined"]),
        helper.make_node("Relu", ["joined"], ["after"]),
        helper.make_node("Gemm", ["after", "w"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    proto = graph_model(nodes, {"x": ["n", 4]}, {"w": rng.standard_normal((4, 4)).astype("f4")})
    onnx.save_model(proto, tmp_path / "m.onnx")
    probes = save_probes(tmp_path / "p", rng.random((3, 4), dtype=np.float32))
    context = open_context(tmp_path / "m.onnx", probes)
    assert list(inside.cuts(load(tmp_path / "m.onnx"))) == ["before", "joined", "after", "y"]
    auditor = DistortionAuditor()
    few = auditor.resolve(v1.DistortionConfig(hidden_count=1), context)
    assert list(few.hidden_values) == ["before"]
    two = auditor.resolve(v1.DistortionConfig(hidden_count=2), context)
    assert list(two.hidden_values) == ["before", "after"]
    for name, problem in (("branch", "lead around"), ("nothing", "no value 'nothing'")):
        with pytest.raises(InvalidConfig, match=problem) as error:
            auditor.resolve(v1.DistortionConfig(hidden_values=[name]), context)
        assert "before, joined, after" in str(error.value)
        assert error.value.metadata["field"] == "hidden_values"


def test_refused_numbers_of_values(tmp_path: Path) -> None:
    """Numbers out of range, and numbers beside names, are refused."""
    context = opened(tmp_path)
    for config in (
        v1.DistortionConfig(hidden_count=-1),
        v1.DistortionConfig(hidden_count=65),
        v1.DistortionConfig(hidden_count=1, hidden_values=["a0"]),
        v1.DistortionConfig(hidden_values=["a0", "a0"]),
    ):
        with pytest.raises(InvalidConfig):
            DistortionAuditor().resolve(config, context)
