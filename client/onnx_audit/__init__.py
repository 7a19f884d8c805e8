"""Client of the onnx-audit service: `Client`, `AsyncClient` and the messages under `v1`.

Names are imported when they are first asked for, so that `onnx_audit.v1` alone needs no gRPC.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx_audit import v1
    from onnx_audit.aio import AsyncClient
    from onnx_audit.client import Client
    from onnx_audit.errors import (
        AuditCancelled,
        AuditFailed,
        Cancelled,
        ConfigError,
        Conflict,
        DataLoss,
        DeadlineExceeded,
        FailedPrecondition,
        FieldViolation,
        InternalError,
        InvalidRequest,
        ModelFileError,
        NotFound,
        OnnxAuditError,
        PermissionDenied,
        ProbeError,
        ResourceExhausted,
        ServiceError,
        Unauthenticated,
        Unavailable,
        Unimplemented,
    )
    from onnx_audit.probes import Probes, load_probes
    from onnx_audit.retries import RetryPolicy
    from onnx_audit.version import __version__

__all__ = [
    "AsyncClient",
    "AuditCancelled",
    "AuditFailed",
    "Cancelled",
    "Client",
    "ConfigError",
    "Conflict",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FieldViolation",
    "InternalError",
    "InvalidRequest",
    "ModelFileError",
    "NotFound",
    "OnnxAuditError",
    "PermissionDenied",
    "ProbeError",
    "Probes",
    "ResourceExhausted",
    "RetryPolicy",
    "ServiceError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "__version__",
    "load_probes",
    "v1",
]

_MODULES = {
    "AsyncClient": "aio",
    "Client": "client",
    "Probes": "probes",
    "RetryPolicy": "retries",
    "__version__": "version",
    "load_probes": "probes",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "v1":
        return importlib.import_module("onnx_audit.v1")
    return getattr(importlib.import_module(f"onnx_audit.{_MODULES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
