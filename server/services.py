"""The gRPC services. Each method reads the request, asks the engine and writes the reply, naming what answered."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

from coldframe.errors import InvalidArgument, UnknownCluster
from coldframe.v1 import (
    cluster_service_pb2,
    cluster_service_pb2_grpc,
    embedding_service_pb2,
    embedding_service_pb2_grpc,
    index_service_pb2,
    index_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
    types_pb2,
)
from server import wire
from server.engine import Timing

if TYPE_CHECKING:
    import grpc.aio

    from coldframe.generation import Generation
    from server.engine import Engine

    Context = grpc.aio.ServicerContext[Any, Any]


class EmbeddingService(embedding_service_pb2_grpc.EmbeddingServiceServicer):
    """Text to vectors."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Embed(  # noqa: N802, D102
        self, request: embedding_service_pb2.EmbedRequest, context: Context
    ) -> embedding_service_pb2.EmbedResponse:
        clock, served = Timing(), self._engine.served()
        vectors, usages = await self._engine.embed(served, wire.texts(list(request.texts)), clock)
        embeddings = [
            embedding_service_pb2.Embedding(vector=types_pb2.Vector(values=vector.tolist()), usage=wire.usage(usage))
            for vector, usage in zip(vectors, usages, strict=True)
        ]
        return embedding_service_pb2.EmbedResponse(
            embeddings=embeddings, served_by=wire.served_by(served), timing=wire.timing(clock)
        )


class SearchService(search_service_pb2_grpc.SearchServiceServicer):
    """Nearest articles, nearest clusters."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Search(  # noqa: N802, D102
        self, request: search_service_pb2.SearchRequest, context: Context
    ) -> search_service_pb2.SearchResponse:
        clock, served = Timing(), self._engine.served()
        limit = wire.count(request.limit if request.HasField("limit") else None, default=10, field="limit")
        exact = wire.exact(request.effort)
        query = await self._engine.query(served, wire.seed(request.seed), clock)
        rows, scores = await self._engine.search(served, query, limit, exact=exact, timing=clock)
        generation = served.generation
        hits = [
            types_pb2.Hit(article=wire.article(generation.articles[int(row)], generation), score=float(score))
            for row, score in zip(rows, scores, strict=True)
        ]
        return search_service_pb2.SearchResponse(
            hits=hits, usage=wire.usage(query.usage), served_by=wire.served_by(served), timing=wire.timing(clock)
        )

    async def NearestClusters(  # noqa: N802, D102
        self, request: search_service_pb2.NearestClustersRequest, context: Context
    ) -> search_service_pb2.NearestClustersResponse:
        clock, served = Timing(), self._engine.served()
        limit = wire.count(request.limit if request.HasField("limit") else None, default=5, field="limit")
        query = await self._engine.query(served, wire.seed(request.seed), clock)
        numbers, similarities = await self._engine.nearest_clusters(served, query, limit, clock)
        generation = served.generation
        matches = [
            search_service_pb2.ClusterMatch(
                cluster=wire.cluster(generation.clusters[int(number)], generation), similarity=float(similarity)
            )
            for number, similarity in zip(numbers, similarities, strict=True)
        ]
        return search_service_pb2.NearestClustersResponse(
            matches=matches, usage=wire.usage(query.usage), served_by=wire.served_by(served), timing=wire.timing(clock)
        )


class ClusterService(cluster_service_pb2_grpc.ClusterServiceServicer):
    """The clusters themselves."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def ListClusters(  # noqa: N802, D102
        self, request: cluster_service_pb2.ListClustersRequest, context: Context
    ) -> cluster_service_pb2.ListClustersResponse:
        clock, served = Timing(), self._engine.served()
        size = wire.count(request.page_size if request.HasField("page_size") else None, default=100, field="page_size")
        generation = served.generation
        start = _read_page_token(request.page_token, generation)
        end = start + size
        # Clusters are numbered by size, the largest first.
        page = [wire.cluster(cluster, generation) for cluster in generation.clusters[start:end]]
        return cluster_service_pb2.ListClustersResponse(
            clusters=page,
            next_page_token=_page_token(generation, end) if end < len(generation.clusters) else "",
            total_size=len(generation.clusters),
            served_by=wire.served_by(served),
            timing=wire.timing(clock),
        )

    async def GetCluster(  # noqa: N802, D102
        self, request: cluster_service_pb2.GetClusterRequest, context: Context
    ) -> cluster_service_pb2.GetClusterResponse:
        clock, served = Timing(), self._engine.served()
        generation = served.generation
        if not request.cluster_id:
            raise InvalidArgument("cluster_id is empty; ListClusters gives the ids", field="cluster_id")
        number = generation.numbers.get(request.cluster_id)
        if number is None:
            raise UnknownCluster(f"no cluster {request.cluster_id!r} in the index; ListClusters gives the ids")
        return cluster_service_pb2.GetClusterResponse(
            cluster=wire.cluster(generation.clusters[number], generation, representatives=True),
            served_by=wire.served_by(served),
            timing=wire.timing(clock),
        )


class IndexService(index_service_pb2_grpc.IndexServiceServicer):
    """What is being served."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def GetIndex(  # noqa: N802, D102
        self, request: index_service_pb2.GetIndexRequest, context: Context
    ) -> index_service_pb2.GetIndexResponse:
        clock, served = Timing(), self._engine.served()
        manifest = served.generation.manifest
        index = index_service_pb2.Index(
            generation=manifest.name,
            article_count=manifest.corpus.articles,
            cluster_count=manifest.parameters.clusters,
            dimension=manifest.model.dimension,
            model=manifest.model.name,
            fingerprint=manifest.model.fingerprint,
            recipe=manifest.model.recipe,
            precision=served.encoder.precision,
            max_tokens=manifest.model.max_tokens,
            probes=manifest.parameters.probes,
            recall_at_10=manifest.report["recall_at_10"],
        )
        index.created_at.FromDatetime(manifest.created_at)
        return index_service_pb2.GetIndexResponse(
            index=index, served_by=wire.served_by(served), timing=wire.timing(clock)
        )


def _page_token(generation: Generation, start: int) -> str:
    return base64.urlsafe_b64encode(f"{generation.name}:{start}".encode()).decode()


def _read_page_token(token: str, generation: Generation) -> int:
    if not token:
        return 0
    try:
        name, _, start = base64.urlsafe_b64decode(token.encode()).decode().rpartition(":")
        place = int(start)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument(
            "page_token is none of this server's; leave it empty to start at the first page", field="page_token"
        ) from error
    if name != generation.name or not 0 <= place <= len(generation.clusters):
        raise InvalidArgument(
            "page_token belongs to an index that is no longer served; leave it empty to start at the first page",
            field="page_token",
        )
    return place
