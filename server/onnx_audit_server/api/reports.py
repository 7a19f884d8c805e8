"""What AuditService does with finished reports: policies, comparisons, documents."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.message import Message

from onnx_audit import v1
from onnx_audit_server.errors import ServiceError, invalid
from onnx_audit_server.reports import formats, policy
from onnx_audit_server.reports.sources import ReportSources
from onnx_audit_server.store.blobs import BlobStore


class ReportCalls:
    """Calls that read reports and compute nothing of them again."""

    def __init__(self, sources: ReportSources, blobs: BlobStore) -> None:
        self._sources = sources
        self._blobs = blobs

    def evaluate(self, request: v1.EvaluatePolicyRequest) -> v1.PolicyResult:
        """See AuditService.EvaluatePolicy."""
        check_policy(request.policy, "policy")
        if request.validate_only:
            return v1.PolicyResult()
        report = self._sources.required(request.name, _report(request, "report"), "name")
        baseline = self._sources.optional(
            request.baseline, _report(request, "baseline_report"), "baseline"
        )
        return policy.evaluate(request.policy, report, baseline, datetime.now(UTC))

    def compare(self, request: v1.CompareReportsRequest) -> v1.CompareReportsResponse:
        """See AuditService.CompareReports."""
        # Statistics take long to import, and a server that serves needs none.
        from onnx_audit_server.reports.compare import compare  # noqa: PLC0415

        baseline = self._sources.required(
            request.baseline, _report(request, "baseline_report"), "baseline"
        )
        candidate = self._sources.required(
            request.candidate, _report(request, "candidate_report"), "candidate"
        )
        return compare(baseline, candidate)

    def render(self, request: v1.RenderReportRequest) -> v1.RenderReportResponse:
        """See AuditService.RenderReport."""
        if request.format == v1.REPORT_FORMAT_UNSPECIFIED:
            raise invalid(("format", "is required"))
        if request.format not in formats.FORMATS:
            raise ServiceError("NOT_IMPLEMENTED", f"this server has no format {request.format}")
        if request.HasField("policy"):
            check_policy(request.policy, "policy")
        report = self._sources.required(request.name, _report(request, "report"), "name")
        audit = self._sources.audit(request.name)
        baseline = self._sources.optional(
            request.baseline, _report(request, "baseline_report"), "baseline"
        )
        if baseline is None and not request.HasField("policy"):
            baseline = self._sources.optional(audit.baseline, None, "baseline")
        result = audit.policy_result if audit.HasField("policy_result") else None
        if request.HasField("policy"):
            result = policy.evaluate(request.policy, report, baseline, datetime.now(UTC))
        try:
            return formats.render(request.format, report, result, baseline, self._blobs)
        except formats.BrokenReportError as error:
            raise invalid(("report", str(error))) from error


def check_policy(asked: v1.Policy, field: str) -> None:
    """Checks a policy of a request.

    Args:
        asked: The policy.
        field: The path of its field.

    Raises:
        ServiceError: It cannot be applied; every mistake is a violation of its own.
    """
    found = policy.check(asked)
    if found:
        raise invalid(*((f"{field}.{path}", text) for path, text in found))


def _report(request: Message, field: str) -> v1.Report | None:
    """The report in a field of a request, None where it is not set."""
    found = next((value for known, value in request.ListFields() if known.name == field), None)
    return found if isinstance(found, v1.Report) else None
