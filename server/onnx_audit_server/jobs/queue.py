"""The queue as the API sees it: jobs go in together with the records that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from dbos import (
    DBOS,
    DBOSClient,
    DBOSPortableJSONSerializer,
    EnqueueOptions,
    WorkflowStatus,
)

APPLICATION = "onnx-audit"
VERSION = "4"
"""Version of the workflows' course; raised when an old job could not go on with new code."""
AUDITS = "audits"
"""Queue of whole audits."""
DEVICES = ("cpu", "cuda")
"""The kinds of devices: an audit's figures come from one kind."""
COUNTED = 1000
"""Waiting tasks of one kind of device beyond this many are not counted."""
SCHEMA = "dbos"
SERIALIZER = DBOSPortableJSONSerializer()


def tasks(device: str) -> str:
    """Queue of the plans, shards and merges for one kind of device, each for one slot."""
    return f"tasks.{device}"


def migrate(url: str) -> None:
    """Brings the queue's own tables to their present form."""
    DBOS.migrate(url, schema=SCHEMA)


class JobQueue:
    """Puts audits and their tasks into the queue."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._client = DBOSClient(
            system_database_engine=engine,
            dbos_system_schema=SCHEMA,
            application_name=APPLICATION,
            serializer=SERIALIZER,
            # Whoever waits here waits on purpose: calls of the API and heartbeats must not.
            retry_connection_errors=False,
        )

    def enqueue(self, connection: sa.Connection, audit: str) -> None:
        """Enqueues an audit within the caller's transaction."""
        self._put(connection, "audit", AUDITS, audit, audit)

    def enqueue_tasks(self, queue: str, found: Mapping[str, str]) -> None:
        """Enqueues tasks, all or none; those that are there already stay as they are.

        Args:
            queue: One of `tasks`.
            found: What to do, by the tasks' ids.
        """
        with self._engine.begin() as connection:
            for identifier, text in found.items():
                self._put(connection, "task", queue, identifier, text)

    def _put(
        self, connection: sa.Connection, workflow: str, queue: str, identifier: str, argument: str
    ) -> None:
        options: EnqueueOptions = {
            "workflow_name": workflow,
            "queue_name": queue,
            "workflow_id": identifier,
            "app_version": VERSION,
        }
        self._client.enqueue_in_transaction(connection, options, argument)

    def broken(self, jobs: Sequence[str]) -> list[str]:
        """Ids of those among some jobs that have ended without a result."""
        ended = self._client.list_workflows(
            workflow_ids=list(jobs),
            status=["ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"],
            load_input=False,
            load_output=False,
        )
        return [job.workflow_id for job in ended]

    def count_waiting(self, device: str) -> int:
        """Number of tasks that wait for a slot of one kind of device, counted up to COUNTED."""
        return len(
            self._client.list_workflows(
                status="ENQUEUED",
                queue_name=tasks(device),
                limit=COUNTED,
                load_input=False,
                load_output=False,
            )
        )

    def forget(self, audits: Sequence[str]) -> None:
        """Removes all that the queue keeps of audits that have ended."""
        for audit in audits:
            jobs = self._client.list_workflows(
                workflow_id_prefix=audit, load_input=False, load_output=False
            )
            if jobs:
                self._client.delete_workflows([job.workflow_id for job in jobs])

    def begun(self, workers: list[str]) -> set[str]:
        """Ids of the jobs that some processes have begun and not ended."""
        return {job.workflow_id for job in self._begun(workers)}

    def hand_back(self, workers: list[str]) -> int:
        """Puts the jobs that some processes have begun back into their queues."""
        return self._resume(self._begun(workers))

    def put_back(self, jobs: list[str]) -> int:
        """Puts some begun jobs back into their queues, for any worker to take."""
        return self._resume(
            self._client.list_workflows(
                workflow_ids=jobs, status="PENDING", load_input=False, load_output=False
            )
        )

    def _begun(self, workers: list[str]) -> list[WorkflowStatus]:
        return self._client.list_workflows(
            status="PENDING", executor_id=workers, load_input=False, load_output=False
        )

    def _resume(self, jobs: list[WorkflowStatus]) -> int:
        for job in jobs:
            self._client.resume_workflow(job.workflow_id, queue_name=job.queue_name)
        return len(jobs)
