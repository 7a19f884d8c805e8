"""The durable course of an audit: plan, shards, merge, report.

Every step's result is kept in the database, so a killed process's audits go on where they were.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

from dbos import DBOS, DBOSConfig, SetWorkflowID, WorkflowHandle
from google.rpc import status_pb2

from onnx_audit import v1
from onnx_audit_server import logs
from onnx_audit_server.errors import ServiceError
from onnx_audit_server.jobs import reuse
from onnx_audit_server.jobs.queue import (
    APPLICATION,
    AUDITS,
    SCHEMA,
    SERIALIZER,
    TASKS,
    VERSION,
    JobQueue,
)
from onnx_audit_server.jobs.steps import AuditSteps
from onnx_audit_server.jobs.tasks import HandedBack, Outcome, Task, TaskExecutor
from onnx_audit_server.settings import Settings
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
        queue: JobQueue,
        executor: TaskExecutor,
        steps: AuditSteps,
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._executor = executor
        self._steps = steps
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
            if not DBOS.run_step({"name": "begin"}, self._steps.begin, audit):
                return "cancelled"
            plan_blob = self._wait(self._enqueue(Task(audit, "plan"))).blob
            found: str = DBOS.run_step({"name": "reuse"}, self._steps.reuse, audit, plan_blob)
            plans: str = DBOS.run_step(
                {"name": "announce"}, self._steps.announce, audit, plan_blob, found
            )
            sections, seconds = self._compute(
                audit, plan_blob, json.loads(plans), reuse.decode(found)
            )
            parts = {"plan": plan_blob, "sections": sections, "seconds": seconds, "reused": found}
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
        self,
        audit: str,
        plan_blob: str,
        plans: list[tuple[v1.Auditor.ValueType, int]],
        found: reuse.Found,
    ) -> tuple[list[str], dict[str, list[float]]]:
        """Has all shards done, then each auditor's merge; returns section blobs and times.

        Shards that build on another auditor's wait for all of those. Sections that were found have
        no shards.
        """
        shards: dict[v1.Auditor.ValueType, list[WorkflowHandle[str]]] = {}
        plans.sort(key=lambda plan: plan[0] in BUILDS_ON)
        for auditor, count in plans:
            if auditor in found:
                continue
            base = BUILDS_ON.get(auditor, v1.AUDITOR_UNSPECIFIED)
            before = (
                list(found[base].partials_sha256)
                if base in found
                else [self._wait(handle).blob for handle in shards.get(base, [])]
            )
            shards[auditor] = [
                self._enqueue(Task(audit, "shard", auditor, n, partials=before))
                for n in range(count)
            ]
        sections, seconds = [], {}
        for auditor, _ in plans:
            if auditor in found:
                sections.append(found[auditor].section_sha256)
                continue
            done = [self._wait(handle) for handle in shards[auditor]]
            partials = [outcome.blob for outcome in done]
            merge = Task(audit, "merge", auditor, partials=partials)
            section = self._wait(self._enqueue(merge)).blob
            DBOS.run_step(
                {"name": "section"},
                self._steps.section_ready,
                audit,
                plan_blob,
                json.dumps([auditor, section, partials]),
            )
            sections.append(section)
            seconds[str(auditor)] = [outcome.seconds for outcome in done]
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
        contradiction: str = DBOS.run_step({"name": "report"}, self._steps.report, audit, parts)
        if contradiction:
            raise AuditEndedEarly(status_pb2.Status.FromString(bytes.fromhex(contradiction)))

    def _end_step(self, audit: str, status: status_pb2.Status) -> None:
        DBOS.run_step({"name": "end"}, self._steps.end, audit, status.SerializeToString().hex())
