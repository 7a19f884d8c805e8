"""seccomp: a filter in the kernel that refuses system calls which computing never needs.

The filter is a program for the classic Berkeley Packet Filter, as in Linux's
Documentation/userspace-api/seccomp_filter.rst. It is made for this very process, because calls that
name a process may name this one only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

from onnx_audit_server.sandbox.syscalls import NUMBERS, REFUSED

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Machine names and what the kernel calls them in a filter's data (AUDIT_ARCH_*)."""

_PR_SET_SECCOMP = 22
_MODE_FILTER = 2
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}
_GET_ACTION_AVAIL = 2

_KILL = 0x80000000
_ERRNO = 0x00050000
_ALLOW = 0x7FFF0000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets in struct seccomp_data; of the argument the lower half, on little-endian machines."""
_X32 = 0x40000000
"""Numbers from here on are the x32 calls of x86-64, which nothing here uses."""
_CLONE_THREAD = 0x00010000

Instruction = tuple[int, int, int, int]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def available() -> bool:
    """Says whether the kernel takes filters, on an architecture that is known here."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return False
    action = ctypes.c_uint32(_ERRNO)
    result: int = ctypes.CDLL(None).syscall(
        ctypes.c_long(_SYS_SECCOMP[machine]), _GET_ACTION_AVAIL, 0, ctypes.byref(action)
    )
    return result == 0


def install() -> None:
    """Puts the filter on this thread and those that it starts.

    Raises:
        OSError: The kernel refuses; no_new_privs has to be set before.
    """
    code = program(platform.machine(), os.getpid())
    content = b"".join(struct.pack("<HBBI", *instruction) for instruction in code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(_Program(len(code), content))):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def program(machine: str, process: int) -> list[Instruction]:
    """Returns the filter's instructions (code, jump if true, jump if false, operand).

    Args:
        machine: A key of NUMBERS.
        process: The only process that a signal or a limit may be for.
    """
    numbers = NUMBERS[machine]
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        *_if((_AT_LEAST, _X32), [_refuse(errno.ENOSYS)]),
    ]
    for name in REFUSED:
        if name in numbers:
            code += _if((_EQUAL, numbers[name]), [_refuse(errno.EPERM)])
    # The C library then makes its threads with clone, whose flags a filter can see.
    code += _if((_EQUAL, numbers["clone3"]), [_refuse(errno.ENOSYS)])
    code += _if(
        (_EQUAL, numbers["clone"]),
        [(_LOAD, 0, 0, _FIRST_ARGUMENT), *_if((_ANY_BIT, _CLONE_THREAD), [_allow()]),
         _refuse(errno.EPERM)],
    )  # fmt: skip
    for name, others in (("kill", []), ("tgkill", []), ("prlimit64", [0])):
        own = [step for pid in (process, *others) for step in _if((_EQUAL, pid), [_allow()])]
        code += _if(
            (_EQUAL, numbers[name]),
            [(_LOAD, 0, 0, _FIRST_ARGUMENT), *own, _refuse(errno.EPERM)],
        )
    return [*code, _allow()]


def _if(test: tuple[int, int], then: list[Instruction]) -> list[Instruction]:
    """Instructions that run where the loaded value passes a test, and are jumped over else."""
    kind, operand = test
    return [(kind, 0, len(then), operand), *then]


def _refuse(error: int) -> Instruction:
    return (_RETURN, 0, 0, _ERRNO | error)


def _allow() -> Instruction:
    return (_RETURN, 0, 0, _ALLOW)
