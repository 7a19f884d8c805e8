"""Real processes of the service for tests: started, killed, restarted, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from onnx_audit import Client

START_SECONDS = 60
ROOT = Path(__file__).resolve().parent.parent


class ServiceProcess:
    """A server (or worker) process on a data folder of its own."""

    def __init__(
        self,
        data: Path,
        *arguments: str,
        command: str = "serve",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.data = data
        self._environment = dict(environment or {})
        self._command = command
        self._arguments = arguments
        self.log_file = data.parent / f"{data.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.addresses: dict[str, str] = {}

    def __enter__(self) -> ServiceProcess:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def start(self) -> None:
        """Starts the process and waits until it serves."""
        ready = self.data.parent / f"{self.data.name}.ready"
        ready.unlink(missing_ok=True)
        listen = ("--listen", "127.0.0.1:0") if self._command == "serve" else ()
        command = [sys.executable, "-m", "onnx_audit_server", self._command, *listen]
        command += ["--data", str(self.data), "--http", "127.0.0.1:0", "--ready-file", str(ready)]
        paths = [str(ROOT / name) for name in ("client", "auditors", "server")]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._arguments],
                stdout=log,
                stderr=log,
                env=os.environ | self._environment | {"PYTHONPATH": os.pathsep.join(paths)},
            )
        deadline = time.monotonic() + START_SECONDS
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the service did not start:\n{self.log}")
            time.sleep(0.02)
        self.addresses = json.loads(ready.read_text())

    @property
    def target(self) -> str:
        """Address of the gRPC server."""
        return self.addresses["grpc"]

    @property
    def log(self) -> str:
        """Everything that was logged so far."""
        return self.log_file.read_text()

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None
        return self._process.pid

    def log_lines(self) -> list[dict[str, object]]:
        """The structured log lines."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def kill(self) -> None:
        """Ends the process as a crash would."""
        self.signal(signal.SIGKILL)
        self.wait()

    def signal(self, number: int) -> None:
        """Sends a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = 60) -> int:
        """Waits for the end; returns the exit status."""
        assert self._process is not None
        return self._process.wait(timeout)

    @contextmanager
    def client(self, timeout: float = 60) -> Iterator[Client]:
        """A client of this server."""
        with Client(self.target, timeout=timeout) as client:
            yield client
