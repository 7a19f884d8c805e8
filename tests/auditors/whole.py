"""Whole audits of one auditor in this process: plan, every shard, merge."""

from __future__ import annotations

from pathlib import Path

from onnx_audit import v1
from onnx_auditors.audit import merge, plan, run_shard
from onnx_auditors.context import Context


def audit(
    configs: v1.AuditorConfigs, context: Context, folder: Path
) -> tuple[v1.AuditPlan, v1.SectionResult]:
    """Runs the only auditor of a configuration; its files go into a folder."""
    planned = plan(configs, context)
    (part,) = planned.plans
    partials = [folder / f"partial-{i}" for i in range(part.shards)]
    for i, path in enumerate(partials):
        content = run_shard(planned.auditors, context, part.auditor, i, lambda *_: None)
        path.write_bytes(content)
    return planned, merge(planned.auditors, context, part.auditor, partials, folder)
