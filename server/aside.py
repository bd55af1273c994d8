"""A thread that computes when nobody else wants its core, and gives back what it cannot do.

Beside a process that computes, the system leaves such a thread three parts of a thousand of a core. What it computes is
never done then; and whenever it is stopped while it runs Python, all others of the server wait for Python until it goes
on. With two busy processes on two cores searches stood still for a second, again and again. So whoever gives it work
looks whether it gets on.
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
from typing import TYPE_CHECKING

from server.cores import go_to

if TYPE_CHECKING:
    from collections.abc import Callable

    Work = Callable[[Callable[[], None]], object]
    """Is called with what it calls on the way, which raises GivenBack where it need not go on."""

_log = logging.getLogger("coldframe.server")
_LEAST_SHARE = 0.02
"""Of a core; who has less does not get on. Beside one process that computes it is 0.003; the server's own searches, as
many as it can answer, leave a tenth and more."""


class GivenBack(Exception):  # noqa: N818  # no error: somebody else goes on
    """Somebody else does the work: this thread need not go on."""


class Aside:
    """The thread. It is begun at once, for it may not be had when it is wanted, and stands back from its first work on:
    a start beside busy processes would wait for it.
    """

    look_s = 0.25
    """From one look to the next."""
    rest_s = 60.0
    """Before it is tried again."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "compute-aside")
        self._thread = self._pool.submit(threading.get_ident)
        self._rests_until = 0.0
        self._given_back: _Turn | None = None
        self._stands_back = False

    @property
    def ready(self) -> bool:
        """Whether it is worth a try: what was given back is ended, and has been for a while."""
        ended = self._given_back is None or self._given_back.future.done()
        return ended and time.monotonic() >= self._rests_until

    async def does(self, work: Work) -> bool:
        """Has it done here, and raises what it raises; False where it does not get on, and somebody else should."""
        turn = self._begin(work)
        waiting = asyncio.wrap_future(turn.future)
        while not waiting.done():
            await asyncio.wait([waiting], timeout=self.look_s)
            if not waiting.done() and self._gives_back(turn):
                return False
        waiting.result()
        return True

    def does_blocking(self, work: Work) -> bool:
        """The same, for a thread that waits for it."""
        turn = self._begin(work)
        while not turn.future.done():
            concurrent.futures.wait([turn.future], self.look_s)
            if not turn.future.done() and self._gives_back(turn):
                return False
        turn.future.result()
        return True

    def shutdown(self) -> None:
        """Waits for what it does."""
        self._pool.shutdown()

    def _begin(self, work: Work) -> _Turn:
        turn = _Turn(self._thread.result())
        turn.future = self._pool.submit(self._do, work, turn)
        turn.look()  # at the clock of a thread that is there: or it would have refused the work
        return turn

    def _do(self, work: Work, turn: _Turn) -> None:
        if not self._stands_back:
            self._stands_back = True
            _stand_back()
        with suppress(GivenBack):
            work(turn.go_on)

    def _gives_back(self, turn: _Turn) -> bool:
        if turn.look() >= _LEAST_SHARE:
            return False
        self._given_back, self._rests_until = turn, time.monotonic() + self.rest_s
        turn.give_back()
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

    def give_back(self) -> None:
        self._given_back = True
        self.future.cancel()  # where it was not begun

    def go_on(self) -> None:
        if self._given_back:
            raise GivenBack


def _stand_back() -> None:
    """Lets the system prefer every other thread to this one and to those that it starts, and keeps them to half of the
    cores: where they go about, whoever wakes on their core may wait for the next tick of the clock, of 4 ms. A sandbox
    may forbid it; then it works like any other.
    """
    if sys.platform == "linux":
        cores = sorted(os.sched_getaffinity(0))
        with suppress(OSError):  # gVisor knows no other priority than the usual one
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        go_to(cores[len(cores) // 2 :])
