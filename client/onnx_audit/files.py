"""Files as the blobs they are uploaded as: digests and chunks, in flat memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from onnx_audit import v1

# The schema's limit for one message.
CHUNK_BYTES: Final = 2 * 1024 * 1024

# How a full chunk begins on the wire: which field it is, and its length.
_FULL_CHUNK: Final = v1.WriteRequest(data=bytes(CHUNK_BYTES)).SerializeToString()[:-CHUNK_BYTES]

# Called with (name of the file, bytes sent, bytes in all); possibly from another thread.
Progress: TypeAlias = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LocalBlob:
    """A file on this machine, with what names it on the service.

    Attributes:
        path: The file.
        label: What progress calls it.
        sha256: Lower-case hexadecimal digest of its content.
        size: Length in bytes.
    """

    path: Path
    label: str
    sha256: str
    size: int


def local_blob(path: Path, label: str | None = None) -> LocalBlob:
    """Reads a file once to know its digest and length."""
    with path.open("rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256")
        return LocalBlob(path, label or path.name, digest.hexdigest(), file.tell())


def write_requests(blob: LocalBlob, offset: int, progress: Progress | None) -> Iterator[bytes]:
    """The serialised WriteRequests that upload a blob from an offset on; the last one finishes it.

    The file is read as it is sent. One that has changed since its digest was taken is found out by
    the service, which checks the digest.
    """
    buffer = memoryview(bytearray(CHUNK_BYTES))
    request = v1.WriteRequest(sha256=blob.sha256)
    with blob.path.open("rb") as file:
        file.seek(offset)
        while not request.finish_write:
            data = buffer[: file.readinto(buffer)]
            request.write_offset = offset
            offset += len(data)
            # A shorter file than announced ends here too; the service then refuses the digest.
            request.finish_write = offset >= blob.size or not data
            yield _serialised(request, data)
            request.ClearField("sha256")  # only the first message names the blob
            if progress is not None:
                progress(blob.label, min(offset, blob.size), blob.size)


def _serialised(request: v1.WriteRequest, data: memoryview) -> bytes:
    """A message with some content; protobuf itself would copy full chunks twice."""
    if len(data) == CHUNK_BYTES:
        return b"".join((request.SerializeToString(), _FULL_CHUNK, data))
    return request.SerializeToString() + v1.WriteRequest(data=bytes(data)).SerializeToString()
