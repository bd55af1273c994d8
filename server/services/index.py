"""IndexService: what is being served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coldframe.v1 import index_service_pb2 as pb
from coldframe.v1 import index_service_pb2_grpc
from server.engine import Timing
from server.wire import replies

if TYPE_CHECKING:
    import grpc.aio

    from server.engine import Engine

    Context = grpc.aio.ServicerContext[Any, Any]


class IndexService(index_service_pb2_grpc.IndexServiceServicer):
    """What is being served."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def GetIndex(self, request: pb.GetIndexRequest, context: Context) -> pb.GetIndexResponse:  # noqa: N802, D102
        clock, served = Timing(), self._engine.served()
        manifest, view = served.generation.manifest, served.view
        index = pb.Index(
            generation=manifest.name,
            article_count=len(view),
            cluster_count=manifest.parameters.clusters,
            dimension=manifest.model.dimension,
            model=manifest.model.name,
            fingerprint=manifest.model.fingerprint,
            recipe=manifest.model.recipe,
            precision=served.encoder.precision,
            max_tokens=manifest.model.max_tokens,
            probes=served.generation.probes,
            recall_at_10=manifest.report["recall_at_10"],
            live_count=int(view.alive.sum()),
            replaced_count=len(view.replaced),
        )
        index.created_at.FromDatetime(manifest.created_at)
        return pb.GetIndexResponse(index=index, served_by=replies.served_by(served), timing=replies.timing(clock))
