"""The parent's side of a runner: start it, give it commands, kill it without harm."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onnx_audit_server import logs, metrics
from onnx_audit_server.jobs import memory
from onnx_audit_server.jobs.confinement import terms
from onnx_audit_server.jobs.devices import devices
from onnx_audit_server.sandbox.paths import import_path
from onnx_audit_server.settings import Settings

POLL = 0.2
"""Seconds between two looks whether the work should stop."""
MEMORY_POLL = 0.05
"""Seconds between two looks at the memory that it takes, which grows by gigabytes in a second."""
RUNNER = "onnx_audit_server.jobs.runner"
"""The module that runs in the other process."""
LINE_LIMIT = 1 << 20
"""Longest message that a runner may send, in bytes; a longer one ends it."""
RESULT_LIMIT = 1 << 30
"""Largest result that is read into memory, in bytes."""
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
"""The environment variables that a runner sees; the parent's others may hold secrets."""

log = logs.get(__name__)


class RunnerDiedError(Exception):
    """The runner ended by itself in the middle of a command."""


class RunnerError(Exception):
    """The runner answered a command with an error, or was ended for what the command took.

    Attributes:
        reason: A v1.ErrorReason's name.
        metadata: Details for machines.
    """

    def __init__(self, reason: str, message: str, metadata: Mapping[str, str]) -> None:
        super().__init__(message)
        self.reason = reason
        self.metadata = dict(metadata)


class RunnerProcess:
    """One isolated process with a scratch folder of its own.

    Attributes:
        affinity: The audit whose model it has loaded and the device it has it on, or the model
            that was read in it when it was registered; None while it is fresh.
        context: What its log lines are about, such as the shard it works on.
        scratch: Its working folder; goes with it.
    """

    def __init__(self, settings: Settings, scratch_root: Path) -> None:
        scratch_root.mkdir(parents=True, exist_ok=True)
        self.scratch = Path(tempfile.mkdtemp(prefix="runner-", dir=scratch_root))
        self.affinity: str | None = None
        self.context: dict[str, object] = {}
        self._memory = memory.limit(settings.runner_memory_bytes, len(devices(settings)))
        self._timeout = settings.shard_timeout
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue(maxsize=1000)
        self._last_words: deque[str] = deque(maxlen=20)
        self._told = self._booked = 0.0
        reading, writing = os.pipe()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
                [sys.executable, "-P", "-m", RUNNER, str(writing),
                 terms(settings, self.scratch).to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                cwd=self.scratch,
                env=_environment(settings, self.scratch),
                pass_fds=(writing,),
                start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(writing)
        threading.Thread(target=self._read_messages, args=(reading,), daemon=True).start()
        threading.Thread(target=self._read_errors, daemon=True).start()

    @property
    def only_read(self) -> bool:
        """Whether a model was read in it, but nothing is loaded for an audit."""
        return self.affinity is not None and self.affinity.startswith("models/")

    @property
    def alive(self) -> bool:
        """Whether it can take a command."""
        return self._process.poll() is None

    def call(
        self,
        command: Mapping[str, object],
        stop: Callable[[], Exception | None],
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Has one command carried out.

        Args:
            command: What to do; results lie in the files that it names.
            stop: Asked several times a second; an exception that it returns ends the runner and is
                raised.
            progress: Called with each progress message.

        Raises:
            RunnerError: The command failed; or it took more memory or time than the settings
                allow, and the runner is gone.
            RunnerDiedError: The process ended.
        """
        try:
            assert self._process.stdin is not None  # noqa: S101 - it was asked for above
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        begin = last_look = time.monotonic()
        while True:
            self._check_use(begin)
            # Asked by the clock and not when idle: a chatty runner must not put it off.
            if time.monotonic() - last_look >= POLL:
                last_look = time.monotonic()
                if (reason := stop()) is not None:
                    self.kill()
                    raise reason
            try:
                message = self._messages.get(timeout=MEMORY_POLL)
            except queue.Empty:
                continue
            match message:
                case None:
                    raise self._died()
                case {"kind": "done"}:
                    self._note(message)
                    return
                case {"kind": "error", "reason": str(reason_name), "message": str(text)}:
                    metadata = message.get("metadata")
                    pairs = metadata.items() if isinstance(metadata, dict) else ()
                    raise RunnerError(reason_name, text, {str(k): str(v) for k, v in pairs})
                case {"kind": "progress"} if progress is not None:
                    self._note(message)
                    progress(message)

    def result(self, path: Path) -> bytes:
        """Returns what a command has written to a file in its folder.

        Raises:
            RunnerError: There is no such file, or it is not what a runner writes.
        """
        try:
            # It may be a link to a file of this process, or a pipe that never ends.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise RunnerError("INTERNAL", f"no result: {error.strerror}", {}) from None
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size > RESULT_LIMIT:
                raise RunnerError("INTERNAL", f"a result of {found.st_size:,} bytes", {})
            return file.read(RESULT_LIMIT)

    def _check_use(self, begin: float) -> None:
        """Ends the runner where a command takes too much."""
        used, seconds = memory.used_bytes(self._process.pid), time.monotonic() - begin
        if used > self._memory:
            self.kill()
            raise RunnerError(
                "LIMIT_EXCEEDED",
                f"the model used {used:,} bytes of memory; at most {self._memory:,} are accepted",
                {"limit": "memory", "found": str(used), "allowed": str(self._memory)},
            )
        if seconds > self._timeout:
            self.kill()
            raise RunnerError(
                "DEADLINE_EXCEEDED",
                f"one step of the work ran for {seconds:,.1f} seconds; at most "
                f"{self._timeout:g} are accepted",
                {"limit": "shard_timeout", "allowed": f"{self._timeout:g}"},
            )

    def take_evaluations(self) -> float:
        """Gradient evaluations that it has told of since the last time that this was asked."""
        fresh, self._booked = self._told - self._booked, self._told
        return fresh

    def _note(self, message: Mapping[str, Any]) -> None:
        told = message.get("evaluations")
        # What a runner says may be anything; a count never falls.
        if isinstance(told, float) and math.isfinite(told):
            self._told = max(self._told, told)

    def kill(self) -> None:
        """Ends the process and all that it started, and removes its scratch folder."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _died(self) -> RunnerDiedError:
        self.kill()
        code = self._process.returncode
        metrics.RUNNER_DEATHS.labels("signal" if code < 0 else "exit").inc()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        words = "; its last words: " + " | ".join(self._last_words) if self._last_words else ""
        return RunnerDiedError(f"the process that ran the model ended by {how}{words}")

    def _read_messages(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as file:
            while (line := file.readline(LINE_LIMIT)).endswith(b"\n"):
                try:
                    message = json.loads(line)
                except ValueError:
                    break
                if isinstance(message, dict):
                    self._messages.put(message)
        # The end, or something that no runner of ours says: either way it is over.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._messages.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None  # noqa: S101 - it was asked for above
        with self._process.stderr as file:
            while line := file.readline(4096):
                text = line.decode(errors="replace").rstrip()
                self._last_words.append(text)
                log.info("runner says", **self.context, text=text)


def _environment(settings: Settings, scratch: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    threads = str(settings.threads)
    return kept | {
        "PYTHONPATH": os.pathsep.join(import_path()),
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        # Waiting threads that spin cost a busy machine several times the work itself.
        "OMP_WAIT_POLICY": "PASSIVE",
        # Before the import of ONNX Runtime, which would send otherwise.
        "ORT_DISABLE_TELEMETRY": "1",
        "NVIDIA_TF32_OVERRIDE": "0",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
