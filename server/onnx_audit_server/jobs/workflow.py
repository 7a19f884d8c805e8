"""The durable course of an audit: plan, shards, merge, report.

Every step's result is kept in the database, so a killed process's audits go on where they were.
"""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

from dbos import DBOS, DBOSConfig
from google.rpc import status_pb2

from onnx_audit import v1
from onnx_audit_server import logs
from onnx_audit_server.errors import ServiceError
from onnx_audit_server.jobs import reuse
from onnx_audit_server.jobs.devices import kind
from onnx_audit_server.jobs.lease import Lease
from onnx_audit_server.jobs.patience import HandedBack, Patience
from onnx_audit_server.jobs.queue import (
    APPLICATION,
    AUDITS,
    SCHEMA,
    SERIALIZER,
    VERSION,
    JobQueue,
    tasks,
)
from onnx_audit_server.jobs.running import INTERVAL, Running, set_slots
from onnx_audit_server.jobs.steps import AuditSteps
from onnx_audit_server.jobs.tasks import Outcome, Task, TaskExecutor
from onnx_audit_server.settings import Settings
from onnx_audit_server.store.database import IDLE_SECONDS
from onnx_audit_server.store.faults import is_transient
from onnx_auditors.registry import BUILDS_ON

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RESULT_INTERVAL = 0.05
"""Seconds between two looks for a task's outcome."""
LOOKED_FOR = 1000
"""Outcomes that are looked for at once, with as many milliseconds between two looks at least."""
BROKEN_INTERVAL = 5.0
"""Seconds between two looks whether a task has ended without an outcome."""
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
        places: list[str],
        lease: Lease,
        queue: JobQueue,
        executor: TaskExecutor,
        steps: AuditSteps,
        patience: Patience,
    ) -> None:
        """Puts a worker together.

        Args:
            settings: The service's settings.
            places: The device of each of its slots; all of one kind.
            lease: This process's right to work.
            queue: Takes the tasks.
            executor: Does the tasks.
            steps: Do what lies between the tasks.
            patience: Waits for the stores.
        """
        self._settings = settings
        self._lease = lease
        self._queue = queue
        self._executor = executor
        self._steps = steps
        self._patience = patience
        self._device = kind(places[0])
        own = tasks(self._device)
        self._running = Running({AUDITS: AUDITS_AT_ONCE, own: len(places)})
        self._closing = False
        self._audit = DBOS.workflow(name="audit")(self._parking(AUDITS, self._run_audit))
        self._task = DBOS.workflow(name="task")(self._parking(own, self._run_task))

    def start(self, lost: Callable[[], None]) -> None:
        """Starts to take work.

        Args:
            lost: Called, from another thread, when others have taken this process for dead.

        Raises:
            WorkerNameInUseError: Another worker of its name shares the database.
        """
        self._lease.acquire()
        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_url": self._settings.records_url,
            "dbos_system_schema": SCHEMA,
            "application_version": VERSION,
            "executor_id": self._lease.id,
            "serializer": SERIALIZER,
            "log_level": "WARNING",
            "run_migrations": False,
            "notification_listener_polling_interval_sec": 0.5,
            "sys_db_idle_transaction_timeout_sec": IDLE_SECONDS,
        }
        dbos = DBOS(config=config)
        DBOS.listen_queues(list(self._running.limits))
        DBOS.launch()
        set_slots(dbos, self._running)
        for name in self._running.limits:
            DBOS.register_queue(name, polling_interval_sec=INTERVAL, on_conflict="always_update")

        def abandon() -> None:
            self._closing = True
            self._executor.abandon()
            lost()

        self._lease.start(self._running.ids, abandon)

    def drain(self) -> None:
        """Lets running shards finish, or hands them back, and everything else with them."""
        self._closing = True
        self._executor.drain(self._settings.drain_timeout)
        DBOS.destroy()
        # Only now: this worker would else take its own jobs again.
        handed_back = self._lease.release()
        log.info("worker drained", handed_back=handed_back)

    def _parking(self, queue: str, body: Callable[[str], str]) -> Callable[[str], str]:
        """Wraps the workflow of a queue's jobs so that handing back leaves no result.

        While the process ends its thread just stands still, so that the slot is not given to the
        next job; whoever ends it puts the workflow back into its queue. Else the lease does so.
        """

        def workflow(argument: str) -> str:
            assert DBOS.workflow_id is not None  # noqa: S101 - this runs in a workflow
            with self._running.noted(queue, DBOS.workflow_id):
                try:
                    return body(argument)
                except HandedBack:
                    if self._closing:
                        threading.Event().wait()
                    raise

        workflow.__qualname__ = f"onnx_audit.{body.__name__}"
        return workflow

    def _step(self, name: str, function: Callable[..., Any], *arguments: str) -> Any:  # noqa: ANN401 - whatever the step returns
        """Does a step, once in an audit's life; waits where a store is out of reach."""
        return DBOS.run_step({"name": name}, lambda: self._patience(lambda: function(*arguments)))

    def _run_task(self, text: str) -> str:
        return self._executor.execute(Task(**json.loads(text))).to_json()

    def _run_audit(self, audit: str) -> str:
        try:
            self._patience(lambda: self._steps.bind_trace(audit))
            if not self._step("begin", self._steps.begin, audit):
                return "cancelled"
            # Figures of different kinds of devices differ in their last digits.
            queue: str = self._step("queue", lambda: tasks(self._device))
            plan_blob = self._done(queue, Task(audit, "plan")).blob
            found: str = self._step("reuse", self._steps.reuse, audit, plan_blob)
            plans: str = self._step("announce", self._steps.announce, audit, plan_blob, found)
            sections, seconds = self._compute(
                audit, queue, plan_blob, json.loads(plans), reuse.decode(found)
            )
            parts = {"plan": plan_blob, "sections": sections, "seconds": seconds, "reused": found}
            self._publish(audit, json.dumps(parts))
        except AuditEndedEarly as ended:
            self._end_step(audit, ended.status)
        except Exception as error:
            if self._closing or is_transient(error):
                raise HandedBack from None
            log.exception("audit failed", audit=audit)
            fault = ServiceError("INTERNAL", "a fault of the service; its log has the details")
            self._end_step(audit, fault.status)
        self._executor.forget(audit)
        return "ended"

    def _compute(
        self,
        audit: str,
        queue: str,
        plan_blob: str,
        plans: list[tuple[v1.Auditor.ValueType, int]],
        found: reuse.Found,
    ) -> tuple[list[str], dict[str, list[float]]]:
        """Has all shards done, then each auditor's merge; returns section blobs and times.

        Shards that build on another auditor's wait for all of those. Sections that were found have
        no shards.
        """
        shards: dict[v1.Auditor.ValueType, list[Task]] = {}
        plans.sort(key=lambda plan: plan[0] in BUILDS_ON)
        for auditor, count in plans:
            if auditor in found:
                continue
            base = BUILDS_ON.get(auditor, v1.AUDITOR_UNSPECIFIED)
            before = (
                list(found[base].partials_sha256)
                if base in found
                else [outcome.blob for outcome in self._outcomes(shards.get(base, []))]
            )
            shards[auditor] = [
                Task(audit, "shard", auditor, n, partials=before) for n in range(count)
            ]
            self._enqueue(queue, shards[auditor])
        sections, seconds = [], {}
        for auditor, _ in plans:
            if auditor in found:
                sections.append(found[auditor].section_sha256)
                continue
            done = self._outcomes(shards[auditor])
            partials = [outcome.blob for outcome in done]
            merge = Task(audit, "merge", auditor, partials=partials)
            section = self._done(queue, merge).blob
            self._step(
                "section",
                self._steps.section_ready,
                audit,
                plan_blob,
                json.dumps([auditor, section, partials]),
            )
            sections.append(section)
            seconds[str(auditor)] = [outcome.seconds for outcome in done]
        return sections, seconds

    # None of these is a step: a task is enqueued once, however often one asks, and has one outcome.

    def _enqueue(self, queue: str, found: Sequence[Task]) -> None:
        texts = {task.key: task.to_json() for task in found}
        self._patience(lambda: self._queue.enqueue_tasks(queue, texts))
        if queue in self._running.limits:
            self._running.stir(queue)

    def _outcomes(self, waited_for: Sequence[Task]) -> list[Outcome]:
        """Waits for the end of tasks of one audit; returns their outcomes in the same order.

        Raises:
            AuditEndedEarly: One of them ended with an error.
            HandedBack: The process ends.
        """
        found: dict[str, Outcome] = {}
        looked = time.monotonic()
        while missing := [task for task in waited_for if task.key not in found][:LOOKED_FOR]:
            if self._closing:
                raise HandedBack
            found |= self._ended(missing)
            if time.monotonic() - looked > BROKEN_INTERVAL:
                looked = time.monotonic()
                self._check_broken(missing)
            if len(found) < len(waited_for):
                time.sleep(max(RESULT_INTERVAL, len(missing) / 1e3))
        return [found[task.key] for task in waited_for]

    def _ended(self, some: Sequence[Task]) -> dict[str, Outcome]:
        """The outcomes of those among some tasks that have ended, all of them well."""
        keys = [task.key for task in some]
        found = self._patience(lambda: self._executor.outcomes(some[0].audit, keys))
        for outcome in found.values():
            if outcome.error:
                raise AuditEndedEarly(outcome.status)
        return found

    def _check_broken(self, some: Sequence[Task]) -> None:
        """Raises where tasks have ended, but without an outcome."""
        broken = self._patience(lambda: self._queue.broken([task.key for task in some]))
        # Their outcomes may have come since.
        lost = [task for task in some if task.key in broken]
        if lost and len(self._ended(lost)) < len(lost):
            raise RuntimeError(f"tasks have ended without an outcome: {broken}")

    def _done(self, queue: str, task: Task) -> Outcome:
        """Has one task done."""
        self._enqueue(queue, [task])
        return self._outcomes([task])[0]

    def _publish(self, audit: str, parts: str) -> None:
        contradiction: str = self._step("report", self._steps.report, audit, parts)
        if contradiction:
            raise AuditEndedEarly(status_pb2.Status.FromString(bytes.fromhex(contradiction)))

    def _end_step(self, audit: str, status: status_pb2.Status) -> None:
        self._step("end", self._steps.end, audit, status.SerializeToString().hex())
