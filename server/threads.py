"""Threads that work for an event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
_Item = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", "Callable[[], Any]"]

SWITCH_S = 0.000005
"""How long a thread of a server waits before it takes Python from another one."""
_LONG_S = 0.001
"""Of works that several threads share."""
_LOOK_S = 0.002
_MEMORY = 0.9


class Threads:
    """As `ThreadPoolExecutor` behind `run_in_executor`, with one future and one step of the loop instead of two each
    way: a search by vector waits there for a tenth of its time. `prepare` is called on each thread.

    Short works are all done by the first thread. Python runs one thread at a time in any case, and those that take
    turns wait for it and find their caches cold: a search takes a tenth longer. The others help where works take over a
    millisecond each, most of it outside of Python, or while the first has been at one for so long.
    """

    def __init__(self, count: int, name: str, prepare: Callable[[], object]) -> None:
        self._line: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._calls_for_help: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._open = 0  # works that are not ended; counted on the loop
        self._looking = False
        self._begun = 0
        self._usual_s = 0.0
        names = [f"{name}_{n}" for n in range(count)]
        first = threading.Thread(target=self._work, args=(prepare,), name=names[0], daemon=True)
        self._helpers = [
            threading.Thread(target=self._help, args=(prepare,), name=name, daemon=True) for name in names[1:]
        ]
        self._threads = [first, *self._helpers]
        for thread in self._threads:
            thread.start()

    def run(self, work: Callable[[], _T]) -> asyncio.Future[_T]:
        """Begins a work, or puts it in line; called on the loop. What is cancelled before its turn is not done."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        self._line.put((loop, future, work))
        if self._open and self._helpers:
            self._see_to_help(loop)
        self._open += 1
        return future

    def shutdown(self) -> None:
        """Waits until all that was put in line is done."""
        self._line.put(None)
        for _ in self._helpers:
            self._calls_for_help.put(False)
        for thread in self._threads:
            thread.join()

    # --- on the loop -------------------------------------------------------------------------------------------------

    def _see_to_help(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._usual_s > _LONG_S:
            self._call_for_help()
        elif not self._looking:
            self._looking = True
            loop.call_later(_LOOK_S, self._look, loop, self._begun)

    def _look(self, loop: asyncio.AbstractEventLoop, begun: int) -> None:
        """Calls for help where nothing was begun since the last look, and looks again while something waits."""
        self._looking = not self._line.empty()
        if not self._looking:
            return
        if begun == self._begun:
            self._call_for_help()
        loop.call_later(_LOOK_S, self._look, loop, self._begun)

    def _call_for_help(self) -> None:
        if self._calls_for_help.qsize() < len(self._helpers):
            self._calls_for_help.put(True)

    def _end(self, future: asyncio.Future[Any], settle: Callable[[Any], None], what: Any) -> None:
        self._open -= 1
        if not future.done():  # the caller may have gone in the meantime
            settle(what)

    # --- on the threads ----------------------------------------------------------------------------------------------

    def _work(self, prepare: Callable[[], object]) -> None:
        prepare()
        while (item := self._line.get()) is not None:
            self._do(*item)
            del item  # or it would be kept until the next one comes

    def _help(self, prepare: Callable[[], object]) -> None:
        prepare()
        while self._calls_for_help.get():
            while (item := self._next()) is not None:
                self._do(*item)
                del item

    def _next(self) -> _Item | None:
        """What is first in line, if anything is; that the line has ended is for the first thread to see."""
        try:
            item = self._line.get_nowait()
        except queue.Empty:
            return None
        if item is None:
            self._line.put(None)
        return item

    def _do(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[_T], work: Callable[[], _T]) -> None:
        self._begun += 1
        start = time.thread_time()
        settle: Callable[[Any], None] = future.set_result
        what: Any = None
        if not future.cancelled():
            try:
                what = work()
            except BaseException as error:
                settle, what = future.set_exception, error
            # Of the processor: to wait for Python makes no work a long one.
            self._usual_s = _MEMORY * self._usual_s + (1 - _MEMORY) * (time.thread_time() - start)
        try:
            loop.call_soon_threadsafe(self._end, future, settle, what)
        except RuntimeError:  # the loop was closed: nobody waits
            return
