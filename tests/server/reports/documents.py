"""Reports to draw, small and large, and what policies say of them."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from PIL import Image
from safetensors.numpy import save
from tests.client.reports import estimate, full_report

from onnx_audit import v1
from onnx_audit_server.reports.document import Document
from onnx_audit_server.store.blobs import BlobStore

HOSTILE = (
    "<script>alert('x')</script> & \"$x_1$\" | `b` [a](http://x.example) <!-- ]]> \x01\x1b\ufffe *#"
)
"""A name that tries to be markup in every form of a report."""


def gate(
    identifier: str,
    verdict: v1.Verdict.ValueType,
    state: v1.WaiverState.ValueType = v1.WAIVER_STATE_UNSPECIFIED,
    severity: v1.Severity.ValueType = v1.SEVERITY_BLOCK,
    message: str = "The model is too fragile.",
) -> v1.GateResult:
    """A gate's result with one figure."""
    result = v1.GateResult(
        gate=v1.Gate(
            id=identifier,
            severity=severity,
            expression="report.distortion.clean_accuracy.value >= 0.9",
            message=message,
        ),
        verdict=verdict,
        explanation="0.75 is below 0.9",
        figures=[
            v1.GateFigure(
                expression="report.distortion.clean_accuracy.value",
                value=estimate(0.75, 0.3, 0.95),
                relation=v1.GATE_RELATION_AT_LEAST,
                threshold=0.9,
                margin=-0.15,
                baseline=estimate(0.8125, 0.4, 0.95),
                verdict=verdict,
            )
        ],
        waiver_state=state,
    )
    if state:
        result.waiver.CopyFrom(
            v1.Waiver(
                gate_id=identifier,
                model="scorer*",
                reason="retrained in May",
                owner="Ada",
                expire_time=Timestamp(seconds=1_790_000_000),
            )
        )
    return result


def policy_result(*gates: v1.GateResult) -> v1.PolicyResult:
    """A failing result of the given gates, or of one gate for each thing that can become of one."""
    every = [
        gate("accuracy", v1.VERDICT_PASS),
        gate("fragile", v1.VERDICT_FAIL),
        gate("unknown", v1.VERDICT_INCONCLUSIVE),
        gate("known-issue", v1.VERDICT_FAIL, v1.WAIVER_STATE_ACTIVE),
        gate("forgotten", v1.VERDICT_INCONCLUSIVE, v1.WAIVER_STATE_EXPIRED),
        gate("nice-to-have", v1.VERDICT_FAIL, severity=v1.SEVERITY_WARN),
    ]
    return v1.PolicyResult(
        verdict=v1.VERDICT_FAIL,
        gates=gates or every,
        policy_display_name="release",
        policy_digest="a" * 64,
    )


def document(
    folder: Path, report: v1.Report | None = None, result: v1.PolicyResult | None = None
) -> Document:
    """A document over a blob store in a folder."""
    return Document(report or full_report(), result, None, BlobStore(folder))


def image_report(
    blobs: BlobStore, *, classes: int = 10, probes: int = 12, side: int = 28, layers: int = 2
) -> v1.Report:
    """A report on images with all sections, whose figures are drawn at random.

    Probes have one entry changed, in the corner: the example is 1 there.
    """
    draw = np.random.default_rng(5)
    report = full_report()
    report.probes.shape[:] = [side, side, 1]
    report.input_spec.probe_layout = v1.LAYOUT_HWC
    original = (draw.integers(0, 255, (probes, side, side, 1)) / 255).astype(np.float32)
    example = original.copy()
    example[:, 0, 0, 0] = 1
    distance = np.abs(example - original).reshape(probes, -1).max(1).astype(np.float64)
    label, became = draw.integers(0, classes, probes), draw.integers(0, classes, probes)
    integers = {"probe": np.arange(probes), "label": label, "clean_prediction": label,
                "adversarial_prediction": became,
                "outcome": np.full(probes, v1.PROBE_OUTCOME_CONFIRMED)}  # fmt: skip
    norm = report.distortion.norms[0]
    norm.artefact.CopyFrom(
        blobs.put(
            save({**integers, "distance": distance, "original": original, "example": example,
                  "perturbation": example - original}),
            "application/vnd.safetensors",
        )
    )  # fmt: skip
    del norm.class_pairs[:], norm.by_class[:], norm.probes[:]
    for row, (before, after) in enumerate(zip(label, became, strict=True)):
        median = estimate(float(distance[row]), 0.1, 2, 1)
        norm.probes.add(
            probe=row, outcome=v1.PROBE_OUTCOME_CONFIRMED, label=before,
            adversarial_prediction=after, distance=distance[row],
        )  # fmt: skip
        norm.class_pairs.add(label=before, adversarial_class=after, confirmed=1, median=median)
    for number in range(classes):
        norm.by_class.add(label=number, count=1, accuracy=estimate(1, 0.2, 1),
                          median=estimate(float(draw.uniform(0, 2)), 0, math.inf))  # fmt: skip
    _lipschitz(report, draw, layers)
    _units(report, blobs, draw, layers)
    _transfer(report, draw, 4)
    return report


