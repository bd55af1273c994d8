"""Errors on the wire: every ColdframeError as its status with standard details, everything else as INTERNAL.

Beside google.rpc details (BadRequest, RetryInfo, ErrorInfo) the trailing metadata names the class, for clients that
have no google.rpc: `coldframe-error`, `coldframe-field`, `coldframe-retry-after-ms`, percent-encoded.
"""

from __future__ import annotations

import functools
import logging
import time
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from coldframe.errors import ColdframeError, InternalError, InvalidArgument, Overloaded
from server.admission import CALL, Call, Company

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from google.protobuf.message import Message

    from server.door import Door

    CatchUp = Callable[[], Awaitable[None] | None]
    _Context = grpc.aio.ServicerContext[Any, Any]

_log = logging.getLogger("coldframe.server")
_OURS = "/coldframe."
_BATCHES = frozenset({"/coldframe.v1.SearchService/BatchSearch"})
# gRPC drops a reply whose headers hold over 8 KiB. The message is there three times: percent-encoded, which may triple
# it, and twice in the details.
_MESSAGE_HEAD_BYTES, _MESSAGE_TAIL_BYTES = 600, 300


class _Malformed:
    """Stands for a request whose bytes are no message of its type."""


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method of Coldframe's own services, which are unary or stream both ways. Each is wrapped once.

    A request is not looked at before `catch_up` has what it gave, if it gave anything, to wait for: whoever was told of
    a change by another worker sees it here.
    """

    def __init__(self, catch_up: CatchUp, door: Door) -> None:
        self._catch_up, self._door = catch_up, door
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(  # noqa: D102
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        name = handler_call_details.method
        if name not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None or not name.startswith(_OURS):
                return handler
            self._wrapped[name] = self._wrap(handler, name)
        refusal = self._door.refusal(name)
        return self._wrapped[name] if refusal is None else _refusing(type(refusal), refusal.message)

    def _wrap(self, handler: Any, name: str) -> Any:
        codecs = _lenient(handler.request_deserializer), handler.response_serializer
        if handler.stream_stream is not None:
            guarded = _guarded_stream(handler.stream_stream, name, self._catch_up, self._door)
            return grpc.stream_stream_rpc_method_handler(guarded, *codecs)
        return grpc.unary_unary_rpc_method_handler(_guarded(handler.unary_unary, name, self._catch_up), *codecs)


@functools.lru_cache(maxsize=16)
def _refusing(kind: type[ColdframeError], message: str) -> Any:
    """A handler that refuses. As one of a stream it need not read the request, which it would otherwise wait for."""
    code, details, trailing = _status(kind(message))

    async def tell(_requests: Any, context: _Context) -> AsyncIterator[Any]:
        await context.abort(code, details, trailing)
        yield

    return grpc.stream_stream_rpc_method_handler(tell)


def _lenient(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    # gRPC answers INTERNAL where a deserializer raises; a broken request is the caller's fault, and is told so.
    def read(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except (DecodeError, UnicodeDecodeError):
            return _Malformed()

    return read


def _begin(context: _Context, *, parts: bool) -> None:
    """Notes what is known of a call where its work finds it. `parts`: it is a batch or a stream."""
    left = context.time_remaining()
    call = Call(None if left is None else time.monotonic() + left)
    if parts:
        call.company = Company()
    CALL.set(call)


def _guarded(method: Callable[..., Awaitable[Any]], name: str, catch_up: CatchUp) -> Callable[..., Awaitable[Any]]:
    parts = name in _BATCHES

    async def call(request: Any, context: _Context) -> Any:
        _begin(context, parts=parts)
        try:
            if (others := catch_up()) is not None:
                await others
            return await method(_whole(request, name), context)
        except Exception as error:
            await refuse(context, error, name)

    return call


def _guarded_stream(
    method: Callable[..., AsyncIterator[Any]], name: str, catch_up: CatchUp, door: Door
) -> Callable[..., AsyncIterator[Any]]:
    async def whole(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in door.read(requests):
            if (others := catch_up()) is not None:
                await others
            yield _whole(request, name)

    async def call(requests: AsyncIterator[Any], context: _Context) -> AsyncIterator[Any]:
        _begin(context, parts=True)
        try:
            async for reply in method(whole(requests), context):
                yield reply
        except Exception as error:
            await refuse(context, error, name)

    return call


def _whole(request: Any, name: str) -> Any:
    if isinstance(request, _Malformed):
        raise InvalidArgument(f"the request's bytes are no message that {name} takes", field="request")
    return request


async def refuse(context: _Context, error: Exception, name: str) -> None:
    """Ends a call with the status that stands for an error; one that nobody foresaw is logged under a ticket."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, ColdframeError):
        ticket = uuid.uuid4().hex[:12]
        _log.error("%s failed, ticket %s", name, ticket, exc_info=error)
        error = InternalError(f"the server failed; its log says why under {ticket}")
    await _abort(context, error)


async def _abort(context: _Context, error: ColdframeError) -> None:
    await context.abort(*_status(error))


def _status(error: ColdframeError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]:
    """Code, message and trailing metadata that stand for an error."""
    code, message = grpc.StatusCode[error.code], _shortened(error.message)
    status = status_pb2.Status(code=code.value[0], message=message, details=_details(error, message))
    hints = {"coldframe-error": type(error).__name__}
    if isinstance(error, InvalidArgument):
        hints["coldframe-field"] = error.field
    if isinstance(error, Overloaded):
        hints["coldframe-retry-after-ms"] = str(round(1e3 * error.retry_after_s))
    trailing: list[tuple[str, str | bytes]] = [(key, quote(value)) for key, value in hints.items() if value]
    trailing.append(("grpc-status-details-bin", status.SerializeToString()))
    return code, message, tuple(trailing)


def _shortened(message: str) -> str:
    """The message without its middle, where it quotes something endless."""
    raw = message.encode("utf-8", "replace")
    if len(raw) <= _MESSAGE_HEAD_BYTES + _MESSAGE_TAIL_BYTES:
        return message
    return b" ... ".join((raw[:_MESSAGE_HEAD_BYTES], raw[-_MESSAGE_TAIL_BYTES:])).decode("utf-8", "ignore")


def _details(error: ColdframeError, message: str) -> list[AnyMessage]:
    messages: list[Message] = [error_details_pb2.ErrorInfo(reason=type(error).__name__, domain="coldframe")]
    if isinstance(error, InvalidArgument):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=message)
        messages.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, Overloaded):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(1e3 * error.retry_after_s))
        messages.append(retry)
    packed = []
    for detail in messages:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    return packed
