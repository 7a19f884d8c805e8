"""A report with every section, and the blob that it refers to."""

from __future__ import annotations

import hashlib

from onnx_audit import v1

ARTEFACT = b"adversarial examples" * 200
TRAINING = b"inputs and labels" * 100
ROUNDED = b"bytes and labels" * 50
MODEL = "models/" + "1" * 64
PROBES = "probes/" + "2" * 64


def estimate(value: float, lower: float, upper: float, count: int = 150) -> v1.Estimate:
    """An estimate with a 95% interval."""
    interval = v1.Interval(lower=lower, upper=upper, confidence=0.95, method="wilson")
    return v1.Estimate(value=value, interval=interval, count=count)


def distortion_section() -> v1.DistortionSection:
    """Four probes: one misclassified, two with examples, one without."""
    outcomes = [
        (0, v1.PROBE_OUTCOME_CONFIRMED, 3, 8, 0.75),
        (1, v1.PROBE_OUTCOME_MISCLASSIFIED, 9, 9, 0.0),
        (2, v1.PROBE_OUTCOME_CONFIRMED, 1, 7, 0.125),
        (3, v1.PROBE_OUTCOME_NOT_FOUND, 0, 0, float("inf")),
    ]
    norm = v1.NormDistortion(
        norm=v1.NORM_L2,
        mean=estimate(0.4375, 0.1, 0.9),
        mean_rms=estimate(0.05, 0.01, 0.1),
        quantiles=[
            v1.Quantile(probability=0.5, estimate=estimate(0.75, 0.125, float("inf"))),
            v1.Quantile(probability=0.9, estimate=v1.Estimate(value=float("inf"))),
        ],
        robust_accuracy=[
            v1.CurvePoint(x=step / 20, y=estimate(1 - step / 20, 0, 1)) for step in range(21)
        ],
        confirmed=2,
        not_found=1,
        probes=[
            v1.ProbeDistortion(
                probe=probe,
                outcome=outcome,
                label=label,
                adversarial_prediction=becomes,
                distance=distance,
                clean_confidence=0.875,
                adversarial_confidence=0.25,
            )
            for probe, outcome, label, becomes, distance in outcomes
        ],
        most_fragile=[2, 0],
        by_class=[
            v1.ClassDistortion(
                label=3, count=1, accuracy=estimate(1, 0.2, 1), median=estimate(0.75, 0.1, 2, 1)
            )
        ],
        class_pairs=[
            v1.ClassPairDistortion(
                label=3, adversarial_class=8, confirmed=1, median=estimate(0.75, 0.1, 2, 1)
            )
        ],
        stability=v1.SearchStability(
            mean_relative_difference=estimate(0.0123, 0, 0.1, 2), repeated=2
        ),
        artefact=v1.BlobRef(
            sha256=hashlib.sha256(ARTEFACT).hexdigest(),
            size_bytes=len(ARTEFACT),
            media_type="application/vnd.safetensors",
        ),
        black_box_searches=2,
        black_box_runs=1234,
        found_by_black_box=1,
        rounded=v1.RoundedDistortion(
            confirmed=2,
            mean=estimate(0.5, 0.2, 1, 2),
            median=estimate(0.625, 0.2, 1, 3),
            mean_ratio=estimate(1.125, 1, 1.25, 2),
            training_set=v1.BlobRef(
                sha256=hashlib.sha256(ROUNDED).hexdigest(),
                size_bytes=len(ROUNDED),
                media_type="application/vnd.safetensors",
            ),
        ),
        certified=v1.CertifiedDistortion(
            certified=2,
            found_over_lower=estimate(1.0625, 1.01, 1.2, 2),
            exact=2,
            found_over_optimum=estimate(1.03125, 1, 1.1, 2),
        ),
        training_set=v1.BlobRef(
            sha256=hashlib.sha256(TRAINING).hexdigest(),
            size_bytes=len(TRAINING),
            media_type="application/vnd.safetensors",
        ),
    )
    return v1.DistortionSection(
        config=v1.DistortionConfig(
            norms=[v1.NORM_L2], budget=500, methods=[v1.SEARCH_METHOD_PROJECTED]
        ),
        vanishing_gradients=estimate(0.25, 0.01, 0.7, 4),
        clean_accuracy=estimate(0.75, 0.3, 0.95, 4),
        probe_count=4,
        misclassified=1,
        norms=[norm],
        dimension=64,
        levels=255,
        hidden=[
            v1.HiddenDistortion(
                value="/features/layer.3/block.0/activation/Relu_output_0",
                norm=v1.NORM_L2,
                op_type="Relu",
                dimension=128,
                depth=0.5,
                quantiles=[v1.Quantile(probability=0.5, estimate=estimate(2.25, 1, 3, 3))],
                relative_quantiles=[v1.Quantile(probability=0.5, estimate=estimate(0.1875, 0, 1))],
                found=3,
            )
        ],
        noise=[
            v1.NoiseDistortion(
                kind=v1.NOISE_KIND_SALT_AND_PEPPER,
                scale=[v1.Quantile(probability=0.5, estimate=estimate(0.375, 0.25, 0.5, 3))],
                unmoved=1,
                sizes=[
                    v1.NoiseSize(
                        norm=v1.NORM_L2,
                        size=estimate(6.5, 5, 8, 3),
                        ratio=estimate(13.5, 10, 20, 2),
                    )
                ],
            )
        ],
    )


def full_report() -> v1.Report:
    """A report of an imaginary model."""
    summary = v1.ModelSummary(
        sha256="1" * 64,
        inputs=[v1.TensorInfo(name="pixels", dtype="float", shape=[-1, 64])],
        opset=20,
        node_count=5,
        parameter_count=6570,
    )
    report = v1.Report(
        digest="d" * 64,
        execution=v1.Execution(audit="audits/1", model_display_name="scorer [v2]"),
        provenance=v1.Provenance(
            seed=7,
            device="cpu",
            machine="x86_64",
            threads=2,
            software=[v1.SoftwareVersion(name="torch", version="2.13.0")],
        ),
        model=summary,
        probes=v1.ProbeSummary(
            sha256="2" * 64, count=4, shape=[64], dtype="float32", max=1, has_labels=True
        ),
        input_spec=v1.InputSpec(input_name="pixels", lower=[0], upper=[1]),
        parity=v1.Parity(probe_count=4, label_agreement=4, tolerance=1e-4, passed=True),
        warnings=[v1.ReportWarning(code="FEW_PROBES", message="only 4 probes [sic]")],
        distortion=distortion_section(),
    )
    bound = v1.LipschitzBound(
        norm=v1.NORM_LINF,
        lower=1.5,
        upper=9.25,
        proof=v1.PROOF_KIND_PROBABILISTIC,
        failure_probability=1e-9,
        method="product of layers",
    )
    report.lipschitz.network.add(bound=bound, meaning="says nothing [of use]")
    report.transfer.models.extend(["a", "b"])
    report.transfer.cells.add(target=1, error_rate=estimate(0.5, 0.4, 0.6))
    layer = report.units.layers.add(value="relu_1", dimension=64, dead=2)
    layer.scores.add(kind=v1.UNIT_SCORE_KIND_LABEL, index_auc=estimate(0.51, 0.4, 0.6))
    return report
