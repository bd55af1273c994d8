"""A real gRPC server for the client's tests: it answers honestly from six articles, or fails as it is told."""
# ruff: noqa: N802  (gRPC names the methods)

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

import grpc

from coldframe.v1.cluster_service_pb2 import (
    GetClusterRequest,
    GetClusterResponse,
    ListClustersRequest,
    ListClustersResponse,
)
from coldframe.v1.cluster_service_pb2_grpc import ClusterServiceServicer, add_ClusterServiceServicer_to_server
from coldframe.v1.embedding_service_pb2 import Embedding, EmbedRequest, EmbedResponse
from coldframe.v1.embedding_service_pb2_grpc import EmbeddingServiceServicer, add_EmbeddingServiceServicer_to_server
from coldframe.v1.index_service_pb2 import GetIndexRequest, GetIndexResponse, Index
from coldframe.v1.index_service_pb2_grpc import IndexServiceServicer, add_IndexServiceServicer_to_server
from coldframe.v1.search_service_pb2 import (
    ClusterMatch,
    NearestClustersRequest,
    NearestClustersResponse,
    SearchRequest,
    SearchResponse,
)
from coldframe.v1.search_service_pb2_grpc import SearchServiceServicer, add_SearchServiceServicer_to_server
from coldframe.v1.types_pb2 import ArticleSummary, Cluster, Hit, Seed, ServedBy, Term, Timing, Usage, Vector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message

MAX_REQUEST_BYTES = 1 << 20
MAX_TOKENS = 4096
SERVED_BY = ServedBy(generation="20260314T061500Z-4f9a1c22", model="minilm", fingerprint="53aa5117")
TIMING = Timing(tokenize_ms=0.2, queue_ms=0.1, embed_ms=6.04, search_ms=1.25, total_ms=7.9)

# Title, date, cluster, and the counts of "economy", "sport" and "storm" that stand for a vector.
ARTICLES: dict[str, tuple[str, str, str, tuple[float, float, float]]] = {
    "a1": ("Central bank expected to cut rates", "2026-03-01", "c0", (1.0, 0.0, 0.0)),
    "a2": ("Exporters brace for a weaker currency as rate cut looms and factories count their orders in the valley "
           "towns", "2026-03-02", "c0", (0.9, 0.1, 0.0)),
    "a3": ("[bold]Cup final[/bold] decided\x1b[31m by a late goal", "2026-02-27", "c1", (0.0, 1.0, 0.0)),
    "a4": ("Goalkeeper signs for three more years", "2026-02-28", "c1", (0.1, 0.9, 0.0)),
    "a5": ("Unwetter über der Küste: Fähren bleiben im Hafen", "", "c2", (0.0, 0.0, 1.0)),
    "a6": ("https-style-identifier-follows", "2026-01-15", "c2", (0.0, 0.3, 0.7)),
}  # fmt: skip
LABELS = {"c0": "rates, bank, inflation", "c1": "goal, cup, keeper", "c2": "storm, ferry, coast"}


@dataclass
class Failure:
    """How one call is to fail."""

    code: grpc.StatusCode
    details: str = "as told"
    metadata: tuple[tuple[str, str], ...] = ()


