"""The service's Prometheus metrics; only the parent process exports, runners report by events.

Each is declared together with what it means and what to do when it looks bad; docs/metrics.md is
made of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from onnx_audit import v1
from onnx_audit.version import __version__

REGISTRY = CollectorRegistry()


@dataclass(frozen=True)
class Described:
    """What people must know of a metric.

    Attributes:
        name: As it is exported, without the endings of a histogram's series.
        kind: "counter", "gauge" or "histogram".
        labels: Names of its labels.
        unit: Base unit of its values, or what is counted.
        meaning: What it says.
        advice: What to do when it looks bad.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    unit: str
    meaning: str
    advice: str


CATALOGUE: dict[str, Described] = {}
"""Every metric of the service by name."""


def describe(
    name: str, kind: str, unit: str, meaning: str, advice: str, labels: Sequence[str] = ()
) -> Described:
    """Enters a metric into the catalogue."""
    CATALOGUE[name] = Described(name, kind, tuple(labels), unit, meaning, advice)
    return CATALOGUE[name]


def _counter(
    name: str, unit: str, meaning: str, advice: str, labels: Sequence[str] = ()
) -> Counter:
    known = describe(f"{name}_total", "counter", unit, meaning, advice, labels)
    return Counter(name, known.meaning, known.labels, registry=REGISTRY)


def _gauge(name: str, unit: str, meaning: str, advice: str, labels: Sequence[str] = ()) -> Gauge:
    known = describe(name, "gauge", unit, meaning, advice, labels)
    return Gauge(name, known.meaning, known.labels, registry=REGISTRY)


def _histogram(
    name: str,
    unit: str,
    meaning: str,
    advice: str,
    buckets: Sequence[float],
    labels: Sequence[str] = (),
) -> Histogram:
    known = describe(name, "histogram", unit, meaning, advice, labels)
    return Histogram(name, known.meaning, known.labels, registry=REGISTRY, buckets=buckets)


CALL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
WORK_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600)
DIFFERENCE_BUCKETS = (1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 1e-2)

RPCS = _counter(
    "onnx_audit_rpcs",
    "calls",
    "RPCs that have ended; `code` is the gRPC status, `OK` for success.",
    "Find the lines with `event` `rpc` and this code in the log; their `reason` says why. INTERNAL "
    "is a fault of the service: report it with the lines of its `trace_id`.",
    ["method", "code"],
)
RPC_SECONDS = _histogram(
    "onnx_audit_rpc_seconds",
    "seconds",
    "Time of RPCs from start to end; a watch lasts as long as it is open.",
    "If all methods are slow, look at the database and at the CPU of the server; if only `Write` "
    "and `CreateModel` are, at the blob store.",
    CALL_BUCKETS,
    ["method"],
)
RPCS_UNDER_WAY = _gauge(
    "onnx_audit_rpcs_under_way",
    "calls",
    "RPCs that have begun and not ended; of `WatchAudit`, the watchers.",
    "A number that only grows means that calls hang: look at the store that they wait for.",
    ["method"],
)
UPLOADED_BYTES = _counter(
    "onnx_audit_uploaded_bytes",
    "bytes",
    "Bytes received in uploads, repeated ones included.",
    "Many more bytes than the models have mean that uploads break off; see the next one.",
)
UPLOADS = _counter(
    "onnx_audit_uploads",
    "uploads",
    "Uploads that have ended: `complete`, `known` (the blob was there), `partial` (the caller "
    "stopped and may go on), `failed`.",
    "Failed ones are refused (too large, wrong digest) or broken by the network: see the RPC's "
    "code.",
    ["outcome"],
)
AUDITS_ENDED = _counter(
    "onnx_audit_audits_ended",
    "audits",
    "Audits that this process brought to an end; `verdict` is `none` without a policy.",
    "Failed ones: the audit's `error` says why, and `onnx_audit_task_failures_total` which kind. "
    "Many FAIL verdicts at once: a release that should not go out, or a policy that was changed.",
    ["state", "verdict"],
)
AUDIT_SECONDS = _histogram(
    "onnx_audit_audit_seconds",
    "seconds",
    "Time of audits from their first shard to their end.",
    "Compare shards and slots: few slots for many shards make audits long.",
    WORK_BUCKETS,
    ["state"],
)
QUEUE_WAIT_SECONDS = _histogram(
    "onnx_audit_queue_wait_seconds",
    "seconds",
    "Time that audits waited before a worker took them.",
    "Add workers or slots.",
    WORK_BUCKETS,
)
SHARD_SECONDS = _histogram(
    "onnx_audit_shard_seconds",
    "seconds",
    "Time of shards that ended well, loading the model included.",
    "Compare with `onnx_audit_gradient_evaluations_total`: the same evaluations in more time "
    "mean a slower or shared device.",
    WORK_BUCKETS,
    ["auditor"],
)
TASK_FAILURES = _counter(
    "onnx_audit_task_failures",
    "tasks",
    "Plans, shards and merges that ended their audit; `reason` is a name of `v1.ErrorReason`.",
    "CANCELLED and DEADLINE_EXCEEDED are asked for. RUNNER_DIED: see the runners' deaths. "
    "PARITY_FAILED: the network is not faithful to the model; report it with the model.",
    ["task", "reason"],
)
RUNNER_DEATHS = _counter(
    "onnx_audit_runner_deaths",
    "processes",
    "Isolated processes that ended by themselves in the middle of their work, by signal or exit.",
    "The log's lines `runner died` have the last words. SIGKILL is mostly the kernel's for want of "
    "memory: give the worker more, or fewer slots.",
    ["cause"],
)
SECTIONS_REUSED = _counter(
    "onnx_audit_sections_reused",
    "sections",
    "Sections that audits of this process took over from an earlier audit.",
    "None where the same model is audited again: versions, settings or threads differ.",
    ["auditor"],
)
GRADIENT_EVALUATIONS = _counter(
    "onnx_audit_gradient_evaluations",
    "evaluations",
    "Gradient evaluations of attacks, (forward + backward rows) / 2 each; its rate is the speed.",
    "A low rate while shards run: a busy or missing device, too few threads, or a model without "
    "batch axis.",
    ["auditor"],
)
PARITY_DIFFERENCE = _histogram(
    "onnx_audit_parity_relative_difference",
    "ratio",
    "Largest difference between network and ONNX Runtime over the largest output, per plan.",
    "Values near the tolerance of 1e-3 come from half precision or huge constants; beyond it the "
    "audit fails.",
    DIFFERENCE_BUCKETS,
)
STORE_ERRORS = _counter(
    "onnx_audit_store_errors",
    "errors",
    "Errors of the database and of the blob store, retried ones too.",
    "Look whether it answers, at its disk and at the credentials; the log names the error.",
    ["store"],
)
SLOTS = _gauge(
    "onnx_audit_worker_slots",
    "slots",
    "Shards that this process can run at once; 0 where it serves the API alone. Processes above "
    "0 are the workers alive.",
    "Fewer workers than there should be: look at their logs and at their health.",
)
SLOTS_BUSY = _gauge(
    "onnx_audit_worker_slots_busy",
    "slots",
    "Slots with a plan, shard or merge in them.",
    "All busy for long and audits waiting: add workers. None busy and audits waiting: workers do "
    "not reach the database, or have another version.",
)
GC_REMOVED = _counter(
    "onnx_audit_gc_removed",
    "things",
    "Removed by retention: `audit`, `model`, `probe_set`, `section`, `blob` or `upload`.",
    "None for long while the store grows: see `onnx_audit_gc_last_success_timestamp_seconds`.",
    ["kind"],
)
GC_FREED_BYTES = _counter(
    "onnx_audit_gc_freed_bytes",
    "bytes",
    "Bytes of blobs and unfinished uploads that retention removed.",
    "Less than comes in: shorten the retention of audits, or give the store more room.",
)
BUILD = _gauge(
    "onnx_audit_build_info",
    "1",
    "Version that this process runs.",
    "More than one version for long means that an upgrade stands still.",
    ["version"],
)
UPLOAD_OUTCOMES = ("complete", "known", "partial", "failed")
DEATH_CAUSES = ("signal", "exit")
TASKS = ("plan", "shard", "merge")
STORES = ("database", "blobs")
GC_KINDS = ("audit", "model", "probe_set", "section", "blob", "upload")


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


