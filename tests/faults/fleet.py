"""Servers and workers on shared stores, quick to start, and what can befall them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.service import ROOT
from tests.stores import Line, Stores

from onnx_audit import Client
from onnx_audit.retries import RetryPolicy

TAKEOVER = 3.0
"""Seconds after which the workers of these tests take each other for dead."""
START_SECONDS = 60.0
PATIENT = RetryPolicy(attempts=200, max_delay=0.5)
"""For clients that see the faults through."""
HERE = Path(__file__).parent


class Nursery:
    """Starts processes of the service in no time."""

    def __init__(self, folder: Path) -> None:
        stub = folder / "runner"
        stub.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "stub_runner.py"}" "$@"\n')
        stub.chmod(0o755)
        paths = [str(ROOT / name) for name in ("client", "auditors", "server")]
        self._log = (folder / "nursery.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, HERE / "nursery.py", stub],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        self._lock = threading.Lock()
        self._answer()

    def start(self, arguments: list[str], log: Path, environment: dict[str, str]) -> int:
        """Starts a process; returns its id."""
        assert self._process.stdin is not None
        request = {"arguments": arguments, "log": str(log), "environment": environment}
        with self._lock:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            return int(self._answer())

    def close(self) -> None:
        """Ends it and everything that it started."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def _answer(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, Path(self._log.name).read_text()
        return line


class Member:
    """One server or worker of a fleet."""

    def __init__(
        self, name: str, command: str, stores: Stores, nursery: Nursery, *more: str
    ) -> None:
        """Describes the process; `more` are further options, which win over the others."""
        self.name = name
        self.command = command
        self._stores = stores
        self._nursery = nursery
        self._data, options = stores.options(name)
        self._ready = stores.folder / f"{name}.ready"
        self.log = stores.folder / f"{name}.log"
        self._arguments = [command, "--data", str(self._data), *options]
        self._arguments += ["--ready-file", str(self._ready), "--http", "127.0.0.1:0"]
        self._arguments += ["--threads", "1", "--drain-timeout", "2"]
        if command == "serve":
            self._arguments += ["--no-worker", "--listen", "127.0.0.1:0"]
        self._arguments += more
        self.takeover_after = TAKEOVER
        self.pid = 0
        self.addresses: dict[str, str] = {}

    @property
    def alive(self) -> bool:
        """Whether the process is there, running or paused."""
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return self.pid > 0

    @property
    def port(self) -> int:
        """Port of the gRPC server."""
        return int(self.addresses["grpc"].rpartition(":")[2])

    def start(self) -> None:
        """Starts the process and waits until it serves."""
        self._ready.unlink(missing_ok=True)
        environment = self._stores.environment | {
            "ONNX_AUDIT_TAKEOVER_AFTER": str(self.takeover_after)
        }
        self.pid = self._nursery.start(self._arguments, self.log, environment)
        deadline = time.monotonic() + START_SECONDS
        while not self._ready.exists():
            if not self.alive or time.monotonic() > deadline:
                raise AssertionError(f"{self.name} did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.01)
        self.addresses = json.loads(self._ready.read_text())

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, if the process is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends the process as a crash would."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> None:
        """Ends the process in good order."""
        self.signal(signal.SIGTERM)
        self.wait()

    def wait(self, timeout: float = 30.0) -> None:
        """Waits for its end."""
        deadline = time.monotonic() + timeout
        while self.alive:
            assert time.monotonic() < deadline, f"{self.name} does not end"
            time.sleep(0.01)

    def runners(self) -> list[int]:
        """Ids of its isolated processes."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == self.pid:
                    found.append(int(entry.name))
        return found


class Fleet:
    """Two servers behind one address, and workers, all on the same stores."""

    def __init__(self, stores: Stores, nursery: Nursery, workers: int = 2) -> None:
        self.stores = stores
        self.nursery = nursery
        self.servers = [Member(f"server-{n}", "serve", stores, nursery) for n in range(2)]
        self.workers = [Member(f"worker-{n}", "worker", stores, nursery) for n in range(workers)]
        self._line: Line | None = None

    @property
    def members(self) -> list[Member]:
        """Servers and workers."""
        return [*self.servers, *self.workers]

    def start(self) -> None:
        """Starts everything that is not there, and leads the address to the servers."""
        for member in self.members:
            if not member.alive:
                member.start()
        ports = [server.port for server in self.servers]
        if self._line is None:
            self._line = Line(ports[0])
        self._line.lead_to(*ports)

    def client(self) -> Client:
        """A client of the one address."""
        assert self._line is not None
        return Client(f"127.0.0.1:{self._line.port}", retries=PATIENT, timeout=10)

    def close(self) -> None:
        """Kills everything."""
        for member in self.members:
            member.signal(signal.SIGKILL)
        if self._line is not None:
            self._line.close()


@contextmanager
def running(stores: Stores, takeover_after: float = TAKEOVER) -> Iterator[Fleet]:
    """A fleet that is up; its workers take each other for dead after some seconds of silence."""
    nursery = Nursery(stores.folder)
    fleet = Fleet(stores, nursery)
    for worker in fleet.workers:
        worker.takeover_after = takeover_after
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.close()
        nursery.close()
