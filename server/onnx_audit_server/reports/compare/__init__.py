"""What moved between two reports, and whether chance explains it."""

from __future__ import annotations

import hashlib
import math

from onnx_audit import v1
from onnx_audit_server.reports.compare.differences import difference, movement
from onnx_audit_server.reports.compare.figures import at_median, figures
from onnx_audit_server.reports.compare.notes import notes
from onnx_audit_server.reports.compare.resampling import Resampling

__all__ = ["compare"]


def compare(baseline: v1.Report, candidate: v1.Report) -> v1.CompareReportsResponse:
    """Compares the figures that both reports have, in the order of the report.

    Differences are of the newer less the older figure. Where both reports have a row per probe of
    the same probe set, their intervals are paired over the probes, else of two independent sets of
    probes; figures that are exact for the model have none.
    """
    older, newer = figures(baseline), figures(candidate)
    for path, radius in at_median(baseline).items():
        older |= radius(baseline, path)
        newer |= radius(candidate, path)
    same_probes = baseline.probes.sha256 == candidate.probes.sha256
    digests = f"{baseline.digest} {candidate.digest}".encode()
    resampling = Resampling(int.from_bytes(hashlib.sha256(digests).digest()[:8], "big"))
    response = v1.CompareReportsResponse(
        baseline_only=[path for path in older if path not in newer],
        candidate_only=[path for path in newer if path not in older],
        notes=notes(baseline, candidate),
    )
    for path, old in older.items():
        if path not in newer:
            continue
        new = newer[path]
        if math.isnan(old.estimate.value) or math.isnan(new.estimate.value):
            continue
        moved = difference(old, new, resampling if same_probes else None)
        response.comparisons.add(
            path=path,
            label=old.label,
            baseline=old.estimate,
            candidate=new.estimate,
            difference=moved,
            movement=movement(moved, new),
        )
    return response