def reason_label(reason: str) -> str:
    """The label value of an error's reason; one that the schema does not know is "OTHER"."""
    known = f"ERROR_REASON_{reason}" in v1.ErrorReason.keys()  # noqa: SIM118 - an enum's, no dict's
    return reason if known else "OTHER"


STATES = [state for state in v1.AuditState.values() if state]
ENDS = (v1.AUDIT_STATE_SUCCEEDED, v1.AUDIT_STATE_FAILED, v1.AUDIT_STATE_CANCELLED)
VERDICTS = list(v1.Verdict.values())
AUDITORS = [auditor for auditor in v1.Auditor.values() if auditor]


def export_zeros(methods: Iterable[str]) -> None:
    """Creates every known series, so that rates work from the first event on.

    Args:
        methods: Full names of the RPCs, such as "/onnx_audit.v1.BlobService/Read".
    """
    disable_created_metrics()  # type: ignore[no-untyped-call] # the library gives it no types
    ProcessCollector(registry=REGISTRY)
    BUILD.labels(__version__).set(1)
    for method in methods:
        RPCS.labels(method, "OK")
        RPC_SECONDS.labels(method)
        RPCS_UNDER_WAY.labels(method)
    for state in ENDS:
        AUDIT_SECONDS.labels(state_label(state))
        for verdict in VERDICTS if state == v1.AUDIT_STATE_SUCCEEDED else [v1.VERDICT_UNSPECIFIED]:
            AUDITS_ENDED.labels(state_label(state), verdict_label(verdict))
    for auditor in AUDITORS:
        SHARD_SECONDS.labels(auditor_label(auditor))
        SECTIONS_REUSED.labels(auditor_label(auditor))
        GRADIENT_EVALUATIONS.labels(auditor_label(auditor))
    for metric, values in (
        (UPLOADS, UPLOAD_OUTCOMES),
        (RUNNER_DEATHS, DEATH_CAUSES),
        (STORE_ERRORS, STORES),
        (GC_REMOVED, GC_KINDS),
    ):
        for value in values:
            metric.labels(value)
    for task in TASKS:
        TASK_FAILURES.labels(task, "INTERNAL")
