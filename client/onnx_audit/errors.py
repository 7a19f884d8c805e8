"""What can go wrong, as exceptions: `OnnxAuditError` is the root of all of them.

A `ServiceError` is an answer of the service, with one subclass per kind of answer; the others are
problems that the client finds itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx_audit import v1


class OnnxAuditError(Exception):
    """Anything that this package raises on purpose."""


@dataclass(frozen=True)
class FieldViolation:
    """A request field that the service did not accept.

    Attributes:
        field: Path of the field, such as "audit.auditors.distortion.budget".
        description: What is wrong with it.
    """

    field: str
    description: str


class ServiceError(OnnxAuditError):
    """The service answered with an error.

    Attributes:
        code: Name of the gRPC status code, such as "NOT_FOUND".
        reason: Stable name of the cause (a `v1.ErrorReason` without its prefix); empty where the
            error did not come from onnx-audit itself, such as a refused connection.
        message: The service's explanation.
        metadata: Details for machines.
        field_violations: The fields at fault, for an invalid request.
        retry_delay: Seconds after which the service asks to try again, if it said so.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        field_violations: Sequence[FieldViolation] = (),
        retry_delay: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.field_violations = tuple(field_violations)
        self.retry_delay = retry_delay

    def __str__(self) -> str:
        cause = f" ({self.reason})" if self.reason not in ("", self.code) else ""
        label = f"{self.code}{cause}"
        # The message usually names the fields already; repeat only what it leaves out.
        fields = [
            f"{violation.field}: {violation.description}"
            for violation in self.field_violations
            if violation.description not in self.message
        ]
        return "\n  ".join([f"{label}: {self.message}", *fields])


class InvalidRequest(ServiceError):  # noqa: N818 - the names are those of the answers
    """The request is malformed or out of range (INVALID_ARGUMENT, OUT_OF_RANGE)."""


class NotFound(ServiceError):  # noqa: N818
    """The resource does not exist (NOT_FOUND)."""


class Conflict(ServiceError):  # noqa: N818
    """It exists already, or someone else changed it meanwhile (ALREADY_EXISTS, ABORTED)."""


class FailedPrecondition(ServiceError):  # noqa: N818
    """The resource is not in a state that allows the call (FAILED_PRECONDITION)."""


class Unimplemented(ServiceError):  # noqa: N818
    """This server does not offer the feature (UNIMPLEMENTED)."""


class Unavailable(ServiceError):  # noqa: N818
    """The service cannot be reached, or is shutting down (UNAVAILABLE)."""


class ResourceExhausted(ServiceError):  # noqa: N818
    """A limit is reached (RESOURCE_EXHAUSTED)."""


class Unauthenticated(ServiceError):  # noqa: N818
    """The service does not know who calls (UNAUTHENTICATED)."""


class PermissionDenied(ServiceError):  # noqa: N818
    """The caller may not do this (PERMISSION_DENIED)."""


class DeadlineExceeded(ServiceError):  # noqa: N818
    """The service did not answer in time (DEADLINE_EXCEEDED)."""


class Cancelled(ServiceError):  # noqa: N818
    """The call was cancelled (CANCELLED)."""


class DataLoss(ServiceError):  # noqa: N818
    """Stored bytes are damaged or gone, or downloaded bytes are not those asked for (DATA_LOSS)."""


class InternalError(ServiceError):
    """A fault of the service (INTERNAL, UNKNOWN)."""


class AuditFailed(OnnxAuditError):  # noqa: N818
    """The audit ended with an error.

    Attributes:
        audit: The audit, in state FAILED.
        reason: Stable name of the cause, such as "PARITY_FAILED".
        metadata: Details for machines.
    """

    def __init__(
        self, audit: v1.Audit, reason: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        label = f" ({reason})" if reason else ""
        super().__init__(f"{audit.name} failed{label}: {audit.error.message}")
        self.audit = audit
        self.reason = reason
        self.metadata = dict(metadata or {})


class AuditCancelled(OnnxAuditError):  # noqa: N818
    """The audit was cancelled.

    Attributes:
        audit: The audit, in state CANCELLED.
    """

    def __init__(self, audit: v1.Audit) -> None:
        super().__init__(f"{audit.name} was cancelled")
        self.audit = audit


class ProbeError(OnnxAuditError):
    """Probe inputs or labels on this machine cannot be used."""


class ModelFileError(OnnxAuditError):
    """A model file on this machine is missing or is not ONNX."""


class ConfigError(OnnxAuditError, ValueError):
    """An input spec, auditor name or auditor configuration is malformed."""
