"""The lipschitz auditor from end to end, beside brute force on a plane and dense SVD."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper
from safetensors.numpy import load_file
from tests import models
from tests.auditors.whole import audit
from tests.support import save_probes

from onnx_audit import v1
from onnx_auditors.audit import plan
from onnx_auditors.context import Context, open_context
from onnx_auditors.errors import InvalidConfig
from onnx_auditors.lipschitz.auditor import LipschitzAuditor, groups

GRID = 801
SPEC = v1.InputSpec(lower=[0], upper=[1])


def context(tmp_path: Path, model: onnx.ModelProto, probes: int = 12, seed: int = 5) -> Context:
    path = models.save(model, tmp_path / "model.onnx")
    inputs = np.random.default_rng(1).random((probes, 2), dtype=np.float32)
    return open_context(path, save_probes(tmp_path / "p.safetensors", inputs), SPEC, seed)


def settings(**fields: object) -> v1.AuditorConfigs:
    return v1.AuditorConfigs(lipschitz=v1.LipschitzConfig(**fields))  # type: ignore[arg-type]


def nearest_change(opened: Context, probe: npt.NDArray[np.float32], order: float) -> float:
    """Distance of the nearest point of a grid over the box that is answered otherwise."""
    line = np.linspace(0, 1, GRID, dtype=np.float32)
    points = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    answers = opened.scores(points).argmax(1)
    own = opened.scores(probe[None]).argmax(1)[0]
    others = points[answers != own]
    if not len(others):
        return math.inf
    return float(np.linalg.norm(others.astype(np.float64) - probe, order, axis=1).min())


def test_certificates_beside_brute_force(tmp_path: Path) -> None:
    """No point of a fine grid inside a radius is answered otherwise; radii are not far below."""
    opened = context(tmp_path, models.mlp((2, 12, 12, 3), seed=3))
    _, result = audit(settings(radii=[0.01]), opened, tmp_path)
    section = result.lipschitz
    assert [c.norm for c in section.certificates] == [v1.NORM_L2, v1.NORM_LINF]
    step = math.sqrt(2) / (GRID - 1)
    for certificates, order in zip(section.certificates, (2, np.inf), strict=True):
        shares = []
        for row in certificates.probes:
            probe = opened.inputs(np.array([row.probe]))[0]
            reach = nearest_change(opened, probe, order)
            assert row.radius <= reach
            assert row.method
            assert math.isnan(row.found)
            if math.isfinite(reach):
                shares.append(row.radius / (reach + step))
        # The bounds are of linear relaxations: on so small a network most of the way is proved.
        assert np.median(shares) > 0.5
        radii = np.array([row.radius for row in certificates.probes])
        assert certificates.mean.value == pytest.approx(radii.mean())
        assert sum(certificates.methods.values()) == len(radii)
        for point in certificates.certified_accuracy:
            assert point.y.value == (radii > point.x).mean()


def test_amplification_in_balls(tmp_path: Path) -> None:
    """Bounds in a ball are no less than what its points show, and no more than the global ones."""
    opened = context(tmp_path, models.mlp((2, 12, 12, 3), seed=3), probes=4)
    radii = [0.01, 0.1]
    _, result = audit(settings(radii=radii), opened, tmp_path)
    section = result.lipschitz
    rng = np.random.default_rng(0)
    for certificates, order in zip(section.certificates, (2, np.inf), strict=True):
        pair = next(n.largest_pair for n in section.network if n.bound.norm == certificates.norm)
        for row in certificates.probes:
            probe = opened.inputs(np.array([row.probe]))[0].astype(np.float64)
            for radius, bound in zip(radii, row.local, strict=True):
                assert bound <= pair * (1 + 1e-6)
                points = rng.uniform(-radius, radius, (2000, 2))
                size = np.linalg.norm(points, order, axis=1, keepdims=True)
                points = np.clip(probe + points * np.minimum(1, radius / size), 0, 1)
                a, b = points[:1000].astype(np.float32), points[1000:].astype(np.float32)
                margins = [s[:, [row.label]] - s for s in (opened.scores(a), opened.scores(b))]
                change = np.abs(margins[0] - margins[1]).max(1)
                distance = np.linalg.norm(a.astype(np.float64) - b, order, axis=1)
                far = distance > radius / 10
                assert (change[far] <= bound * distance[far] + 1e-4).all()


def test_layers_and_network(tmp_path: Path) -> None:
    """Layers have the norms of their matrices; witnesses attain them; pairs hold on draws."""
    model = models.mlp((2, 12, 12, 3), seed=3)
    opened = context(tmp_path, model, probes=4)
    planned, result = audit(settings(), opened, tmp_path)
    section = result.lipschitz
    weights = [onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer]
    matrices = [w for w in weights if w.ndim > 1]
    linear = [r for r in section.layers if r.kind == v1.LIPSCHITZ_LAYER_KIND_LINEAR]
    assert [row.name for row in linear] == ["h0", "h1", "logits"]
    stored = load_file(tmp_path / section.artefact.sha256)
    for row, matrix in zip(linear, matrices, strict=True):
        for bound, order in zip(row.bounds, (2, np.inf, 1), strict=True):
            exact = np.linalg.norm(matrix.T, order)
            assert bound.lower <= exact * (1 + 1e-12)
            assert exact <= bound.upper <= bound.lower * (1 + 1e-3)
        index = list(section.layers).index(row)
        witness = stored[f"witness_l2_{index}"]
        shown = np.linalg.norm(witness.reshape(-1) @ matrix) / np.linalg.norm(witness)
        assert shown == pytest.approx(row.bounds[0].lower, rel=1e-9)
    assert math.fsum(row.log_share for row in section.layers) == pytest.approx(1)
    assert max(row.shard for row in section.layers) < planned.plans[0].shards
    product = math.prod(np.linalg.norm(m, 2) for m in matrices)
    network = section.network[0]
    assert network.product == pytest.approx(product, rel=1e-3)
    assert network.bound.lower <= network.bound.upper <= network.product
    rng = np.random.default_rng(0)
    a, b = (rng.random((2000, 2), dtype=np.float32) for _ in range(2))
    change = opened.scores(a).astype(np.float64) - opened.scores(b)
    distance = np.linalg.norm(a.astype(np.float64) - b, axis=1)
    pairs = stored["pairs_l2"]
    seen = np.abs(change[:, :, None] - change[:, None]) / distance[:, None, None]
    assert (seen.max(0) <= pairs + 1e-3).all()
    assert network.largest_pair == pairs.max()


def test_the_same_audit_twice(tmp_path: Path) -> None:
    """The same job gives the same section; another seed other starts."""
    opened = context(tmp_path, models.mlp((2, 6, 3)), probes=6)
    first, again = (audit(settings(max_probes=3), opened, tmp_path)[1] for _ in range(2))
    assert first.SerializeToString(deterministic=True) == again.SerializeToString(
        deterministic=True
    )
    assert len(first.lipschitz.certificates[0].probes) == 3
    other = audit(settings(), context(tmp_path, models.mlp((2, 6, 3)), seed=6), tmp_path)[1]
    assert other.lipschitz.entropy != first.lipschitz.entropy


def without_a_bound(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """A model whose `inner` goes into two logits."""
    last = helper.make_node("Gemm", ["inner", "w"], ["logits"], "gemm")
    weight = onnx.numpy_helper.from_array(np.array([[1, -1], [-2, 1]], dtype=np.float32), "w")
    return models.model([*nodes, last], [None, 2], [None, 2], [weight])


def test_a_network_without_a_global_bound(tmp_path: Path) -> None:
    """A product of two values is named; in balls it has bounds, which brute force confirms."""
    square = helper.make_node("Mul", ["x", "x"], ["inner"], "square")
    opened = context(tmp_path, without_a_bound([square]), probes=6)
    _, result = audit(settings(radii=[0.01]), opened, tmp_path)
    section = result.lipschitz
    assert all(math.isinf(row.bound.upper) for row in section.network)
    assert any(reason.startswith("inner (Mul)") for reason in section.unbounded)
    assert {w.code for w in result.warnings} == {"NO_GLOBAL_BOUND"}
    for certificates, order in zip(section.certificates, (2, np.inf), strict=True):
        for row in certificates.probes:
            probe = opened.inputs(np.array([row.probe]))[0]
            assert 0 < row.radius <= nearest_change(opened, probe, order)
            assert row.method == "layers"
            # The margin's slope is (4 x, 6 y) in size, and more in the ball.
            assert row.local[0] >= np.linalg.norm([4, 6] * probe, 2 if order == 2 else 1)


def test_a_network_without_any_bound(tmp_path: Path) -> None:
    """What jumps is named; nothing is certified, and both are said."""
    sign = helper.make_node("Sign", ["x"], ["inner"], "sign")
    opened = context(tmp_path, without_a_bound([sign]))
    _, result = audit(settings(), opened, tmp_path)
    section = result.lipschitz
    assert any(reason.startswith("inner (Sign)") for reason in section.unbounded)
    assert all(row.radius == 0 for c in section.certificates for row in c.probes)
    assert {w.code for w in result.warnings} == {"NO_GLOBAL_BOUND", "NO_CERTIFICATES"}


def test_no_certificates(tmp_path: Path) -> None:
    """Probes, and norms, can be left out."""
    opened = context(tmp_path, models.mlp((2, 6, 3)))
    _, result = audit(settings(max_probes=-1), opened, tmp_path)
    assert not any(c.probes for c in result.lipschitz.certificates)
    _, result = audit(settings(norms=[v1.NORM_L1]), opened, tmp_path)
    assert not result.lipschitz.certificates
    assert [row.bound.norm for row in result.lipschitz.network] == [v1.NORM_L1]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("norms", [v1.NORM_L0], "NORM_L0 is not offered"),
        ("max_probes", -2, "-1 certifies none"),
        ("radii", [0.2, 0.1], "rising order"),
        ("radii", [0.0], "above 0"),
        ("failure_probability", 0.5, "not between 0 and 1e-06"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, field: str, value: object, message: str) -> None:
    """The field at fault is named with what was found."""
    opened = context(tmp_path, models.mlp((2, 6, 3)))
    with pytest.raises(InvalidConfig, match=message) as caught:
        plan(settings(**{field: value}), opened)
    assert caught.value.metadata["field"] == field


def test_groups_of_layers(tmp_path: Path) -> None:
    """Groups are runs that cover all layers once; there are at most 16."""
    opened = context(tmp_path, models.mlp((2, *[5] * 30, 3)))
    planned = LipschitzAuditor().plan(v1.LipschitzConfig(norms=[v1.NORM_L1], max_probes=1), opened)
    assert planned.shards == 16
    assert groups([]) == []
