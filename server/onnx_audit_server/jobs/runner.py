"""The isolated process: loads an untrusted model and computes, one command at a time.

Commands come as JSON lines on standard input, answers leave as JSON lines on the file descriptor
given as the only argument; large results go through files. When standard input closes, the parent
is gone or done, and the process ends at once.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import resource
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import IO, Any

PR_SET_NO_NEW_PRIVS = 38
MIN_INTERVAL = 0.25
"""Seconds between two progress messages."""


class Channel:
    """Writes answers to the parent."""

    def __init__(self, descriptor: int) -> None:
        self._file: IO[str] = os.fdopen(descriptor, "w", encoding="utf-8")
        self._lock = threading.Lock()

    def send(self, kind: str, **fields: object) -> None:
        """Sends one message."""
        with self._lock:
            self._file.write(json.dumps({"kind": kind, **fields}) + "\n")
            self._file.flush()


class Job:
    """The open audit that this process works on."""

    def __init__(self, command: dict[str, Any]) -> None:
        from onnx_audit import v1  # noqa: PLC0415 - heavy imports wait until limits are set
        from onnx_auditors.context import open_context  # noqa: PLC0415
        from onnx_auditors.registry import need_classes  # noqa: PLC0415

        self.audit = v1.Audit.FromString(Path(command["audit"]).read_bytes())
        self.context = open_context(
            Path(command["model"]),
            Path(command["probes"]),
            self.audit.input_spec,
            seed=self.audit.seed,
            device=command["device"],
            threads=command["threads"],
            head=self.audit.linear_head if self.audit.HasField("linear_head") else None,
            classes=need_classes(self.audit.auditors),
            peers=command["peers"],
            arrays=command["arrays"],
        )


class Runner:
    """Carries out commands."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._job: Job | None = None

    def inspect(self, command: dict[str, Any]) -> None:
        """Reads a model and writes its summary."""
        from onnx_auditors.network import load  # noqa: PLC0415

        summary = load(Path(command["model"])).summary
        Path(command["result"]).write_bytes(summary.SerializeToString(deterministic=True))

    def open(self, command: dict[str, Any]) -> None:
        """Loads model and probes for the commands that follow."""
        self._job = Job(command)

    def plan(self, command: dict[str, Any]) -> None:
        """Checks parity, fills in defaults and divides the work."""
        from onnx_auditors import audit  # noqa: PLC0415

        job = self._opened()
        plan = audit.plan(job.audit.auditors, job.context)
        Path(command["result"]).write_bytes(plan.SerializeToString(deterministic=True))

    def shard(self, command: dict[str, Any]) -> None:
        """Does one shard."""
        from onnx_auditors import audit  # noqa: PLC0415

        job = self._opened()
        partial = audit.run_shard(
            job.audit.auditors,
            job.context,
            command["auditor"],
            command["shard"],
            self._progress(),
            [Path(path) for path in command["partials"]],
        )
        Path(command["result"]).write_bytes(partial)

    def merge(self, command: dict[str, Any]) -> None:
        """Joins the partials of an auditor."""
        from onnx_auditors import audit  # noqa: PLC0415

        job = self._opened()
        result = audit.merge(
            job.audit.auditors,
            job.context,
            command["auditor"],
            [Path(path) for path in command["partials"]],
            Path(command["artefacts"]),
        )
        Path(command["result"]).write_bytes(result.SerializeToString(deterministic=True))

    def _opened(self) -> Job:
        if self._job is None:
            raise RuntimeError("no job is open")
        return self._job

    def _progress(self) -> Any:  # noqa: ANN401 - the protocol lives in a heavy module
        last = 0.0

        def report(done: float, total: float, running: Any = None, label: str = "") -> None:  # noqa: ANN401
            nonlocal last
            if done < total and time.monotonic() - last < MIN_INTERVAL:
                return
            last = time.monotonic()
            estimate = running.SerializeToString().hex() if running is not None else ""
            self._channel.send("progress", done=done, total=total, running=estimate, label=label)

        return report


def confine(memory: int) -> None:
    """Gives up what the work does not need, before anything untrusted is touched."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # The API on the same machine answers first.
    os.nice(5)


def read_commands(commands: queue.Queue[dict[str, Any]]) -> None:
    """Passes commands on; ends the process when there can be no more."""
    for line in sys.stdin:
        commands.put(json.loads(line))
    os._exit(0)


def serve(channel: Channel) -> None:
    """Carries out commands until standard input closes."""
    commands: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=read_commands, args=(commands,), daemon=True).start()

    # A warm process answers its first command without the seconds that these imports take.
    from onnx_auditors.errors import AuditError  # noqa: PLC0415

    runner = Runner(channel)
    while True:
        command = commands.get()
        try:
            getattr(runner, command["op"])(command)
        except AuditError as error:
            channel.send("error", reason=error.reason, message=str(error), metadata=error.metadata)
        except MemoryError:
            channel.send("error", reason="LIMIT_EXCEEDED", message="out of memory", metadata={})
        except Exception as error:  # noqa: BLE001 - whatever happens is the parent's to judge
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}"
            channel.send("error", reason="INTERNAL", message=message, metadata={})
        else:
            channel.send("done")


if __name__ == "__main__":
    confine(int(os.environ.get("ONNX_AUDIT_RUNNER_MEMORY", "0")))
    serve(Channel(int(sys.argv[1])))
