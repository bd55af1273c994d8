"""The thin typed client: a question in, a protobuf reply out.

It imports grpc, protobuf and the stubs, and nothing else: a backend installs no torch to ask a question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from coldframe import streams
from coldframe.connection import MAX_MESSAGE_BYTES, USE_CLIENT_DEFAULT, Connection, Timeout, error_of
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
from coldframe.streams import MAX_GROUP
from coldframe.v1.article_service_pb2_grpc import ArticleServiceStub
from coldframe.v1.cluster_service_pb2_grpc import ClusterServiceStub
from coldframe.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from coldframe.v1.index_service_pb2 import GetIndexRequest
from coldframe.v1.index_service_pb2_grpc import IndexServiceStub
from coldframe.v1.search_service_pb2 import BatchSearchRequest, SearchRequest
from coldframe.v1.search_service_pb2_grpc import SearchServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
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
    from coldframe.v1.cluster_service_pb2 import GetClusterResponse, TrendingClustersResponse
    from coldframe.v1.embedding_service_pb2 import EmbedResponse, StreamEmbedResponse
    from coldframe.v1.index_service_pb2 import ActivateGenerationResponse, GetIndexResponse
    from coldframe.v1.search_service_pb2 import (
        BatchSearchResponse,
        NearestClustersResponse,
        RecommendRequest,
        RecommendResponse,
        SearchResponse,
        StreamSearchResponse,
        WeightedSeed,
    )
    from coldframe.v1.types_pb2 import Article, ArticleSummary, Cluster, Hit

__all__ = ["MAX_GROUP", "MAX_MESSAGE_BYTES", "Client", "error_of"]


class Client:
    """Asks a Coldframe server, and raises the errors of `coldframe.errors`.

        with Client("localhost:50051") as client:
            for hit in client.search("rate cut expected").hits:
                print(hit.score, hit.article.title)

    A client is safe to share between threads, and keeps its connections: make one and reuse it.

    target: HOST:PORT, or any gRPC name such as "dns:///host:port" or "unix:/path".
    timeout: seconds that a call may take, its retries included; None waits for ever. Each call can say otherwise.
    attempts: 1 to 5. A call that finds the server UNAVAILABLE, or that gRPC turned away before the server saw it, is
    made so often in all, unless most calls fail; nothing else is retried, and streams are not. Upserts and deletes may
    be: done twice they are the same as done once. The answer is that of the last try, to which an article that an
    earlier one put is unchanged, and one that it removed is missing.
    connections: 1 to 64, asked in turns, to each address of the target where there is more than one; a single one goes
    to one address. A connection stays with one of a server's workers (`--workers`), or with one server behind a load
    balancer: whoever asks much by one client takes twice as many as there are of those.
    metadata: sent with every call. credentials: TLS as gRPC makes it, in place of `tls...`.
    security: `SecurityOptions`, such as api_key="cfk_...", tls_ca="ca.pem"; without any, plain text and no key.

    Every call raises InvalidArgument where one of its arguments is not allowed, naming it in `field`. The client does
    not connect before the first call.
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
        self._connection = Connection(
            target, timeout, attempts, metadata, credentials, connections=connections, security=security
        )
        channel = self._connection.channel
        self._articles = ArticleServiceStub(channel)
        self._embedding = EmbeddingServiceStub(channel)
        self._search = SearchServiceStub(channel)
        self._clusters = ClusterServiceStub(channel)
        self._index = IndexServiceStub(channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<coldframe.Client {self._connection.target}{' (closed)' if self._connection.closed else ''}>"

    def close(self) -> None:
        """Close the connection. Calls in flight are cancelled; closing twice does no harm."""
        self._connection.close()

    # ------------------------------------------------------------------------------------------ searching, recommending

    def search(
        self, text: str | None = None, *, timeout: Timeout = USE_CLIENT_DEFAULT, **options: Unpack[SearchOptions]
    ) -> SearchResponse:
        """Find the articles nearest to one seed, the best first.

        The seed is the text or one of `SeedOptions`; all options are in `coldframe.requests`. limit: 1 to 1,000, by
        default 10. exact: visit every list of the index, as a brute-force search does. page_token: of the reply
        before; `hits` turns the pages by itself.

        Raises InvalidArgument (field "seed" unless exactly one is given) and UnknownArticle.
        """
        return self._connection.call(self._search.Search, search_request(text, **options), timeout)

    def recommend(
        self,
        seeds: Iterable[WeightedSeed | str],
        *,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **options: Unpack[RecommendOptions],
    ) -> RecommendResponse:
        """Recommend to a reader of whom only the seeds are known.

        seeds: 1 to 64, texts or what `coldframe.seed` makes, at least one of them with a weight above 0. They are kept
        apart as interests; each hit says which one brought it. Options: `RankingOptions` and, of this call,
        limit (default 10), max_interests, interest_similarity, expansion, page_token.

        Ids that the index does not hold are in `missing_ids`, and no error.
        """
        return self._connection.call(self._search.Recommend, recommend_request(seeds, **options), timeout)

    def hits(
        self, request: SearchRequest | RecommendRequest, *, timeout: Timeout = USE_CLIENT_DEFAULT
    ) -> Iterator[Hit]:
        """Yield hits, the best first, fetching page after page of `request.limit`; the timeout is for each page.

            client.hits(search_request("rate cut expected", limit=100))

        A new generation that comes in between ends it with InvalidArgument (field "page_token"): scores of two
        generations do not belong in one list.
        """
        method: Any = self._search.Search if isinstance(request, SearchRequest) else self._search.Recommend
        return self._connection.pages(method, request, lambda page: page.hits, timeout)

    def batch_search(
        self, requests: Iterable[SearchRequest], *, timeout: Timeout = USE_CLIENT_DEFAULT
    ) -> BatchSearchResponse:
        """Make 1 to 64 searches in one call, each as `search_request` makes it.

        `results` has one for each, in their order: a response, or the error of that search alone (`error_of`).
        """
        return self._connection.call(self._search.BatchSearch, BatchSearchRequest(requests=requests), timeout)

    def stream_search(
        self, requests: Iterable[SearchRequest], *, timeout: float | None = None
    ) -> Iterator[StreamSearchResponse]:
        """Search without end: yield an answer for each request, in their order.

        The requests are read in another thread, as fast as the server takes them. correlation_id is the request's
        number: "0", "1", ... timeout: of the whole stream.
        """
        return self._connection.stream(self._search.StreamSearch, streams.searches(), requests, timeout)

    def nearest_clusters(
        self,
        text: str | None = None,
        *,
        limit: int | None = None,
        temperature: float | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
        **seed: Unpack[SeedOptions],
    ) -> NearestClustersResponse:
        """Find the clusters nearest to one seed, the nearest first. Seeds and errors are those of `search`.

        limit: 1 to 1,000, by default 5. temperature: of the softmax behind `share`; small ones sharpen it.
        """
        request = nearest_clusters_request(text, seed, limit=limit, temperature=temperature)
        return self._connection.call(self._search.NearestClusters, request, timeout)

    # -------------------------------------------------------------------------------------------------------- embedding

    def embed(
        self, texts: Sequence[str], *, packed: bool = False, timeout: Timeout = USE_CLIENT_DEFAULT
    ) -> EmbedResponse:
        """Embed 1 to 256 texts; `embeddings` has one for each, in their order.

        packed: vectors come as little-endian float32 bytes, for numpy.frombuffer(vector.packed, "<f4").

        Raises InvalidArgument for an empty text, too many texts, or one string in place of a list.
        """
        return self._connection.call(self._embedding.Embed, embed_request(texts, packed=packed), timeout)

    def stream_embed(
        self, texts: Iterable[str], *, packed: bool = True, timeout: float | None = None
    ) -> Iterator[StreamEmbedResponse]:
        """Embed without end: yield an answer for each text, in their order.

        The texts are read in another thread, as fast as the server takes them. correlation_id is the text's number.
        timeout: of the whole stream.

        Raises InvalidArgument for one string in place of several and, after the answers before it, for a text that
        cannot be sent.
        """
        given = not_one(texts, "texts")
        return self._connection.stream(self._embedding.StreamEmbed, streams.texts(packed=packed), given, timeout)

    # --------------------------------------------------------------------------------------------------------- articles

    def upsert(
        self,
        articles: Iterable[Article],
        *,
        validate_only: bool = False,
        cluster_limit: int = 0,
        neighbor_limit: int = 0,
        timeout: Timeout = USE_CLIENT_DEFAULT,
    ) -> UpsertArticlesResponse:
        """Add or replace 1 to 256 articles, all or none. What is answered is on the disk and found by searches.

        `coldframe.article` makes one from plain values. validate_only: say what would happen, and change nothing.
        cluster_limit, neighbor_limit: so many nearest clusters and articles come back with each.
        """
        request = upsert_request(
            articles, validate_only=validate_only, cluster_limit=cluster_limit, neighbor_limit=neighbor_limit
        )
        return self._connection.call(self._articles.UpsertArticles, request, timeout)

    def stream_upsert(
        self,
        articles: Iterable[Article],
        *,
        group: int = 64,
        validate_only: bool = False,
        cluster_limit: int = 0,
        neighbor_limit: int = 0,
        timeout: float | None = None,
    ) -> Iterator[StreamUpsertArticlesResponse]:
        """Add or replace articles without end: yield an answer for each group of them, in their order.

        group: articles that stand or fall together, 1 to 256; a group ends sooner at 8 MiB, and before an id that it
        holds already. correlation_id names the numbers of its first and last article, from 0, such as "64-127".
        The articles are read in another thread, as fast as the server takes them. timeout: of the whole stream.
        """
        requests = streams.upserts(
            group, validate_only=validate_only, cluster_limit=cluster_limit, neighbor_limit=neighbor_limit
        )
        return self._connection.stream(self._articles.StreamUpsertArticles, requests, articles, timeout)

    def delete(
        self, ids: Iterable[str], *, validate_only: bool = False, timeout: Timeout = USE_CLIENT_DEFAULT
    ) -> DeleteArticlesResponse:
        """Remove 1 to 1,000 articles: no search finds them any more. Ids that are not there come in `missing_ids`."""
        request = delete_request(ids, validate_only=validate_only)
        return self._connection.call(self._articles.DeleteArticles, request, timeout)

    def get_article(
        self,
        article_id: str,
        *,
        cluster_limit: int = 0,
        neighbor_limit: int = 0,
        timeout: Timeout = USE_CLIENT_DEFAULT,
    ) -> GetArticleResponse:
        """Return one article with its cluster and story, and what is near it. Raises UnknownArticle."""
        request = get_article_request(article_id, cluster_limit=cluster_limit, neighbor_limit=neighbor_limit)
        return self._connection.call(self._articles.GetArticle, request, timeout)

    # --------------------------------------------------------------------------------------------------------- clusters

    def clusters(
        self,
        *,
        order: Literal["size", "freshness", "growth"] = "size",
        page_size: int | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
    ) -> Iterator[Cluster]:
        """Yield every cluster, fetching page after page; the timeout is for each page.

        order: "size", the largest first; "freshness", that of the newest article first; "growth", as `trending` has
        it. page_size: 1 to 1,000, by default 100.
        """
        request = list_clusters_request(order=order, page_size=page_size)
        return self._connection.pages(self._clusters.ListClusters, request, lambda page: page.clusters, timeout)

    def cluster(
        self, cluster_id: str, *, neighbor_limit: int | None = None, timeout: Timeout = USE_CLIENT_DEFAULT
    ) -> GetClusterResponse:
        """Return one cluster: typical articles, how they lie, how old they are, where it comes from, what is beside it.

        neighbor_limit: clusters beside it, 0 to 100, by default 5. Raises UnknownCluster.
        """
        request = get_cluster_request(cluster_id, neighbor_limit=neighbor_limit)
        return self._connection.call(self._clusters.GetCluster, request, timeout)

    def cluster_articles(
        self,
        cluster_id: str,
        *,
        order: Literal["centrality", "newest", "id"] = "centrality",
        page_size: int | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
    ) -> Iterator[ArticleSummary]:
        """Yield every article of a cluster, the most typical first, fetching page after page.

        page_size: 1 to 1,000, by default 100. Raises UnknownCluster.
        """
        request = list_cluster_articles_request(cluster_id, order=order, page_size=page_size)
        return self._connection.pages(self._clusters.ListClusterArticles, request, lambda page: page.articles, timeout)

    def trending(
        self,
        *,
        limit: int | None = None,
        window: timedelta | None = None,
        baseline_windows: int | None = None,
        as_of: datetime | None = None,
        min_count: int | None = None,
        timeout: Timeout = USE_CLIENT_DEFAULT,
    ) -> TrendingClustersResponse:
        """Return the clusters that grow most, the fastest first.

        limit: 1 to 1,000, by default 10. window: articles within it, by default a day, are held against those of the
        baseline_windows (7) before it. as_of: the window's end, in a time zone; by default the newest article's date,
        of those that are not in the future. min_count: clusters with fewer articles in the window are left out, by
        default 2.
        """
        request = trending_request(
            limit=limit, window=window, baseline_windows=baseline_windows, as_of=as_of, min_count=min_count
        )
        return self._connection.call(self._clusters.TrendingClusters, request, timeout)

    # ------------------------------------------------------------------------------------------------------------ index

    def index(self, *, timeout: Timeout = USE_CLIENT_DEFAULT) -> GetIndexResponse:
        """Describe the generation that answers now. Raises NoGeneration where nothing has been published."""
        return self._connection.call(self._index.GetIndex, GetIndexRequest(), timeout)

    def activate(
        self, generation: str, *, force: bool = False, timeout: Timeout = USE_CLIENT_DEFAULT
    ) -> ActivateGenerationResponse:
        """Make a generation of the server's store the current one, and wait until it is served.

        One that is served already stays, and `changed` is False. force: one that its build kept back, too. A timeout
        does not undo it: the server goes on, and the same call again waits for it.

        Raises UnknownGeneration, FailedPrecondition, FingerprintMismatch and CorruptGeneration; what was served goes
        on then. Where the server has keys this takes one of the role admin.
        """
        request = activate_request(generation, force=force)
        return self._connection.call(self._index.ActivateGeneration, request, timeout)
