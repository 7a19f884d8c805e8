"""Turns gRPC's errors and google.rpc.Status into this package's exceptions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, cast

import grpc
import grpc_status.rpc_status
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2

from onnx_audit import errors, v1

DOMAIN: Final = "onnx-audit"

_CLASSES: Final[dict[str, type[errors.ServiceError]]] = {
    "INVALID_ARGUMENT": errors.InvalidRequest,
    "OUT_OF_RANGE": errors.InvalidRequest,
    "NOT_FOUND": errors.NotFound,
    "ALREADY_EXISTS": errors.Conflict,
    "ABORTED": errors.Conflict,
    "FAILED_PRECONDITION": errors.FailedPrecondition,
    "UNIMPLEMENTED": errors.Unimplemented,
    "UNAVAILABLE": errors.Unavailable,
    "RESOURCE_EXHAUSTED": errors.ResourceExhausted,
    "UNAUTHENTICATED": errors.Unauthenticated,
    "PERMISSION_DENIED": errors.PermissionDenied,
    "DEADLINE_EXCEEDED": errors.DeadlineExceeded,
    "CANCELLED": errors.Cancelled,
    "DATA_LOSS": errors.DataLoss,
    "INTERNAL": errors.InternalError,
    "UNKNOWN": errors.InternalError,
}


@dataclass
class Details:
    """What the details of a google.rpc.Status say."""

    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    field_violations: list[errors.FieldViolation] = field(default_factory=list)
    retry_delay: float | None = None


def read_details(details: list[AnyMessage]) -> Details:
    """Reads ErrorInfo (of this service), BadRequest and RetryInfo; others are passed over."""
    found = Details()
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in details:
        if detail.Unpack(info) and info.domain == DOMAIN:
            found.reason, found.metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad_request):
            found.field_violations += [
                errors.FieldViolation(violation.field, violation.description)
                for violation in bad_request.field_violations
            ]
        elif detail.Unpack(retry):
            found.retry_delay = retry.retry_delay.ToTimedelta().total_seconds()
    return found


def service_error(code: str, message: str, details: Details | None = None) -> errors.ServiceError:
    """The exception for a status code's name."""
    details = details or Details()
    return _CLASSES.get(code, errors.ServiceError)(
        message,
        code=code,
        reason=details.reason,
        metadata=details.metadata,
        field_violations=details.field_violations,
        retry_delay=details.retry_delay,
    )


def from_rpc_error(error: grpc.RpcError) -> errors.ServiceError:
    """The exception for an error that a call of the synchronous or asynchronous API raised."""
    call = cast("grpc.Call", error)  # what gRPC raises quacks like one; the base class does not
    try:
        status = grpc_status.rpc_status.from_call(call)
    except ValueError:  # details that contradict the status line say nothing reliable
        status = None
    if status is None and call.code() is grpc.StatusCode.CANCELLED:
        # Not the service's answer but gRPC's, to a call that came while the server was stopping.
        return service_error("UNAVAILABLE", "the server was stopping")
    details = read_details(list(status.details)) if status is not None else None
    return service_error(call.code().name, call.details() or "no explanation given", details)


def require_success(audit: v1.Audit) -> v1.Audit:
    """Returns an audit that succeeded.

    Raises:
        AuditFailed: It failed.
        AuditCancelled: It was cancelled.
    """
    if audit.state == v1.AUDIT_STATE_FAILED:
        details = read_details(list(audit.error.details))
        raise errors.AuditFailed(audit, details.reason, details.metadata)
    if audit.state == v1.AUDIT_STATE_CANCELLED:
        raise errors.AuditCancelled(audit)
    return audit
