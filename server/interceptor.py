"""What stands around every method of Coldframe's own: changes of others are waited for, replies written and counted,
errors told as they are on the wire (`server.wire.errors`), and what nobody foresaw as INTERNAL, under a ticket.
"""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio

from coldframe.errors import ColdframeError, InternalError
from server.admission import CALL, Company
from server.door import OURS
from server.observe.witness import REQUEST_ID
from server.wire.errors import status_of
from server.wire.replies import item_error
from server.wire.sizes import too_large

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from server.admission import Call
    from server.observe.witness import Witness

    CatchUp = Callable[[], Awaitable[None] | None]
    _Context = grpc.aio.ServicerContext[Any, Any]

_log = logging.getLogger("coldframe.server")
BATCHES = frozenset({"/coldframe.v1.SearchService/BatchSearch"})


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method of Coldframe's own services, which are unary or stream both ways. Each is wrapped once; those
    of health and reflection are let alone.

    A request is not looked at before `catch_up` has what it gave, if it gave anything, to wait for: whoever was told of
    a change by another worker sees it here. Replies leave it as bytes, `reply_bytes` of them at most: one that is too
    large to be sent is refused in words, where gRPC would say RESOURCE_EXHAUSTED, as if to come back helped.
    """

    def __init__(self, catch_up: CatchUp, witness: Witness, reply_bytes: int) -> None:
        self._catch_up, self._witness, self._reply_bytes = catch_up, witness, reply_bytes
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(  # noqa: D102
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        name = handler_call_details.method
        if name not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None or not name.startswith(OURS):
                return handler
            self._wrapped[name] = self._wrap(handler, name)
        return self._wrapped[name]

    def _wrap(self, handler: Any, name: str) -> Any:
        read, write = handler.request_deserializer, handler.response_serializer
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(self._guarded_stream(handler.stream_stream, write, name), read)
        return grpc.unary_unary_rpc_method_handler(self._guarded(handler.unary_unary, write, name), read)

    def _begin(self, context: _Context, *, parts: bool, stream: bool = False) -> Call:
        """Notes what the work of a call needs to know. `parts`: it is a batch or a stream."""
        call = CALL.get()
        if parts:
            call.company = Company()
        if self._witness.tracer is not None:
            self._witness.tracer.begin(call, context.invocation_metadata() or (), stream=stream)
        context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        return call

    def _guarded(
        self, method: Callable[..., Awaitable[Any]], write: Callable[[Any], bytes], name: str
    ) -> Callable[..., Awaitable[bytes]]:
        parts, catch_up, witness, tally = name in BATCHES, self._catch_up, self._witness, self._witness.of(name)

        async def answer(request: Any, context: _Context) -> bytes:
            call = self._begin(context, parts=parts)
            try:
                if (others := catch_up()) is not None:
                    await others
                reply = await method(request, context)
                raw = write(reply)
                if len(raw) > self._reply_bytes:
                    raise too_large(len(raw), self._reply_bytes, name)
                witness.replied(tally, reply, call)
                return raw
            except Exception as error:
                await refuse(context, error, name)

        return answer

    def _guarded_stream(
        self, method: Callable[..., AsyncIterator[Any]], write: Callable[[Any], bytes], name: str
    ) -> Callable[..., AsyncIterator[bytes]]:
        catch_up, witness, tally = self._catch_up, self._witness, self._witness.of(name)

        async def caught_up(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
            async for request in requests:
                if (others := catch_up()) is not None:
                    await others
                yield request

        async def answer(requests: AsyncIterator[Any], context: _Context) -> AsyncIterator[bytes]:
            call = self._begin(context, parts=True, stream=True)
            try:
                async for found in method(caught_up(requests), context):
                    reply, raw = self._written(found, write, name)
                    witness.streamed(tally, reply, call)
                    call.item_errors += reply.HasField("error")
                    yield raw
            except Exception as error:
                await refuse(context, error, name)

        return answer

    def _written(self, reply: Any, write: Callable[[Any], bytes], name: str) -> tuple[Any, bytes]:
        """A reply of a stream and its bytes. One that is too large gives way to an error: the stream goes on."""
        raw = write(reply)
        if len(raw) <= self._reply_bytes:
            return reply, raw
        error = item_error(too_large(len(raw), self._reply_bytes, name))
        reply = type(reply)(correlation_id=reply.correlation_id, error=error)
        return reply, write(reply)


async def refuse(context: _Context, error: Exception, name: str) -> NoReturn:
    """Ends the call at hand with the status of an error; one that nobody foresaw is logged under a ticket."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, ColdframeError):
        ticket = uuid.uuid4().hex[:12]
        _log.error("%s failed, ticket %s", name, ticket, exc_info=error)
        error = InternalError(f"the server failed; its log says why under {ticket}")
    code, message, trailing = status_of(error)
    await context.abort(code, message, (*trailing, (REQUEST_ID, CALL.get().request_id)))
