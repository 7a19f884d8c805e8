"""The folder below which a process's runners have their scratch folders; never left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path


class ScratchFolder:
    """A folder that is locked while its process lives.

    Attributes:
        path: Where it is.
    """

    def __init__(self, root: Path, name: str) -> None:
        """Makes the folder, and removes those whose processes are gone.

        Args:
            root: Folder of all processes' scratch folders.
            name: Name that no other living process has.
        """
        root.mkdir(parents=True, exist_ok=True)
        for entry in root.iterdir():
            _remove_if_left(entry)
        self.path = root / name
        self._lock = _locked(self.path)

    def close(self) -> None:
        """Removes it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _locked(path: Path) -> int:
    """Makes a folder and locks it; returns the descriptor that holds the lock."""
    while True:
        path.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever found it unlocked may have removed it in between.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
            os.close(descriptor)


def _remove_if_left(path: Path) -> None:
    """Removes a folder that no process has locked."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
