"""Whose turn it is to write, among the processes that write in one store."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_LOOK_S = 0.001
_PATIENCE_S = 10.0


@contextlib.contextmanager
def next_in_line(folder: Path, patience_s: float = _PATIENCE_S) -> Iterator[Callable[[], None]]:
    """While nobody else begins to write in a store; to be called once this one has begun.

    SQLite lets nobody stand in line. Who waits looks every tenth of a second, while who has just written begins anew a
    millisecond later; and who had his chance at last found that others had written meanwhile, and that he had to look
    at that first. On a disk that takes a tenth of a second to write, one of two workers took no article for 13 s. With
    a lock for who comes next he needs to wait for one write, and cannot be overtaken while he looks.

    It is courtesy, and no more: where it cannot be had, as without such locks or after ten seconds, it goes without.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            at = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            held.callback(os.close, at)
            _lock(at, time.monotonic() + patience_s)
        yield held.close


def _lock(at: int, until: float) -> None:
    while time.monotonic() < until:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(at, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_LOOK_S)
