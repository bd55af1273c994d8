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
        self._is_file = False
        with contextlib.suppress(OSError, ValueError):  # it was closed, or is none of the system's
            if stream is not None:
                self._to = stream.fileno()
                self._is_file = stat.S_ISREG(os.fstat(self._to).st_mode)

    def put(self, line: str) -> bool:
        """Takes a line, which has no end yet; False for one that finds no room."""
        data = f"{line}\n".encode(errors="backslashreplace")
        with self._changed:
            if self._to is None:
                return True
            if not self._line and self._takes_at_once(data):
                data = _rest(self._to, data)
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

    def _takes_at_once(self, data: bytes) -> bool:
        return self._is_file or (len(data) <= _AT_ONCE and self._to is not None and _is_writable(self._to, 0))

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
                data = rest = self._line[0]
            while rest and _is_writable(to, None):
                rest = _rest(to, rest)
            with self._changed:
                self._line.popleft()
                self._waiting -= len(data)
                self._changed.notify_all()


def _is_writable(to: int, wait_ms: float | None) -> bool:
    """Whether it takes something, or fails; None: waits until it does."""
    poll = select.poll()
    poll.register(to, select.POLLOUT)
    return bool(poll.poll(wait_ms))


def _rest(to: int, data: bytes) -> bytes:
    """Writes, and gives what was not taken. Nothing where nobody can take it any more: its reader has gone."""
    try:
        return data[os.write(to, data) :]
    except BlockingIOError:  # O_NONBLOCK holds for all processes that have the same stream
        return data
    except OSError:
        return b""
