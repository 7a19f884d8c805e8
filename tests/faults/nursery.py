"""Forks processes of the service off one that has imported everything: a start takes no seconds.

Reads one JSON line per process to start, and answers with its id. What it started ends with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

from onnx_audit_server import main, service  # noqa: F401 - imported for the children
from onnx_auditors import sandwich  # noqa: F401

PR_SET_PDEATHSIG = 1


def child(request: dict[str, object]) -> None:
    """Becomes a process of the service; does not return."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(str(request["log"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    environment = request["environment"]
    assert isinstance(environment, dict)
    os.environ.update(environment)
    arguments = request["arguments"]
    assert isinstance(arguments, list)
    main.main(arguments, prog_name="onnx-audit")


def serve(runner: str) -> None:
    """Starts processes until standard input ends."""
    # The program that the service starts for its isolated processes.
    sys.executable = runner
    # Nobody waits for the children: the kernel clears them away.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)  # noqa: T201 - the answer
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                child(json.loads(line))
            finally:
                os._exit(70)
        print(pid, flush=True)  # noqa: T201


if __name__ == "__main__":
    serve(sys.argv[1])
