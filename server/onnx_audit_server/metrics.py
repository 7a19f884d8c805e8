"""The service's Prometheus metrics; only the parent process exports, runners report by events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from onnx_audit import v1
from onnx_audit_server import logs
from onnx_audit_server.store.records import Records

log = logs.get(__name__)

REGISTRY = CollectorRegistry()
RPCS = Counter("onnx_audit_rpcs", "RPCs that have ended.", ["method", "code"], registry=REGISTRY)
RPC_SECONDS = Histogram(
    "onnx_audit_rpc_seconds",
    "Time of RPCs from start to end.",
    ["method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
    registry=REGISTRY,
)
UPLOADED_BYTES = Counter(
    "onnx_audit_uploaded_bytes", "Bytes received in uploads.", registry=REGISTRY
)
AUDITS_ENDED = Counter(
    "onnx_audit_audits_ended",
    "Audits that this process brought to an end.",
    ["state", "verdict"],
    registry=REGISTRY,
)
SHARD_SECONDS = Histogram(
    "onnx_audit_shard_seconds",
    "Time of shards that ended well.",
    ["auditor"],
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600),
    registry=REGISTRY,
)
SECTIONS_REUSED = Counter(
    "onnx_audit_sections_reused",
    "Sections that an audit took over from an earlier one.",
    ["auditor"],
    registry=REGISTRY,
)


def state_label(state: v1.AuditState.ValueType) -> str:
    """The label value of a state: "queued", "running", ..."""
    return v1.AuditState.Name(state).removeprefix("AUDIT_STATE_").lower()


def verdict_label(verdict: v1.Verdict.ValueType) -> str:
    """The label value of a verdict: "none" where no policy was applied."""
    name = v1.Verdict.Name(verdict).removeprefix("VERDICT_").lower()
    return "none" if name == "unspecified" else name


def auditor_label(auditor: v1.Auditor.ValueType) -> str:
    """The label value of an auditor, such as "distortion"."""
    return v1.Auditor.Name(auditor).removeprefix("AUDITOR_").lower()


STATES = [state for state in v1.AuditState.values() if state]
VERDICTS = list(v1.Verdict.values())
AUDITORS = [auditor for auditor in v1.Auditor.values() if auditor]


def export_zeros(methods: Iterable[str]) -> None:
    """Creates every known series, so that rates work from the first event on.

    Args:
        methods: Full names of the RPCs, such as "/onnx_audit.v1.BlobService/Read".
    """
    disable_created_metrics()  # type: ignore[no-untyped-call] # the library gives it no types
    for method in methods:
        RPCS.labels(method, "OK")
        RPC_SECONDS.labels(method)
    for state in (v1.AUDIT_STATE_SUCCEEDED, v1.AUDIT_STATE_FAILED, v1.AUDIT_STATE_CANCELLED):
        for verdict in VERDICTS if state == v1.AUDIT_STATE_SUCCEEDED else [v1.VERDICT_UNSPECIFIED]:
            AUDITS_ENDED.labels(state_label(state), verdict_label(verdict))
    for auditor in AUDITORS:
        SHARD_SECONDS.labels(auditor_label(auditor))
        SECTIONS_REUSED.labels(auditor_label(auditor))


class RecordsCollector(Collector):
    """Reads at each scrape what the database knows, the same from every process."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields the number of audits by state, and those that wait for a worker."""
        try:
            counts = self._records.count_audits()
        except Exception:
            log.exception("cannot count audits")
            return
        audits = GaugeMetricFamily(
            "onnx_audit_audits", "Audits by state and verdict.", labels=["state", "verdict"]
        )
        for state in STATES:
            for verdict in VERDICTS:
                if verdict == 0 or (state, verdict) in counts:
                    labels = [state_label(state), verdict_label(verdict)]
                    audits.add_metric(labels, counts.get((state, verdict), 0))
        yield audits
        depth = sum(count for (state, _), count in counts.items() if state == v1.AUDIT_STATE_QUEUED)
        yield GaugeMetricFamily("onnx_audit_queue_depth", "Audits that wait.", value=depth)
