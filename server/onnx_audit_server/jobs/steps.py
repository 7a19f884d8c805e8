"""The steps of an audit's course: what they read and write of it.

Each may run again after a crash, so each changes nothing the second time.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

import structlog
from google.rpc import status_pb2

from onnx_audit import v1
from onnx_audit_server import logs, metrics, tracing
from onnx_audit_server.errors import ServiceError
from onnx_audit_server.jobs import reuse
from onnx_audit_server.reports import assemble, policy
from onnx_audit_server.reports.sources import ReportSources
from onnx_audit_server.store.blobs import BlobStore
from onnx_audit_server.store.clock import now_us
from onnx_audit_server.store.records import ENDED, Records, now, state_changed
from onnx_auditors.errors import AuditError

log = logs.get(__name__)


class AuditSteps:
    """Carries out steps; what goes in and out is text, as the queue keeps it."""

    def __init__(self, records: Records, blobs: BlobStore, sections: reuse.StoredSections) -> None:
        self._records = records
        self._blobs = blobs
        self._sections = sections

    def bind_trace(self, identifier: str) -> None:
        """Makes the log lines that follow carry the audit and its trace."""
        structlog.contextvars.clear_contextvars()
        audit = self._records.get_audit(identifier)
        if audit is not None and (trace := tracing.parse(audit.traceparent)) is not None:
            tracing.bind(trace)

    def begin(self, identifier: str) -> bool:
        """Marks an audit as running; says whether it is to run at all."""

        def change(audit: v1.Audit) -> list[v1.AuditEvent]:
            if audit.state != v1.AUDIT_STATE_QUEUED:
                return []
            audit.state = v1.AUDIT_STATE_RUNNING
            audit.start_time.CopyFrom(now())
            return [state_changed(audit)]

        audit = self._records.update_audit(identifier, change)
        if audit.state in ENDED:
            return False
        timeout = audit.timeout.ToNanoseconds() / 1e9
        self._records.set_expiry(identifier, now_us() + round(timeout * 1e6))
        waited = audit.start_time.ToNanoseconds() - audit.create_time.ToNanoseconds()
        metrics.QUEUE_WAIT_SECONDS.observe(waited / 1e9)
        tracing.start(
            "queue",
            tracing.parse(audit.traceparent),
            "PRODUCER",
            {"onnx_audit.audit": identifier},
            start_ns=audit.create_time.ToNanoseconds(),
        ).end()
        log.info("audit started", audit=identifier)
        return True

    def reuse(self, identifier: str, plan_blob: str) -> str:
        """Finds the sections that need not be computed; what is found stays so for this audit."""
        audit = self._known(identifier)
        if audit.fresh:
            return reuse.encode({})
        found = self._sections.find(audit, self._plan(plan_blob))
        for auditor, stored in found.items():
            metrics.SECTIONS_REUSED.labels(metrics.auditor_label(auditor)).inc()
            log.info("section reused", audit=identifier, computed_by=stored.audit)
        return reuse.encode(found)

    def announce(self, identifier: str, plan_blob: str, found_text: str) -> str:
        """Tells watchers of the plan and of the sections found; returns the shards by auditor."""
        plan, found = self._plan(plan_blob), reuse.decode(found_text)
        total = sum(part.shards for part in plan.plans)

        def change(audit: v1.Audit) -> list[v1.AuditEvent]:
            if audit.progress.shards_total:
                return []
            audit.progress.shards_total = total
            audit.progress.shards_done = sum(
                part.shards for part in plan.plans if part.auditor in found
            )
            events = [v1.AuditEvent(plan_ready=v1.AuditEvent.PlanReady(auditors=plan.plans))]
            for auditor, stored in found.items():
                ready = v1.AuditEvent.SectionReady(auditor=auditor, reused_from=stored.audit)
                events.append(v1.AuditEvent(section_ready=ready))
            return events

        self._records.update_audit(identifier, change)
        return json.dumps([[part.auditor, part.shards] for part in plan.plans])

    def section_ready(self, identifier: str, plan_blob: str, text: str) -> None:
        """Keeps a section for later audits and tells watchers of it."""
        auditor, section, partials = json.loads(text)
        audit, plan = self._known(identifier), self._plan(plan_blob)
        self._sections.keep(audit, plan, auditor, section, partials)
        ready = v1.AuditEvent(section_ready=v1.AuditEvent.SectionReady(auditor=auditor))
        self._records.settle(identifier, f"section {auditor}", section, lambda _: [ready])

    def _known(self, identifier: str) -> v1.Audit:
        audit = self._records.get_audit(identifier)
        assert audit is not None  # noqa: S101 - none is removed before its end
        return audit

    def _plan(self, blob: str) -> v1.AuditPlan:
        return v1.AuditPlan.FromString(self._blobs.get(blob))

    def report(self, identifier: str, text: str) -> str:
        """Publishes the report; returns a status in hexadecimal if its sections do not agree."""
        parts = json.loads(text)
        audit = self._known(identifier)
        model = self._records.get_model(audit.model.partition("/")[2])
        probes = self._records.get_probe_set(audit.probe_set.partition("/")[2])
        assert model is not None  # noqa: S101 - CreateAudit has seen both
        assert probes is not None  # noqa: S101
        seconds = {
            v1.Auditor.ValueType(int(auditor)): times for auditor, times in parts["seconds"].items()
        }
        taken_over = {kind: stored.audit for kind, stored in reuse.decode(parts["reused"]).items()}
        execution = assemble.execution(audit, model, now(), seconds, taken_over)
        try:
            report = assemble.report(
                audit,
                model.summary,
                probes.summary,
                self._plan(parts["plan"]),
                [v1.SectionResult.FromString(self._blobs.get(blob)) for blob in parts["sections"]],
                execution,
            )
        except AuditError as error:
            failed = ServiceError(error.reason, str(error), metadata=error.metadata)
            contradiction: str = failed.status.SerializeToString().hex()
            return contradiction
        blob = self._blobs.put(assemble.to_json(report), "application/json")
        result = self._apply_policy(audit, report)

        def change(audit: v1.Audit) -> list[v1.AuditEvent]:
            if audit.state == v1.AUDIT_STATE_CANCELLING:
                audit.state = v1.AUDIT_STATE_CANCELLED
            else:
                audit.state = v1.AUDIT_STATE_SUCCEEDED
                audit.report_digest = report.digest
                if result is not None:
                    audit.policy_result.CopyFrom(result)
                    audit.verdict = result.verdict
            audit.end_time.CopyFrom(now())
            return [state_changed(audit)]

        self._count_end(self._records.end_audit(identifier, change, blob.sha256))
        return ""

    def _apply_policy(self, audit: v1.Audit, report: v1.Report) -> v1.PolicyResult | None:
        if not audit.HasField("policy"):
            return None
        sources = ReportSources(self._records, self._blobs)
        baseline = sources.optional(audit.baseline, None, "baseline")
        return policy.evaluate(audit.policy, report, baseline, datetime.now(UTC))

    def end(self, identifier: str, status_hex: str) -> None:
        """Ends an audit that did not come to its report; its other shards stop too."""
        status = status_pb2.Status.FromString(bytes.fromhex(status_hex))
        self._records.request_stop(identifier, status)

        def change(audit: v1.Audit) -> list[v1.AuditEvent]:
            if audit.state == v1.AUDIT_STATE_CANCELLING:
                audit.state = v1.AUDIT_STATE_CANCELLED
            else:
                audit.state = v1.AUDIT_STATE_FAILED
                audit.error.CopyFrom(status)
            audit.end_time.CopyFrom(now())
            return [state_changed(audit)]

        self._count_end(self._records.end_audit(identifier, change))

    def _count_end(self, audit: v1.Audit | None) -> None:
        if audit is None:
            return
        state, verdict = metrics.state_label(audit.state), metrics.verdict_label(audit.verdict)
        metrics.AUDITS_ENDED.labels(state, verdict).inc()
        took = audit.end_time.ToNanoseconds() - audit.start_time.ToNanoseconds()
        metrics.AUDIT_SECONDS.labels(state).observe(took / 1e9)
        log.info("audit ended", audit=audit.name.partition("/")[2], state=state)
