"""A service of one's own, as a child process for as long as it is needed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from onnx_audit.errors import OnnxAuditError

# Libraries of the server extra by import name; the server's own code comes with every install.
_REQUIRED: Final = ("torch", "onnx", "onnxruntime", "dbos", "sqlalchemy", "obstore")
_START_SECONDS: Final = 180.0
_DRAIN_SECONDS: Final = 5.0
_STOP_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.05
_LOG_LINES: Final = 20
# Settings of services for others, and credentials for them: this one serves this process alone.
_NOT_PASSED_ON: Final = (
    "ONNX_AUDIT_AUTH",
    "ONNX_AUDIT_HTTP_TLS",
    "ONNX_AUDIT_OIDC_ISSUER",
    "ONNX_AUDIT_TLS_CERT",
    "ONNX_AUDIT_TLS_CLIENT_CA",
    "ONNX_AUDIT_TLS_KEY",
    "ONNX_AUDIT_TOKEN",
    "ONNX_AUDIT_TOKEN_FILE",
)


class EmbeddedServiceError(OnnxAuditError):
    """The service on this machine could not be started, or it died."""


def default_data_folder() -> Path:
    """Where the embedded service keeps its data: `$XDG_DATA_HOME/onnx-audit`."""
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "onnx-audit"


class EmbeddedService:
    """Runs `onnx_audit_server serve` on a free local port; use it in `with`.

    Args:
        data: Folder of its database and blobs, made if missing; what it holds is used again. The
            service's log goes to `server.log` in it.
    """

    def __init__(self, data: Path) -> None:
        self._data = data
        self._log = data / "server.log"
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.target = ""

    def __enter__(self) -> Self:
        missing = [name for name in _REQUIRED if importlib.util.find_spec(name) is None]
        if missing:
            raise EmbeddedServiceError(
                f"auditing on this machine needs the server extra ({', '.join(missing)} not "
                "found): pip install 'onnx-audit[server]'; or name a service with --server"
            )
        try:
            self._data.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._log.touch(mode=0o600)
        except OSError as error:
            raise EmbeddedServiceError(
                f"{self._data}: cannot keep the service's data there: {error.strerror}; "
                "name another folder with --data"
            ) from error
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def died(self) -> EmbeddedServiceError | None:
        """Why the service is not running any more, or None while it is."""
        if self._process is None or self._process.poll() is None:
            return None
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
        tail = "\n".join(f"  {line}" for line in lines) or "  (it wrote nothing)"
        return EmbeddedServiceError(
            f"the service on this machine ended with status {self._process.returncode}; the last "
            f"lines of {self._log}:\n{tail}"
        )

    def stop(self) -> None:
        """Stops the service: asked to first, killed if it does not follow."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None

    def _start(self) -> None:
        with tempfile.TemporaryDirectory(prefix="onnx-audit-") as folder:
            ready = Path(folder) / "ready.json"
            command = [
                *(sys.executable, "-m", "onnx_audit_server", "serve"),
                *("--data", str(self._data), "--listen", "127.0.0.1:0", "--http", "none"),
                *("--ready-file", str(ready), "--log-level", "warning"),
                # The pipe closes when this process ends, however it ends.
                *("--stop-on-eof", "--drain-timeout", str(_DRAIN_SECONDS)),
            ]
            with self._log.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env={n: v for n, v in os.environ.items() if n not in _NOT_PASSED_ON},
                    # Ctrl-C is for the client, which cancels the audit before it stops the service.
                    start_new_session=True,
                )
            self.target = self._await_ready(ready)

    def _await_ready(self, ready: Path) -> str:
        """The address that the service listens on, once it does."""
        deadline = time.monotonic() + _START_SECONDS
        while not ready.exists():
            if (error := self.died()) is not None:
                raise error
            if time.monotonic() > deadline:
                raise EmbeddedServiceError(
                    f"the service on this machine was not ready after {_START_SECONDS:.0f} "
                    f"seconds; its log is {self._log}"
                )
            time.sleep(_POLL_SECONDS)
        target: str = json.loads(ready.read_text(encoding="utf-8"))["grpc"]
        return target
