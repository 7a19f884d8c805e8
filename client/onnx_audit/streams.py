"""What survives a broken stream: how far a watch or a download has come."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from onnx_audit import v1
from onnx_audit.errors import DeadlineExceeded, ServiceError
from onnx_audit.requests import FINAL_STATES
from onnx_audit.retries import Attempts, RetryPolicy
from onnx_audit.status import service_error


class Watch:
    """A watch that goes on after the last event seen."""

    def __init__(self, audit: str, after_sequence: int, policy: RetryPolicy) -> None:
        self._audit = audit
        self._last = after_sequence
        self._attempts = Attempts(policy)
        self.ended = False

    def request(self) -> v1.WatchAuditRequest:
        """The request for the events that are still to come."""
        return v1.WatchAuditRequest(name=self._audit, after_sequence=self._last)

    def accept(self, event: v1.AuditEvent) -> bool:
        """Takes note of an event; false for one that was seen before.

        Raises:
            ServiceError: Events are missing between the last one and this one; the watch can be
                resumed.
        """
        if event.sequence <= self._last:
            return False
        if event.sequence > self._last + 1:
            raise service_error(
                "UNAVAILABLE",
                f"{self._audit}: event {event.sequence} followed event {self._last}",
            )
        self._last = event.sequence
        self._attempts.reset()
        if event.WhichOneof("event") == "state_changed":
            self.ended = event.state_changed.state in FINAL_STATES
        return True

    def closed(self, audit: v1.Audit) -> None:
        """Takes note that the stream ended; `audit` is the audit as it is now.

        Raises:
            ServiceError: There is more to come; the watch can be resumed.
        """
        if audit.state in FINAL_STATES and self._last >= audit.last_sequence:
            self.ended = True
        if not self.ended:
            raise service_error("UNAVAILABLE", f"the watch of {self._audit} ended early")

    def delay_after(self, error: ServiceError) -> float:
        """Seconds until the watch should be resumed; raises `error` if it should not be."""
        if isinstance(error, DeadlineExceeded):  # the client's own limit on a silent stream
            return 0.0
        return self._attempts.delay_after(error)


class Download:
    """A download into a temporary file, moved to its place once whole and checked."""

    def __init__(self, blob: v1.BlobRef, path: Path, policy: RetryPolicy) -> None:
        self._blob = blob
        self._path = path
        self._attempts = Attempts(policy)
        self._digest = hashlib.sha256()
        self._received = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        self._file = self._temporary.open("xb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    @property
    def complete(self) -> bool:
        """Whether every byte is here."""
        return self._received >= self._blob.size_bytes

    def request(self) -> v1.ReadRequest:
        """The request for the bytes that are still missing."""
        return v1.ReadRequest(sha256=self._blob.sha256, read_offset=self._received)

    def write(self, chunk: v1.ReadResponse) -> None:
        """Appends a chunk."""
        self._file.write(chunk.data)
        self._digest.update(chunk.data)
        self._received += len(chunk.data)
        self._attempts.reset()

    def closed(self) -> None:
        """Takes note that the stream ended.

        Raises:
            ServiceError: Bytes are missing; the download can be resumed.
        """
        if not self.complete:
            raise service_error(
                "UNAVAILABLE",
                f"the download of {self._blob.sha256} ended at byte {self._received} "
                f"of {self._blob.size_bytes}",
            )

    def delay_after(self, error: ServiceError) -> float:
        """Seconds until the download should be resumed; raises `error` if it should not be."""
        return self._attempts.delay_after(error, repeatable=isinstance(error, DeadlineExceeded))

    def finish(self) -> Path:
        """Checks the digest and moves the file to its place.

        Raises:
            DataLoss: The bytes are not those that the digest names.
        """
        if self._digest.hexdigest() != self._blob.sha256:
            raise service_error(
                "DATA_LOSS",
                f"downloaded {self._received} bytes with SHA-256 {self._digest.hexdigest()}, "
                f"expected {self._blob.sha256}; nothing was kept",
            )
        self._file.close()
        self._temporary.replace(self._path)
        return self._path
