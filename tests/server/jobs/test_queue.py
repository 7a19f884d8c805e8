"""Tasks in the queue, on a real database."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from onnx_audit_server.jobs import queue
from onnx_audit_server.jobs.queue import JobQueue
from onnx_audit_server.store.database import connect, migrate


def test_a_task_is_enqueued_once(tmp_path: Path) -> None:
    """Whoever enqueues it again changes nothing, whatever it has become; the broken are named."""
    url = f"sqlite:///{tmp_path / 'onnx-audit.sqlite'}"
    engine = connect(url)
    migrate(engine)
    queue.migrate(url)
    jobs = JobQueue(engine)
    jobs.enqueue_tasks(queue.tasks("cpu"), {"x/1": "one", "x/2": "two"})
    assert jobs.count_waiting("cpu") == 2
    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE workflow_status SET status = 'ERROR' WHERE workflow_uuid = 'x/1'")
        )
    jobs.enqueue_tasks(queue.tasks("cpu"), {"x/1": "one", "x/2": "two", "x/3": "three"})
    assert jobs.count_waiting("cpu") == 2
    assert jobs.broken(["x/1", "x/2", "y"]) == ["x/1"]
    engine.dispose()
