"""The door of the server: a call passes it before anything of it is read, and nobody does once the server stops.

A call that finds the search line full is answered here, for less than it costs to read its request: a server that is
asked for ten times what it can do must not spend its time on saying no. When the server stops, calls under way end as
if nothing had happened, streams are read no further, and new calls hear UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from coldframe.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from server.admission import SearchLine

OURS = "/coldframe."
"""How the names of Coldframe's own methods begin; others are those of health and reflection."""
_ALWAYS_LET_IN = frozenset(
    {
        "/coldframe.v1.IndexService/GetIndex",
        "/coldframe.v1.EmbeddingService/Embed",
        # Neither needs a search, and an article that must go cannot wait. A deletion that is only tried is refused by
        # itself.
        "/coldframe.v1.IndexService/ActivateGeneration",
        "/coldframe.v1.ArticleService/DeleteArticles",
        # What comes by a stream is refused one by one.
        "/coldframe.v1.EmbeddingService/StreamEmbed",
        "/coldframe.v1.SearchService/StreamSearch",
        "/coldframe.v1.ArticleService/StreamUpsertArticles",
    }
)
_LAST_WORD_S = 0.5
"""Until then whoever watches the health of the server has heard that it stops."""


class Door:
    """Lets calls in. All of it runs on the event loop."""

    def __init__(self, searches: SearchLine) -> None:
        self._searches = searches
        self._closed = False
        self._reading: set[asyncio.Task[Any]] = set()
        self._watching: set[asyncio.Task[Any]] = set()

    def admit(self, method: str) -> None:
        """Lets a call of a method, "/package.Service/Method", in; health and reflection always.

        Raises Unavailable once the server stops, and Overloaded where the search line is full.
        """
        if not method.startswith(OURS):
            return
        if self._closed:
            raise stopping()
        if self._searches.full and method not in _ALWAYS_LET_IN:
            raise self._searches.refuse()

    def closed(self) -> bool:
        """Whether the server stops."""
        return self._closed

    def close(self) -> None:
        """Lets nobody in from now on. Streams that wait for their next request are told so, and those that watch the
        health of the server once they have told of it.
        """
        self._closed = True
        for task in self._reading:
            task.cancel()
        for task in self._watching:
            asyncio.get_running_loop().call_later(_LAST_WORD_S, task.cancel)

    async def read(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The requests of a stream, until the server stops. Raises Unavailable then."""
        task = asyncio.current_task()
        assert task is not None
        while not self.closed():
            self._reading.add(task)
            try:
                request = await anext(requests)
            except StopAsyncIteration:
                return
            except asyncio.CancelledError:
                if self.closed():
                    break
                raise
            finally:
                self._reading.discard(task)
            yield request
        raise stopping()

    async def watch(self, telling: Awaitable[None]) -> None:
        """Waits for what tells a caller of changes for ever, until the server stops. Raises Unavailable then."""
        task = asyncio.current_task()
        assert task is not None
        self._watching.add(task)
        try:
            await telling
        except asyncio.CancelledError:
            if self.closed():
                raise stopping() from None
            raise
        finally:
            self._watching.discard(task)


def stopping() -> Unavailable:
    """What new calls hear."""
    return Unavailable("this server is stopping; ask another one")
