"""EmbeddingService: text to vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coldframe.errors import ColdframeError
from coldframe.v1 import embedding_service_pb2 as pb
from coldframe.v1 import embedding_service_pb2_grpc
from server.engine import Timing, placed
from server.streaming import in_order
from server.wire import replies, requests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from server.engine import Engine
    from server.services import Context


class EmbeddingService(embedding_service_pb2_grpc.EmbeddingServiceServicer):
    """Text to vectors."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:  # noqa: N802, D102
        clock, served = Timing(), self._engine.served()
        embedded = await self._engine.embed(served, requests.texts(request.texts), clock)
        embeddings = [
            replies.embedding(vector, of, packed=request.packed)
            for vector, of in zip(placed(served, embedded), embedded, strict=True)
        ]
        return replies.signed(pb.EmbedResponse(embeddings=embeddings), served, clock)

    def StreamEmbed(  # noqa: N802, D102
        self, request_iterator: AsyncIterator[pb.StreamEmbedRequest], context: Context
    ) -> AsyncIterator[pb.StreamEmbedResponse]:
        return in_order(request_iterator, self._answer)

    async def _answer(self, request: pb.StreamEmbedRequest) -> pb.StreamEmbedResponse:
        clock = Timing()
        try:
            served = self._engine.served()
            embedded = await self._engine.embed(served, [requests.text(request.text, "text")], clock)
        except ColdframeError as error:
            return pb.StreamEmbedResponse(correlation_id=request.correlation_id, error=replies.item_error(error))
        embedding = replies.embedding(placed(served, embedded)[0], embedded[0], packed=request.packed)
        response = pb.StreamEmbedResponse(correlation_id=request.correlation_id, embedding=embedding)
        return replies.signed(response, served, clock)