def _lipschitz(report: v1.Report, draw: np.random.Generator, layers: int) -> None:
    found = report.lipschitz
    found.config.norms.append(v1.NORM_L2)
    for number in range(layers):
        upper = float(draw.uniform(0.5, 30)) if number != 1 else math.inf
        layer = found.layers.add(
            name=f"/features/block.{number}/Conv_output_0", log_share=1 / layers
        )
        layer.bounds.add(norm=v1.NORM_L2, lower=0.9 * min(upper, 3), upper=upper, method="torus")
        layer.op_types.append("Conv")
    found.dominant.extend(range(min(layers, 20)))
    radii = draw.uniform(0, 1, 40)
    certificates = found.certificates.add(norm=v1.NORM_L2, mean=estimate(float(radii.mean()), 0, 1))
    for number, radius in enumerate(radii):
        certificates.probes.add(probe=number, radius=radius)
    for x in np.linspace(0, 1, 9):
        share = float((radii >= x).mean())
        certificates.certified_accuracy.add(x=x, y=estimate(share, share, share))


def _units(report: v1.Report, blobs: BlobStore, draw: np.random.Generator, layers: int) -> None:
    sprite = Image.fromarray(draw.integers(0, 255, (338, 770), dtype=np.uint8))
    file = io.BytesIO()
    sprite.save(file, "PNG")
    picture = blobs.put(file.getvalue(), "image/png")
    del report.units.layers[:]
    for number in range(layers):
        layer = report.units.layers.add(value=f"/features/{number}/Relu", dimension=64, live=60)
        layer.summary = "60 live units of 64: no distinction by label."
        score = layer.scores.add(
            kind=v1.UNIT_SCORE_KIND_LABEL,
            index_auc=estimate(0.51, 0.4, 0.6),
            rotated_index=estimate(0.5, 0.45, 0.55),
            verdict=v1.UNIT_VERDICT_NO_DISTINCTION,
        )
        score.histogram.edges.extend(np.linspace(0, 1, 11))
        for field, level in (("natural", 0.1), ("random", 0.1), ("rotated_lower", 0.05)):
            getattr(score.histogram, field).extend([level] * 10)
        score.histogram.rotated_upper.extend([0.15] * 10)
        score.index_by_top.add(x=9, y=estimate(0.5, 0.4, 0.6))
        score.index_by_top.add(x=18, y=estimate(0.55, 0.4, 0.6))
        layer.galleries.add(kind=v1.UNIT_GALLERY_KIND_PAIRS, image=picture, order=range(16))
        layer.units.add(unit=3, score=[0.9], p=[0.01], q=[0.05], concept=7, top_probes=range(9))


def _transfer(report: v1.Report, draw: np.random.Generator, models: int) -> None:
    found = report.transfer
    found.models[:] = [f"release-{number}" for number in range(models)]
    found.order[:] = range(models)
    found.config.rms_levels.extend([0.05, 0.1])
    del found.cells[:]
    for source in range(models):
        found.details.add(
            name=found.models[source], classes=10, clean_accuracy=estimate(0.9, 0.8, 0.95),
            noise=[v1.FixedNoise(sigma=0.1, error_rate=estimate(0.02, 0, 0.1))],
        )  # fmt: skip
        for target in range(models):
            rate = float(draw.uniform(0, 1)) if source != target else 1.0
            cell = found.cells.add(
                source=source, target=target, attack=v1.TRANSFER_ATTACK_MINIMAL,
                error_rate=estimate(rate, 0.9 * rate, min(1, 1.1 * rate)),
                noise_error_rate=estimate(0.01, 0, 0.05), corrected_p_value=0.001,
            )  # fmt: skip
            for rms in (0.05, 0.1):
                cell.curve.add(rms=rms, error_rate=estimate(rate, 0, 1),
                               noise_error_rate=estimate(0.01, 0, 0.05))  # fmt: skip
    for number in range(models - 1):
        left = 0 if not number else models + number - 1
        found.merges.add(left=left, right=number + 1, distance=0.2 + 0.1 * number)
