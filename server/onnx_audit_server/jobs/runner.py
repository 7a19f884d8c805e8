"""The isolated process: loads an untrusted model and computes, one command at a time.

Commands come as JSON lines on standard input, answers leave as JSON lines on the file descriptor
given as the first argument; large results go through files. The second argument has the terms on
which it works. When standard input closes, the parent is gone or done, and the process ends.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import shutil
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import IO, Any

from onnx_audit_server.jobs.terms import Terms

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

    def __init__(self, command: dict[str, Any], terms: Terms) -> None:
        from onnx_audit import v1  # noqa: PLC0415 - heavy imports wait until limits are set
        from onnx_auditors.context import open_context  # noqa: PLC0415
        from onnx_auditors.network import Limits  # noqa: PLC0415
        from onnx_auditors.registry import need_classes  # noqa: PLC0415

        if command["device"].startswith("cuda"):
            import torch  # noqa: PLC0415

            torch.cuda.set_per_process_memory_fraction(terms.device_share, command["device"])
        self.audit = v1.Audit.FromString(Path(command["audit"]).read_bytes())
        self.context = open_context(
            Path(command["model"]),
            Path(command["probes"]),
            self.audit.input_spec,
            seed=self.audit.seed,
            device=command["device"],
            limits=Limits(**terms.limits),
            threads=command["threads"],
            head=self.audit.linear_head if self.audit.HasField("linear_head") else None,
            classes=need_classes(self.audit.auditors),
            peers=command["peers"],
            arrays=command["arrays"],
        )


class Runner:
    """Carries out commands."""

    def __init__(self, channel: Channel, terms: Terms) -> None:
        self._channel = channel
        self._terms = terms
        self._job: Job | None = None

    def inspect(self, command: dict[str, Any]) -> None:
        """Reads a model and writes its summary."""
        from onnx_auditors.network import Limits, load  # noqa: PLC0415

        summary = load(Path(command["model"]), limits=Limits(**self._terms.limits)).summary
        Path(command["result"]).write_bytes(summary.SerializeToString(deterministic=True))

    def open(self, command: dict[str, Any]) -> None:
        """Loads model and probes for the commands that follow."""
        self._job = Job(command, self._terms)

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
        from onnx_auditors import effort  # noqa: PLC0415

        last = 0.0

        def report(done: float, total: float, running: Any = None, label: str = "") -> None:  # noqa: ANN401
            nonlocal last
            if done < total and time.monotonic() - last < MIN_INTERVAL:
                return
            last = time.monotonic()
            estimate = running.SerializeToString().hex() if running is not None else ""
            self._channel.send(
                "progress",
                done=done,
                total=total,
                running=estimate,
                label=label,
                evaluations=effort.evaluations(),
            )

        return report


def read_commands(commands: queue.Queue[dict[str, Any]], scratch: str) -> None:
    """Passes commands on; ends the process when there can be no more."""
    for line in sys.stdin:
        commands.put(json.loads(line))
    # The parent would have removed it, had it lived.
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(0)


def serve(runner: Runner, channel: Channel, scratch: str) -> None:
    """Carries out commands until standard input closes."""
    commands: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=read_commands, args=(commands, scratch), daemon=True).start()

    # A warm process answers its first command without the seconds that these imports take. They
    # make no garbage, and to look for it takes a quarter of them.
    gc.disable()
    from onnx_auditors import audit, effort  # noqa: F401, PLC0415 - the commands need it
    from onnx_auditors.errors import AuditError  # noqa: PLC0415

    gc.freeze()
    gc.enable()

    while True:
        command = commands.get()
        try:
            getattr(runner, command["op"])(command)
        except AuditError as error:
            channel.send("error", reason=error.reason, message=str(error), metadata=error.metadata)
        except Exception as error:  # noqa: BLE001 - whatever happens is the parent's to judge
            traceback.print_exc()
            reason = "LIMIT_EXCEEDED" if is_out_of_memory(error) else "INTERNAL"
            message = f"{type(error).__name__}: {error}"
            channel.send("error", reason=reason, message=message, metadata={})
        else:
            channel.send("done", evaluations=effort.evaluations())


def is_out_of_memory(error: Exception) -> bool:
    """Whether the machine, or its GPU, has no more memory to give."""
    import torch  # noqa: PLC0415 - whatever failed has imported it

    refused = "DefaultCPUAllocator: can't allocate memory" in str(error)
    return refused or isinstance(error, MemoryError | torch.OutOfMemoryError)


def main(runner_class: type[Runner] = Runner) -> None:
    """Confines this process, then serves."""
    terms = Terms(**json.loads(sys.argv[2]))
    terms.enforce()
    channel = Channel(int(sys.argv[1]))
    serve(runner_class(channel, terms), channel, terms.scratch)


if __name__ == "__main__":
    main()
