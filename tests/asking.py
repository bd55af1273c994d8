"""What the asyncio client is asked in tests, and by whom."""

from __future__ import annotations

import inspect
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from coldframe import AsyncClient, article, search_request, seed
from coldframe.errors import ColdframeError
from tests.scripted import Server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import grpc

    from tests.conftest import Background

T = TypeVar("T")
ARTICLES = [article(f"n{n}", title="Storm", content="storm " * (n + 1)) for n in range(10)]

# What is asked of both clients: every method that is public, with every kind of argument.
CALLS: dict[str, Callable[[Any], Any]] = {
    "search": lambda client: client.search("the economy", limit=3, exact=True, max_per_story=0),
    "recommend": lambda client: client.recommend(["sport", seed(article_id="a1", weight=3)], limit=4, diversity=0.5),
    "hits": lambda client: client.hits(search_request("economy sport", limit=2)),
    "batch_search": lambda client: client.batch_search([search_request("storm"), search_request(article_id="a9")]),
    "stream_search": lambda client: client.stream_search([search_request("storm"), search_request(article_id="a9")]),
    "nearest_clusters": lambda client: client.nearest_clusters(article_id="a5", limit=2, temperature=0.1),
    "embed": lambda client: client.embed(["storm", "economy"], packed=True),
    "stream_embed": lambda client: client.stream_embed(iter(["storm", "sport"] * 40), packed=False),
    "upsert": lambda client: client.upsert(ARTICLES, cluster_limit=2, neighbor_limit=3),
    "stream_upsert": lambda client: client.stream_upsert([*ARTICLES, ARTICLES[9]], group=4, cluster_limit=1),
    "delete": lambda client: client.delete(["a1", "a9"]),
    "get_article": lambda client: client.get_article("a1", cluster_limit=1, neighbor_limit=2),
    "clusters": lambda client: client.clusters(order="freshness", page_size=1),
    "cluster": lambda client: client.cluster("c0", neighbor_limit=1),
    "cluster_articles": lambda client: client.cluster_articles("c0", order="newest", page_size=1),
    "trending": lambda client: client.trending(window=timedelta(days=5), min_count=1, limit=3, baseline_windows=2),
    "index": lambda client: client.index(),
    "activate": lambda client: client.activate("another", force=True),
}
STREAMS = {
    "stream_search": lambda client: client.stream_search([search_request("storm")]),
    "stream_embed": lambda client: client.stream_embed(["storm"]),
    "stream_upsert": lambda client: client.stream_upsert(ARTICLES[:1]),
}


class Watched(Server):
    """A server that knows when its calls end."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()

    def _receive(self, request: Any, context: grpc.ServicerContext) -> None:
        context.add_callback(self.ended.set)
        super()._receive(request, context)


def asked(background: Background, target: str, work: Callable[[AsyncClient], Awaitable[T]], **options: Any) -> T:
    """What the work gives, done with a client of its own in the event loop."""

    async def opened() -> T:
        async with AsyncClient(target, **{"timeout": 10, **options}) as client:
            return await work(client)

    return background.run(opened())


async def answer(given: Any) -> Any:
    """All that a method gives: the reply, or the list of what it yields."""
    return [item async for item in given] if inspect.isasyncgen(given) else await given


def answer_of_blocking(given: Any) -> Any:
    """The same of a method of the blocking client."""
    return list(given) if inspect.isgenerator(given) else given


async def raised(given: Any) -> Any:
    """The error that a method raises."""
    try:
        reply = await answer(given)
    except ColdframeError as error:
        return error
    raise AssertionError(f"it answered {reply}")
