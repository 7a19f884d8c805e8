"""Which files a process that runs models may reach."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from onnx_audit_server.sandbox.landlock import DEVICE, LIST, OWN, READ, Access

_PACKAGES = ("onnx_audit", "onnx_auditors", "onnx_audit_server")
_READ = (
    # Shared libraries, and how the loader finds them.
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache",
    "/etc/localtime", "/usr/share/zoneinfo",
    # What the machine is like: libraries choose their kernels and threads by it.
    "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/version",
    "/proc/sys/kernel", "/proc/sys/vm", "/sys/devices", "/sys/bus/pci", "/sys/fs/cgroup",
    "/dev/random", "/dev/urandom",
)  # fmt: skip
_FONTS = ("/usr/share/fonts", "/usr/local/share/fonts", "/etc/fonts")
"""Charts are drawn with them."""
_DEVICES = ("/dev/null", "/dev/zero")
_CUDA_READ = (
    # The driver's library asks the kernel module for its version and parameters, and looks the
    # device up on the bus.
    "/proc/driver", "/proc/devices", "/proc/modules", "/sys/module", "/sys/class",
     "/usr/share/nvidia", "/etc/nvidia", "/usr/local/nvidia",
)  # fmt: skip


def allowed(scratch: Path, *, cuda: bool) -> dict[Path, Access]:
    """Returns the rights of this process by file or folder.

    Args:
        scratch: Its own folder, which its input lies in.
        cuda: Whether it computes on an NVIDIA GPU: all work goes through ioctls on device files.
    """
    rights = dict.fromkeys(map(Path, (*_READ, *_FONTS)), READ)
    rights |= dict.fromkeys(map(Path, _DEVICES), DEVICE)
    rights |= dict.fromkeys(_libraries(), READ)
    # The import system lists these folders; what else lies in them stays closed.
    for home in package_homes():
        rights.setdefault(home, LIST)
        rights |= dict.fromkeys((home / name for name in _PACKAGES), READ)
    if cuda:
        rights |= dict.fromkeys(map(Path, _CUDA_READ), READ)
        rights |= dict.fromkeys(Path("/usr/local").glob("cuda*"), READ)
        rights |= dict.fromkeys(Path("/dev").glob("nvidia*"), DEVICE)
    rights[scratch] = OWN
    return rights


def package_homes() -> list[Path]:
    """Folders on the import path that hold the packages of this project."""
    specs = [find_spec(name) for name in _PACKAGES]
    origins = [Path(spec.origin) for spec in specs if spec is not None and spec.origin]
    return list(dict.fromkeys(origin.parent.parent for origin in origins))


def import_path() -> list[str]:
    """What a process needs in PYTHONPATH: this process's own, and where the packages lie.

    The folder that this process was started in is on its path, too, and stays out.
    """
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return list(dict.fromkeys([*given, *map(str, package_homes())]))


def _libraries() -> Iterator[Path]:
    """Folders of Python's own library and of installed packages."""
    sources = {home for home in package_homes() if not (home / "numpy").is_dir()}
    prefixes = (Path(sys.prefix) / "lib", Path(sys.base_prefix) / "lib")
    for entry in (*prefixes, *map(Path, sys.path), *_library_path()):
        if entry not in sources:
            yield entry


def _library_path() -> Iterator[Path]:
    for entry in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep):
        if entry:
            yield Path(entry)
