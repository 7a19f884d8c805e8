"""Errors as the API gives them: a google.rpc.Status whose reason clients can branch on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "onnx-audit"

CODES: Mapping[str, grpc.StatusCode] = {
    "INVALID_FIELD": grpc.StatusCode.INVALID_ARGUMENT,
    "DIGEST_MISMATCH": grpc.StatusCode.INVALID_ARGUMENT,
    "WRITE_OFFSET_MISMATCH": grpc.StatusCode.OUT_OF_RANGE,
    "BLOB_TOO_LARGE": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "BLOB_MISSING": grpc.StatusCode.FAILED_PRECONDITION,
    "INVALID_MODEL": grpc.StatusCode.INVALID_ARGUMENT,
    "UNSUPPORTED_OPERATOR": grpc.StatusCode.INVALID_ARGUMENT,
    "LIMIT_EXCEEDED": grpc.StatusCode.INVALID_ARGUMENT,
    "INVALID_PROBES": grpc.StatusCode.INVALID_ARGUMENT,
    "PROBES_DO_NOT_FIT": grpc.StatusCode.INVALID_ARGUMENT,
    "NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "REQUEST_ID_REUSED": grpc.StatusCode.ALREADY_EXISTS,
    "WRONG_STATE": grpc.StatusCode.FAILED_PRECONDITION,
    "DRAINING": grpc.StatusCode.UNAVAILABLE,
    "NOT_IMPLEMENTED": grpc.StatusCode.UNIMPLEMENTED,
    "PARITY_FAILED": grpc.StatusCode.FAILED_PRECONDITION,
    "DEADLINE_EXCEEDED": grpc.StatusCode.DEADLINE_EXCEEDED,
    "RUNNER_DIED": grpc.StatusCode.INTERNAL,
    "MODEL_FAILED": grpc.StatusCode.FAILED_PRECONDITION,
    "INTERNAL": grpc.StatusCode.INTERNAL,
    "BUSY": grpc.StatusCode.UNAVAILABLE,
    "CANCELLED": grpc.StatusCode.CANCELLED,
    "BOUNDS_CROSSED": grpc.StatusCode.INTERNAL,
    "UNAUTHENTICATED": grpc.StatusCode.UNAUTHENTICATED,
    "PERMISSION_DENIED": grpc.StatusCode.PERMISSION_DENIED,
    "QUOTA_EXCEEDED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "STORE_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
}
"""The gRPC status of each reason, a v1.ErrorReason's name without its prefix."""


class ServiceError(Exception):
    """A request or an audit that cannot go on, with everything that its user should be told."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        violations: Iterable[tuple[str, str]] = (),
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Makes an error.

        Args:
            reason: A key of CODES.
            message: What was found, what is allowed, what to do.
            violations: Pairs of a request field's path and what is wrong with it.
            metadata: Details for machines.
            retry_after: Seconds after which the same request may succeed.
        """
        super().__init__(message)
        self.reason = reason if reason in CODES else "INTERNAL"
        self.violations = list(violations)
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code."""
        return CODES[self.reason]

    @property
    def status(self) -> status_pb2.Status:
        """The error as a message with its details."""
        status = status_pb2.Status(code=self.code.value[0], message=str(self))
        _attach(
            status,
            error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata),
        )
        if self.violations:
            fields = [
                error_details_pb2.BadRequest.FieldViolation(field=field, description=text)
                for field, text in self.violations
            ]
            _attach(status, error_details_pb2.BadRequest(field_violations=fields))
        if self.retry_after is not None:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(round(self.retry_after * 1e9))
            _attach(status, error_details_pb2.RetryInfo(retry_delay=delay))
        return status


def invalid(*violations: tuple[str, str]) -> ServiceError:
    """An INVALID_ARGUMENT that names each field at fault."""
    text = "; ".join(f"{field}: {description}" for field, description in violations)
    return ServiceError("INVALID_FIELD", text, violations=violations)


def _attach(status: status_pb2.Status, detail: Message) -> None:
    packed: any_pb2.Any = status.details.add()
    packed.Pack(detail)
