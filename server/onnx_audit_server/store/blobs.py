"""Content-addressed blobs: local folder, S3, Google Cloud Storage or Azure through obstore.

A blob becomes visible only whole and with its digest checked. Uploads under way wait in a local
staging file, so a broken upload can go on where it stopped, and a wrong one leaves nothing behind;
on another server it begins anew. What is read from a remote store is checked, and kept for the next
time.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from io import FileIO
from pathlib import Path
from typing import IO, ParamSpec, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from onnx_audit import v1
from onnx_audit_server import metrics
from onnx_audit_server.store.cache import BlobCache
from onnx_audit_server.store.uses import Uses

P = ParamSpec("P")
R = TypeVar("R")

CHUNK = 1 << 20
WRITE_BACK = 8 << 20
"""Bytes of an upload that are sent on their way to the disk at once."""
PAGE = 1000
"""Blobs per page of a listing."""
DIGEST = re.compile(r"[0-9a-f]{64}")


def counts_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function count the store's errors; a blob that is not there is none."""

    @functools.wraps(function)
    def counting(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            return function(*arguments, **named)
        except FileNotFoundError:
            raise
        except (BaseError, OSError):
            metrics.STORE_ERRORS.labels("blobs").inc()
            raise

    return counting


class DigestMismatchError(Exception):
    """Staged bytes do not have the digest under which they were to be stored."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"the content has SHA-256 {found}, announced was {expected}")
        self.expected = expected
        self.found = found


@dataclass(frozen=True)
class Blob:
    """A blob as the store lists it."""

    digest: str
    size: int
    last_modified: datetime


class UploadBusyError(Exception):
    """Another upload of the same blob is under way."""


class Upload:
    """A staged upload that this holder alone may append to.

    A chunk is hashed by one thread while another one writes it, and may be so while the next one is
    written.
    """

    def __init__(self, digest: str, file: FileIO, hashing: Executor) -> None:
        self.digest = digest
        self._file = file
        self._hashing = hashing
        self._hash = hashlib.sha256()
        self._hashed: Future[None] = hashing.submit(lambda: None)
        file.seek(0)
        while chunk := file.read(CHUNK):
            self._hash.update(chunk)
        self.size = self._begun = file.tell()

    def restart(self) -> None:
        """Drops what was staged."""
        self._hashed.result()
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.size = self._begun = 0

    def append(self, data: bytes | memoryview) -> None:
        """Adds bytes at the end; they are in the operating system's hands on return."""
        before, self._hashed = self._hashed, self._hashing.submit(self._hash.update, data)
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        before.result()
        self.size += len(data)
        if self.size - self._begun >= WRITE_BACK:
            # Linux begins to write it to the disk, and waits for nothing: `seal` has less to do.
            length = self.size - self._begun
            os.posix_fadvise(self._file.fileno(), self._begun, length, os.POSIX_FADV_DONTNEED)
            self._begun = self.size

    def seal(self) -> None:
        """Makes the bytes durable once they are known to be right.

        Raises:
            DigestMismatchError: They are not.
        """
        self._hashed.result()
        if (found := self._hash.hexdigest()) != self.digest:
            raise DigestMismatchError(self.digest, found)
        os.fsync(self._file.fileno())


class BlobStore:
    """Blobs named by the lower-case hexadecimal SHA-256 of their content."""

    def __init__(
        self, folder: Path, url: str = "", uses: Uses | None = None, cache_bytes: int = 0
    ) -> None:
        """Opens the store below `folder`, or at `url` with `folder` for staging and the cache.

        Args:
            folder: The data folder.
            url: Where the blobs are, if not there.
            uses: Where uses of old blobs are noted; None where nothing is ever collected.
            cache_bytes: Most bytes of remote blobs that are kept in the folder.
        """
        self._uses = uses
        self._staging = folder / "uploads"
        self._staging.mkdir(parents=True, exist_ok=True)
        local = folder / "blobs"
        if not url:
            local.mkdir(parents=True, exist_ok=True)
        self._local = None if url else local
        self._store = _open(url) if url else LocalStore(local)
        self._cache = BlobCache(folder / "cache", cache_bytes)

    @counts_errors
    def size(self, digest: str) -> int | None:
        """Length of a blob in bytes, None where there is no such blob."""
        try:
            return int(obstore.head(self._store, _key(digest))["size"])
        except FileNotFoundError:
            return None

    @counts_errors
    def hold(self, digest: str) -> int | None:
        """Length of a blob, None where there is none; a blob that is there stays for a while.

        To be asked by whoever is going to refer to a blob that may be there already: it is not
        collected before the retention time has passed from now on.
        """
        try:
            found = obstore.head(self._store, _key(digest))
        except FileNotFoundError:
            return None
        if self._uses is None or not self._uses.stale(found["last_modified"]):
            return int(found["size"])
        self._uses.note([digest])
        # It may have gone before the note was there.
        return self.size(digest)

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
        while True:
            with self._part(digest).open("a+b", buffering=0) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UploadBusyError(digest) from None
                if not _is_at(file, self._part(digest)):
                    continue  # it was published or removed before it was locked
                with ThreadPoolExecutor(1, "hashing") as hashing:
                    yield Upload(digest, file, hashing)
                return

    @counts_errors
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
            os.utime(part)
            part.replace(target)
        else:
            obstore.put(self._store, _key(upload.digest), part)
            part.unlink()

    def drop(self, upload: Upload) -> None:
        """Removes what has come of an upload."""
        self._part(upload.digest).unlink(missing_ok=True)

    @counts_errors
    def put(self, content: bytes, media_type: str) -> v1.BlobRef:
        """Stores bytes that this process made."""
        digest = hashlib.sha256(content).hexdigest()
        if self.hold(digest) is None:
            obstore.put(self._store, _key(digest), content)
        return v1.BlobRef(sha256=digest, size_bytes=len(content), media_type=media_type)

    @counts_errors
    def put_file(self, path: Path) -> None:
        """Stores a file that this process or its runners made, without reading it whole."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if self.hold(digest) is None:
            obstore.put(self._store, _key(digest), path)

    @counts_errors
    def get(self, digest: str) -> bytes:
        """Content of a blob that fits in memory.

        Raises:
            FileNotFoundError: There is no such blob.
        """
        return bytes(obstore.get(self._store, _key(digest)).bytes())

    @counts_errors
    def read(self, digest: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a blob; start < end <= its size."""
        return bytes(obstore.get_range(self._store, _key(digest), start=start, end=end))

    @counts_errors
    def copy_to(self, digest: str, path: Path) -> None:
        """Writes a blob to a file of its own, which the reader may do with as it likes.

        Raises:
            FileNotFoundError: There is no such blob.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.as_file(digest) as source:
            shutil.copyfile(source, path)

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
        size = self.size(digest)
        if size is None:
            raise FileNotFoundError(digest)
        with tempfile.TemporaryDirectory(dir=self._staging) as folder:
            path = Path(folder) / digest
            self._cache.link(digest, size, path, lambda target: self._fetch(digest, target))
            yield path

    def _fetch(self, digest: str, path: Path) -> None:
        """Writes a remote blob to a file.

        Raises:
            FileNotFoundError: There is no such blob.
            DigestMismatchError: The store gave something else.
        """
        found = hashlib.sha256()
        with path.open("wb") as file:
            for chunk in obstore.get(self._store, _key(digest)).stream(min_chunk_size=CHUNK):
                file.write(chunk)
                found.update(chunk)
        if found.hexdigest() != digest:
            raise DigestMismatchError(digest, found.hexdigest())

    def listed(self) -> Iterator[Blob]:
        """Yields all blobs."""
        for page in obstore.list(self._store, chunk_size=PAGE):
            for found in page:
                digest = str(found["path"]).rpartition("/")[2]
                if DIGEST.fullmatch(digest):
                    yield Blob(digest, int(found["size"]), found["last_modified"])

    @counts_errors
    def remove(self, digests: Sequence[str]) -> None:
        """Removes blobs; those that have gone already do not matter."""
        if self._local is not None:
            for digest in digests:
                (self._local / _key(digest)).unlink(missing_ok=True)
        elif digests:
            obstore.delete(self._store, [_key(digest) for digest in digests])

    def old_uploads(self, before: datetime, *, remove: bool) -> list[tuple[str, int]]:
        """Digests and sizes of the unfinished uploads that nobody has touched since.

        Removes them if asked.
        """
        found = []
        for part in self._staging.glob("*.part"):
            try:
                with part.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    status = os.fstat(file.fileno())
                    if status.st_mtime < before.timestamp() and _is_at(file, part):
                        found.append((part.stem, status.st_size))
                        if remove:
                            part.unlink()
            except (BlockingIOError, FileNotFoundError):
                continue
        return found

    def _part(self, digest: str) -> Path:
        if not DIGEST.fullmatch(digest):
            raise ValueError(f"not a SHA-256 digest: {digest!r}")
        return self._staging / f"{digest}.part"


def _open(url: str) -> ObjectStore:
    if url.startswith("file:"):
        return from_url(url)
    # A call fails after some seconds of tries: who can wait longer tries again, see jobs/patience.
    return from_url(
        url,
        client_options={
            # The variable that obstore itself would look at, were no options given.
            "allow_http": os.environ.get("AWS_ALLOW_HTTP", "") == "true",
            "connect_timeout": timedelta(seconds=5),
            "read_timeout": timedelta(seconds=20),
            # Of a whole transfer, however large.
            "timeout": timedelta(days=1),
        },
        retry_config={
            "retry_timeout": timedelta(seconds=5),
            "backoff": {
                "init_backoff": timedelta(seconds=0.1),
                "max_backoff": timedelta(seconds=2),
            },
        },
    )


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _key(digest: str) -> str:
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"not a SHA-256 digest: {digest!r}")
    return f"{digest[:2]}/{digest}"
