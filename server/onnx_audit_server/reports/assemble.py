"""Puts a report together and gives it the digest that says whether two reports are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from google.protobuf import json_format
from google.protobuf.message import Message

from onnx_audit import v1


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
