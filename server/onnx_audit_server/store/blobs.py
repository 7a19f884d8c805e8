"""Content-addressed blobs: local folder, S3, Google Cloud Storage or Azure through obstore.

A blob becomes visible only whole and with its digest checked. Uploads under way wait in a local
staging file, so a broken upload can go on where it stopped, and a wrong one leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import obstore
from obstore.store import LocalStore, from_url

from onnx_audit import v1

CHUNK = 1 << 20
DIGEST = re.compile(r"[0-9a-f]{64}")


class DigestMismatchError(Exception):
    """Staged bytes do not have the digest under which they were to be stored."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"the content has SHA-256 {found}, announced was {expected}")
        self.expected = expected
        self.found = found


class UploadBusyError(Exception):
    """Another upload of the same blob is under way."""


class Upload:
    """A staged upload that this holder alone may append to."""

    def __init__(self, digest: str, file: BinaryIO) -> None:
        self.digest = digest
        self._file = file
        self._hash = hashlib.sha256()
        file.seek(0)
        while chunk := file.read(CHUNK):
            self._hash.update(chunk)
        self.size = file.tell()

    def append(self, data: bytes) -> None:
        """Adds bytes at the end; they are in the operating system's hands on return."""
        self._file.write(data)
        self._file.flush()
        self._hash.update(data)
        self.size += len(data)

    def seal(self) -> None:
        """Makes the bytes durable once they are known to be right.

        Raises:
            DigestMismatchError: They are not.
        """
        if (found := self._hash.hexdigest()) != self.digest:
            raise DigestMismatchError(self.digest, found)
        os.fsync(self._file.fileno())


class BlobStore:
    """Blobs named by the lower-case hexadecimal SHA-256 of their content."""

    def __init__(self, folder: Path, url: str = "") -> None:
        """Opens the store below `folder`, or at `url` with `folder` for staging alone."""
        self._staging = folder / "uploads"
        self._staging.mkdir(parents=True, exist_ok=True)
        local = folder / "blobs"
        if not url:
            local.mkdir(parents=True, exist_ok=True)
        self._local = None if url else local
        self._store = from_url(url) if url else LocalStore(local)

    def size(self, digest: str) -> int | None:
        """Length of a blob in bytes, None where there is no such blob."""
        try:
            return int(obstore.head(self._store, _key(digest))["size"])
        except FileNotFoundError:
            return None

    def staged_size(self, digest: str) -> int:
        """Bytes of an unfinished upload, 0 where there is none."""
        try:
            return self._part(digest).stat().st_size
        except FileNotFoundError:
            return 0

    @contextmanager
    def upload(self, digest: str) -> Iterator[Upload]:
        """Opens or continues an upload; what was appended stays for the next try.

        Raises:
            UploadBusyError: Somebody else is uploading this blob.
        """
        with self._part(digest).open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UploadBusyError(digest) from None
            yield Upload(digest, file)

    def commit(self, upload: Upload) -> None:
        """Publishes a whole upload; on a wrong digest drops it.

        Raises:
            DigestMismatchError: The bytes are not those that were announced.
        """
        part = self._part(upload.digest)
        try:
            upload.seal()
        except DigestMismatchError:
            part.unlink()
            raise
        if self._local is not None:
            # The staging file lies on the same file system: publishing is one atomic rename.
            target = self._local / _key(upload.digest)
            target.parent.mkdir(exist_ok=True)
            part.replace(target)
        else:
            obstore.put(self._store, _key(upload.digest), part)
            part.unlink()

    def put(self, content: bytes, media_type: str) -> v1.BlobRef:
        """Stores bytes that this process made."""
        digest = hashlib.sha256(content).hexdigest()
        if self.size(digest) is None:
            obstore.put(self._store, _key(digest), content)
        return v1.BlobRef(sha256=digest, size_bytes=len(content), media_type=media_type)

    def put_file(self, path: Path) -> None:
        """Stores a file that this process or its runners made, without reading it whole."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if self.size(digest) is None:
            obstore.put(self._store, _key(digest), path)

    def get(self, digest: str) -> bytes:
        """Content of a blob that fits in memory.

        Raises:
            FileNotFoundError: There is no such blob.
        """
        return bytes(obstore.get(self._store, _key(digest)).bytes())

    def read(self, digest: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a blob; start < end <= its size."""
        return bytes(obstore.get_range(self._store, _key(digest), start=start, end=end))

    def copy_to(self, digest: str, path: Path) -> None:
        """Writes a blob to a file of its own, which the reader may do with as it likes.

        Raises:
            FileNotFoundError: There is no such blob.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._local is not None:
            shutil.copyfile(self._local / _key(digest), path)
            return
        with path.open("wb") as file:
            for chunk in obstore.get(self._store, _key(digest)).stream(min_chunk_size=CHUNK):
                file.write(chunk)

    @contextmanager
    def as_file(self, digest: str) -> Iterator[Path]:
        """Lends a blob as a file that must not be written to.

        Raises:
            FileNotFoundError: There is no such blob.
        """
        if self._local is not None:
            path = self._local / _key(digest)
            if not path.is_file():
                raise FileNotFoundError(digest)
            yield path
            return
        with tempfile.TemporaryDirectory(dir=self._staging) as folder:
            self.copy_to(digest, Path(folder) / digest)
            yield Path(folder) / digest

    def _part(self, digest: str) -> Path:
        if not DIGEST.fullmatch(digest):
            raise ValueError(f"not a SHA-256 digest: {digest!r}")
        return self._staging / f"{digest}.part"


def _key(digest: str) -> str:
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"not a SHA-256 digest: {digest!r}")
    return f"{digest[:2]}/{digest}"
