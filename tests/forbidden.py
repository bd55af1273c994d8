"""Runs a command whose system calls are refused, as sandboxes and file systems may: by a seccomp filter, for which a
process needs no right.

    python -m tests.forbidden ENOLCK flock,locks COMMAND...
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

# Of x86-64.
CALLS = {
    "fcntl": 72,
    "flock": 73,
    "link": 86,
    "linkat": 265,
    "sched_setaffinity": 203,
    "sched_setscheduler": 144,
    "socket": 41,
}
_SET_LOCKS = (6, 7)  # commands of fcntl
# Instructions of the kernel's filters, and where a filter finds the call and its second argument.
_LOAD, _SKIP_UNLESS, _RETURN = 0x20, 0x15, 0x06
_CALL, _SECOND_ARGUMENT = 0, 24
_REFUSE, _ALLOW = 0x00050000, 0x7FFF0000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def by(error: int, *calls: str) -> list[str]:
    """The beginning of a command, whose calls of these names fail with that error; "locks" are those of fcntl."""
    return [sys.executable, "-m", "tests.forbidden", errno.errorcode[error], ",".join(calls)]


def forbid(error: int, calls: list[str]) -> None:
    """Has the calls refused, for good."""
    refuse = _instruction(_RETURN, _REFUSE | error)
    program = [_instruction(_LOAD, _CALL)]
    for name in calls:
        if name == "locks":
            commands = [part for command in _SET_LOCKS for part in (_instruction(_SKIP_UNLESS, command, 1), refuse)]
            inner = [_instruction(_LOAD, _SECOND_ARGUMENT), *commands, _instruction(_LOAD, _CALL)]
            program += [_instruction(_SKIP_UNLESS, CALLS["fcntl"], len(inner)), *inner]
        else:
            program += [_instruction(_SKIP_UNLESS, CALLS[name], 1), refuse]
    code = b"".join([*program, _instruction(_RETURN, _ALLOW)])
    libc, asked = ctypes.CDLL(None), _Filter(len(code) // 8, code)
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(asked)) == 0


def _instruction(code: int, operand: int, skip: int = 0) -> bytes:
    return struct.pack("HBBI", code, 0, skip, operand)


if __name__ == "__main__":
    forbid(getattr(errno, sys.argv[1]), sys.argv[2].split(","))
    os.execvp(sys.argv[3], sys.argv[3:])
