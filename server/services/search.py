"""SearchService: the nearest articles, the nearest clusters, and what a reader may like."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from coldframe.errors import ColdframeError
from coldframe.v1 import search_service_pb2 as pb
from coldframe.v1 import search_service_pb2_grpc
from server import clusters
from server.engine import Timing
from server.pages import Last, Place
from server.search import Taste, recommend, search
from server.seeds import missing, resolve, unknown
from server.streaming import in_order
from server.wire import paging, replies, requests, tastes
from server.wire.hits import Parts, add_hits
from server.wire.ranking import ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import numpy as np
    from numpy.typing import NDArray

    from server.engine import Engine
    from server.search import Ask, Expansion, Found
    from server.services import Context
    from server.serving import Served
    from server.view import View


_MUCH = 65_536
"""Bytes of a search, such as thousands of ids, that take milliseconds to be read: those of a batch are read in turns of
the event loop, or all other callers would wait for 64 of them."""


class SearchService(search_service_pb2_grpc.SearchServiceServicer):
    """Search, recommendations, nearest clusters."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:  # noqa: N802, D102
        return await self._search(request, self._engine.served())

    async def BatchSearch(self, request: pb.BatchSearchRequest, context: Context) -> pb.BatchSearchResponse:  # noqa: N802, D102
        clock, served = Timing(), self._engine.served()
        requests.entries(request.requests, requests.MAX_SEARCHES, "requests")
        # At the same time, so that their texts are embedded together, and all from one state of the index.
        turns = asyncio.Lock()
        results = await asyncio.gather(*(self._search_within(served, one, turns) for one in request.requests))
        attribution = paging.Asked(served, request).attribution()
        return replies.signed(pb.BatchSearchResponse(results=results), served, clock, attribution)

    async def _search_within(
        self, served: Served, request: pb.SearchRequest, turns: asyncio.Lock
    ) -> pb.BatchSearchResult:
        if request.ByteSize() > _MUCH:
            async with turns:
                await asyncio.sleep(0)
        try:
            return pb.BatchSearchResult(response=await self._search(request, served))
        except ColdframeError as error:
            return pb.BatchSearchResult(error=replies.item_error(error))

    def StreamSearch(  # noqa: N802, D102
        self, request_iterator: AsyncIterator[pb.StreamSearchRequest], context: Context
    ) -> AsyncIterator[pb.StreamSearchResponse]:
        return in_order(request_iterator, self._search_one)

    async def _search_one(self, request: pb.StreamSearchRequest) -> pb.StreamSearchResponse:
        try:
            response = await self._search(request.request, self._engine.served())
        except ColdframeError as error:
            return pb.StreamSearchResponse(correlation_id=request.correlation_id, error=replies.item_error(error))
        return pb.StreamSearchResponse(correlation_id=request.correlation_id, response=response)

    async def _search(self, request: pb.SearchRequest, served: Served) -> pb.SearchResponse:
        clock, view = Timing(), served.view
        seed = requests.seed(request.seed)
        page, limit = paging.Asked(served, request), requests.count(request, "limit", 10)
        asked = ask(request.ranking, served, limit, page.place(request.page_token), request.effort)
        parts = Parts.of(request.ranking.read_mask)
        point = (await resolve(self._engine, served, [seed], clock))[0]
        if point is None:
            raise unknown(seed)
        response = pb.SearchResponse(usage=replies.usage(point.usage))
        finding = self._find(lambda: search(view, point, asked), response, view, parts, clock)
        replies.write_served_by(response.served_by, served, page.attribution())
        found = await finding
        response.missing_ids.extend(found.missing)
        if found.more:
            response.next_page_token = page.at(_after(view, asked, found))
        replies.write_timing(response.timing, clock)
        return response

    async def Recommend(self, request: pb.RecommendRequest, context: Context) -> pb.RecommendResponse:  # noqa: N802, D102
        clock, served = Timing(), self._engine.served()
        seeds, weights = zip(*tastes.seeds(request), strict=True)
        view = served.view
        page, limit = paging.Asked(served, request), requests.count(request, "limit", 10)
        asked = ask(request.ranking, served, limit, page.place(request.page_token))
        parts, shape = Parts.of(request.ranking.read_mask), tastes.shape(request)
        points = await resolve(self._engine, served, seeds, clock)
        taste = Taste(points, weights, shape)
        response = pb.RecommendResponse(
            usages=[replies.usage(point.usage if point else None) or tastes.NO_USAGE for point in points]
        )

        def work() -> Found:
            found = recommend(view, taste, asked)
            response.interests.extend(tastes.interest(view, interest, taste) for interest in found.interests)
            return found

        finding = self._find(work, response, view, parts, clock)
        replies.write_served_by(response.served_by, served, page.attribution())
        found = await finding
        response.missing_ids.extend(dict.fromkeys([*missing(seeds, points), *found.missing]))
        if found.more:
            response.next_page_token = page.at(_after(view, asked, found, shape.expansion))
        replies.write_timing(response.timing, clock)
        return response

    def _find(
        self,
        work: Callable[[], Found],
        response: pb.SearchResponse | pb.RecommendResponse,
        view: View,
        parts: Parts,
        clock: Timing,
    ) -> Awaitable[Found]:
        """Begins to find. The hits are written on the same thread, which needs no second way there; what else a reply
        has is written while that one waits for memory.
        """

        def run() -> Found:
            start = time.perf_counter()
            found = work()
            add_hits(response, view, found, parts)
            clock.search_ms += found.search_ms
            clock.rank_ms += 1e3 * (time.perf_counter() - start) - found.search_ms
            return found

        return self._engine.searching(run)

    async def NearestClusters(  # noqa: N802, D102
        self, request: pb.NearestClustersRequest, context: Context
    ) -> pb.NearestClustersResponse:
        clock, served = Timing(), self._engine.served()
        seed, view = requests.seed(request.seed), served.view
        limit = requests.count(request, "limit", 5)
        heat = requests.within(
            requests.optional(request, "temperature"), 0.001, 10.0, clusters.TEMPERATURE, "temperature"
        )
        point = (await resolve(self._engine, served, [seed], clock))[0]
        if point is None:
            raise unknown(seed)
        matches, outlier = await self._engine.searching(lambda: _nearest(view, point.vector, limit, heat), clock)
        response = pb.NearestClustersResponse(matches=matches, usage=replies.usage(point.usage), outlier=outlier)
        return replies.signed(response, served, clock)


def _after(view: View, asked: Ask, found: Found, expansion: Expansion | None = None) -> Place:
    """Where the page after this one begins."""
    last = Last(view.id_of(int(found.rows[-1])), None if found.late else float(found.ranked.score[-1]))
    ages = asked.options.half_life_s is not None or (expansion is not None and expansion.max_age_s is not None)
    moment, largest = int(asked.options.as_of_s) if ages else 0, asked.place.largest
    if asked.popularity is not None and largest is None:
        largest = view.largest(asked.popularity[0])
    return Place(found.end, asked.place.first or asked.limit, moment, largest, last)


def _nearest(
    view: View, vector: NDArray[np.float32], limit: int, temperature: float
) -> tuple[list[pb.ClusterMatch], bool]:
    """The clusters nearest to a vector, (dim,), and whether it is an outlier of the nearest."""
    numbers, similarities, shares = clusters.nearest(view, vector, limit, temperature)
    nearest = view.base.generation.clusters[int(numbers[0])]
    return replies.cluster_matches(view, numbers, similarities, shares), bool(similarities[0] < nearest.outlier_below)
