"""What can go wrong in an audit, as exceptions with a reason that clients can branch on."""

from __future__ import annotations

from typing import ClassVar


class AuditError(Exception):
    """An audit cannot go on; the message says what was found, what was expected, what to do.

    Attributes:
        reason: Name of the matching v1.ErrorReason, without its prefix.
        metadata: Details for machines, such as the node at fault.
    """

    reason: ClassVar[str]

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.metadata = metadata


class InvalidModel(AuditError):  # noqa: N818 - the names are part of the interface
    """Not a readable ONNX file, or one that breaks ONNX's rules."""

    reason = "INVALID_MODEL"


class UnsupportedOperator(AuditError):  # noqa: N818
    """The graph has operators that the network cannot form; the message lists all of them."""

    reason = "UNSUPPORTED_OPERATOR"


class LimitExceeded(AuditError):  # noqa: N818
    """The model is larger than a limit allows."""

    reason = "LIMIT_EXCEEDED"


class InvalidProbes(AuditError):  # noqa: N818
    """The probe set cannot be read, or holds what no audit can use."""

    reason = "INVALID_PROBES"


class ProbesDoNotFit(AuditError):  # noqa: N818
    """Probes, input spec and model do not go together."""

    reason = "PROBES_DO_NOT_FIT"


class InvalidConfig(AuditError):  # noqa: N818
    """A field of an auditor's configuration is out of range."""

    reason = "INVALID_FIELD"


class ParityFailed(AuditError):  # noqa: N818
    """The network does not give ONNX Runtime's answers."""

    reason = "PARITY_FAILED"


class ModelFailed(AuditError):  # noqa: N818
    """The model failed while it ran."""

    reason = "MODEL_FAILED"


class BoundsCrossed(AuditError):  # noqa: N818
    """A proved bound and a confirmed example contradict each other."""

    reason = "BOUNDS_CROSSED"
