"""ArticleService: articles that come and go while the service answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coldframe.errors import ColdframeError, InvalidArgument, Unavailable, UnknownArticle
from coldframe.live import Delete, LiveArticle, Upsert
from coldframe.text import article_text
from coldframe.v1 import article_service_pb2 as pb
from coldframe.v1 import article_service_pb2_grpc
from coldframe.v1.search_service_pb2 import SearchResponse
from server import clusters
from server.engine import Timing
from server.search import neighbours
from server.streaming import Turns, in_order
from server.view import View, rows_of
from server.wire import replies, requests
from server.wire.hits import WHOLE, add_hits, summary
from server.writer import Change, Outcome, Outcomes, Same, StaleVector, applied, holds, outcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from server.engine import Engine
    from server.services import Context
    from server.serving import Served

_MOST_NEAR = 100
_TRIES = 3
_OUTCOMES = {
    Outcome.CREATED: pb.UPSERT_OUTCOME_CREATED,
    Outcome.REPLACED: pb.UPSERT_OUTCOME_REPLACED,
    Outcome.UNCHANGED: pb.UPSERT_OUTCOME_UNCHANGED,
}


class ArticleService(article_service_pb2_grpc.ArticleServiceServicer):
    """Upserts, deletes, single articles."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def UpsertArticles(  # noqa: N802, D102
        self, request: pb.UpsertArticlesRequest, context: Context
    ) -> pb.UpsertArticlesResponse:
        return await self._upsert(request)

    def StreamUpsertArticles(  # noqa: N802, D102
        self, request_iterator: AsyncIterator[pb.StreamUpsertArticlesRequest], context: Context
    ) -> AsyncIterator[pb.StreamUpsertArticlesResponse]:
        turns = Turns()  # of two versions in one stream the later one stays, whichever is embedded first
        return in_order(request_iterator, lambda request: self._upsert_one(request, turns))

    async def _upsert_one(
        self, request: pb.StreamUpsertArticlesRequest, turns: Turns
    ) -> pb.StreamUpsertArticlesResponse:
        try:
            async with turns.of(article.id for article in request.request.articles):
                response = await self._upsert(request.request)
        except ColdframeError as error:
            return pb.StreamUpsertArticlesResponse(
                correlation_id=request.correlation_id, error=replies.item_error(error)
            )
        return pb.StreamUpsertArticlesResponse(correlation_id=request.correlation_id, response=response)

    async def _upsert(self, request: pb.UpsertArticlesRequest) -> pb.UpsertArticlesResponse:
        clock, served = Timing(), self._engine.served()
        articles = requests.articles(request.articles)
        limits = _limits(request)
        if request.validate_only:
            changes = await self._changes(served, articles, clock)
            outcomes, view = await self._engine.searching(lambda: _rehearse(served.view, changes), clock)
        else:
            outcomes, view = await self._write(served, articles, clock)
        served = served.showing(view)
        results = await self._engine.searching(lambda: _results(view, articles, outcomes, limits), clock)
        return replies.signed(pb.UpsertArticlesResponse(results=results), served, clock)

    async def _write(self, served: Served, articles: Sequence[LiveArticle], clock: Timing) -> tuple[Outcomes, View]:
        for _ in range(_TRIES):
            changes = await self._changes(served, articles, clock)
            try:
                return await self._engine.writer.apply(changes)
            except StaleVector:  # another encoder took over while these were embedded
                served = self._engine.served()
        raise Unavailable("the index is being exchanged again and again; try again in a second")

    async def _changes(self, served: Served, articles: Sequence[LiveArticle], clock: Timing) -> list[Change]:
        """The articles with their vectors. What the index holds exactly so need not be embedded."""
        known = await self._engine.searching(lambda: [holds(served.view, article) for article in articles], clock)
        new = [article for article, same in zip(articles, known, strict=True) if not same]
        texts = [article_text(article.title, article.content) for article in new]
        embedded = iter(await self._engine.embed_articles(served, texts, clock))
        return [Same(a) if same else Upsert(a, next(embedded)) for a, same in zip(articles, known, strict=True)]

    async def DeleteArticles(  # noqa: N802, D102
        self, request: pb.DeleteArticlesRequest, context: Context
    ) -> pb.DeleteArticlesResponse:
        clock, served = Timing(), self._engine.served()
        ids = requests.identifiers(request.ids, requests.MAX_DELETES, "ids")
        if request.validate_only:
            gone = set((await self._engine.searching(lambda: rows_of(served.view, ids), clock))[1])
        else:
            # No article ever has a longer one: there is nothing to remember.
            named = [name for name in ids if len(name) <= requests.MAX_ID_CHARS]
            outcomes, view = await self._engine.writer.apply([Delete(name) for name in named])
            served, known = served.showing(view), dict(zip(named, outcomes, strict=True))
            gone = {name for name in ids if known.get(name, Outcome.MISSING) is Outcome.MISSING}
        response = pb.DeleteArticlesResponse(
            deleted_ids=[name for name in ids if name not in gone],
            missing_ids=[name for name in ids if name in gone],
        )
        return replies.signed(response, served, clock)

    async def GetArticle(  # noqa: N802, D102
        self, request: pb.GetArticleRequest, context: Context
    ) -> pb.GetArticleResponse:
        clock, served = Timing(), self._engine.served()
        row = served.view.row_of(requests.identifier(request.id, "id"))
        if row is None:
            raise UnknownArticle(f"no article {request.id!r} in the index")
        limits = _limits(request)
        result = await self._engine.searching(lambda: _result(served.view, row, limits), clock)
        response = pb.GetArticleResponse(
            article=result.article, usage=result.usage, clusters=result.clusters, neighbors=result.neighbors
        )
        return replies.signed(response, served, clock)


