"""What an audit proves: exact optima, bounds that rounding does not break, and the sandwich."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper
from scipy import optimize
from tests.auditors.distortion.audits import audit
from tests.support import graph_model, save_probes

from onnx_audit import v1
from onnx_auditors.context import Context, open_context
from onnx_auditors.distortion import proofs
from onnx_auditors.errors import BoundsCrossed

WIDTH, UNITS, CLASSES, COUNT = 6, 4, 3, 16
NORMS = [v1.NORM_L2, v1.NORM_LINF, v1.NORM_L1]
LINEAR, TWICE_LINEAR, HIDDEN = "", "Identity", "Relu"

Weights = dict[str, npt.NDArray[Any]]


def weights() -> Weights:
    rng = np.random.default_rng(0)
    return {
        "w": rng.standard_normal((UNITS, WIDTH)).astype(np.float32),
        "b": rng.standard_normal(UNITS).astype(np.float32) / 4,
        "v": rng.standard_normal((CLASSES, UNITS)).astype(np.float32),
        # Without it the classes would tie wherever no unit is active.
        "c": rng.standard_normal(CLASSES).astype(np.float32) / 4,
    }


def opened(tmp_path: Path, middle: str, end: str = "Softmax") -> Context:
    """Opens a model of one or two layers with normalised random probes, answered rightly."""
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["z"], transB=1)]
    if middle:
        nodes += [
            helper.make_node(middle, ["z"], ["a"]),
            helper.make_node("Gemm", ["a", "v", "c"], ["s"], transB=1),
        ]
    nodes.append(helper.make_node(end, [nodes[-1].output[0]], ["y"]))
    used = {name: weights()[name] for name in ("wbvc" if middle else "wb")}
    onnx.save_model(graph_model(nodes, {"x": ["n", WIDTH]}, used), tmp_path / "m.onnx")
    inputs = np.random.default_rng(1).random((COUNT, WIDTH), dtype=np.float32)
    spec = v1.InputSpec(lower=[0.0], upper=[1.0], mean=[0.4], std=[0.25])
    return open_context(
        tmp_path / "m.onnx", save_probes(tmp_path / "p", inputs), spec, seed=3, device="cpu"
    )


def scores(x: npt.NDArray[np.float64], middle: str) -> npt.NDArray[np.float64]:
    """Returns the model's logits in float64."""
    w = {name: value.astype(np.float64) for name, value in weights().items()}
    z = (x - np.float32(0.4)) / np.float32(0.25) @ w["w"].T + w["b"]
    return np.maximum(z, 0) @ w["v"].T + w["c"] if middle == HIDDEN else z


def optimum(x: npt.NDArray[np.float64], middle: str) -> float:
    """Returns the smallest L2 change to another class, by a solver from many starts."""
    label = int(scores(x[None], middle).argmax())
    rng, best = np.random.default_rng(2), math.inf
    for start in rng.random((40, WIDTH)):
        for other in set(range(CLASSES if middle else UNITS)) - {label}:
            lead = optimize.NonlinearConstraint(
                lambda p, k=other: float(np.subtract(*scores(p[None], middle)[0, [k, label]])),
                0,
                np.inf,
            )
            result = optimize.minimize(
                lambda p: ((p - x) ** 2).sum(), start, bounds=[(0, 1)] * WIDTH, constraints=lead,
                method="SLSQP",
            )  # fmt: skip
            if result.success and lead.fun(result.x) >= -1e-9:
                best = min(best, math.sqrt(result.fun))
    return best


