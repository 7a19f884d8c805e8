"""Memory: what the machine has, and what a process uses of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

_CGROUP_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
_SHARE = 0.75
_OWN = (b"RssAnon:", b"RssShmem:", b"VmSwap:")
"""What a process holds in memory of its own; files that it has mapped can be let go of."""


def machine_bytes() -> int:
    """Memory of the machine, or of the container that this process is in."""
    found = [int(psutil.virtual_memory().total)]
    for path in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            found.append(int(Path(path).read_text()))
    return min(found)


def limit(given: int, slots: int) -> int:
    """Memory that one runner may use, in bytes.

    Args:
        given: Setting of the user; 0 for a share of the machine.
        slots: Runners that work at once.
    """
    return given or int(machine_bytes() * _SHARE / slots)


def used_bytes(process: int) -> int:
    """Memory that a process uses, without the files that it has mapped; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_bytes().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(_OWN))
    except OSError:
        pass
    try:
        return int(psutil.Process(process).memory_info().rss)
    except psutil.Error:
        return 0
