"""What CreateAudit checks before it accepts: all that can be known without running a model."""

from __future__ import annotations

import math

from google.protobuf import duration_pb2
from google.protobuf.message import Message

from onnx_audit import v1
from onnx_audit_server.api import names
from onnx_audit_server.api.models import check_display_name
from onnx_audit_server.api.reports import check_policy
from onnx_audit_server.errors import ServiceError, invalid
from onnx_audit_server.reports.sources import ReportSources
from onnx_audit_server.store.blobs import BlobStore
from onnx_audit_server.store.records import Records
from onnx_auditors import configs, input_spec
from onnx_auditors.errors import AuditError, ProbesDoNotFit
from onnx_auditors.transfer import peer_spec

_DEFAULT = ("distortion", "lipschitz")
"""What an audit runs that names no auditor: what any classifier and any probes allow."""

_SECOND = 10**9
"""Nanoseconds."""


def check_audit(
    audit: v1.Audit,
    records: Records,
    blobs: BlobStore,
    sources: ReportSources,
    longest: float,
) -> None:
    """Checks a requested audit and fills in what it leaves out.

    Args:
        audit: The request's audit; changed in place.
        records: Where the model and the probe set must be.
        blobs: Where the arrays must be that the configuration names.
        sources: Where the baseline must be.
        longest: Most seconds that an audit may run, and the default.

    Raises:
        ServiceError: The audit cannot be accepted.
    """
    _clear_output(audit)
    check_display_name(audit.display_name, "audit.display_name")
    if audit.seed < 0:
        raise invalid(("audit.seed", f"{audit.seed} is negative"))
    _check_timeout(audit, longest)
    _check_auditors(audit)
    _check_enums(audit, "audit")
    _check_policy(audit, sources)
    _check_inputs(audit, records)
    if audit.auditors.HasField("units"):
        _check_unit_arrays(audit.auditors.units, records, blobs, audit)


def _clear_output(audit: v1.Audit) -> None:
    """Keeps what a request may say."""
    asked = v1.Audit(
        display_name=audit.display_name,
        model=audit.model,
        probe_set=audit.probe_set,
        input_spec=audit.input_spec,
        auditors=audit.auditors,
        seed=audit.seed,
        baseline=audit.baseline,
        fresh=audit.fresh,
    )
    if audit.HasField("timeout"):
        asked.timeout.CopyFrom(audit.timeout)
    if audit.HasField("linear_head"):
        asked.linear_head.CopyFrom(audit.linear_head)
    if audit.HasField("policy"):
        asked.policy.CopyFrom(audit.policy)
    audit.CopyFrom(asked)


def _check_enums(message: Message, path: str) -> None:
    """Refuses numbers that stand for nothing where there is a name for each that does.

    Raises:
        ServiceError: There is one, in the message or one within it.
    """
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        values = list(value) if field.is_repeated else [value]
        for i, each in enumerate(values):
            where = f"{path}.{field.name}" + (f"[{i}]" if field.is_repeated else "")
            if field.enum_type is not None and each not in field.enum_type.values_by_number:
                raise invalid((where, f"there is no {field.enum_type.name} {each}"))
            if field.message_type is not None:
                _check_enums(each, where)


def _check_timeout(audit: v1.Audit, longest: float) -> None:
    if not audit.HasField("timeout"):
        duration = duration_pb2.Duration()
        duration.FromNanoseconds(round(longest * 1e9))
        audit.timeout.CopyFrom(duration)
    if not 0 <= audit.timeout.nanos < _SECOND:
        text = f"{audit.timeout.nanos}; allowed is 0 to {_SECOND - 1:,}"
        raise invalid(("audit.timeout.nanos", text))
    seconds = audit.timeout.seconds + audit.timeout.nanos / 1e9
    if not 0 < seconds <= longest:
        text = f"{seconds:g} seconds; allowed is more than 0 and at most {longest:g}"
        raise invalid(("audit.timeout", text))


def _check_auditors(audit: v1.Audit) -> None:
    asked = [field.name for field, _ in audit.auditors.ListFields()]
    if not asked:
        for name in _DEFAULT:
            getattr(audit.auditors, name).SetInParent()
        return
    for name in asked:
        try:
            configs.check(getattr(audit.auditors, name))
        except AuditError as error:
            field = error.metadata.get("field", "")
            path = f"audit.auditors.{name}" + (f".{field}" if field else "")
            raise invalid((path, str(error))) from None


def _check_policy(audit: v1.Audit, sources: ReportSources) -> None:
    if audit.HasField("policy"):
        check_policy(audit.policy, "audit.policy")
    elif audit.baseline:
        raise invalid(("audit.baseline", "is given without a policy that compares with it"))
    sources.optional(audit.baseline, None, "audit.baseline")


