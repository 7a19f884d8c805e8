"""The durable course of an audit: plan, shards, merge, report.

Every step's result is kept in the database, so a killed process's audits go on where they were.
"""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dbos import DBOS, DBOSConfig, SetWorkflowID, WorkflowHandle
from google.protobuf import duration_pb2
from google.rpc import status_pb2

from onnx_audit import v1
from onnx_audit_server import logs, metrics
from onnx_audit_server.errors import ServiceError
from onnx_audit_server.jobs.queue import (
    APPLICATION,
    AUDITS,
    SCHEMA,
    SERIALIZER,
    TASKS,
    VERSION,
    JobQueue,
)
from onnx_audit_server.jobs.tasks import HandedBack, Outcome, Task, TaskExecutor
from onnx_audit_server.reports import assemble, policy
from onnx_audit_server.reports.sources import ReportSources
from onnx_audit_server.settings import Settings
from onnx_audit_server.store.blobs import BlobStore
from onnx_audit_server.store.records import ENDED, Records, now, now_us, state_changed
from onnx_auditors.errors import AuditError
from onnx_auditors.registry import BUILDS_ON

if TYPE_CHECKING:
    from collections.abc import Callable

QUEUE_INTERVAL = 0.1
"""Seconds between two looks for work."""
RESULT_INTERVAL = 0.05
"""Seconds between two looks for a task's outcome."""
AUDITS_AT_ONCE = 32
"""Audits of one worker that are under way; most of them wait for their tasks."""

log = logs.get(__name__)


