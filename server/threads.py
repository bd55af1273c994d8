"""Threads that work for an event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
_Item = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", "Callable[[], Any]"]


class Threads:
    """As `ThreadPoolExecutor` behind `run_in_executor`, with one future and one step of the loop instead of two each
    way: a search by vector waits there for a tenth of its time. `prepare` is called on each thread.
    """

    def __init__(self, count: int, name: str, prepare: Callable[[], object]) -> None:
        self._line: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, args=(prepare,), name=f"{name}_{n}", daemon=True) for n in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, work: Callable[[], _T]) -> asyncio.Future[_T]:
        """Begins a work, or puts it in line; called on the loop. What is cancelled before its turn is not done."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()
        self._line.put((loop, future, work))
        return future

    def shutdown(self) -> None:
        """Waits until all that was put in line is done."""
        for _ in self._threads:
            self._line.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self, prepare: Callable[[], object]) -> None:
        prepare()
        while (item := self._line.get()) is not None:
            _do(*item)
            del item  # or it would be kept until the next one comes


def _do(loop: asyncio.AbstractEventLoop, future: asyncio.Future[_T], work: Callable[[], _T]) -> None:
    if future.cancelled():
        return
    try:
        result = work()
    except BaseException as error:
        _tell(loop, future.set_exception, future, error)
    else:
        _tell(loop, future.set_result, future, result)


def _tell(loop: asyncio.AbstractEventLoop, settle: Callable[[_T], None], future: asyncio.Future[Any], what: _T) -> None:
    def told() -> None:
        if not future.done():  # the caller may have gone in the meantime
            settle(what)

    try:
        loop.call_soon_threadsafe(told)
    except RuntimeError:  # the loop was closed: nobody waits
        return