def _check_inputs(audit: v1.Audit, records: Records) -> None:
    model_digest = names.parse(audit.model, "models", "audit.model")
    probes_digest = names.parse(audit.probe_set, "probes", "audit.probe_set")
    model = records.get_model(model_digest)
    probe_set = records.get_probe_set(probes_digest)
    for found, name, service in (
        (model, audit.model, "ModelService.CreateModel"),
        (probe_set, audit.probe_set, "ProbeSetService.CreateProbeSet"),
    ):
        if found is None:
            raise ServiceError(
                "BLOB_MISSING",
                f"{name} is not registered; upload it and call {service} first",
                metadata={"resource": name},
            )
    assert model is not None  # noqa: S101 - the loop above has raised
    assert probe_set is not None  # noqa: S101
    try:
        spec, notes = input_spec.resolve(audit.input_spec, model.summary, probe_set.summary)
    except ProbesDoNotFit as error:
        raise ServiceError(
            error.reason,
            str(error),
            violations=[(error.metadata.get("field", "audit.input_spec"), str(error))],
            metadata=error.metadata,
        ) from None
    if audit.HasField("linear_head"):
        _check_linear_head(audit.linear_head, probe_set.summary, "audit.linear_head")
    audit.input_spec.CopyFrom(spec)
    audit.input_spec_notes.extend(notes)
    if audit.auditors.HasField("transfer"):
        _check_peers(audit, model, probe_set, records)


def _check_peers(
    audit: v1.Audit, model: v1.Model, probe_set: v1.ProbeSet, records: Records
) -> None:
    """Checks the models to compare with, and fills in their names and tags as registered."""
    config = audit.auditors.transfer
    config.display_name = config.display_name or model.display_name
    if not config.tags:
        config.tags.update(model.tags)
    for i, peer in enumerate(config.peers):
        prefix = f"audit.auditors.transfer.peers[{i}]."
        digest = names.parse(peer.model, "models", f"{prefix}model")
        known = records.get_model(digest)
        if known is None:
            raise ServiceError(
                "BLOB_MISSING",
                f"{peer.model} is not registered; upload it and call ModelService.CreateModel "
                "first",
                metadata={"resource": peer.model},
            )
        peer.display_name = peer.display_name or known.display_name
        if not peer.tags:
            peer.tags.update(known.tags)
        if peer.HasField("linear_head"):
            _check_linear_head(peer.linear_head, probe_set.summary, f"{prefix}linear_head")
        try:
            peer_spec.resolve(
                peer, known.summary, probe_set.summary, audit.input_spec, f"peers[{i}]."
            )
        except AuditError as error:
            field = f"audit.auditors.transfer.{error.metadata.get('field', f'peers[{i}]')}"
            raise ServiceError(
                error.reason,
                str(error),
                violations=[(field, str(error))],
                metadata=error.metadata,
            ) from None


def _check_unit_arrays(
    config: v1.UnitsConfig, records: Records, blobs: BlobStore, audit: v1.Audit
) -> None:
    """Checks the arrays that `units` is given, as far as their headers tell, and its model."""
    from onnx_auditors import unit_arrays  # noqa: PLC0415 - numpy takes long to import

    prefix = "audit.auditors.units."
    probe_set = records.get_probe_set(audit.probe_set.partition("/")[2])
    assert probe_set is not None  # noqa: S101 - seen before
    for field, name in unit_arrays.named(config).items():
        digest = names.parse(name, "blobs", f"{prefix}{field}")
        blobs.hold(digest)
        try:
            with blobs.as_file(digest) as path:
                unit_arrays.opened(field, path, probe_set.summary.count)
        except FileNotFoundError:
            raise ServiceError(
                "BLOB_MISSING",
                f"{name} is not there; upload it with BlobService.Write first",
                metadata={"resource": name},
            ) from None
        except AuditError as error:
            raise invalid((f"{prefix}{field}", str(error))) from None
    if reference := config.embedding.model:
        if reference == audit.model:
            text = "is the audited model; another model is needed to say what lies close together"
            raise invalid((f"{prefix}embedding.model", text))
        if records.get_model(names.parse(reference, "models", f"{prefix}embedding.model")) is None:
            raise ServiceError(
                "BLOB_MISSING",
                f"{reference} is not registered; upload it and call ModelService.CreateModel first",
                metadata={"resource": reference},
            )


def _check_linear_head(head: v1.LinearHeadConfig, probes: v1.ProbeSummary, field: str) -> None:
    """Checks what a head is fitted with; whether the model has its value shows when it is read."""
    if head.method not in {
        v1.HEAD_METHOD_UNSPECIFIED,
        v1.HEAD_METHOD_RIDGE,
        v1.HEAD_METHOD_SOFTMAX,
    }:
        raise invalid((f"{field}.method", f"there is no method {head.method}"))
    if not 0 <= head.l2 < math.inf:
        text = f"{head.l2:g}; allowed are positive numbers, and 0 for the default"
        raise invalid((f"{field}.l2", text))
    if not probes.has_labels:
        text = "the probe set has no labels, on which the head is fitted; add them as 'labels'"
        raise invalid((field, text))
    if probes.min_label == probes.max_label:
        text = f"every probe has the label {probes.min_label}; a head needs two classes at least"
        raise invalid((field, text))
