"""Puts a report together and gives it the digest that says whether two reports are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from google.protobuf import duration_pb2, json_format, timestamp_pb2
from google.protobuf.message import Message

from onnx_audit import v1


def execution(
    audit: v1.Audit,
    model: v1.Model,
    end_time: timestamp_pb2.Timestamp,
    seconds: Mapping[v1.Auditor.ValueType, Sequence[float]],
    reused: Mapping[v1.Auditor.ValueType, str],
) -> v1.Execution:
    """Says how an audit went.

    Args:
        audit: The audit.
        model: Its model.
        end_time: When the report is made.
        seconds: Time of each shard of the auditors that have run.
        reused: The audits that computed the sections of the others.
    """
    result = v1.Execution(
        audit=audit.name,
        model_display_name=model.display_name,
        start_time=audit.start_time,
        end_time=end_time,
    )
    for auditor, times in seconds.items():
        duration = duration_pb2.Duration()
        duration.FromNanoseconds(round(sum(times) * 1e9))
        result.auditor_seconds.add(
            auditor=auditor, shards=len(times), duration=duration, shard_seconds=times
        )
    for auditor, name in reused.items():
        result.auditor_seconds.add(auditor=auditor, reused_from=name)
    return result


def report(
    audit: v1.Audit,
    model: v1.ModelSummary,
    probes: v1.ProbeSummary,
    plan: v1.AuditPlan,
    sections: Sequence[v1.SectionResult],
    execution: v1.Execution,
) -> v1.Report:
    """Joins everything that is known of a finished audit.

    Raises:
        AuditError: Two sections contradict each other.
    """
    # Statistics take long to import, and a server that serves needs none.
    from onnx_auditors import sandwich  # noqa: PLC0415

    result = v1.Report(
        execution=execution,
        provenance=plan.provenance,
        model=model,
        probes=probes,
        input_spec=audit.input_spec,
        parity=plan.parity,
        warnings=plan.warnings,
        linear_head=plan.linear_head if plan.HasField("linear_head") else None,
    )
    for section in sections:
        name = section.WhichOneof("section")
        assert name is not None  # noqa: S101 - merges always fill it
        getattr(result, name).CopyFrom(getattr(section, name))
        result.warnings.extend(section.warnings)
    if result.HasField("distortion") and result.HasField("lipschitz"):
        sandwich.join(result)
    result.digest = digest(result)
    return result


def digest(report: v1.Report) -> str:
    """SHA-256 of the canonical JSON of what the same job always gives, as v1.Report says."""
    stable = v1.Report()
    stable.CopyFrom(report)
    stable.ClearField("digest")
    stable.ClearField("execution")
    return hashlib.sha256(to_json(stable)).hexdigest()


def to_json(message: Message) -> bytes:
    """Canonical JSON: proto3 JSON, original field names, keys sorted, no white space."""
    fields = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def from_json(content: bytes) -> v1.Report:
    """The report that `to_json` wrote."""
    return json_format.Parse(content, v1.Report())
