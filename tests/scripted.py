"""A real gRPC server for the client's tests: it answers honestly from a few articles, or fails as it is told."""
# ruff: noqa: N802  (gRPC names the methods)

from __future__ import annotations

import copy
import struct
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from grpc_reflection.v1alpha import reflection

from coldframe.errors import ColdframeError, InvalidArgument, UnknownArticle, UnknownGeneration
from coldframe.v1 import (
    article_service_pb2,
    article_service_pb2_grpc,
    cluster_service_pb2,
    cluster_service_pb2_grpc,
    embedding_service_pb2,
    embedding_service_pb2_grpc,
    index_service_pb2,
    index_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
)
from coldframe.v1.article_service_pb2 import (
    UPSERT_OUTCOME_CREATED,
    UPSERT_OUTCOME_REPLACED,
    UPSERT_OUTCOME_UNCHANGED,
    UpsertArticlesRequest,
    UpsertArticlesResponse,
    UpsertResult,
)
from coldframe.v1.search_service_pb2 import ClusterMatch, RecommendResponse, SearchRequest, SearchResponse
from coldframe.v1.types_pb2 import Hit, ItemError, Seed, ServedBy, Timing, Usage, Vector
from tests import scripted_index
from tests.scripted_index import (
    CENTROIDS,
    LABELS,
    MAX_TOKENS,
    Index,
    Seeker,
    checked,
    dot,
    masked,
    usage_of,
    usage_of_seed,
    vector_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from google.protobuf.message import Message

    from coldframe.v1.embedding_service_pb2 import Embedding
    from coldframe.v1.types_pb2 import ArticleSummary

MAX_REQUEST_BYTES = 1 << 20
TIMING = Timing(tokenize_ms=0.2, queue_ms=0.1, embed_ms=6.04, search_ms=1.25, total_ms=7.9)
MODULES = (
    (article_service_pb2, article_service_pb2_grpc),
    (cluster_service_pb2, cluster_service_pb2_grpc),
    (embedding_service_pb2, embedding_service_pb2_grpc),
    (index_service_pb2, index_service_pb2_grpc),
    (search_service_pb2, search_service_pb2_grpc),
)
SERVICES = [name for module, _ in MODULES for name in module.DESCRIPTOR.services_by_name]


@dataclass
class Failure:
    """How one call is to fail."""

    code: grpc.StatusCode
    details: str = "as told"
    metadata: tuple[tuple[str, str], ...] = ()


class Services:
    """What the five services answer; the errors that they raise are put on the wire by `Server`."""

    def __init__(self) -> None:
        self.index = Index()

    def Embed(self, request: Any) -> Message:
        embeddings = [embedding_of(text, request.packed) for text in request.texts]
        return embedding_service_pb2.EmbedResponse(
            embeddings=embeddings, timing=TIMING, served_by=served_by(self.index)
        )

    def Search(self, request: SearchRequest) -> SearchResponse:
        hits = self.index.rank(self.index.seeker(request.seed), request.ranking)
        page, token = page_of(hits, request.page_token, request.limit or 10)
        return SearchResponse(
            hits=masked(page, request.ranking.read_mask),
            next_page_token=token,
            usage=usage_of_seed(request.seed),
            timing=TIMING,
            served_by=served_by(self.index),
            missing_ids=self.index.missing(request.ranking),
        )

    def BatchSearch(self, request: Any) -> Message:
        results = [search_service_pb2.BatchSearchResult(**item_of(self.Search, item)) for item in request.requests]
        return search_service_pb2.BatchSearchResponse(results=results, timing=TIMING, served_by=served_by(self.index))

    def Recommend(self, request: Any) -> RecommendResponse:
        """Every positive seed is an interest of its own; places go to the one that is furthest behind its weight."""
        liked, unlike = self._seekers(request.seeds)
        if not 1 <= len(request.seeds) <= 64 or not liked:
            raise InvalidArgument(
                f"seeds has {len(request.seeds)}; allowed are 1 to 64, one of them above 0", field="seeds"
            )
        liked = sorted(liked, key=lambda seeker: -seeker.weight)[: request.max_interests or 5]
        queues = [deque(self.index.rank(seeker, request.ranking, unlike)) for seeker in liked]
        shares = [seeker.weight / sum(other.weight for other in liked) for seeker in liked]
        own = set[str]().union(*(seeker.own for seeker in liked))
        hits = interleaved(queues, shares, own)
        page, token = page_of(hits, request.page_token, request.limit or 10)
        return RecommendResponse(
            hits=masked(page, request.ranking.read_mask),
            interests=[self._interest(*pair) for pair in zip(liked, shares, strict=True)],
            usages=[usage_of_seed(weighted.seed) or Usage() for weighted in request.seeds],
            next_page_token=token,
            timing=TIMING,
            served_by=served_by(self.index),
            missing_ids=self.index.missing(request.ranking, request.seeds),
        )

    def _seekers(self, seeds: Any) -> tuple[list[Seeker], list[Seeker]]:
        found = []
        for number, weighted in enumerate(seeds):
            weight = weighted.weight if weighted.HasField("weight") else 1.0
            if weight == 0:
                where = f"seeds[{number}].weight"
                raise InvalidArgument(f"{where} is 0; allowed are -1,000 to 1,000, and not 0", field=where)
            try:
                seeker = self.index.seeker(weighted.seed)
            except UnknownArticle:
                continue
            found.append(Seeker(seeker.vector, seeker.own, weight, number))
        return [one for one in found if one.weight > 0], [one for one in found if one.weight < 0]

    def _interest(self, seeker: Seeker, share: float) -> Any:
        home = max(CENTROIDS, key=lambda key: dot(seeker.vector, CENTROIDS[key]))
        return search_service_pb2.Interest(
            seeds=[seeker.number], medoid=seeker.number, weight=share, cluster_id=home, cluster_label=LABELS[home]
        )

    def NearestClusters(self, request: Any) -> Message:
        found = self._matches(self.index.seeker(request.seed).vector)[: request.limit or 5]
        return search_service_pb2.NearestClustersResponse(
            matches=found,
            usage=usage_of_seed(request.seed),
            timing=TIMING,
            served_by=served_by(self.index),
            outlier=found[0].similarity < 0.5,
        )

    def _matches(self, query: Sequence[float]) -> list[ClusterMatch]:
        likeness = {key: dot(query, CENTROIDS[key]) for key in LABELS}
        total = sum(2**value for value in likeness.values())
        found = [
            ClusterMatch(cluster=self.index.cluster(key), similarity=s, distance=1 - s, share=2**s / total)
            for key, s in likeness.items()
        ]
        return sorted(found, key=lambda match: -match.similarity)

    def ListClusters(self, request: Any) -> Message:
        found = [self.index.cluster(key) for key in LABELS]
        if request.order == cluster_service_pb2.CLUSTER_ORDER_FRESHNESS:
            found.sort(key=lambda cluster: -cluster.newest_at.seconds)
        page, token = page_of(found, request.page_token, request.page_size or 100)
        return cluster_service_pb2.ListClustersResponse(
            clusters=page, next_page_token=token, total_size=len(found), served_by=served_by(self.index)
        )

    def GetCluster(self, request: Any) -> Message:
        found = self.index.cluster(request.cluster_id)
        found.representatives.extend(self.index.summary(key) for key in self.index.members(found.id))
        others = [self.index.cluster(key) for key in LABELS if key != found.id]
        reply = cluster_service_pb2.GetClusterResponse(
            cluster=found,
            timing=TIMING,
            served_by=served_by(self.index),
            residuals=cluster_service_pb2.Residuals(mean=0.21, p50=0.2, p90=0.35, p99=0.5, outliers=1),
            lineage=cluster_service_pb2.Lineage(kind="kept", parent_ids=[found.id], similarity=0.987),
            neighbors=[
                cluster_service_pb2.NeighborCluster(id=other.id, label=other.label, size=other.size, similarity=0.1)
                for other in others[: request.neighbor_limit if request.HasField("neighbor_limit") else 5]
            ],
        )
        young = reply.ages.add(count=1)
        young.max_age.FromTimedelta(timedelta(days=7))
        old = reply.ages.add(count=found.size - 1)
        old.min_age.FromTimedelta(timedelta(days=7))
        reply.ages.add(undated=True)
        return reply

    def ListClusterArticles(self, request: Any) -> Message:
        keys = self.index.members(scripted_index.known_cluster(request.cluster_id))
        found = sorted((self.index.summary(key) for key in keys), key=ARTICLE_ORDERS[request.order])
        page, token = page_of(found, request.page_token, request.page_size or 100)
        return cluster_service_pb2.ListClusterArticlesResponse(
            articles=page, next_page_token=token, total_size=len(found), served_by=served_by(self.index)
        )

    def TrendingClusters(self, request: Any) -> Message:
        """Counts what was published within the window before the newest article; usual is always 1."""
        window = request.window.ToTimedelta() if request.HasField("window") else timedelta(days=1)
        dates = [entry.published_at for entry in self.index.entries().values() if entry.published_at]
        end = request.as_of.ToDatetime(UTC) if request.HasField("as_of") else max(dates)
        reply = cluster_service_pb2.TrendingClustersResponse(timing=TIMING, served_by=served_by(self.index))
        reply.as_of.FromDatetime(end)
        for key in LABELS:
            members = [self.index.entries()[member].published_at for member in self.index.members(key)]
            count = sum(end - window < date <= end for date in members if date)
            if count >= (request.min_count if request.HasField("min_count") else 2):
                reply.clusters.add(cluster=self.index.cluster(key), count=count, usual=1.0, growth=(count + 1) / 2)
        return reply

    def UpsertArticles(self, request: UpsertArticlesRequest) -> UpsertArticlesResponse:
        articles = [checked(article, number) for number, article in enumerate(request.articles)]
        before = copy.deepcopy(self.index) if request.validate_only else self.index
        results = [self._upserted(article, request) for article in articles]
        reply = UpsertArticlesResponse(results=results, timing=TIMING, served_by=served_by(self.index))
        self.index = before
        return reply

    def _upserted(self, article: Any, request: UpsertArticlesRequest) -> UpsertResult:
        outcome = UPSERT_OUTCOME_CREATED
        if article.id in self.index.entries():
            same = self.index.sent.get(article.id) == article
            outcome = UPSERT_OUTCOME_UNCHANGED if same else UPSERT_OUTCOME_REPLACED
        if outcome != UPSERT_OUTCOME_UNCHANGED:
            self.index.upsert(article)
        near, hits = self._near(article.id, request.cluster_limit, request.neighbor_limit)
        return UpsertResult(
            article=self.index.summary(article.id),
            outcome=outcome,
            usage=usage_of(article.content),
            clusters=near,
            neighbors=hits,
        )

    def _near(self, article_id: str, clusters: int, neighbors: int) -> tuple[list[ClusterMatch], list[Hit]]:
        seeker = self.index.seeker(Seed(article_id=article_id))
        hits = self.index.rank(seeker, SearchRequest().ranking) if neighbors else []
        return self._matches(seeker.vector)[:clusters], masked(hits[:neighbors], FieldMask())

    def DeleteArticles(self, request: Any) -> Message:
        held = [key for key in request.ids if key in self.index.entries()]
        if not request.validate_only:
            for key in request.ids:
                self.index.delete(key)
        return article_service_pb2.DeleteArticlesResponse(
            deleted_ids=held,
            missing_ids=[key for key in request.ids if key not in held],
            timing=TIMING,
            served_by=served_by(self.index),
        )

    def GetArticle(self, request: Any) -> Message:
        near, hits = self._near(request.id, request.cluster_limit, request.neighbor_limit)
        return article_service_pb2.GetArticleResponse(
            article=self.index.summary(request.id),
            usage=usage_of(self.index.entries()[request.id].content),
            clusters=near,
            neighbors=hits,
            timing=TIMING,
            served_by=served_by(self.index),
        )

    def GetIndex(self, request: Any) -> Message:
        index = index_service_pb2.Index(
            generation=served_by(self.index).generation,
            article_count=2225,
            cluster_count=3,
            dimension=3,
            model="minilm",
            fingerprint="53aa5117" * 8,
            recipe="mean",
            precision="bf16",
            max_tokens=MAX_TOKENS,
            probes=2,
            recall_at_10=0.9934,
            live_count=len(self.index.sent),
            replaced_count=len(self.index.removed),
        )
        index.created_at.FromDatetime(datetime(2026, 3, 14, 6, 15, tzinfo=UTC))
        return index_service_pb2.GetIndexResponse(index=index, timing=TIMING, served_by=served_by(self.index))

    def ActivateGeneration(self, request: Any) -> Message:
        now = served_by(self.index)
        if request.generation not in {now.generation, "another"}:
            raise UnknownGeneration(f"there is no generation '{request.generation}'; it holds: another")
        return index_service_pb2.ActivateGenerationResponse(
            previous_generation=now.generation,
            changed=request.generation != now.generation,
            timing=TIMING,
            served_by=ServedBy(generation=request.generation, fingerprint=now.fingerprint, model=now.model),
        )

    def StreamEmbed(self, request: Any) -> Message:
        return embedding_service_pb2.StreamEmbedResponse(
            correlation_id=request.correlation_id,
            embedding=embedding_of(request.text, request.packed),
            timing=TIMING,
            served_by=served_by(self.index),
        )

    def StreamSearch(self, request: Any) -> Message:
        item = item_of(self.Search, request.request)
        return search_service_pb2.StreamSearchResponse(correlation_id=request.correlation_id, **item)

    def StreamUpsertArticles(self, request: Any) -> Message:
        item = item_of(self.UpsertArticles, request.request)
        return article_service_pb2.StreamUpsertArticlesResponse(correlation_id=request.correlation_id, **item)


class Server:
    """The services on a free port, or where they are told. `requests` holds what came, each attempt on its own."""

    def __init__(self, target: str = "localhost:0") -> None:
        self.requests: list[Message] = []
        self.peers: list[str] = []
        self.failures: deque[Failure] = deque()
        self.metadata: dict[str, str | bytes] = {}
        self.stalled = False
        self.services = Services()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(8)
        self._server = grpc.server(self._pool, options=[("grpc.max_receive_message_length", MAX_REQUEST_BYTES)])
        for module, stubs in MODULES:
            for name in module.DESCRIPTOR.services_by_name:
                getattr(stubs, f"add_{name}Servicer_to_server")(self, self._server)
        names = [f"coldframe.v1.{name}" for name in SERVICES]
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], self._server)
        self.target = f"localhost:{self._server.add_insecure_port(target)}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._server.stop(None).wait()
        self._pool.shutdown()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """A method of gRPC's: what `Services` answers, or how it is told to fail."""
        answer = getattr(self.services, name)

        def once(request: Message, context: grpc.ServicerContext) -> Message:
            self._receive(request, context)
            try:
                with self._lock:
                    reply: Message = answer(request)
                    return reply
            except ColdframeError as error:
                return abort(context, error)

        def stream(requests: Iterator[Message], context: grpc.ServicerContext) -> Iterator[Message]:
            for request in requests:
                yield once(request, context)

        return stream if name.startswith("Stream") else once

    def _receive(self, request: Message, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.peers.append(context.peer())
        self.metadata = dict(context.invocation_metadata())
        if self.stalled:
            self._stopping.wait(10)
        if self.failures:
            failure = self.failures.popleft()
            context.set_trailing_metadata(failure.metadata)
            context.abort(failure.code, failure.details)


def abort(context: grpc.ServicerContext, error: ColdframeError) -> Message:
    """As the server's interceptor does it."""
    hints = {"coldframe-error": type(error).__name__, "coldframe-field": getattr(error, "field", "")}
    context.set_trailing_metadata(tuple((key, quote(value)) for key, value in hints.items() if value))
    context.abort(grpc.StatusCode[error.code], error.message)
    raise AssertionError("abort raises")


def item_of(answer: Callable[[Any], Any], request: Any) -> dict[str, Any]:
    try:
        return {"response": answer(request)}
    except ColdframeError as error:
        return {"error": ItemError(code=error.code, message=error.message, field=getattr(error, "field", ""))}


def page_of(found: Sequence[Any], token: str, size: int) -> tuple[Sequence[Any], str]:
    stop = int(token or 0) + size
    return found[int(token or 0) : stop], str(stop) if stop < len(found) else ""


def interleaved(queues: list[deque[Hit]], shares: list[float], own: set[str]) -> list[Hit]:
    taken, hits, seen = [0] * len(queues), list[Hit](), set(own)
    while any(queues):
        number = min((n for n, queue in enumerate(queues) if queue), key=lambda n: (taken[n] + 1) / shares[n])
        hit = queues[number].popleft()
        if hit.article.id not in seen:
            seen.add(hit.article.id)
            taken[number] += 1
            hit.explanation.interest = number
            hits.append(hit)
    return hits


def embedding_of(text: str, packed: bool) -> Embedding:
    values = vector_of(text)
    vector = Vector(packed=struct.pack("<3f", *values)) if packed else Vector(values=values)
    return embedding_service_pb2.Embedding(vector=vector, usage=usage_of(text))


def served_by(index: Index) -> ServedBy:
    return ServedBy(
        generation="20260314T061500Z-4f9a1c22",
        model="minilm",
        fingerprint="53aa5117",
        live_sequence=index.sequence,
        attribution_token="at-1",
    )


def _newest(article: ArticleSummary) -> int:
    return -article.published_at.seconds


ARTICLE_ORDERS: dict[int, Callable[[ArticleSummary], Any]] = {
    cluster_service_pb2.ARTICLE_ORDER_UNSPECIFIED: lambda article: -article.centrality,
    cluster_service_pb2.ARTICLE_ORDER_CENTRALITY: lambda article: -article.centrality,
    cluster_service_pb2.ARTICLE_ORDER_NEWEST: _newest,
    cluster_service_pb2.ARTICLE_ORDER_ID: lambda article: article.id,
}
