"""The queue as the API sees it: jobs go in together with the records that they belong to."""

from __future__ import annotations

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer, EnqueueOptions

APPLICATION = "onnx-audit"
VERSION = "2"
"""Version of the workflows' course; raised when an old job could not go on with new code."""
AUDITS = "audits"
"""Queue of whole audits."""
TASKS = "tasks"
"""Queue of their plans, shards and merges, each for one slot of a worker."""
SCHEMA = "dbos"
SERIALIZER = DBOSPortableJSONSerializer()


def migrate(url: str) -> None:
    """Brings the queue's own tables to their present form."""
    DBOS.migrate(url, schema=SCHEMA)


class JobQueue:
    """Puts audits into the queue."""

    def __init__(self, engine: sa.Engine) -> None:
        self._client = DBOSClient(
            system_database_engine=engine,
            dbos_system_schema=SCHEMA,
            application_name=APPLICATION,
            serializer=SERIALIZER,
        )

    def enqueue(self, connection: sa.Connection, audit: str) -> None:
        """Enqueues an audit within the caller's transaction."""
        options: EnqueueOptions = {
            "workflow_name": "audit",
            "queue_name": AUDITS,
            "workflow_id": audit,
            "app_version": VERSION,
        }
        self._client.enqueue_in_transaction(connection, options, audit)

    def hand_back(self, worker: str) -> int:
        """Puts the jobs that a worker has begun back into their queues, for any worker to take."""
        begun = self._client.list_workflows(
            status="PENDING", executor_id=worker, load_input=False, load_output=False
        )
        for job in begun:
            self._client.resume_workflow(job.workflow_id, queue_name=job.queue_name)
        return len(begun)
