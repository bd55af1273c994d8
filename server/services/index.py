"""IndexService: what is being served, and what shall be."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from coldframe.errors import InvalidArgument
from coldframe.v1 import index_service_pb2 as pb
from coldframe.v1 import index_service_pb2_grpc
from server.engine import Timing
from server.wire import replies

if TYPE_CHECKING:
    from server.engine import Engine
    from server.exchange import Activation
    from server.services import Context


class IndexService(index_service_pb2_grpc.IndexServiceServicer):
    """What is being served, and what shall be."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._under_way: set[asyncio.Task[Activation]] = set()

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
        return replies.signed(pb.GetIndexResponse(index=index), served, clock)

    async def ActivateGeneration(  # noqa: N802, D102
        self, request: pb.ActivateGenerationRequest, context: Context
    ) -> pb.ActivateGenerationResponse:
        clock, name = Timing(), request.generation.strip()
        if not name:
            raise InvalidArgument("generation is empty; give the name of one that the store holds", field="generation")
        work = asyncio.ensure_future(self._engine.exchange.activate(name, request.force))
        self._under_way.add(work)
        work.add_done_callback(self._ended)
        # Loading may take longer than a caller waits, and would then never come to an end.
        done = await asyncio.shield(work)
        response = pb.ActivateGenerationResponse(previous_generation=done.before, changed=done.changed)
        return replies.signed(response, self._engine.served(), clock)

    def _ended(self, work: asyncio.Task[Activation]) -> None:
        self._under_way.discard(work)
        if not work.cancelled():
            work.exception()  # it is logged; asyncio would complain where the caller went before
