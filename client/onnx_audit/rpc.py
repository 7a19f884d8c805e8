"""The service's calls as typed values, so that shared logic can name them without making them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from onnx_audit import v1
from onnx_audit.v1 import blob_pb2_grpc
from onnx_audit.v1.audit_pb2_grpc import AuditServiceStub
from onnx_audit.v1.model_pb2_grpc import ModelServiceStub
from onnx_audit.v1.probe_set_pb2_grpc import ProbeSetServiceStub

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

CHANNEL_OPTIONS: Final = (
    # Reports may have rows for thousands of probes.
    ("grpc.max_receive_message_length", 256 * 1024 * 1024),
    # gRPC's own waits between connection attempts grow to two minutes; ours are in RetryPolicy.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


@dataclass(frozen=True)
class Rpc(Generic[RequestT, ResponseT]):
    """One call of one gRPC service.

    Attributes:
        stub: Class of the generated stub.
        method: Name of the call.
        patience: Factor on the deadline, for calls in which the service reads whole files.
    """

    stub: type[Any]
    method: str
    patience: float = 1.0

    @property
    def span(self) -> str:
        """What a span of the call is named."""
        return f"{self.stub.__name__.removesuffix('Stub')}/{self.method}"


class BlobServiceStub(blob_pb2_grpc.BlobServiceStub):
    """The generated stub, but that Write takes messages which are serialised already."""

    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None:
        """Opens the stub on a channel of either kind."""
        super().__init__(channel)  # type: ignore[call-arg] # its types have a __new__
        self.Write: Any = channel.stream_unary(
            "/onnx_audit.v1.BlobService/Write",
            request_serializer=None,
            response_deserializer=v1.WriteResponse.FromString,
        )


FIND_MISSING = Rpc[v1.FindMissingRequest, v1.FindMissingResponse](BlobServiceStub, "FindMissing")
QUERY_WRITE_STATUS = Rpc[v1.QueryWriteStatusRequest, v1.QueryWriteStatusResponse](
    BlobServiceStub, "QueryWriteStatus"
)
WRITE = Rpc[Any, v1.WriteResponse](BlobServiceStub, "Write")
READ = Rpc[v1.ReadRequest, v1.ReadResponse](BlobServiceStub, "Read")
CREATE_MODEL = Rpc[v1.CreateModelRequest, v1.Model](ModelServiceStub, "CreateModel", patience=10)
LIST_MODELS = Rpc[v1.ListModelsRequest, v1.ListModelsResponse](ModelServiceStub, "ListModels")
CREATE_PROBE_SET = Rpc[v1.CreateProbeSetRequest, v1.ProbeSet](
    ProbeSetServiceStub, "CreateProbeSet", patience=10
)
LIST_PROBE_SETS = Rpc[v1.ListProbeSetsRequest, v1.ListProbeSetsResponse](
    ProbeSetServiceStub, "ListProbeSets"
)
CREATE_AUDIT = Rpc[v1.CreateAuditRequest, v1.Audit](AuditServiceStub, "CreateAudit", patience=10)
GET_AUDIT = Rpc[v1.GetAuditRequest, v1.Audit](AuditServiceStub, "GetAudit")
LIST_AUDITS = Rpc[v1.ListAuditsRequest, v1.ListAuditsResponse](AuditServiceStub, "ListAudits")
CANCEL_AUDIT = Rpc[v1.CancelAuditRequest, v1.Audit](AuditServiceStub, "CancelAudit")
WATCH_AUDIT = Rpc[v1.WatchAuditRequest, v1.AuditEvent](AuditServiceStub, "WatchAudit")
GET_REPORT = Rpc[v1.GetReportRequest, v1.Report](AuditServiceStub, "GetReport")
RENDER_REPORT = Rpc[v1.RenderReportRequest, v1.RenderReportResponse](
    AuditServiceStub, "RenderReport", patience=10
)
COMPARE_REPORTS = Rpc[v1.CompareReportsRequest, v1.CompareReportsResponse](
    AuditServiceStub, "CompareReports", patience=10
)
EVALUATE_POLICY = Rpc[v1.EvaluatePolicyRequest, v1.PolicyResult](
    AuditServiceStub, "EvaluatePolicy", patience=10
)
