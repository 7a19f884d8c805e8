"""Puts a process into the sandbox, and says what there is of it on this machine."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from onnx_audit_server.sandbox import landlock, paths, privileges, seccomp

_LANDLOCK_NET = 4


@dataclass(frozen=True)
class Means:
    """What the kernel offers.

    Attributes:
        landlock: Version of Landlock; 0 where there is none.
        seccomp: Whether system calls can be filtered.
    """

    landlock: int
    seccomp: bool

    @property
    def missing(self) -> list[str]:
        """What of the sandbox cannot be had, in words."""
        lacks = []
        if not self.landlock:
            lacks.append(
                "landlock (kernel 5.13 and later): every file that the service may read is open"
            )
        if not self.seccomp:
            lacks.append(
                f"seccomp (here: {platform.machine()}): other processes"
                + (", Unix sockets" if self.landlock >= _LANDLOCK_NET else " and the network")
                + " are open"
            )
        return lacks

    def __str__(self) -> str:
        has = [f"landlock abi {self.landlock}"] if self.landlock else []
        has += ["seccomp"] if self.seccomp else []
        has += ["no network"] if self.seccomp or self.landlock >= _LANDLOCK_NET else []
        lacks = f"; not available: {'; '.join(self.missing)}" if self.missing else ""
        return f"{', '.join(has) or 'limits of resources alone'}{lacks}"


def means() -> Means:
    """Asks the kernel."""
    if sys.platform != "linux":
        return Means(0, seccomp=False)
    return Means(landlock.abi(), seccomp.available())


def confine(means: Means, scratch: Path, *, cuda: bool, file_bytes: int) -> None:
    """Gives up what computing does not need; for a process that has one thread and no secrets.

    Args:
        means: What the kernel offers.
        scratch: The only folder that stays writable.
        cuda: Whether the process computes on an NVIDIA GPU.
        file_bytes: Largest file that it may write.

    Raises:
        OSError: The kernel refuses something that it offers.
    """
    privileges.give_up(file_bytes)
    if means.landlock:
        landlock.restrict(paths.allowed(scratch, cuda=cuda), means.landlock)
    if means.seccomp:
        seccomp.install()
