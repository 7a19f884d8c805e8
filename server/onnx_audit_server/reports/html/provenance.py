"""Where the figures come from: model, probes, parity, versions."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from onnx_audit import v1
from onnx_audit_server.reports.html.blocks import Facts, Section
from onnx_audit_server.reports.words import (
    attack_name,
    bytes_text,
    count,
    figure,
    norm_name,
    number,
    shape_text,
)


def section(report: v1.Report) -> Section:
    """Everything that the figures depend on, for those who check them."""
    blocks = [Facts(_parity(report.parity), "Parity with ONNX Runtime")]
    if report.HasField("linear_head"):
        blocks.append(Facts(_head(report.linear_head), "Linear head"))
    blocks += [
        Facts(_model(report), "Model"),
        Facts(_probes(report), "Probes"),
        Facts(_spec(report.input_spec), "From probe to input"),
        Facts(_environment(report.provenance), "Environment"),
        Facts(_run(report), "Run"),
        Facts(_blobs(report), "Files beside the report"),
    ]
    return Section(
        "provenance",
        "Provenance and parity",
        "The same model, probes, configuration and seed on the same kind of machine give the same "
        "digest.",
        [block for block in blocks if any(value for _, value in block.rows)],
    )


def _parity(parity: v1.Parity) -> list[tuple[str, str]]:
    return [
        ("verdict", "holds: the network gives ONNX Runtime's answers" if parity.passed
                    else "DOES NOT HOLD"),
        ("largest relative difference", f"{number(parity.max_relative_difference)} (allowed "
                                        f"{number(parity.tolerance)})"),
        ("same label", f"{parity.label_agreement:,} of {count(parity.probe_count, 'probe')}"),
        ("first value that differs", parity.first_divergent_value),
    ]  # fmt: skip


def _head(head: v1.LinearHead) -> list[tuple[str, str]]:
    return [
        ("fitted", f"{v1.HeadMethod.Name(head.config.method).removeprefix('HEAD_METHOD_').lower()}"
                   f" on {head.config.value or 'the output'}, {count(head.features, 'feature')}, "
                   f"{count(head.classes, 'class', 'classes')}, "
                   f"{count(head.probe_count, 'probe')}"),
        ("accuracy on these", figure(head.training_accuracy, share=True)),
        ("accuracy on probes left out", figure(head.held_out_accuracy, share=True)),
        ("SHA-256", head.sha256),
    ]  # fmt: skip


def _model(report: v1.Report) -> list[tuple[str, str]]:
    model = report.model
    operators = ", ".join(f"{row.op_type} {row.count:,}" for row in model.operators[:12])
    return [
        ("name", report.execution.model_display_name),
        ("SHA-256", model.sha256),
        ("inputs", _tensors(model.inputs)),
        ("outputs", _tensors(model.outputs)),
        ("size", f"{count(model.node_count, 'node')}, {count(model.parameter_count, 'weight')}"),
        ("operators", operators),
        ("opset", str(model.opset)),
        ("producer", model.producer),
    ]


def _tensors(tensors: Sequence[v1.TensorInfo]) -> str:
    return ", ".join(f"{t.name}: {t.dtype}, {shape_text(t.shape)}" for t in tensors)


def _probes(report: v1.Report) -> list[tuple[str, str]]:
    probes = report.probes
    labels = (
        f"labels {probes.min_label} to {probes.max_label}" if probes.has_labels else "no labels"
    )
    return [
        ("count", f"{probes.count:,} of {shape_text(probes.shape)}, {probes.dtype}, {labels}"),
        ("values", f"{number(probes.min)} to {number(probes.max)}"),
        ("SHA-256", probes.sha256),
    ]


def _spec(spec: v1.InputSpec) -> list[tuple[str, str]]:
    def joined(values: Sequence[float]) -> str:
        return ", ".join(number(value) for value in values)

    def layout(value: v1.Layout.ValueType) -> str:
        return v1.Layout.Name(value).removeprefix("LAYOUT_")

    return [
        ("input", spec.input_name),
        ("divisor", number(spec.divisor) if spec.divisor else ""),
        ("box", f"[{joined(spec.lower)}] to [{joined(spec.upper)}]"),
        ("mean", joined(spec.mean)),
        ("std", joined(spec.std)),
        ("layout", f"{layout(spec.probe_layout)} to {layout(spec.model_layout)}"),
        ("channels", "reversed" if spec.channel_order == v1.CHANNEL_ORDER_REVERSED else ""),
    ]


def _environment(source: v1.Provenance) -> list[tuple[str, str]]:
    return [
        ("seed", str(source.seed)),
        ("device", f"{source.device}, {source.machine}, {count(source.threads, 'thread')}"),
        ("software", ", ".join(f"{item.name} {item.version}" for item in source.software)),
        ("precision", ", ".join(source.precision)),
        ("providers", ", ".join(source.providers)),
    ]


def _run(report: v1.Report) -> list[tuple[str, str]]:
    execution = report.execution
    times = [
        (
            v1.Auditor.Name(row.auditor).removeprefix("AUDITOR_").lower(),
            f"{row.duration.ToTimedelta().total_seconds():,.1f} s in {count(row.shards, 'shard')}",
        )
        for row in execution.auditor_seconds
    ]
    return [
        ("report digest", report.digest),
        ("audit", execution.audit),
        ("started", moment(execution.start_time)),
        ("ended", moment(execution.end_time)),
        *times,
    ]


def moment(time: Timestamp) -> str:
    """A moment in UTC; empty where it is not set."""
    return f"{time.ToDatetime():%Y-%m-%d %H:%M:%S} UTC" if time.seconds else ""


def _blobs(report: v1.Report) -> list[tuple[str, str]]:
    rows = []
    for norm in report.distortion.norms:
        name = norm_name(norm.norm)
        rows.append((f"distortion {name}", norm.artefact))
        rows.append((f"distortion {name}, to train on", norm.training_set))
    rows += [
        (f"transfer {attack_name(row.attack)}", row.examples) for row in report.transfer.artefacts
    ]
    rows.append(("lipschitz", report.lipschitz.artefact))
    return [
        (name, f"{blob.sha256} ({bytes_text(blob.size_bytes)})")
        for name, blob in rows
        if blob.sha256
    ]
