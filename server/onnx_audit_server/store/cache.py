"""Copies of a remote store's blobs on this machine: each is fetched once; bounded in size."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

Fetch = Callable[[Path], None]
"""Writes a blob's content, with its digest checked, to a path."""


class BlobCache:
    """Files named by digest; those that were used longest ago go first.

    Several processes may share the folder.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Opens the cache; its files have `limit` bytes at most."""
        self._folder = folder
        self._limit = limit
        folder.mkdir(parents=True, exist_ok=True)

    def link(self, digest: str, size: int, path: Path, fetch: Fetch) -> None:
        """Puts a blob of some size at a path, as a file that must not be written to."""
        if size > self._limit:
            fetch(path)
            return
        cached = self._folder / digest
        while True:
            # It may be dropped at any moment; a link to it stays.
            with contextlib.suppress(FileNotFoundError):
                os.link(cached, path)
                os.utime(path)
                return
            self._add(cached, fetch)

    def _add(self, cached: Path, fetch: Fetch) -> None:
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=self._folder) as folder:
            partial = Path(folder) / cached.name
            fetch(partial)
            partial.replace(cached)
        self._shrink(cached.name)

    def _shrink(self, keep: str) -> None:
        files = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    state = path.stat()
                    files.append((path.name != keep, -state.st_mtime_ns, state.st_size, path))
        total = 0
        for _, _, size, path in sorted(files):
            total += size
            if total > self._limit:
                path.unlink(missing_ok=True)
