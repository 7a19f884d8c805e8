"""A runner that tries what an exploited one would; run in place of the real one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnx_audit_server.jobs.runner import Runner, main


class HostileRunner(Runner):
    """Carries out one more command."""

    def attempt(self, command: dict[str, Any]) -> None:
        """Tries everything; writes what came of each, by name."""
        outside = Path(command["outside"])
        tries: dict[str, Callable[[], object]] = {
            "inet socket": lambda: socket.socket(socket.AF_INET),
            "inet6 socket": lambda: socket.socket(socket.AF_INET6),
            "unix socket": lambda: socket.socket(socket.AF_UNIX),
            "read passwd": Path("/etc/passwd").read_bytes,
            "read database": (outside / "onnx-audit.sqlite").read_bytes,
            "read secrets": Path(f"/proc/{os.getppid()}/environ").read_bytes,
            "list outside": lambda: list(outside.iterdir()),
            "write outside": lambda: (outside / "new").write_bytes(b"x"),
            "write tmp": lambda: Path("/tmp/onnx-audit-escape").write_bytes(b"x"),  # noqa: S108 - it must fail
            "truncate": lambda: os.truncate(outside / "onnx-audit.sqlite", 0),
            "chmod": lambda: (outside / "onnx-audit.sqlite").chmod(0o666),
            "symlink": lambda: (Path.cwd() / "link").symlink_to("/etc/passwd"),
            "execute": lambda: subprocess.run(["/bin/true"], check=True),
            "fork": os.fork,
            "signal": lambda: os.kill(os.getppid(), signal.SIGCONT),
            "own file": lambda: (Path.cwd() / "own").write_bytes(b"x"),
        }
        found = {}
        for name, action in tries.items():
            try:
                action()
            except OSError as error:
                found[name] = type(error).__name__
            else:
                found[name] = "done"
        found["environment"] = " ".join(f"{k}={v}" for k, v in os.environ.items())
        Path(command["result"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(HostileRunner)