def _limits(request: pb.UpsertArticlesRequest | pb.GetArticleRequest) -> tuple[int, int]:
    """How many nearest clusters and nearest articles are answered."""
    for field in ("cluster_limit", "neighbor_limit"):
        value = getattr(request, field)
        if not 0 <= value <= _MOST_NEAR:
            raise InvalidArgument(f"{field} is {value}; allowed are 0 to {_MOST_NEAR}", field=field)
    return request.cluster_limit, request.neighbor_limit


def _rehearse(view: View, changes: Sequence[Change]) -> tuple[Outcomes, View]:
    """What would come of the changes, and a view in which each would be; the served one does not change."""
    outcomes = [outcome(view, change) for change in changes]
    view = view.apart()
    for change, found in zip(changes, outcomes, strict=True):
        if isinstance(change, Upsert) and found is not Outcome.UNCHANGED:
            view = applied(view, change, view.sequence)
    return outcomes, view


def _results(
    view: View, articles: Sequence[LiveArticle], outcomes: Sequence[Outcome], limits: tuple[int, int]
) -> list[pb.UpsertResult]:
    results = []
    for article, found in zip(articles, outcomes, strict=True):
        row = view.row_of(article.id)
        assert row is not None, "the first view with the changes has them"
        result = _result(view, row, limits)
        result.outcome = _OUTCOMES[found]
        results.append(result)
    return results


def _result(view: View, row: int, limits: tuple[int, int]) -> pb.UpsertResult:
    (cluster_limit, neighbour_limit), vector = limits, view.vector(row)
    result = pb.UpsertResult(article=summary(view, row), usage=replies.usage(view.article(row)))
    if cluster_limit:
        result.clusters.extend(replies.cluster_matches(view, *clusters.nearest(view, vector, cluster_limit)))
    if neighbour_limit:
        found = neighbours(view, vector, frozenset({row}), neighbour_limit)
        nearest = SearchResponse()
        add_hits(nearest, view, found, WHOLE)
        result.neighbors.extend(nearest.hits)
    return result
