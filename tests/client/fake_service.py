"""A small onnx-audit service in this process, with faults on demand."""

# The schema gives gRPC's methods their names and says what they do.
# ruff: noqa: N802, D102

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from concurrent import futures
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from onnx_audit import v1
from onnx_audit.v1 import audit_pb2_grpc, blob_pb2_grpc, model_pb2_grpc, probe_set_pb2_grpc


def rich_status(
    code: grpc.StatusCode,
    message: str,
    *,
    reason: str = "",
    metadata: dict[str, str] | None = None,
    fields: dict[str, str] | None = None,
    retry_seconds: float | None = None,
) -> status_pb2.Status:
    """A google.rpc.Status as the service sends it."""
    details: list[Message] = []
    if reason:
        details.append(
            error_details_pb2.ErrorInfo(reason=reason, domain="onnx-audit", metadata=metadata or {})
        )
    if fields:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=field, description=text)
                    for field, text in fields.items()
                ]
            )
        )
    if retry_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromMicroseconds(round(retry_seconds * 1e6))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        box = any_pb2.Any()
        box.Pack(detail)
        packed.append(box)
    number: Any = code.value
    return status_pb2.Status(code=number[0], message=message, details=packed)


UNAVAILABLE = rich_status(grpc.StatusCode.UNAVAILABLE, "going away", reason="DRAINING")


def fail(context: grpc.ServicerContext, status: status_pb2.Status) -> NoReturn:
    """Ends a call with a status."""
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError


