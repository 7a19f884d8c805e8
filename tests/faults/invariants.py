"""What must hold of a service's audits whatever has befallen its processes and stores."""

from __future__ import annotations

import hashlib
import time
import urllib.request
from collections import Counter
from pathlib import Path

import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families
from tests.faults.stub_runner import SHARDS

from onnx_audit import Client, v1
from onnx_audit_server import metrics
from onnx_audit_server.reports import assemble


def check_course(client: Client, audit: v1.Audit) -> v1.Report:
    """Checks an ended audit with its events and its report; returns the report."""
    ended = client.get_audit(audit)
    assert ended.state == v1.AUDIT_STATE_SUCCEEDED, ended
    events = list(client.watch(audit))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert ended.last_sequence == len(events)
    states = [event.state_changed.state for event in events if event.HasField("state_changed")]
    assert states == [
        v1.AUDIT_STATE_QUEUED,
        v1.AUDIT_STATE_RUNNING,
        v1.AUDIT_STATE_SUCCEEDED,
    ], "a state came twice"
    finished = [e.shard_finished.shard for e in events if e.HasField("shard_finished")]
    assert sorted(finished) == list(range(SHARDS)), "a shard was lost or counted twice"
    assert ended.progress.shards_done == ended.progress.shards_total == SHARDS
    kinds = Counter(event.WhichOneof("event") for event in events)
    assert kinds["plan_ready"] == kinds["section_ready"] == 1
    report = client.report(audit)
    assert report.digest == ended.report_digest == assemble.digest(report)
    assert report.execution.audit == audit.name
    return report


def check_queue(url: str) -> None:
    """Checks that no job is left, once the last ones have had the time to end."""
    engine = sa.create_engine(url)
    table = "workflow_status" if url.startswith("sqlite") else "dbos.workflow_status"
    query = sa.text(f"SELECT workflow_uuid, status FROM {table} WHERE status != 'SUCCESS'")  # noqa: S608 - our own text
    deadline = time.monotonic() + 30
    try:
        while True:
            with engine.begin() as connection:
                left = connection.execute(query).all()
            if not left:
                return
            assert time.monotonic() < deadline, f"jobs are left: {left}"
            time.sleep(0.2)
    finally:
        engine.dispose()


def check_metrics(addresses: list[str], client: Client) -> None:
    """Checks that the figures of every process are those of the audits that there are."""
    counts = Counter(metrics.state_label(audit.state) for audit in client.audits())
    for address in addresses:
        with urllib.request.urlopen(f"http://{address}/metrics") as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        samples = [sample for family in families for sample in family.samples]
        found: Counter[str] = Counter()
        for sample in samples:
            if sample.name == "onnx_audit_audits":
                found[sample.labels["state"]] += int(sample.value)
        assert +found == counts, address
        depth = [sample.value for sample in samples if sample.name == "onnx_audit_queue_depth"]
        assert depth == [counts["queued"]]


def check_folder(folder: Path) -> int:
    """Checks that every blob in a folder has the digest that names it; returns their number."""
    blobs = [path for path in folder.glob("??/*") if path.is_file()]
    for path in blobs:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    return len(blobs)
