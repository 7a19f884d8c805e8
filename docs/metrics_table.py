"""Writes docs/metrics.md from what the code says of its metrics; a test checks that it is fresh."""

from __future__ import annotations

from pathlib import Path

from onnx_audit_server import collectors
from onnx_audit_server.metrics import CATALOGUE, Described

HEAD = """# Metrics

`onnx-audit serve` and `worker` export Prometheus metrics at `/metrics` of their HTTP port
(`--http`, 127.0.0.1:9464 unless told otherwise). Units are base units; every series of a known
label value is exported from the start, with 0. No label holds a digest, an id or a name that a user
gave. Only the process itself exports: the isolated runners report to it. Beside these there are the
`process_*` metrics of the Prometheus client library.

Alerts and recording rules on these metrics are in `deploy/prometheus/`, a dashboard is in
`deploy/grafana/`. This page is written by `docs/metrics_table.py`.
"""
ORDER = (
    ("RPCs and uploads", ("rpc", "upload")),
    ("Audits and the queue", ("audit", "queue", "tasks_waiting", "sections")),
    ("Workers and their runners", ("worker", "shard", "task_failures", "runner")),
    ("Figures and speed", ("gradient", "parity", "device")),
    ("Stores and retention", ("store", "data", "gc")),
    ("Version", ("build",)),
)
"""Sections of the page with the beginnings of their metrics' names."""
PREFIX = "onnx_audit_"


def section_of(metric: Described) -> str:
    """The section in which a metric is described."""
    name = metric.name.removeprefix(PREFIX)
    for title, beginnings in ORDER:
        if name.startswith(beginnings):
            return title
    raise LookupError(f"{metric.name} belongs to no section of the page")


def render() -> str:
    """Returns the page."""
    assert collectors.AUDITS.name in CATALOGUE  # noqa: S101 - its import has entered its metrics
    parts = [HEAD]
    for title, _ in ORDER:
        parts.append(f"\n## {title}\n")
        for metric in sorted(CATALOGUE.values(), key=lambda metric: metric.name):
            if section_of(metric) == title:
                labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
                parts.append(
                    f"\n### `{metric.name}`\n\n"
                    f"{metric.kind}; unit: {metric.unit}; labels: {labels}\n"
                    f"\n{metric.meaning}\n\n*When it looks bad:* {metric.advice}\n"
                )
    return "".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("metrics.md").write_text(render())