class Server(EmbeddingServiceServicer, SearchServiceServicer, ClusterServiceServicer, IndexServiceServicer):
    """The four services on a free port, or where they are told. `requests` holds what came, each attempt on its own."""

    def __init__(self, target: str = "localhost:0") -> None:
        self.requests: list[Message] = []
        self.failures: deque[Failure] = deque()
        self.metadata: dict[str, str | bytes] = {}
        self.stalled = False
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(4)
        self._server = grpc.server(self._pool, options=[("grpc.max_receive_message_length", MAX_REQUEST_BYTES)])
        add_EmbeddingServiceServicer_to_server(self, self._server)
        add_SearchServiceServicer_to_server(self, self._server)
        add_ClusterServiceServicer_to_server(self, self._server)
        add_IndexServiceServicer_to_server(self, self._server)
        self.target = f"localhost:{self._server.add_insecure_port(target)}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._server.stop(None).wait()
        self._pool.shutdown()

    def Embed(self, request: EmbedRequest, context: grpc.ServicerContext) -> EmbedResponse:
        self._receive(request, context)
        embeddings = [Embedding(vector=Vector(values=vector_of(text)), usage=usage_of(text)) for text in request.texts]
        return EmbedResponse(embeddings=embeddings, timing=TIMING, served_by=SERVED_BY)

    def Search(self, request: SearchRequest, context: grpc.ServicerContext) -> SearchResponse:
        self._receive(request, context)
        query = self._query(request.seed, context)
        hits = [Hit(article=summary(key), score=dot(query, ARTICLES[key][3])) for key in ARTICLES]
        best = sorted(hits, key=lambda hit: (-hit.score, hit.article.id))[: request.limit or 10]
        return SearchResponse(hits=best, usage=usage_of_seed(request.seed), timing=TIMING, served_by=SERVED_BY)

    def NearestClusters(
        self, request: NearestClustersRequest, context: grpc.ServicerContext
    ) -> NearestClustersResponse:
        self._receive(request, context)
        query = self._query(request.seed, context)
        found = [ClusterMatch(cluster=cluster(key), similarity=dot(query, centroid(key))) for key in LABELS]
        best = sorted(found, key=lambda match: -match.similarity)[: request.limit or 5]
        usage = usage_of_seed(request.seed)
        return NearestClustersResponse(matches=best, usage=usage, timing=TIMING, served_by=SERVED_BY)

    def ListClusters(self, request: ListClustersRequest, context: grpc.ServicerContext) -> ListClustersResponse:
        self._receive(request, context)
        start = int(request.page_token or 0)
        stop = start + (request.page_size or 100)
        token = str(stop) if stop < len(LABELS) else ""
        page = [cluster(key) for key in list(LABELS)[start:stop]]
        return ListClustersResponse(clusters=page, next_page_token=token, total_size=len(LABELS), served_by=SERVED_BY)

    def GetCluster(self, request: GetClusterRequest, context: grpc.ServicerContext) -> GetClusterResponse:
        self._receive(request, context)
        if request.cluster_id not in LABELS:
            context.set_trailing_metadata((("coldframe-error", "UnknownCluster"),))
            context.abort(grpc.StatusCode.NOT_FOUND, f"no cluster has the id '{request.cluster_id}'.")
        found = cluster(request.cluster_id)
        found.representatives.extend(summary(key) for key in ARTICLES if ARTICLES[key][2] == found.id)
        return GetClusterResponse(cluster=found, timing=TIMING, served_by=SERVED_BY)

    def GetIndex(self, request: GetIndexRequest, context: grpc.ServicerContext) -> GetIndexResponse:
        self._receive(request, context)
        index = Index(
            generation=SERVED_BY.generation,
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
        )
        index.created_at.FromDatetime(datetime(2026, 3, 14, 6, 15, tzinfo=UTC))
        return GetIndexResponse(index=index, timing=TIMING, served_by=SERVED_BY)

    def _receive(self, request: Message, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        if self.stalled:
            self._stopping.wait(10)
        if self.failures:
            failure = self.failures.popleft()
            context.set_trailing_metadata(failure.metadata)
            context.abort(failure.code, failure.details)

    def _query(self, seed: Seed, context: grpc.ServicerContext) -> Sequence[float]:
        if seed.HasField("article_id"):
            if seed.article_id not in ARTICLES:
                context.abort(grpc.StatusCode.NOT_FOUND, f"no article has the id '{seed.article_id}'.")
            return ARTICLES[seed.article_id][3]
        return seed.vector.values if seed.HasField("vector") else vector_of(text_of(seed))


def vector_of(text: str) -> tuple[float, float, float]:
    counts = [float(text.lower().count(word)) for word in ("economy", "sport", "storm")]
    length = sum(count * count for count in counts) ** 0.5 or 1.0
    return counts[0] / length, counts[1] / length, counts[2] / length


def usage_of(text: str) -> Usage:
    seen = len(text.split()) + 2
    return Usage(tokens_seen=seen, tokens_used=min(seen, MAX_TOKENS))


def usage_of_seed(seed: Seed) -> Usage | None:
    return usage_of(text_of(seed)) if seed.WhichOneof("seed") in ("text", "article") else None


def text_of(seed: Seed) -> str:
    return seed.text or f"{seed.article.title}\n{seed.article.content}"


def dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def centroid(cluster_id: str) -> tuple[float, float, float]:
    return next(vector for _, _, home, vector in ARTICLES.values() if home == cluster_id)


def cluster(cluster_id: str) -> Cluster:
    members = [key for key, (_, _, home, _) in ARTICLES.items() if home == cluster_id]
    terms = [Term(term=term, weight=1 / rank) for rank, term in enumerate(LABELS[cluster_id].split(", "), 1)]
    return Cluster(id=cluster_id, label=LABELS[cluster_id], terms=terms, size=len(members), medoid=summary(members[0]))


def summary(article_id: str) -> ArticleSummary:
    title, date, home, _ = ARTICLES[article_id]
    found = ArticleSummary(id=article_id, title=title, excerpt=title, cluster_id=home)
    if date:
        found.published_at.FromDatetime(datetime.fromisoformat(date))
    return found
