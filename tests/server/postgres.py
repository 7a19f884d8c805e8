"""A real PostgreSQL server for tests, where one is installed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ACCOUNT = "postgres"
"""Who runs the server when the tests run as root, which PostgreSQL refuses to."""


def program(name: str) -> str:
    """Path of one of PostgreSQL's programs; skips the test where there is none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    path = shutil.which(name, path=os.pathsep.join([*map(str, folders), os.environ["PATH"]]))
    if path is None:
        pytest.skip(f"PostgreSQL is not installed: no {name}")
    return path


class Postgres:
    """A server with an empty database that can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        """Makes the database below a folder and starts its server."""
        self._folder = folder
        self._prefix: list[str] = []
        if os.getuid() == 0:
            shutil.chown(folder, ACCOUNT)
            # Popen would fork to change the account, which gRPC's threads here do not survive.
            self._prefix = ["setpriv", f"--reuid={ACCOUNT}", f"--regid={ACCOUNT}", "--init-groups"]
        create = [*self._prefix, program("initdb"), "-D", str(folder / "data"), "-U", "audit"]
        create += ["--auth=trust", "--no-sync", "-E", "UTF8"]
        subprocess.run(
            create,
            check=True,
            capture_output=True,
            cwd=folder,
        )
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self.start()

    @property
    def url(self) -> str:
        """Its SQLAlchemy URL."""
        return f"postgresql+psycopg://audit@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def start(self) -> None:
        """Starts the server and waits until it takes connections."""
        command = [
            *self._prefix,
            program("postgres"),
            "-D",
            str(self._folder / "data"),
            "-p",
            str(self.port),
        ]
        command += ["-h", "127.0.0.1", "-k", str(self._folder), "-F"]
        self._process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            cwd=self._folder,
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if b"ready to accept connections" in line:
                break
        # A full pipe would hold the server up.
        self._reader = threading.Thread(target=self._process.stderr.read, daemon=True)
        self._reader.start()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stops it: by SIGINT in order, but without waiting for clients; by SIGQUIT as a crash."""
        self._process.send_signal(how)
        self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as name:
        server = Postgres(Path(name))
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def postgres() -> Iterator[str]:
    """Starts a server with an empty database; yields its SQLAlchemy URL."""
    with running_postgres() as server:
        yield server.url
