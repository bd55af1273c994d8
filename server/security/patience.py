"""Waiting for a message, for a time and no longer, thousands of times a second.

`asyncio.timeout` sets and cancels a timer for each wait, which cost a call more than all else that the gate does. Here
one timer looks at the longest waiting ones, ten times a second.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")
_LOOK_S = 0.1


class Patience:
    """Waits of one length; each ends by itself, with TimeoutError at most 0.1 s late, or with its caller."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._waiting: dict[asyncio.Task[object], float] = {}
        """Until when, by who waits; as all wait equally long, the first in line is the first to be ended."""
        self._ended: set[asyncio.Task[object]] = set()
        self._looking = False

    async def wait(self, what: Awaitable[T]) -> T:
        """The result of what is awaited. Raises TimeoutError. One task waits for one thing at a time."""
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        loop = task.get_loop()
        self._waiting[task] = loop.time() + self.seconds
        if not self._looking:
            self._looking = True
            loop.call_later(_LOOK_S, self._look, loop)
        try:
            return await what
        except asyncio.CancelledError:
            # Cancelled by us and by nobody else.
            if task in self._ended and task.uncancel() == 0:
                raise TimeoutError from None
            raise
        finally:
            self._waiting.pop(task, None)
            self._ended.discard(task)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        while self._waiting:
            task, until = next(iter(self._waiting.items()))
            if until > now:
                loop.call_later(_LOOK_S, self._look, loop)
                return
            del self._waiting[task]
            self._ended.add(task)
            task.cancel()
        self._looking = False
