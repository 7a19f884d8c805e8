"""Calls about finished reports, given by name, as audits, or as the reports themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from onnx_audit import flows, rpc, v1
from onnx_audit.errors import InvalidRequest
from onnx_audit.flows import Flow
from onnx_audit.policies import LoadedPolicy, PolicyLike, as_loaded
from onnx_audit.requests import AuditLike, audit_name
from onnx_audit.retries import RetryPolicy

ReportLike: TypeAlias = v1.Report | AuditLike


def report_name(report: AuditLike) -> str:
    """The name of a report: that of an audit's, or of an uploaded one as it is."""
    if isinstance(report, str) and report.startswith("blobs/"):
        return report
    return f"{audit_name(report)}/report"


def evaluate(
    report: ReportLike | None,
    policy: PolicyLike,
    baseline: ReportLike | None,
    retries: RetryPolicy,
) -> Flow[v1.PolicyResult]:
    """Applies a policy; without a report, only checks it."""
    loaded = yield from flows.work(lambda: as_loaded(policy))
    request = v1.EvaluatePolicyRequest(policy=loaded.policy, validate_only=report is None)
    if isinstance(report, v1.Report):
        request.report.CopyFrom(report)
    elif report is not None:
        request.name = report_name(report)
    if isinstance(baseline, v1.Report):
        request.baseline_report.CopyFrom(baseline)
    elif baseline is not None:
        request.baseline = report_name(baseline)
    with explained(loaded):
        return (yield from flows.call(rpc.EVALUATE_POLICY, request, retries))


def compare(
    baseline: ReportLike, candidate: ReportLike, retries: RetryPolicy
) -> Flow[v1.CompareReportsResponse]:
    """Compares two reports."""
    request = v1.CompareReportsRequest()
    if isinstance(baseline, v1.Report):
        request.baseline_report.CopyFrom(baseline)
    else:
        request.baseline = report_name(baseline)
    if isinstance(candidate, v1.Report):
        request.candidate_report.CopyFrom(candidate)
    else:
        request.candidate = report_name(candidate)
    return (yield from flows.call(rpc.COMPARE_REPORTS, request, retries))


def render(
    report: ReportLike,
    form: v1.ReportFormat.ValueType,
    policy: PolicyLike | None,
    baseline: ReportLike | None,
    retries: RetryPolicy,
) -> Flow[v1.RenderReportResponse]:
    """Renders a report as a document."""
    loaded = None if policy is None else (yield from flows.work(lambda: as_loaded(policy)))
    request = v1.RenderReportRequest(format=form, policy=None if loaded is None else loaded.policy)
    if isinstance(report, v1.Report):
        request.report.CopyFrom(report)
    else:
        request.name = report_name(report)
    if isinstance(baseline, v1.Report):
        request.baseline_report.CopyFrom(baseline)
    elif baseline is not None:
        request.baseline = report_name(baseline)
    with explained(loaded):
        return (yield from flows.call(rpc.RENDER_REPORT, request, retries))


@contextmanager
def explained(policy: LoadedPolicy | None) -> Iterator[None]:
    """Turns what the service says of a policy into errors that name its lines.

    Raises:
        ConfigError: The policy is wrong.
    """
    try:
        yield
    except InvalidRequest as error:
        raise (error if policy is None else policy.explain(error)) from error