class FakeService(
    blob_pb2_grpc.BlobServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
    probe_set_pb2_grpc.ProbeSetServiceServicer,
    audit_pb2_grpc.AuditServiceServicer,
):
    """Keeps everything in memory; audits end at once, with the events that a test gives them.

    Attributes:
        faults: Per method, errors that its next calls end with; None lets a call through.
        calls: Names of the methods called, in order.
        break_write_after: Bytes after which each of the next writes breaks off.
        break_read_after: Bytes after which each of the next reads breaks off.
        events_per_watch: Events after which each of the next watches breaks off.
        failure: If set, why the audits fail.
        result: What policies say of reports.
        comparison: What reports have in common.
    """

    def __init__(self) -> None:
        self.faults: dict[str, list[status_pb2.Status | None]] = {}
        self.calls: list[str] = []
        self.requests: list[Message] = []
        self.write_offsets: list[int] = []
        self.chunk_sizes: list[int] = []
        self.break_write_after: list[int] = []
        self.break_read_after: list[int] = []
        self.events_per_watch: list[int] = []
        self.blobs: dict[str, bytes] = {}
        self.partial: dict[str, bytearray] = {}
        self.models: dict[str, v1.Model] = {}
        self.sets: dict[str, v1.ProbeSet] = {}
        self.by_request_id: dict[str, v1.Audit] = {}
        self.audits: dict[str, v1.Audit] = {}
        self.events: list[v1.AuditEvent] = []
        self.reports: dict[str, v1.Report] = {}
        self.page = 2
        self.lose_responses = False
        self.failure: status_pb2.Status | None = None
        self.result = v1.PolicyResult()
        self.comparison = v1.CompareReportsResponse()

    def enter(self, method: str, request: Message, context: grpc.ServicerContext) -> None:
        """Records a call and ends it with the next planned fault, if there is one."""
        self.calls.append(method)
        self.requests.append(request)
        planned = self.faults.get(method)
        fault = planned.pop(0) if planned else None
        if fault is not None:
            fail(context, fault)

    def FindMissing(
        self, request: v1.FindMissingRequest, context: grpc.ServicerContext
    ) -> v1.FindMissingResponse:
        self.enter("FindMissing", request, context)
        return v1.FindMissingResponse(
            missing_sha256=[digest for digest in request.sha256 if digest not in self.blobs]
        )

    def QueryWriteStatus(
        self, request: v1.QueryWriteStatusRequest, context: grpc.ServicerContext
    ) -> v1.QueryWriteStatusResponse:
        self.enter("QueryWriteStatus", request, context)
        if request.sha256 in self.blobs:
            size = len(self.blobs[request.sha256])
            return v1.QueryWriteStatusResponse(committed_size=size, complete=True)
        return v1.QueryWriteStatusResponse(
            committed_size=len(self.partial.get(request.sha256, b""))
        )

    def Write(
        self, request_iterator: Iterator[v1.WriteRequest], context: grpc.ServicerContext
    ) -> v1.WriteResponse:
        limit = self.break_write_after.pop(0) if self.break_write_after else None
        digest, received, first = "", 0, True
        for request in request_iterator:
            if first:
                self.enter("Write", v1.WriteRequest(sha256=request.sha256), context)
                digest, first = request.sha256, False
                self.write_offsets.append(request.write_offset)
            stored = self.partial.setdefault(digest, bytearray())
            if request.write_offset != len(stored):
                status = rich_status(
                    grpc.StatusCode.OUT_OF_RANGE,
                    f"expected offset {len(stored)}",
                    reason="WRITE_OFFSET_MISMATCH",
                )
                fail(context, status)
            self.chunk_sizes.append(len(request.data))
            stored += request.data
            received += len(request.data)
            if limit is not None and received >= limit:
                fail(context, UNAVAILABLE)
            if request.finish_write:
                content = bytes(self.partial.pop(digest))
                if hashlib.sha256(content).hexdigest() != digest:
                    status = rich_status(
                        grpc.StatusCode.INVALID_ARGUMENT, "not the bytes", reason="DIGEST_MISMATCH"
                    )
                    fail(context, status)
                self.blobs[digest] = content
                return v1.WriteResponse(committed_size=len(content), complete=True)
        return v1.WriteResponse(committed_size=received)

    def Read(
        self, request: v1.ReadRequest, context: grpc.ServicerContext
    ) -> Iterator[v1.ReadResponse]:
        self.enter("Read", request, context)
        limit = self.break_read_after.pop(0) if self.break_read_after else None
        content = self.blobs[request.sha256][request.read_offset :]
        for start in range(0, len(content), 1000):
            if limit is not None and start >= limit:
                fail(context, UNAVAILABLE)
            yield v1.ReadResponse(data=content[start : start + 1000])

    def CreateModel(
        self, request: v1.CreateModelRequest, context: grpc.ServicerContext
    ) -> v1.Model:
        self.enter("CreateModel", request, context)
        model = v1.Model()
        model.CopyFrom(request.model)
        model.name = f"models/{model.onnx_file.sha256}"
        self.models[model.name] = model
        return model

    def ListModels(
        self, request: v1.ListModelsRequest, context: grpc.ServicerContext
    ) -> v1.ListModelsResponse:
        self.enter("ListModels", request, context)
        rows, token = self.paged(list(self.models.values()), request.page_token)
        return v1.ListModelsResponse(models=rows, next_page_token=token)

    def CreateProbeSet(
        self, request: v1.CreateProbeSetRequest, context: grpc.ServicerContext
    ) -> v1.ProbeSet:
        self.enter("CreateProbeSet", request, context)
        probe_set = v1.ProbeSet()
        probe_set.CopyFrom(request.probe_set)
        probe_set.name = f"probes/{probe_set.sha256}"
        self.sets[probe_set.name] = probe_set
        return probe_set

    def ListProbeSets(
        self, request: v1.ListProbeSetsRequest, context: grpc.ServicerContext
    ) -> v1.ListProbeSetsResponse:
        self.enter("ListProbeSets", request, context)
        rows, token = self.paged(list(self.sets.values()), request.page_token)
        return v1.ListProbeSetsResponse(probe_sets=rows, next_page_token=token)

    def paged(self, rows: list[Any], token: str) -> tuple[list[Any], str]:
        """One page of rows and the token of the next one."""
        start = int(token or 0)
        end = start + self.page
        return rows[start:end], str(end) if end < len(rows) else ""

    def CreateAudit(
        self, request: v1.CreateAuditRequest, context: grpc.ServicerContext
    ) -> v1.Audit:
        lost = self.lose_responses and request.request_id not in self.by_request_id
        if request.request_id not in self.by_request_id:
            audit = v1.Audit()
            audit.CopyFrom(request.audit)
            audit.name = f"audits/{len(self.audits) + 1}"
            audit.state = v1.AUDIT_STATE_SUCCEEDED
            audit.last_sequence = len(self.events)
            if audit.HasField("policy"):
                audit.policy_result.CopyFrom(self.result)
            if self.failure is not None:
                audit.state = v1.AUDIT_STATE_FAILED
                audit.error.CopyFrom(self.failure)
            self.by_request_id[request.request_id] = self.audits[audit.name] = audit
        self.enter("CreateAudit", request, context)
        if lost:
            fail(context, UNAVAILABLE)
        return self.by_request_id[request.request_id]

    def GetAudit(self, request: v1.GetAuditRequest, context: grpc.ServicerContext) -> v1.Audit:
        self.enter("GetAudit", request, context)
        return self.found(request.name, context)

    def found(self, name: str, context: grpc.ServicerContext) -> v1.Audit:
        """An audit by name, or NOT_FOUND."""
        if name not in self.audits:
            status = rich_status(
                grpc.StatusCode.NOT_FOUND,
                f"there is no {name}",
                reason="NOT_FOUND",
                metadata={"resource": name},
            )
            fail(context, status)
        return self.audits[name]

    def ListAudits(
        self, request: v1.ListAuditsRequest, context: grpc.ServicerContext
    ) -> v1.ListAuditsResponse:
        self.enter("ListAudits", request, context)
        rows, token = self.paged(list(self.audits.values()), request.page_token)
        return v1.ListAuditsResponse(audits=rows, next_page_token=token)

    def CancelAudit(
        self, request: v1.CancelAuditRequest, context: grpc.ServicerContext
    ) -> v1.Audit:
        self.enter("CancelAudit", request, context)
        audit = self.found(request.name, context)
        audit.state = v1.AUDIT_STATE_CANCELLED
        return audit

    def WatchAudit(
        self, request: v1.WatchAuditRequest, context: grpc.ServicerContext
    ) -> Iterator[v1.AuditEvent]:
        self.enter("WatchAudit", request, context)
        self.found(request.name, context)
        limit = self.events_per_watch.pop(0) if self.events_per_watch else len(self.events)
        # A repeated event, as a careless service might send it after a resumption.
        following = [
            event for event in self.events if event.sequence >= max(1, request.after_sequence)
        ]
        for sent, event in enumerate(following):
            if sent == limit:
                fail(context, UNAVAILABLE)
            yield event

    def GetReport(self, request: v1.GetReportRequest, context: grpc.ServicerContext) -> v1.Report:
        self.enter("GetReport", request, context)
        return self.reports.get(request.name, v1.Report())

    def GetModel(self, request: v1.GetModelRequest, context: grpc.ServicerContext) -> v1.Model:
        self.enter("GetModel", request, context)
        return self.models[request.name]

    def GetProbeSet(
        self, request: v1.GetProbeSetRequest, context: grpc.ServicerContext
    ) -> v1.ProbeSet:
        self.enter("GetProbeSet", request, context)
        return self.sets[request.name]

    def RenderReport(
        self, request: v1.RenderReportRequest, context: grpc.ServicerContext
    ) -> v1.RenderReportResponse:
        self.enter("RenderReport", request, context)
        return v1.RenderReportResponse(content=v1.ReportFormat.Name(request.format).encode())

    def CompareReports(
        self, request: v1.CompareReportsRequest, context: grpc.ServicerContext
    ) -> v1.CompareReportsResponse:
        self.enter("CompareReports", request, context)
        return self.comparison

    def EvaluatePolicy(
        self, request: v1.EvaluatePolicyRequest, context: grpc.ServicerContext
    ) -> v1.PolicyResult:
        self.enter("EvaluatePolicy", request, context)
        return v1.PolicyResult() if request.validate_only else self.result


@contextlib.contextmanager
def serving(service: FakeService, port: int = 0) -> Iterator[str]:
    """Serves on a local port and yields the address."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    blob_pb2_grpc.add_BlobServiceServicer_to_server(service, server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
    probe_set_pb2_grpc.add_ProbeSetServiceServicer_to_server(service, server)
    audit_pb2_grpc.add_AuditServiceServicer_to_server(service, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        server.stop(0).wait()
