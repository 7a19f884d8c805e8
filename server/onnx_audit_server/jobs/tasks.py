"""Carries out the tasks of audits (plan, shard, merge) in runners, on behalf of the queue."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import structlog
from google.protobuf import duration_pb2
from google.rpc import status_pb2

from onnx_audit import v1
from onnx_audit_server import logs, metrics, tracing
from onnx_audit_server.access.identity import ANONYMOUS
from onnx_audit_server.errors import ServiceError
from onnx_audit_server.jobs.devices import Slots
from onnx_audit_server.jobs.patience import HandedBack, Patience
from onnx_audit_server.jobs.pool import RunnerPool
from onnx_audit_server.jobs.process import RunnerDiedError, RunnerError, RunnerProcess
from onnx_audit_server.settings import Settings
from onnx_audit_server.store.blobs import BlobStore
from onnx_audit_server.store.faults import is_transient
from onnx_audit_server.store.records import Records

MESSAGE = "application/x-protobuf"

log = logs.get(__name__)


@dataclass(frozen=True)
class Task:
    """A piece of an audit that one process does and that can be redone alone."""

    audit: str
    kind: Literal["plan", "shard", "merge"]
    auditor: v1.Auditor.ValueType = v1.AUDITOR_UNSPECIFIED
    shard: int = 0
    partials: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Name of the task, unique among all audits."""
        match self.kind:
            case "plan":
                return f"{self.audit}.plan"
            case "shard":
                return f"{self.audit}.{self.auditor}.{self.shard}"
            case "merge":
                return f"{self.audit}.{self.auditor}.merge"

    @property
    def attributes(self) -> dict[str, str | int]:
        """What a span of its work is about."""
        found: dict[str, str | int] = {"onnx_audit.audit": self.audit}
        if self.auditor:
            found["onnx_audit.auditor"] = metrics.auditor_label(self.auditor)
        if self.kind == "shard":
            found["onnx_audit.shard"] = self.shard
        return found

    def to_json(self) -> str:
        """The task as the queue stores it."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Outcome:
    """What became of a task: the blob of its result, or an error."""

    blob: str = ""
    seconds: float = 0.0
    error: str = ""

    def to_json(self) -> str:
        """The outcome as the queue stores it."""
        return json.dumps(asdict(self))

    @property
    def status(self) -> status_pb2.Status:
        """The error as a message."""
        return status_pb2.Status.FromString(bytes.fromhex(self.error))


class TaskExecutor:
    """Does tasks one after another in each of its callers' threads."""

    def __init__(
        self,
        settings: Settings,
        records: Records,
        blobs: BlobStore,
        pool: RunnerPool,
        slots: Slots,
        patience: Patience,
    ) -> None:
        self._settings = settings
        self._slots = slots
        self._patience = patience
        self._records = records
        self._blobs = blobs
        self._pool = pool
        self._running = 0
        self._changed = threading.Condition()
        self._draining = False
        self._abandon = threading.Event()

    def execute(self, task: Task) -> Outcome:
        """Does a task, again where its process dies, and never raises on a model's account.

        Raises:
            HandedBack: The service is shutting down.
        """
        structlog.contextvars.bind_contextvars(audit=task.audit, task=task.kind)
        if task.auditor:
            structlog.contextvars.bind_contextvars(auditor=metrics.auditor_label(task.auditor))
        if task.kind == "shard":
            structlog.contextvars.bind_contextvars(shard=task.shard)
        with self._changed:
            if self._draining:
                raise HandedBack
            self._running += 1
            metrics.SLOTS_BUSY.inc()
        try:
            known = self._patience(lambda: self._records.settled(task.audit, task.key))
            return self._settle(task, self._outcome(task)) if known is None else _outcome(known)
        finally:
            with self._changed:
                self._running -= 1
                metrics.SLOTS_BUSY.dec()
                self._changed.notify_all()
            structlog.contextvars.clear_contextvars()

    def drain(self, timeout: float) -> None:
        """Takes no new tasks and waits for the running ones; then gives them up."""
        with self._changed:
            self._draining = True
            finished = self._changed.wait_for(lambda: not self._running, timeout)
        if not finished:
            log.info("handing running shards back")
            self.abandon()
            with self._changed:
                self._changed.wait_for(lambda: not self._running, 5.0)

    def abandon(self) -> None:
        """Gives up the running tasks at once."""
        self._abandon.set()
        self._patience.end()

    def outcomes(self, audit: str, keys: Sequence[str]) -> dict[str, Outcome]:
        """The outcomes of those among some tasks of an audit that have ended, by their keys."""
        texts = self._records.all_settled(audit, keys)
        return {key: _outcome(text) for key, text in texts.items()}

    def forget(self, audit: str) -> None:
        """Frees what is kept for an audit that has ended."""
        self._pool.forget(audit)

    def _outcome(self, task: Task) -> Outcome:
        """Does a task; what goes wrong is its outcome, too."""
        try:
            audit = self._patience(lambda: self._records.get_audit(task.audit))
            assert audit is not None  # noqa: S101 - none is removed before its end
            if audit.principal != ANONYMOUS.name:
                structlog.contextvars.bind_contextvars(principal=audit.principal)
            with tracing.work(task.kind, audit.traceparent, task.attributes):
                return self._attempts(task, audit)
        except ServiceError as error:
            log.warning("task failed", reason=error.reason, message=str(error))
            metrics.TASK_FAILURES.labels(task.kind, metrics.reason_label(error.reason)).inc()
            return Outcome(error=error.status.SerializeToString().hex())
        except Exception:
            log.exception("task failed")
            metrics.TASK_FAILURES.labels(task.kind, "INTERNAL").inc()
            fault = ServiceError("INTERNAL", "a fault of the service; its log has the details")
            return Outcome(error=fault.status.SerializeToString().hex())

    def _attempts(self, task: Task, audit: v1.Audit) -> Outcome:
        for attempt in range(1, self._settings.shard_attempts + 1):
            if (reason := self._stop(task.audit)) is not None:
                raise reason
            if task.kind == "shard":
                started = v1.AuditEvent.ShardStarted(
                    auditor=task.auditor, shard=task.shard, attempt=attempt
                )
                self._tell(task, v1.AuditEvent(shard_started=started))
            start = time.monotonic()
            try:
                blob = self._attempt(task, audit)
            except RunnerDiedError as error:
                log.warning("runner died", attempt=attempt, message=str(error))
                last = error
                continue
            except RunnerError as error:
                raise ServiceError(error.reason, str(error), metadata=error.metadata) from None
            seconds = time.monotonic() - start
            log.info("task done", seconds=round(seconds, 3))
            return Outcome(blob=blob, seconds=seconds)
        raise ServiceError("RUNNER_DIED", f"{last} (in {self._settings.shard_attempts} attempts)")

    def _attempt(self, task: Task, audit: v1.Audit) -> str:
        with self._slots.lend(task.audit) as device:
            loaded = f"{task.audit}@{device}"
            runner = self._pool.take(loaded, audit.model)
            runner.context = structlog.contextvars.get_contextvars()
            try:
                if runner.affinity != loaded:
                    runner.affinity = loaded
                    self._open(runner, task.audit, audit, device)
                blob = self._command(runner, task)
            except BaseException:
                # Whatever went wrong in it, the next task gets a process that knows nothing of it.
                self._pool.discard(runner)
                raise
            self._pool.give_back(runner)
        return blob

    def _open(self, runner: RunnerProcess, audit_id: str, audit: v1.Audit, device: str) -> None:
        """Puts copies of the audit's files into the runner's folder and has them loaded."""
        (runner.scratch / "audit").write_bytes(audit.SerializeToString())
        command = {
            "op": "open",
            "audit": str(runner.scratch / "audit"),
            "device": device,
            "threads": self._settings.threads,
            **self._patience(lambda: self._lay_out(audit, runner.scratch)),
        }
        runner.call(command, lambda: self._stop(audit_id))

    def _lay_out(self, audit: v1.Audit, folder: Path) -> dict[str, object]:
        """Copies everything that the audit reads; returns where it lies."""
        model = self._records.get_model(audit.model.partition("/")[2])
        assert model is not None  # noqa: S101 - CreateAudit has seen it
        self._blobs.copy_to(audit.probe_set.partition("/")[2], folder / "probes")
        return {
            "model": str(copy_model(self._blobs, model, folder / "model")),
            "probes": str(folder / "probes"),
            "peers": self._peers(audit, folder / "peers"),
            "arrays": self._arrays(audit, folder / "arrays"),
        }

    def _peers(self, audit: v1.Audit, folder: Path) -> dict[str, str]:
        """Lays the models to compare with into folders of their own; returns their paths."""
        named = [peer.model for peer in audit.auditors.transfer.peers]
        if reference := audit.auditors.units.embedding.model:
            named.append(reference)
        paths = {}
        for name in dict.fromkeys(named):
            digest = name.partition("/")[2]
            model = self._records.get_model(digest)
            assert model is not None  # noqa: S101 - CreateAudit has seen it
            paths[name] = str(copy_model(self._blobs, model, folder / digest))
        return paths

    def _arrays(self, audit: v1.Audit, folder: Path) -> dict[str, str]:
        """Copies the arrays that the configuration names; returns their paths."""
        from onnx_auditors import unit_arrays  # noqa: PLC0415 - numpy takes long to import

        paths = {}
        for name in set(unit_arrays.named(audit.auditors.units).values()):
            digest = name.partition("/")[2]
            self._blobs.copy_to(digest, folder / digest)
            paths[name] = str(folder / digest)
        return paths

    def _command(self, runner: RunnerProcess, task: Task) -> str:
        result = runner.scratch / "result"
        command: dict[str, object] = {
            "op": task.kind,
            "auditor": task.auditor,
            "shard": task.shard,
            "result": str(result),
            "partials": self._patience(lambda: self._partials(runner, task)),
        }
        artefacts = runner.scratch / "artefacts"
        if task.kind == "merge":
            artefacts.mkdir(exist_ok=True)
            command["artefacts"] = str(artefacts)
        try:
            runner.call(command, lambda: self._stop(task.audit), self._progress(runner, task))
        finally:
            book_evaluations(runner, task)
        written = runner.result(result)
        if task.kind == "plan":
            plan = v1.AuditPlan.FromString(written)
            metrics.PARITY_DIFFERENCE.observe(plan.parity.max_relative_difference)
        if task.kind == "merge":
            for artefact in sorted(artefacts.iterdir()):
                self._patience(lambda artefact=artefact: self._blobs.put_file(artefact))  # type: ignore[misc] # mypy knows no defaults of lambdas
        return self._patience(lambda: self._blobs.put(written, MESSAGE)).sha256

    def _partials(self, runner: RunnerProcess, task: Task) -> list[str]:
        paths = []
        for number, digest in enumerate(task.partials):
            path = runner.scratch / f"partial-{number}"
            self._blobs.copy_to(digest, path)
            paths.append(str(path))
        return paths

    def _progress(self, runner: RunnerProcess, task: Task) -> Callable[[dict[str, Any]], None]:
        def tell(message: dict[str, Any]) -> None:
            book_evaluations(runner, task)
            progress = v1.AuditEvent.ShardProgress(
                auditor=task.auditor,
                shard=task.shard,
                done=float(message["done"]),
                total=float(message["total"]),
                running_label=str(message["label"])[:100],
            )
            if running := bytes.fromhex(message["running"]):
                progress.running.ParseFromString(running)
            self._tell(task, v1.AuditEvent(shard_progress=progress))

        return tell

    def _settle(self, task: Task, outcome: Outcome) -> Outcome:
        """Makes an outcome the task's, unless another process was first; returns the task's."""

        def change(audit: v1.Audit) -> list[v1.AuditEvent]:
            if task.kind != "shard" or outcome.error:
                return []
            audit.progress.shards_done += 1
            duration = duration_pb2.Duration()
            duration.FromNanoseconds(round(outcome.seconds * 1e9))
            finished = v1.AuditEvent.ShardFinished(
                auditor=task.auditor, shard=task.shard, duration=duration
            )
            return [v1.AuditEvent(shard_finished=finished)]

        text = outcome.to_json()
        kept = self._patience(lambda: self._records.settle(task.audit, task.key, text, change))
        if kept == text and task.kind == "shard" and not outcome.error:
            label = metrics.auditor_label(task.auditor)
            metrics.SHARD_SECONDS.labels(auditor=label).observe(outcome.seconds)
        return _outcome(kept)

    def _tell(self, task: Task, event: v1.AuditEvent) -> None:
        try:
            self._records.append_events(task.audit, [event])
        except Exception as error:
            # Work goes on without its progress being seen.
            if not is_transient(error):
                raise
            log.warning("event lost", error=str(error)[:300])

    def _stop(self, audit: str) -> Exception | None:
        if self._abandon.is_set():
            raise HandedBack
        try:
            status = self._records.stop_reason(audit)
        except Exception as error:
            if not is_transient(error):
                raise
            return None
        if status is None:
            return None
        return ServiceError(stop_name(status), status.message)


def _outcome(text: str) -> Outcome:
    return Outcome(**json.loads(text))


def book_evaluations(runner: RunnerProcess, task: Task) -> None:
    """Counts the gradient evaluations that a runner has made for a task."""
    if fresh := runner.take_evaluations():
        metrics.GRADIENT_EVALUATIONS.labels(metrics.auditor_label(task.auditor)).inc(fresh)


def stop_name(status: status_pb2.Status) -> str:
    """The reason under which a stopped audit's shards end."""
    return {1: "CANCELLED", 4: "DEADLINE_EXCEEDED"}.get(status.code, "INTERNAL")


def copy_model(blobs: BlobStore, model: v1.Model, folder: Path) -> Path:
    """Lays a model's files into a folder of their own; returns the ONNX file's path."""
    path = folder / "model.onnx"
    blobs.copy_to(model.onnx_file.sha256, path)
    for file in model.external_files:
        blobs.copy_to(file.sha256, folder / file.path)
    return path
