"""A thread that computes when nobody else wants its core, and gives back what it cannot do.

Beside a process that computes, the system leaves such a thread three parts of a thousand of a core. What it computes is
never done then; and whenever it is stopped while it runs Python, all others of the server wait for Python until it goes
on. With two busy processes on two cores searches stood still for a second, again and again. So whoever gives it work
looks whether it gets on; and where others have the cores for themselves it is not tried at all.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Work = Callable[[Callable[[], None]], object]
    """Is called with what it calls on the way, which raises GivenBack where it need not go on."""

_log = logging.getLogger("coldframe.server")
_LEAST_SHARE = 0.02
"""Of a core; who has less does not get on. Beside one process that computes it is 0.003; the server's own searches, as
many as it can answer, leave a tenth and more."""
_DOUBLED = 4
_STAT = Path("/proc/stat")
_IDLE, _OTHERS = 0.05, 0.5
"""Shares of the cores' time: less that nobody wants, and more that others take."""


class GivenBack(Exception):  # noqa: N818  # no error: somebody else goes on
    """Somebody else does the work: this thread need not go on."""


class Aside:
    """The thread. It is begun at once, for it may not be had when it is wanted, and stands back from its first work on:
    a start beside busy processes would wait for it.
    """

    look_s = 0.25
    """From one look to the next."""
    rest_s = 60.0
    """Before it is tried again, and twice as long after each try in vain, up to a quarter of an hour: where it wants
    Python and gets no core, all others wait for it, once in most tries."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "compute-aside")
        self._thread = self._pool.submit(lambda: (threading.get_ident(), threading.get_native_id()))
        self._rests_until = 0.0
        self._in_vain = 0
        self._given_back: _Turn | None = None
        self._stands_back = False
        self._times = _times()
        self._crowded = False

    @property
    def ready(self) -> bool:
        """Whether it is worth a try: what was given back is ended, and has been for a while, and others leave room."""
        return not (self._crowded or self.stands) and time.monotonic() >= self._rests_until

    def look_about(self) -> None:
        """Looks at what other processes had of the cores since the last time; to be called each second or so."""
        before, self._times = self._times, _times()
        whole, idle, own = (now - then for now, then in zip(self._times, before, strict=True))
        self._crowded = idle < _IDLE * whole and whole - idle - own > _OTHERS * whole

    @property
    def stands(self) -> bool:
        """Whether it is still in the midst of what it gave back, where it may stand for minutes."""
        return self._given_back is not None and not self._given_back.future.done()

    async def does(self, work: Work) -> bool:
        """Has it done here, and raises what it raises; False where it does not get on, and somebody else should."""
        turn = self._begin(work)
        waiting = asyncio.wrap_future(turn.future)
        while not waiting.done():
            await asyncio.wait([waiting], timeout=self.look_s)
            if not waiting.done() and self._gives_back(turn):
                return False
        self._in_vain = 0
        waiting.result()
        return True

    def does_blocking(self, work: Work) -> bool:
        """The same, for a thread that waits for it."""
        turn = self._begin(work)
        while not turn.future.done():
            concurrent.futures.wait([turn.future], self.look_s)
            if not turn.future.done() and self._gives_back(turn):
                return False
        self._in_vain = 0
        turn.future.result()
        return True

    def shutdown(self) -> None:
        """Waits for what it does, but not for what it gave back: nobody else does."""
        self._pool.shutdown(wait=not self.stands)

    def _begin(self, work: Work) -> _Turn:
        thread, native = self._thread.result()
        if not self._stands_back:
            self._stands_back = True
            _stand_back(native)
        turn = _Turn(thread)
        turn.future = self._pool.submit(self._do, work, turn)
        turn.look()  # at the clock of a thread that is there: or it would have refused the work
        return turn

    @staticmethod
    def _do(work: Work, turn: _Turn) -> None:
        with suppress(GivenBack):
            work(turn.go_on)

    def _gives_back(self, turn: _Turn) -> bool:
        if turn.look() >= _LEAST_SHARE:
            return False
        self._rests_until = time.monotonic() + self.rest_s * 2 ** min(self._in_vain, _DOUBLED)
        self._in_vain += 1
        if not turn.give_back():
            self._given_back = turn
        _log.info("other processes leave no core to what stands back: for a while long texts go among all others")
        return True


class _Turn:
    """A work, and what its thread has had of a core since the last look."""

    future: concurrent.futures.Future[None]

    def __init__(self, thread: int) -> None:
        self._thread = thread
        self._given_back = False
        self._ran_s = self._looked_at = 0.0

    def look(self) -> float:
        """What the thread had of a core since the last look."""
        ran_s = now = time.monotonic()
        if sys.platform == "linux":  # which alone has the priority, and tells the time of another thread
            ran_s = time.clock_gettime(time.pthread_getcpuclockid(self._thread))
        share = (ran_s - self._ran_s) / (now - self._looked_at)
        self._ran_s, self._looked_at = ran_s, now
        return share

    def give_back(self) -> bool:
        """Whether it was not begun, and never is."""
        self._given_back = True
        return self.future.cancel()

    def go_on(self) -> None:
        if self._given_back:
            raise GivenBack


def _times() -> tuple[float, float, float]:
    """Seconds of this process' cores, ever: all of them, what nobody wanted, and what this process had. None where the
    system does not say.
    """
    if sys.platform != "linux":
        return 0.0, 0.0, 0.0
    names, whole, idle = {f"cpu{core}" for core in os.sched_getaffinity(0)}, 0, 0
    with suppress(OSError):
        for line in _STAT.read_text(encoding="ascii").splitlines():
            name, *fields = line.split()
            if name in names:
                ticks = [*map(int, fields[:8])]  # what guests had is told twice
                whole, idle = whole + sum(ticks), idle + sum(ticks[3:5])
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    return whole * tick_s, idle * tick_s, time.process_time()


def _stand_back(thread: int) -> None:
    """Lets the system prefer every other thread to this one and to those that it starts, and keeps them to half of the
    cores: where they go about, whoever wakes on their core may wait for the next tick of the clock, of 4 ms. A sandbox
    may forbid it; then it works like any other.

    To be called by another thread while that one waits: who does it to himself runs Python then, and is stopped there.
    """
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(thread))
        with suppress(OSError):  # gVisor knows no other priority than the usual one
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        with suppress(OSError):
            os.sched_setaffinity(thread, cores[len(cores) // 2 :])
