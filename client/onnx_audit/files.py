"""Files as the blobs they are uploaded as: digests and chunks, in flat memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from onnx_audit import v1

# Half of the schema's limit for one message: both sides then copy within their caches.
CHUNK_BYTES: Final = 1024 * 1024

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
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return LocalBlob(path, label or path.name, digest.hexdigest(), size)


def write_requests(
    blob: LocalBlob, offset: int, progress: Progress | None
) -> Iterator[v1.WriteRequest]:
    """The messages that upload a blob from an offset on; the last one finishes it.

    The file is read as it is sent. One that has changed since its digest was taken is found out by
    the service, which checks the digest.
    """
    sha256 = blob.sha256
    with blob.path.open("rb") as file:
        file.seek(offset)
        while True:
            data = file.read(CHUNK_BYTES)
            end = offset + len(data)
            # A shorter file than announced ends here too; the service then refuses the digest.
            finish = end >= blob.size or not data
            yield v1.WriteRequest(
                sha256=sha256, write_offset=offset, data=data, finish_write=finish
            )
            sha256 = ""  # only the first message names the blob
            if progress is not None:
                progress(blob.label, min(end, blob.size), blob.size)
            if finish:
                return
            offset = end
