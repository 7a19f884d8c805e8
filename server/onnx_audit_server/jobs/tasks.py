"""Carries out the tasks of audits (plan, shard, merge) in runners, on behalf of the queue."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import structlog
from google.protobuf import duration_pb2
from google.rpc import status_pb2

from onnx_audit import v1
from onnx_audit_server import logs, metrics
from onnx_audit_server.errors import ServiceError
from onnx_audit_server.jobs.pool import RunnerPool
from onnx_audit_server.jobs.process import RunnerDiedError, RunnerError, RunnerProcess
from onnx_audit_server.settings import Settings
from onnx_audit_server.store.blobs import BlobStore
from onnx_audit_server.store.records import Records
from onnx_auditors import unit_arrays

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


class HandedBack(BaseException):
    """This process gives the task up without a result."""


class TaskExecutor:
    """Does tasks one after another in each of its callers' threads."""

    def __init__(
        self, settings: Settings, records: Records, blobs: BlobStore, pool: RunnerPool
    ) -> None:
        self._settings = settings
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
        try:
            return self._attempts(task)
        except ServiceError as error:
            log.warning("task failed", reason=error.reason, message=str(error))
            return Outcome(error=error.status.SerializeToString().hex())
        except Exception:
            log.exception("task failed")
            fault = ServiceError("INTERNAL", "a fault of the service; its log has the details")
            return Outcome(error=fault.status.SerializeToString().hex())
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()
            structlog.contextvars.clear_contextvars()

    def drain(self, timeout: float) -> None:
        """Takes no new tasks and waits for the running ones; then gives them up."""
        with self._changed:
            self._draining = True
            finished = self._changed.wait_for(lambda: not self._running, timeout)
        if not finished:
            log.info("handing running shards back")
            self._abandon.set()
            with self._changed:
                self._changed.wait_for(lambda: not self._running, 5.0)

    def forget(self, audit: str) -> None:
        """Frees what is kept for an audit that has ended."""
        self._pool.forget(audit)

    def _attempts(self, task: Task) -> Outcome:
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
                blob = self._attempt(task)
            except RunnerDiedError as error:
                log.warning("runner died", attempt=attempt, message=str(error))
                last = error
                continue
            except RunnerError as error:
                raise ServiceError(error.reason, str(error), metadata=error.metadata) from None
            seconds = time.monotonic() - start
            if task.kind == "shard":
                self._finished(task, seconds)
            log.info("task done", seconds=round(seconds, 3))
            return Outcome(blob=blob, seconds=seconds)
        raise ServiceError("RUNNER_DIED", f"{last} (in {self._settings.shard_attempts} attempts)")

    def _attempt(self, task: Task) -> str:
        audit = self._records.get_audit(task.audit)
        assert audit is not None  # noqa: S101 - audits are never removed
        runner = self._pool.take(task.audit, audit.model)
        runner.context = structlog.contextvars.get_contextvars()
        try:
            if runner.affinity != task.audit:
                self._open(runner, task.audit, audit)
            blob = self._command(runner, task)
        except BaseException:
            # Whatever went wrong in it, the next task gets a process that knows nothing of it.
            self._pool.discard(runner)
            raise
        self._pool.give_back(runner)
        return blob

    def _open(self, runner: RunnerProcess, audit_id: str, audit: v1.Audit) -> None:
        """Puts copies of the audit's files into the runner's folder and has them loaded."""
        model = self._records.get_model(audit.model.partition("/")[2])
        assert model is not None  # noqa: S101 - CreateAudit has seen it
        runner.affinity = audit_id
        folder = runner.scratch / "model"
        paths = copy_model(self._blobs, model, folder)
        self._blobs.copy_to(audit.probe_set.partition("/")[2], runner.scratch / "probes")
        (runner.scratch / "audit").write_bytes(audit.SerializeToString())
        runner.call(
            {
                "op": "open",
                "audit": str(runner.scratch / "audit"),
                "model": str(paths),
                "probes": str(runner.scratch / "probes"),
                "peers": self._peers(audit, runner.scratch / "peers"),
                "arrays": self._arrays(audit, runner.scratch / "arrays"),
                "device": self._settings.device,
                "threads": self._settings.threads,
            },
            lambda: self._stop(audit_id),
        )

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
            "partials": self._partials(runner, task),
        }
        artefacts = runner.scratch / "artefacts"
        if task.kind == "merge":
            artefacts.mkdir(exist_ok=True)
            command["artefacts"] = str(artefacts)
        runner.call(command, lambda: self._stop(task.audit), self._progress(task))
        if task.kind == "merge":
            for artefact in sorted(artefacts.iterdir()):
                self._blobs.put_file(artefact)
        return self._blobs.put(result.read_bytes(), MESSAGE).sha256

    def _partials(self, runner: RunnerProcess, task: Task) -> list[str]:
        paths = []
        for number, digest in enumerate(task.partials):
            path = runner.scratch / f"partial-{number}"
            self._blobs.copy_to(digest, path)
            paths.append(str(path))
        return paths

    def _progress(self, task: Task) -> Callable[[dict[str, Any]], None]:
        def tell(message: dict[str, Any]) -> None:
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

    def _finished(self, task: Task, seconds: float) -> None:
        auditor = task.auditor
        duration = duration_pb2.Duration()
        duration.FromNanoseconds(round(seconds * 1e9))
        metrics.SHARD_SECONDS.labels(auditor=metrics.auditor_label(auditor)).observe(seconds)

        def change(audit: v1.Audit) -> list[v1.AuditEvent]:
            audit.progress.shards_done = min(
                audit.progress.shards_done + 1, audit.progress.shards_total
            )
            finished = v1.AuditEvent.ShardFinished(
                auditor=auditor, shard=task.shard, duration=duration
            )
            return [v1.AuditEvent(shard_finished=finished)]

        self._records.update_audit(task.audit, change)

    def _tell(self, task: Task, event: v1.AuditEvent) -> None:
        self._records.append_events(task.audit, [event])

    def _stop(self, audit: str) -> Exception | None:
        if self._abandon.is_set():
            raise HandedBack
        status = self._records.stop_reason(audit)
        if status is None:
            return None
        return ServiceError(stop_name(status), status.message)


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
