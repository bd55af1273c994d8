"""Lines for whoever reads standard output or standard error, and for whom nobody here waits."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
from collections import deque
from typing import TextIO

_ROOM = 4 << 20
# What a pipe takes that says that it takes any, also where some workers have asked it in the same moment.
_AT_ONCE = 1_024


class Lines:
    """Writes lines in their order. A file takes them at once, and so do a pipe and a terminal whose readers keep up.
    Else they wait for a thread of their own: a collector of logs that hangs, or a terminal that was stopped, would stop
    the event loop, and SIGTERM would not be heard.

    stream: None where there is none. room: bytes that may wait.
    """

    def __init__(self, stream: TextIO | None, room: int = _ROOM) -> None:
        self._room, self._waiting, self._full = room, 0, False
        self._line: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._to: int | None = None
        self._is_file, self._torn = False, False
        with contextlib.suppress(OSError, ValueError):  # it was closed, or is none of the system's
            if stream is not None:
                self._to = stream.fileno()
                self._is_file = stat.S_ISREG(os.fstat(self._to).st_mode)

    def put(self, line: str) -> bool:
        """Takes a line, which has no end yet; False for one that finds no room, here or on the disk, or no reader."""
        data = f"{line}\n".encode(errors="backslashreplace")
        with self._changed:
            if self._to is None:
                return True
            if self._is_file:
                return self._written(self._to, data)
            if not self._line and _takes_at_once(self._to, data):
                rest = _rest(self._to, data)
                if rest is None:
                    return False
                data = rest
            # Once they are too many only when half of them are gone: not each single line would have its gap.
            self._full = self._waiting > (self._room // 2 if self._full else self._room)
            if data and not self._full:
                self._line.append(data)
                self._waiting += len(data)
                self._changed.notify_all()
                self._begin(self._to)
            return not self._full

    def flush(self, wait_s: float) -> None:
        """Waits until all is written, but no longer than this."""
        with self._changed:
            self._changed.wait_for(lambda: not self._line, wait_s)

    def _written(self, to: int, data: bytes) -> bool:
        """Whether a file took it. Where a full disk took a part of a line, the next one has a line of its own."""
        rest: bytes | None = b"\n" + data if self._torn else data
        while rest:
            self._torn = self._torn or len(rest) < len(data)
            rest = _rest(to, rest)
        if rest is not None:
            self._torn = False
        return rest is not None

    def _begin(self, to: int) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._work, args=(to,), name="lines", daemon=True)
            with contextlib.suppress(RuntimeError):  # too many threads, for now: the next line tries again
                thread.start()
                self._thread = thread

    def _work(self, to: int) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._line)
                data = self._line[0]
            rest: bytes | None = data
            while rest and _is_writable(to, None):
                rest = _rest(to, rest)
            with self._changed:
                self._line.popleft()
                self._waiting -= len(data)
                self._changed.notify_all()


def _takes_at_once(to: int, data: bytes) -> bool:
    return len(data) <= _AT_ONCE and _is_writable(to, 0)


def _is_writable(to: int, wait_ms: float | None) -> bool:
    """Whether it takes something, or fails; None: waits until it does."""
    poll = select.poll()
    poll.register(to, select.POLLOUT)
    return bool(poll.poll(wait_ms))


def _rest(to: int, data: bytes) -> bytes | None:
    """Writes, and gives what was not taken; None where nobody takes it: its reader has gone, or the disk is full."""
    try:
        return data[os.write(to, data) :]
    except BlockingIOError:  # O_NONBLOCK holds for all processes that have the same stream
        return data
    except OSError:
        return None
