"""Landlock: the kernel lets a process reach only the files that it has named.

The interface is that of Linux's Documentation/userspace-api/landlock.rst and
include/uapi/linux/landlock.h. There is no wrapper in the C library, so the three system calls are
made by number; the numbers are the same on every architecture.
"""

from __future__ import annotations

import ctypes
import enum
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path

_CREATE_RULESET = 444
_ADD_RULE = 445
_RESTRICT_SELF = 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

_ABI_REFER, _ABI_TRUNCATE, _ABI_NET, _ABI_IOCTL, _ABI_SCOPE = 2, 3, 4, 5, 6
"""First ABI versions that know a right."""

_NET_ALL = 0b11
"""Binding and connecting TCP sockets."""
_SCOPE_ALL = 0b11
"""Abstract Unix sockets and signals of processes outside."""


class Access(enum.IntFlag):
    """What may be done with a file, or below a folder."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


READ = Access.READ_FILE | Access.READ_DIR
LIST = Access.READ_DIR
OWN = (
    READ
    | Access.WRITE_FILE
    | Access.TRUNCATE
    | Access.REFER
    | Access.MAKE_REG
    | Access.MAKE_DIR
    | Access.REMOVE_FILE
    | Access.REMOVE_DIR
)
"""A folder of one's own. Without links: whoever reads the folder later must not be led astray."""
DEVICE = Access.READ_FILE | Access.WRITE_FILE | Access.IOCTL_DEV | Access.READ_DIR

_ON_FILES = (
    Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
)


def abi() -> int:
    """Returns the version of Landlock that the kernel offers; 0 if there is none."""
    try:
        return max(0, _call(_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION))
    except OSError:
        return 0


def restrict(allowed: Mapping[Path, Access], version: int) -> None:
    """Takes everything from this thread, and those that it starts, but what is allowed.

    Args:
        allowed: Rights by file or folder; what does not exist is passed over.
        version: The version that `abi` gave.

    Raises:
        OSError: The kernel refuses; no_new_privs has to be set before.
    """
    handled = _handled(version)
    # struct landlock_ruleset_attr; an older kernel knows the first fields only.
    attr = struct.pack("=Q", handled)
    attr += struct.pack("=Q", _NET_ALL) if version >= _ABI_NET else b""
    attr += struct.pack("=Q", _SCOPE_ALL) if version >= _ABI_SCOPE else b""
    ruleset = _call(_CREATE_RULESET, attr, ctypes.c_size_t(len(attr)), 0)
    try:
        for path, access in allowed.items():
            _allow(ruleset, path, access & handled)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _handled(version: int) -> Access:
    handled = Access((1 << 13) - 1)
    if version >= _ABI_REFER:
        handled |= Access.REFER
    if version >= _ABI_TRUNCATE:
        handled |= Access.TRUNCATE
    if version >= _ABI_IOCTL:
        handled |= Access.IOCTL_DEV
    return handled


def _allow(ruleset: int, path: Path, access: Access) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            access &= _ON_FILES
        attr = struct.pack("=Qi", access, descriptor)  # struct landlock_path_beneath_attr
        _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, attr, 0)
    finally:
        # The files of /proc are made anew once nobody has them open, and are then others.
        if not path.is_relative_to("/proc"):
            os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    result: int = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
