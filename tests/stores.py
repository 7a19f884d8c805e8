"""Databases and blob stores for tests: in a folder, or real servers that can be cut off."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.server.postgres import Postgres, running_postgres
from tests.service import ROOT, ServiceProcess

BUCKET = "audits"
MOTO = ROOT / ".tools" / "bin" / "moto_server"
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


class Line:
    """A TCP address that leads to another one, until it is cut."""

    def __init__(self, port: int) -> None:
        self._targets = [port]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port: int = self._server.getsockname()[1]
        self._cut = False
        self._next = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def lead_to(self, *ports: int) -> None:
        """Changes where new connections lead, in turn."""
        with self._lock:
            self._targets = list(ports)

    def cut(self) -> None:
        """Breaks all connections and refuses new ones."""
        with self._lock:
            self._cut = True
            over, self._open = self._open, set()
        for connection in over:
            _close(connection)

    def mend(self) -> None:
        """Takes connections again."""
        with self._lock:
            self._cut = False

    def close(self) -> None:
        """Ends for good."""
        self.cut()
        _close(self._server)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        with self._lock:
            target = self._targets[self._next % len(self._targets)]
            self._next += 1
        try:
            far = socket.create_connection(("127.0.0.1", target))
        except OSError:
            _close(near)
            return
        with self._lock:
            ends = {near, far}
            self._open |= ends
            cut = self._cut
        if cut:
            _close(near)
            _close(far)
            return
        threading.Thread(target=self._pass_on, args=(near, far), daemon=True).start()
        self._pass_on(far, near)

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            _close(end)
            with self._lock:
                self._open.discard(end)


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@dataclass
class Stores:
    """Where processes of the service keep everything.

    Attributes:
        folder: Where their data folders go.
        shared: Their options for the database and the blobs; empty for those of a data folder.
        environment: What they need in their environment.
        database: The line to the database, None where it is a file.
        blobs: The line to the blob store, None where it is a folder.
        postgres: The database's server, None where there is none.
        s3: The blob store's server, likewise.
    """

    folder: Path
    shared: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    database: Line | None = None
    blobs: Line | None = None
    postgres: Postgres | None = None
    s3: subprocess.Popen[bytes] | None = None

    def options(self, name: str) -> tuple[Path, tuple[str, ...]]:
        """The data folder and the options of a process, apart from those of its command."""
        data = self.folder / (name if self.shared else "data")
        return data, (*self.shared, "--worker-name", name)

    def process(self, name: str, *options: str, command: str = "serve") -> ServiceProcess:
        """A process of the service, on a data folder of its own if the stores are not in one."""
        data, own = self.options(name)
        return ServiceProcess(data, *own, *options, command=command, environment=self.environment)


@contextmanager
def running_s3() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Starts an S3 server with an empty bucket; yields it and its port."""
    if not MOTO.exists():
        pytest.skip("no S3 server: make .tools/installed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    process = subprocess.Popen(
        [MOTO, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | S3_ENVIRONMENT,
    )
    try:
        bucket = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(bucket).close()  # noqa: S310
                break
            except OSError:
                assert time.monotonic() < deadline, "the S3 server does not answer"
                time.sleep(0.1)
        yield process, port
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@contextmanager
def servers(folder: Path) -> Iterator[Stores]:
    """Real PostgreSQL and S3 servers, each behind a line."""
    with running_postgres() as server, running_s3() as (s3, s3_port):
        database, blobs = Line(server.port), Line(s3_port)
        try:
            yield Stores(
                folder,
                (
                    "--database-url",
                    f"postgresql+psycopg://audit@127.0.0.1:{database.port}/postgres",
                    "--blob-url",
                    f"s3://{BUCKET}/blobs",
                ),
                S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{blobs.port}"},
                database,
                blobs,
                server,
                s3,
            )
        finally:
            database.close()
            blobs.close()
