"""Streams both ways: requests are answered at the same time, a bounded number of them, in the order they came."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

Request = TypeVar("Request")
Reply = TypeVar("Reply")

IN_FLIGHT = 32
"""Requests of one stream that are under way; then reading stops, and gRPC's flow control holds the sender back."""


async def in_order(
    requests: AsyncIterator[Request], answer: Callable[[Request], Awaitable[Reply]], in_flight: int = IN_FLIGHT
) -> AsyncIterator[Reply]:
    """The answers in the order of the requests. What is under way when the caller goes is cancelled."""
    line: asyncio.Queue[asyncio.Task[Reply] | None] = asyncio.Queue()
    room = asyncio.Semaphore(in_flight)

    async def read() -> None:
        try:
            async for request in requests:
                await room.acquire()
                line.put_nowait(asyncio.ensure_future(answer(request)))
        finally:
            line.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (task := await line.get()) is not None:
            yield await task
            room.release()
        await reader
    finally:
        reader.cancel()
        while not line.empty():
            if (left := line.get_nowait()) is not None:
                left.cancel()


class Turns:
    """Lets requests of one stream that name the same thing wait for each other, in their order; others go ahead."""

    def __init__(self) -> None:
        self._last: dict[str, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def of(self, names: Iterable[str]) -> AsyncIterator[None]:
        """Begins when all that asked for one of the names before have ended, well or not.

        Nothing may be awaited between a request's beginning and this: the order of asking is that of the stream.
        """
        mine = asyncio.get_running_loop().create_future()
        mine_names = set(names)
        before = {self._last[name] for name in mine_names if name in self._last}
        self._last.update(dict.fromkeys(mine_names, mine))
        try:
            if before:
                await asyncio.wait(before)
            yield
        finally:
            mine.set_result(None)
            for name in mine_names:
                if self._last.get(name) is mine:
                    del self._last[name]
