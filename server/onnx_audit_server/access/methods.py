"""The scope that each call of the gRPC API needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from onnx_audit_server.access.identity import Scope

OPEN: Final = ("/grpc.health.v1.Health/",)
"""Services that anybody may ask: what they say is no secret, and probes carry no credentials."""

_READ: Final = (
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/onnx_audit.v1.AuditService/CompareReports",
    "/onnx_audit.v1.AuditService/EvaluatePolicy",
    "/onnx_audit.v1.AuditService/GetAudit",
    "/onnx_audit.v1.AuditService/GetReport",
    "/onnx_audit.v1.AuditService/ListAudits",
    "/onnx_audit.v1.AuditService/RenderReport",
    "/onnx_audit.v1.AuditService/WatchAudit",
    "/onnx_audit.v1.BlobService/Read",
    "/onnx_audit.v1.ModelService/GetModel",
    "/onnx_audit.v1.ModelService/ListModels",
    "/onnx_audit.v1.ProbeSetService/GetProbeSet",
    "/onnx_audit.v1.ProbeSetService/ListProbeSets",
)
_SUBMIT: Final = (
    "/onnx_audit.v1.AuditService/CancelAudit",
    "/onnx_audit.v1.AuditService/CreateAudit",
    "/onnx_audit.v1.BlobService/FindMissing",
    "/onnx_audit.v1.BlobService/QueryWriteStatus",
    "/onnx_audit.v1.BlobService/Write",
    "/onnx_audit.v1.ModelService/CreateModel",
    "/onnx_audit.v1.ProbeSetService/CreateProbeSet",
)
SCOPES: Final[Mapping[str, Scope]] = {
    **dict.fromkeys(_READ, Scope.READ),
    **dict.fromkeys(_SUBMIT, Scope.SUBMIT),
}
"""Scopes by the method's full name; one that is not here needs ADMIN."""


def needed(method: str) -> Scope | None:
    """The scope that a method needs, None where anybody may call it."""
    return None if method.startswith(OPEN) else SCOPES.get(method, Scope.ADMIN)
