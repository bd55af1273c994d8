"""The client for programs on asyncio: what `coldframe.client` is to programs with threads."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from coldframe import streams
from coldframe.async_connection import AsyncConnection
from coldframe.connection import USE_CLIENT_DEFAULT, Timeout
from coldframe.messages import not_one
from coldframe.requests import (
    RecommendOptions,
    SearchOptions,
    SeedOptions,
    activate_request,
    delete_request,
    embed_request,
    get_article_request,
    get_cluster_request,
    list_cluster_articles_request,
    list_clusters_request,
    nearest_clusters_request,
    recommend_request,
    search_request,
    trending_request,
    upsert_request,
)
from coldframe.v1.article_service_pb2_grpc import ArticleServiceStub
from coldframe.v1.cluster_service_pb2_grpc import ClusterServiceStub
from coldframe.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from coldframe.v1.index_service_pb2 import GetIndexRequest
from coldframe.v1.index_service_pb2_grpc import IndexServiceStub
from coldframe.v1.search_service_pb2 import BatchSearchRequest, SearchRequest
from coldframe.v1.search_service_pb2_grpc import SearchServiceStub

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
    from datetime import datetime, timedelta
    from typing import Self, Unpack

    import grpc

    from coldframe.credentials import SecurityOptions
    from coldframe.v1.article_service_pb2 import (
        DeleteArticlesResponse,
        GetArticleResponse,
        StreamUpsertArticlesResponse,
        UpsertArticlesResponse,
    )
    from coldframe.v1.article_service_pb2_grpc import ArticleServiceAsyncStub
    from coldframe.v1.cluster_service_pb2 import GetClusterResponse, TrendingClustersResponse
    from coldframe.v1.cluster_service_pb2_grpc import ClusterServiceAsyncStub
    from coldframe.v1.embedding_service_pb2 import EmbedResponse, StreamEmbedResponse
    from coldframe.v1.embedding_service_pb2_grpc import EmbeddingServiceAsyncStub
    from coldframe.v1.index_service_pb2 import ActivateGenerationResponse, GetIndexResponse
    from coldframe.v1.index_service_pb2_grpc import IndexServiceAsyncStub
    from coldframe.v1.search_service_pb2 import (
        BatchSearchResponse,
        NearestClustersResponse,
        RecommendRequest,
        RecommendResponse,
        SearchResponse,
        StreamSearchResponse,
        WeightedSeed,
    )
    from coldframe.v1.search_service_pb2_grpc import SearchServiceAsyncStub
    from coldframe.v1.types_pb2 import Article, ArticleSummary, Cluster, Hit

__all__ = ["AsyncClient"]


def _stub(kind: Callable[[Any], Any]) -> cached_property[Any]:
    return cached_property(lambda client: kind(client._connection.channel))


class AsyncClient:
    """`coldframe.Client` for an event loop: the same methods, arguments and errors, as coroutines.

        async with AsyncClient("localhost:50051") as client:
            for hit in (await client.search("rate cut expected")).hits:
                print(hit.score, hit.article.title)

    What yields there is an async generator here, and streams take async iterables, too. An ordinary iterable is read
    in the event loop: one that waits for something had better be an async one. A generator that is left early ends its
    call when it is closed (`contextlib.aclosing` does it at once), and a task that is cancelled ends its call.

    A client is safe to share between the tasks of one event loop, that of its first call, and keeps its connections:
    make one and reuse it. It can be made before the loop runs. In another loop it raises FailedPrecondition.
    """

    def __init__(
        self,
        target: str = "localhost:50051",
        *,
        timeout: float | None = 30.0,
        attempts: int = 4,
        connections: int = 1,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        credentials: grpc.ChannelCredentials | None = None,
        **security: Unpack[SecurityOptions],
    ) -> None:
        self._connection = AsyncConnection(
            target, timeout, attempts, metadata, credentials, connections=connections, security=security
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<coldframe.AsyncClient {self._connection.target}{' (closed)' if self._connection.closed else ''}>"

    async def close(self) -> None:
        """Close the connection. Calls in flight are cancelled; closing twice does no harm."""
        await self._connection.close()

    # Each opens the channel, and is made when the first call looks for it. Generators look when they are started.

    _articles: cached_property[ArticleServiceAsyncStub] = _stub(ArticleServiceStub)
    _embedding: cached_property[EmbeddingServiceAsyncStub] = _stub(EmbeddingServiceStub)
    _search: cached_property[SearchServiceAsyncStub] = _stub(SearchServiceStub)
    _clusters: cached_property[ClusterServiceAsyncStub] = _stub(ClusterServiceStub)
    _index: cached_property[IndexServiceAsyncStub] = _stub(IndexServiceStub)

    # ------------------------------------------------------------------------------------------ searching, recommending

    async def search(
        self, text: str | None = None, *, timeout: Timeout = USE_CLIENT_DEFAULT, **options: Unpack[SearchOptions]
    ) -> SearchResponse:
        """As `Client.search`."""
        return await self._connection.call(self._search.Search, search_request(text, **options), timeout)

    async def recommend(
        self,
        seeds: Iterable[WeightedSeed | str],
        *,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **options: Unpack[RecommendOptions],
    ) -> RecommendResponse:
        """As `Client.recommend`."""
        return await self._connection.call(self._search.Recommend, recommend_request(seeds, **options), timeout)

    def hits(
        self, request: SearchRequest | RecommendRequest, *, timeout: Timeout = USE_CLIENT_DEFAULT
    ) -> AsyncGenerator[Hit, None]:
        """As `Client.hits`."""

        def method() -> Any:
            return self._search.Search if isinstance(request, SearchRequest) else self._search.Recommend

        return self._connection.pages(method, request, lambda page: page.hits, timeout)

    async def batch_search(
        self, requests: Iterable[SearchRequest], *, timeout: Timeout = USE_CLIENT_DEFAULT
    ) -> BatchSearchResponse:
        """As `Client.batch_search`."""
        return await self._connection.call(self._search.BatchSearch, BatchSearchRequest(requests=requests), timeout)

    def stream_search(
        self, requests: Iterable[SearchRequest] | AsyncIterable[SearchRequest], *, timeout: float | None = None
    ) -> AsyncGenerator[StreamSearchResponse, None]:
        """As `Client.stream_search`."""
        return self._connection.stream(lambda: self._search.StreamSearch, streams.searches(), requests, timeout)

    async def nearest_clusters(
        self,
        text: str | None = None,
        *,
        limit: int | None = None,
        temperature: float | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **seed: Unpack[SeedOptions],
    ) -> NearestClustersResponse:
        """As `Client.nearest_clusters`."""
        request = nearest_clusters_request(text, seed, limit=limit, temperature=temperature)
        return await self._connection.call(self._search.NearestClusters, request, timeout)

    # -------------------------------------------------------------------------------------------------------- embedding

    async def embed(
        self, texts: Sequence[str], *, packed: bool = False, timeout: Timeout = USE_CLIENT_DEFAULT
    ) -> EmbedResponse:
        """As `Client.embed`."""
        return await self._connection.call(self._embedding.Embed, embed_request(texts, packed=packed), timeout)

    def stream_embed(
        self, texts: Iterable[str] | AsyncIterable[str], *, packed: bool = True, timeout: float | None = None
    ) -> AsyncGenerator[StreamEmbedResponse, None]:
        """As `Client.stream_embed`."""
        given = not_one(texts, "texts")
        return self._connection.stream(
            lambda: self._embedding.StreamEmbed, streams.texts(packed=packed), given, timeout
        )

    # --------------------------------------------------------------------------------------------------------- articles

    async def upsert(
        self,
        articles: Iterable[Article],
        *,
        validate_only: bool = False,
        cluster_limit: int = 0,
        neighbor_limit: int = 0,
        timeout: Timeout = USE_CLIENT_DEFAULT,
    ) -> UpsertArticlesResponse:
        """As `Client.upsert`."""
        request = upsert_request(
            articles, validate_only=validate_only, cluster_limit=cluster_limit, neighbor_limit=neighbor_limit
        )
        return await self._connection.call(self._articles.UpsertArticles, request, timeout)

    def stream_upsert(
        self,
        articles: Iterable[Article] | AsyncIterable[Article],
        *,
        group: int = 64,
        validate_only: bool = False,
        cluster_limit: int = 0,
        neighbor_limit: int = 0,
        timeout: float | None = None,
    ) -> AsyncGenerator[StreamUpsertArticlesResponse, None]:
        """As `Client.stream_upsert`."""
        requests = streams.upserts(
            group, validate_only=validate_only, cluster_limit=cluster_limit, neighbor_limit=neighbor_limit
        )
        return self._connection.stream(lambda: self._articles.StreamUpsertArticles, requests, articles, timeout)

    async def delete(
        self, ids: Iterable[str], *, validate_only: bool = False, timeout: Timeout = USE_CLIENT_DEFAULT
    ) -> DeleteArticlesResponse:
        """As `Client.delete`."""
        request = delete_request(ids, validate_only=validate_only)
        return await self._connection.call(self._articles.DeleteArticles, request, timeout)

    async def get_article(
        self,
        article_id: str,
        *,
        cluster_limit: int = 0,
        neighbor_limit: int = 0,
        timeout: Timeout = USE_CLIENT_DEFAULT,
    ) -> GetArticleResponse:
        """As `Client.get_article`."""
        request = get_article_request(article_id, cluster_limit=cluster_limit, neighbor_limit=neighbor_limit)
        return await self._connection.call(self._articles.GetArticle, request, timeout)

    # --------------------------------------------------------------------------------------------------------- clusters

    def clusters(
        self,
        *,
        order: Literal["size", "freshness", "growth"] = "size",
        page_size: int | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
    ) -> AsyncGenerator[Cluster, None]:
        """As `Client.clusters`."""
        request = list_clusters_request(order=order, page_size=page_size)
        return self._connection.pages(lambda: self._clusters.ListClusters, request, lambda page: page.clusters, timeout)

    async def cluster(
        self, cluster_id: str, *, neighbor_limit: int | None = None, timeout: Timeout = USE_CLIENT_DEFAULT
    ) -> GetClusterResponse:
        """As `Client.cluster`."""
        request = get_cluster_request(cluster_id, neighbor_limit=neighbor_limit)
        return await self._connection.call(self._clusters.GetCluster, request, timeout)

    def cluster_articles(
        self,
        cluster_id: str,
        *,
        order: Literal["centrality", "newest", "id"] = "centrality",
        page_size: int | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
    ) -> AsyncGenerator[ArticleSummary, None]:
        """As `Client.cluster_articles`."""
        request = list_cluster_articles_request(cluster_id, order=order, page_size=page_size)
        return self._connection.pages(
            lambda: self._clusters.ListClusterArticles, request, lambda page: page.articles, timeout
        )

    async def trending(
        self,
        *,
        limit: int | None = None,
        window: timedelta | None = None,
        baseline_windows: int | None = None,
        as_of: datetime | None = None,
        min_count: int | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
    ) -> TrendingClustersResponse:
        """As `Client.trending`."""
        request = trending_request(
            limit=limit, window=window, baseline_windows=baseline_windows, as_of=as_of, min_count=min_count
        )
        return await self._connection.call(self._clusters.TrendingClusters, request, timeout)

    # ------------------------------------------------------------------------------------------------------------ index

    async def index(self, *, timeout: Timeout = USE_CLIENT_DEFAULT) -> GetIndexResponse:
        """As `Client.index`."""
        return await self._connection.call(self._index.GetIndex, GetIndexRequest(), timeout)

    async def activate(
        self, generation: str, *, force: bool = False, timeout: Timeout = USE_CLIENT_DEFAULT
    ) -> ActivateGenerationResponse:
        """As `Client.activate`."""
        request = activate_request(generation, force=force)
        return await self._connection.call(self._index.ActivateGeneration, request, timeout)