class AuditEndedEarly(Exception):  # noqa: N818 - a cancelled audit is not an error
    """A task ended with an error, a cancellation or out of time."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


class Worker:
    """Takes audits and tasks from the queue; one per process."""

    def __init__(
        self,
        settings: Settings,
        records: Records,
        blobs: BlobStore,
        queue: JobQueue,
        executor: TaskExecutor,
    ) -> None:
        self._settings = settings
        self._records = records
        self._blobs = blobs
        self._queue = queue
        self._executor = executor
        self._closing = False
        self._audit = DBOS.workflow(name="audit")(self._parking(self._run_audit))
        self._task = DBOS.workflow(name="task")(self._parking(self._run_task))

    def start(self) -> None:
        """Starts to take work, that which this worker left behind first."""
        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_url": self._settings.records_url,
            "dbos_system_schema": SCHEMA,
            "application_version": VERSION,
            "executor_id": self._settings.worker_name,
            "serializer": SERIALIZER,
            "log_level": "WARNING",
            "run_migrations": False,
            "notification_listener_polling_interval_sec": 0.5,
        }
        DBOS(config=config)
        DBOS.launch()
        for name, limit in ((AUDITS, AUDITS_AT_ONCE), (TASKS, self._settings.slots)):
            DBOS.register_queue(
                name,
                worker_concurrency=limit,
                polling_interval_sec=QUEUE_INTERVAL,
                on_conflict="always_update",
            )

    def drain(self) -> None:
        """Lets running shards finish, or hands them back, and everything else with them."""
        self._executor.drain(self._settings.drain_timeout)
        self._closing = True
        DBOS.destroy()
        # Only now: this worker would else take its own jobs again.
        handed_back = self._queue.hand_back(self._settings.worker_name)
        log.info("worker drained", handed_back=handed_back)

    def _parking(self, body: Callable[[str], str]) -> Callable[[str], str]:
        """Wraps a workflow so that handing back leaves no result: its thread just stands still.

        Whoever drains the worker re-enqueues the workflow and ends the process.
        """

        def workflow(argument: str) -> str:
            try:
                return body(argument)
            except HandedBack:
                threading.Event().wait()
                raise

        workflow.__qualname__ = f"onnx_audit.{body.__name__}"
        return workflow

    def _run_task(self, text: str) -> str:
        return self._executor.execute(Task(**json.loads(text))).to_json()

    def _run_audit(self, audit: str) -> str:
        try:
            if not DBOS.run_step({"name": "begin"}, self._begin, audit):
                return "cancelled"
            plan_blob = self._wait(self._enqueue(Task(audit, "plan"))).blob
            plans: str = DBOS.run_step({"name": "announce"}, self._announce, audit, plan_blob)
            sections, seconds = self._compute(audit, json.loads(plans))
            parts = {"plan": plan_blob, "sections": sections, "seconds": seconds}
            self._publish(audit, json.dumps(parts))
        except AuditEndedEarly as ended:
            self._end_step(audit, ended.status)
        except Exception:
            if self._closing:
                raise HandedBack from None
            log.exception("audit failed", audit=audit)
            fault = ServiceError("INTERNAL", "a fault of the service; its log has the details")
            self._end_step(audit, fault.status)
        self._executor.forget(audit)
        return "ended"

    def _compute(
        self, audit: str, plans: list[tuple[v1.Auditor.ValueType, int]]
    ) -> tuple[list[str], dict[str, list[float]]]:
        """Has all shards done, then each auditor's merge; returns section blobs and times.

        Shards that build on another auditor's wait for all of those.
        """
        shards: dict[v1.Auditor.ValueType, list[WorkflowHandle[str]]] = {}
        for auditor, count in sorted(plans, key=lambda plan: plan[0] in BUILDS_ON):
            earlier = shards.get(BUILDS_ON.get(auditor, v1.AUDITOR_UNSPECIFIED), [])
            before = [self._wait(handle).blob for handle in earlier]
            shards[auditor] = [
                self._enqueue(Task(audit, "shard", auditor, n, partials=before))
                for n in range(count)
            ]
        sections, seconds = [], {}
        for auditor, handles in shards.items():
            done = [self._wait(handle) for handle in handles]
            merge = Task(audit, "merge", auditor, partials=[outcome.blob for outcome in done])
            sections.append(self._wait(self._enqueue(merge)).blob)
            seconds[str(auditor)] = [outcome.seconds for outcome in done]
            DBOS.run_step({"name": "section"}, self._section_ready, audit, auditor)
        return sections, seconds

    def _enqueue(self, task: Task) -> WorkflowHandle[str]:
        with SetWorkflowID(task.key):
            return DBOS.enqueue_workflow(TASKS, self._task, task.to_json())

    def _wait(self, handle: WorkflowHandle[str]) -> Outcome:
        outcome = Outcome(**json.loads(handle.get_result(polling_interval_sec=RESULT_INTERVAL)))
        if outcome.error:
            raise AuditEndedEarly(outcome.status)
        return outcome

    def _publish(self, audit: str, parts: str) -> None:
        contradiction: str = DBOS.run_step({"name": "report"}, self._report, audit, parts)
        if contradiction:
            raise AuditEndedEarly(status_pb2.Status.FromString(bytes.fromhex(contradiction)))

    # Steps: each may run again after a crash, so each changes nothing the second time.

    def _begin(self, identifier: str) -> bool:
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
        log.info("audit started", audit=identifier)
        return True

    def _announce(self, identifier: str, plan_blob: str) -> str:
        plan = v1.AuditPlan.FromString(self._blobs.get(plan_blob))
        total = sum(part.shards for part in plan.plans)

        def change(audit: v1.Audit) -> list[v1.AuditEvent]:
            if audit.progress.shards_total:
                return []
            audit.progress.shards_total = total
            return [v1.AuditEvent(plan_ready=v1.AuditEvent.PlanReady(auditors=plan.plans))]

        self._records.update_audit(identifier, change)
        return json.dumps([[part.auditor, part.shards] for part in plan.plans])

    def _section_ready(self, identifier: str, auditor: v1.Auditor.ValueType) -> None:
        ready = v1.AuditEvent.SectionReady(auditor=auditor)
        self._records.append_events(identifier, [v1.AuditEvent(section_ready=ready)])

    def _report(self, identifier: str, text: str) -> str:
        """Publishes the report; returns a status in hexadecimal if its sections do not agree."""
        parts = json.loads(text)
        audit = self._records.get_audit(identifier)
        assert audit is not None  # noqa: S101 - audits are never removed
        model = self._records.get_model(audit.model.partition("/")[2])
        probes = self._records.get_probe_set(audit.probe_set.partition("/")[2])
        assert model is not None  # noqa: S101 - CreateAudit has seen both
        assert probes is not None  # noqa: S101
        execution = v1.Execution(
            audit=audit.name,
            model_display_name=model.display_name,
            start_time=audit.start_time,
            end_time=now(),
        )
        for auditor, times in parts["seconds"].items():
            duration = duration_pb2.Duration()
            duration.FromNanoseconds(round(sum(times) * 1e9))
            execution.auditor_seconds.add(
                auditor=v1.Auditor.ValueType(int(auditor)),
                shards=len(times),
                duration=duration,
                shard_seconds=times,
            )
        try:
            report = assemble.report(
                audit,
                model.summary,
                probes.summary,
                v1.AuditPlan.FromString(self._blobs.get(parts["plan"])),
                [v1.SectionResult.FromString(self._blobs.get(blob)) for blob in parts["sections"]],
                execution,
            )
        except AuditError as error:
            failed = ServiceError(error.reason, str(error), metadata=error.metadata)
            contradiction: str = failed.status.SerializeToString().hex()
            return contradiction
        blob = self._blobs.put(assemble.to_json(report), "application/json")
        self._records.set_report(identifier, blob.sha256)
        result = self._apply_policy(audit, report)

        def change(audit: v1.Audit) -> list[v1.AuditEvent]:
            if audit.state == v1.AUDIT_STATE_CANCELLING:
                audit.state = v1.AUDIT_STATE_CANCELLED
            elif audit.state == v1.AUDIT_STATE_RUNNING:
                audit.state = v1.AUDIT_STATE_SUCCEEDED
                audit.report_digest = report.digest
                if result is not None:
                    audit.policy_result.CopyFrom(result)
                    audit.verdict = result.verdict
            else:
                return []
            audit.end_time.CopyFrom(now())
            return [state_changed(audit)]

        self._count_end(self._records.update_audit(identifier, change))
        return ""

    def _apply_policy(self, audit: v1.Audit, report: v1.Report) -> v1.PolicyResult | None:
        if not audit.HasField("policy"):
            return None
        sources = ReportSources(self._records, self._blobs)
        baseline = sources.optional(audit.baseline, None, "baseline")
        return policy.evaluate(audit.policy, report, baseline, datetime.now(UTC))

    def _end_step(self, audit: str, status: status_pb2.Status) -> None:
        DBOS.run_step({"name": "end"}, self._end, audit, status.SerializeToString().hex())

    def _end(self, identifier: str, status_hex: str) -> None:
        """Ends an audit that did not come to its report; its other shards stop too."""
        status = status_pb2.Status.FromString(bytes.fromhex(status_hex))
        self._records.request_stop(identifier, status)

        def change(audit: v1.Audit) -> list[v1.AuditEvent]:
            if audit.state in ENDED:
                return []
            if audit.state == v1.AUDIT_STATE_CANCELLING:
                audit.state = v1.AUDIT_STATE_CANCELLED
            else:
                audit.state = v1.AUDIT_STATE_FAILED
                audit.error.CopyFrom(status)
            audit.end_time.CopyFrom(now())
            return [state_changed(audit)]

        self._count_end(self._records.update_audit(identifier, change))

    def _count_end(self, audit: v1.Audit) -> None:
        state, verdict = metrics.state_label(audit.state), metrics.verdict_label(audit.verdict)
        metrics.AUDITS_ENDED.labels(state, verdict).inc()
        log.info("audit ended", audit=audit.name.partition("/")[2], state=state)
