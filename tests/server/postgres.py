"""A real PostgreSQL server for tests, where one is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
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


@contextmanager
def postgres() -> Iterator[str]:
    """Starts a server with an empty database; yields its SQLAlchemy URL."""
    initdb, server = program("initdb"), program("postgres")
    account = ACCOUNT if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data"
        if account:
            shutil.chown(folder, account)
        subprocess.run(
            [initdb, "-D", data, "-U", "audit", "--auth=trust", "--no-sync", "-E", "UTF8"],
            check=True,
            capture_output=True,
            user=account,
            cwd=folder,
        )
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        process = subprocess.Popen(
            [server, "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-F"],
            stderr=subprocess.PIPE,
            user=account,
            cwd=folder,
        )
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if b"ready to accept connections" in line:
                    break
            yield f"postgresql+psycopg://audit@127.0.0.1:{port}/postgres"
        finally:
            process.terminate()
            process.communicate()