@pytest.mark.parametrize(
    ("middle", "exact"),
    [(LINEAR, 9), (HIDDEN, 3), pytest.param(HIDDEN, 9, marks=pytest.mark.slow)],
)
def test_optima_and_bounds_beside_what_was_found(middle: str, exact: int, tmp_path: Path) -> None:
    """Proved bound <= optimum <= found, all close; the optimum is that of an independent solver."""
    context = opened(tmp_path, middle)
    prover = proofs.Prover.of(context)
    assert prover is not None
    slack = prover.slack or math.inf
    assert slack < 1e-3
    result, blobs = audit(context, v1.DistortionConfig(norms=NORMS, budget=200, exact_probes=exact))
    for norm in result.norms:
        rows = [row for row in norm.probes if row.HasField("certified")]
        assert len(rows) == exact
        for row in rows:
            proved = row.certified
            assert proved.method == v1.CERTIFICATE_METHOD_EXACT
            assert proved.lower <= row.distance
            if not proved.HasField("optimum"):
                continue
            if math.isinf(proved.optimum):
                assert math.isinf(row.distance)
                continue
            # Rounding costs its bound over the margin's slope, which is about 1 or more.
            assert proved.optimum * (1 - 1e-3) - slack <= proved.lower <= proved.optimum
            assert row.distance >= proved.optimum * (1 - 1e-4)
        known = [row for row in rows if row.certified.HasField("optimum")]
        assert len(known) >= exact - 1
        moved = [row for row in known if 0 < row.certified.optimum < math.inf]
        ratios = [row.distance / row.certified.optimum for row in moved]
        summary = norm.certified
        assert summary.exact == len(known)
        assert summary.found_over_optimum.value == pytest.approx(np.mean(ratios))
        over_lower = [row.distance / row.certified.lower for row in rows if row.certified.lower > 0]
        assert summary.found_over_lower.value == pytest.approx(np.mean(over_lower))
        assert np.mean(ratios) <= 1.02
        tensors = blobs[norm.artefact.sha256]
        assert np.isnan(tensors["optimum"]).sum() == COUNT - len(known)
    some = [row for row in result.norms[0].probes if row.certified.HasField("optimum")][:3]
    for row in some:
        truth = optimum(context.inputs(np.array([row.probe]))[0].astype(np.float64), middle)
        assert row.certified.optimum <= truth * (1 + 1e-6)
        assert row.certified.optimum == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize("middle", [LINEAR, HIDDEN])
def test_rounding_stays_below_the_slack(middle: str, tmp_path: Path) -> None:
    """ONNX Runtime's logits differ from those in float64 by less than the bound says."""
    context = opened(tmp_path, middle, end="Identity")
    prover = proofs.Prover.of(context)
    assert prover is not None
    assert prover.slack is not None
    points = np.random.default_rng(7).random((2000, WIDTH), dtype=np.float32)
    points[:64] = np.array(np.meshgrid(*[[0, 1]] * WIDTH)).reshape(WIDTH, -1).T
    truth = scores(points.astype(np.float64), middle)
    off = np.abs(context.scores(points) - truth).max()
    read = np.abs(prover.model.logits(points.astype(np.float64)) - truth).max()
    assert off > 0
    assert 2 * (off + read) <= prover.slack <= 1e-3


def test_no_exact_optimum_unless_small_and_asked_for(tmp_path: Path) -> None:
    """None with exact_probes 0, and none for a model with two layers of ReLUs."""
    assert (
        not audit(opened(tmp_path, HIDDEN), v1.DistortionConfig(budget=5, exact_probes=0))[0]
        .norms[0]
        .HasField("certified")
    )
    context = opened(tmp_path, HIDDEN, end="Relu")
    assert proofs.Prover.of(context) is None


def test_more_roundings_than_the_bound_sees_prove_nothing(tmp_path: Path) -> None:
    """Between two sums of products the bound sees nothing: the optimum is given without it."""
    context = opened(tmp_path, TWICE_LINEAR)
    prover = proofs.Prover.of(context)
    assert prover is not None
    assert prover.slack is None
    norm = audit(context, v1.DistortionConfig(budget=60, exact_probes=4))[0].norms[0]
    rows = [row.certified for row in norm.probes if row.HasField("certified")]
    assert len(rows) == 4
    assert all(row.lower == 0 and row.HasField("optimum") for row in rows)
    assert norm.certified.certified == 0


def test_a_crossed_sandwich_stops_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bound above a confirmed example ends the audit, with the probe."""
    prove = proofs.Prover.prove

    def too_much(*arguments: Any) -> dict[int, v1.CertifiedRadius]:
        proved = prove(*arguments)
        for radius in proved.values():
            radius.lower = 2 * radius.optimum
        return proved

    monkeypatch.setattr(proofs.Prover, "prove", too_much)
    context = opened(tmp_path, HIDDEN)
    with pytest.raises(BoundsCrossed, match="one of the two is wrong") as error:
        audit(context, v1.DistortionConfig(budget=60, exact_probes=3))
    assert error.value.metadata["norm"] == "NORM_L2"
    assert 0 <= int(error.value.metadata["probe"]) < COUNT
    assert f"probe {error.value.metadata['probe']}:" in str(error.value)
