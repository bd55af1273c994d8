"""The gate that every call passes before a byte of its message is read: who asks, may they, and is there room.

It is the outermost interceptor. What it refuses is refused before the message is there, which may be 64 MiB, or never
come. A call that passed is counted until its end; one whose message stays away, and a stream that brings nothing, is
ended: a caller who opens and then says nothing (slow loris) holds a place for seconds and not for ever. One who asks
and takes no answer holds it for as long as it stays connected, since its status would wait behind the answers: there
are so many places of one key, and no more is read from it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from coldframe.errors import ColdframeError, DeadlineExceeded, InvalidArgument, PermissionDenied, Unauthenticated
from server.admission import CALL, Call
from server.interceptor import BATCHES, refuse
from server.security import audit, roles
from server.security.keys import identify
from server.security.limits import Limits, Meter
from server.security.patience import Patience
from server.wire.requests import MAX_SEARCHES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

    from server.door import Door
    from server.observe.witness import Witness
    from server.place import Words
    from server.security.keys import Key

    _Context = grpc.aio.ServicerContext[Any, Any]
    Keys = Callable[[], Mapping[str, Key] | None]
    Deserialize = Callable[[bytes], Any]

_log = logging.getLogger("coldframe.server")
_BEARER = "bearer "
_QUIET_S = 10.0
_KEYLESS_RECEIVE_S = 5.0
_KEYLESS_READ = 16
"""Messages without a key that come at once: each may be as large as any, and all that is there of it is kept."""
_LOOK_S = 1.0
"""Who waits longer for the next turn looks whether its key says something else by now."""


class Gate(grpc.aio.ServerInterceptor):
    """Lets calls in. keys: those of this moment by id; None where callers need none."""

    door: Door
    witness: Witness
    """The server's, which sets both. The witness names calls, and is told of every one that is over."""

    def __init__(self, keys: Keys, limits: Limits, words: Words) -> None:
        self._keys, self._limits = keys, limits
        self._meter = Meter(limits, words)
        self._strangers = _Strangers()
        self._for_message = Patience(limits.receive_s)
        self._for_keyless = Patience(min(limits.receive_s, _KEYLESS_RECEIVE_S))
        self._for_next = Patience(limits.idle_s)
        self._keyless = asyncio.Semaphore(_KEYLESS_READ)
        self._wrapped: dict[str, Any] = {}

    @property
    def open(self) -> int:
        """Calls that are open at this moment."""
        return self._meter.open

    @property
    def pools(self) -> dict[str, tuple[int, int]]:
        """By pool, the calls that are open, and how many there may be; see `Meter.enter`."""
        return self._meter.pools

    async def intercept_service(  # noqa: D102
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        metadata = handler_call_details.invocation_metadata or ()
        name = self.witness.request_id(metadata)
        call = Call(method, _pool(method, handler), roles.audited(method), request_id=name)
        CALL.set(call)
        try:
            self._admit(call, metadata)
        except ColdframeError as error:
            return self._refusing(call, error)
        if method not in self._wrapped:
            self._wrapped[method] = self._wrap(handler)
        return self._wrapped[method]

    # --- letting in --------------------------------------------------------------------------------------------------

    def _admit(self, call: Call, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        role, keys = roles.needed(call.method), self._keys()
        if role is not None and keys is not None:
            call.key = identify(keys, _token(metadata))
            self._meter.spend(call.key)
            _require_role(call.key, call.method)
        elif role is not None:
            self._meter.spend(None)
        self.door.admit(call.method)
        self._meter.enter(call.pool, call.key)
        task = asyncio.current_task()
        assert task is not None, "gRPC answers each call in a task"
        task.add_done_callback(lambda _: self._end(call))

    def _end(self, call: Call) -> None:
        self._meter.leave(call.pool, call.key)
        if call.outcome == "CANCELLED" and call.reason == "deadline":
            call.outcome = "DEADLINE_EXCEEDED"  # gRPC cancels what is late, too
        self._told(call)

    def _told(self, call: Call) -> None:
        if call.audited:
            audit.note(call)
        self.witness.ended(call)

    def _refusing(self, call: Call, error: ColdframeError) -> Any:
        """A handler that reads nothing and tells why."""

        async def tell(_: object, context: _Context) -> None:
            call.outcome = error.code
            _note_caller(call, context)
            if isinstance(error, Unauthenticated):
                call.audited = False  # whoever has no key must not fill the disk
                self._strangers.note(call)
            self._told(call)
            await refuse(context, error, call.method)

        return grpc.stream_stream_rpc_method_handler(tell)

    # --- watching over -----------------------------------------------------------------------------------------------

    def _wrap(self, handler: Any) -> Any:
        read, write = handler.request_deserializer, handler.response_serializer
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(self._stream(handler.stream_stream, read), None, write)
        if handler.unary_stream is not None:  # health's Watch
            return grpc.stream_stream_rpc_method_handler(self._watch(handler.unary_stream, read), None, write)
        # As a stream to gRPC, so that this is asked before the message is there, and not after.
        return grpc.stream_unary_rpc_method_handler(self._unary(handler.unary_unary, read), None, write)

    def _unary(self, method: Callable[..., Awaitable[Any]], read: Deserialize) -> Callable[..., Awaitable[Any]]:
        async def answer(_: object, context: _Context) -> Any:
            call = _begun(context)
            try:
                request = await self._message(context, call, read)
                reply = await method(request, context)
                call.outcome = "OK"
                return reply
            except grpc.aio.AbortError:
                call.outcome = _code(context)
                raise
            except ColdframeError as error:
                # Who goes before the message is there looks like one who ends the call without it.
                gone = isinstance(error, InvalidArgument) and not call.requests
                call.outcome = "CANCELLED" if gone else error.code
                await refuse(context, error, call.method)

        return answer

    def _watch(self, method: Callable[..., Any], read: Deserialize) -> Callable[..., Awaitable[None]]:
        async def answer(_: object, context: _Context) -> None:
            call = _begun(context)
            try:
                request = await self._message(context, call, read)
                # One that reads and writes through the context, as health's does.
                await self.door.watch(method(request, context))
            except ColdframeError as error:
                await refuse(context, error, call.method)

        return answer

    async def _message(self, context: _Context, call: Call, read: Deserialize) -> Any:
        """The one message of a call. Raises DeadlineExceeded where it stays away, Overloaded for a batch too many."""
        keyed = call.pool == "call"
        patience = self._for_message if keyed else self._for_keyless
        try:
            raw = await patience.wait(context.read() if keyed else self._read_keyless(context))
        except TimeoutError as error:
            raise DeadlineExceeded(f"the request was not there within {patience.seconds:g} s of its call") from error
        if raw is grpc.aio.EOF:
            raise InvalidArgument("the call ended without its request", field="request")
        request = _read(raw, read, call)
        searches = len(request.requests) if call.method in BATCHES else 0
        if searches > 1:
            # One was paid as the call opened. A batch of too many is refused, and costs no more than the largest.
            self._meter.spend(call.key, min(searches, MAX_SEARCHES), paid=1)
        return request

    async def _read_keyless(self, context: _Context) -> Any:
        async with self._keyless:
            return await context.read()

    def _stream(self, method: Callable[..., Any], read: Deserialize) -> Callable[..., Awaitable[None]]:
        async def answer(_: object, context: _Context) -> None:
            call = _begun(context)
            if call.audited:
                audit.note(call, "begin")
            try:
                requests = self.door.read(self._requests(context, call, read))
                async with aclosing(method(requests, context)) as replies:
                    async for reply in replies:
                        await context.write(reply)
                call.outcome = "OK"
            except grpc.aio.AbortError:
                call.outcome = _code(context)
                raise
            except ColdframeError as error:  # of a stream that is none of ours, such as reflection
                call.outcome = error.code
                await refuse(context, error, call.method)
            except grpc.aio.InternalError as error:
                # The caller went while it was written to. gRPC would log a traceback of each, a thousand of a crowd.
                raise asyncio.CancelledError from error

        return answer

    async def _requests(self, context: _Context, call: Call, read: Deserialize) -> AsyncIterator[Any]:
        """The messages of a stream, as fast as its key may ask. Raises what ends the stream."""
        while True:
            try:
                raw = await self._for_next.wait(context.read())
            except TimeoutError as error:
                raise DeadlineExceeded(
                    f"this stream brought no message for {self._limits.idle_s:g} s; open another when there is more "
                    f"to ask"
                ) from error
            if raw is grpc.aio.EOF:
                return
            request = _read(raw, read, call)
            await self._turn(call)
            yield request

    async def _turn(self, call: Call) -> None:
        """Waits until the key may ask again: unread, what else it sends stays with the caller."""
        self._look_again(call)
        first = call.requests == 1  # opening the stream has paid for it
        while not first and (wait_s := self._meter.wait(call.key)):
            await asyncio.sleep(min(wait_s, _LOOK_S))
            self._look_again(call)

    def _look_again(self, call: Call) -> None:
        """From now on an open stream may do what its key may by now.

        Raises Unauthenticated where the key was taken away or exchanged, or expired, since the stream began, and
        PermissionDenied where its role is no longer enough.
        """
        if call.key is None:
            return
        key = (self._keys() or {}).get(call.key.id)
        if key is None or key.sha256 != call.key.sha256 or key.expired(datetime.now(UTC)):
            raise Unauthenticated(f"the key {call.key.name!r} is worth nothing any more; the stream ends here")
        if key is not call.key:
            call.key = key
            _require_role(key, call.method)


class _Strangers:
    """Tells the log of calls without a good key, but not of each: whoever tries a million must not fill the disk."""

    def __init__(self) -> None:
        self._untold, self._told_at = 0, 0.0

    def note(self, call: Call) -> None:
        now = time.monotonic()
        if self._told_at and now - self._told_at < _QUIET_S:
            self._untold += 1
            return
        more = f" ({self._untold:,} more since the last time)" if self._untold else ""
        told = {"request_id": call.request_id}
        _log.warning("%s refused from %s: no good key%s", call.method, call.peer, more, extra=told)
        self._untold, self._told_at = 0, now


# --- what a call says ------------------------------------------------------------------------------------------------


def _token(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    for name, value in metadata:
        if name == "authorization" and isinstance(value, str) and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip()
    raise Unauthenticated(
        "this server answers callers with a key only; send it as metadata, 'authorization: Bearer cfk_...' "
        "(coldframe.Client: api_key; command line: COLDFRAME_API_KEY)"
    )


def _require_role(key: Key, method: str) -> None:
    role = roles.needed(method)
    if role is not None and not key.role.reaches(role):
        raise PermissionDenied(f"the key {key.name!r} has the role {key.role}; {method} takes the role {role}")


def _pool(method: str, handler: Any) -> str:
    """Among which calls a call is counted."""
    if roles.needed(method) is None:
        return "keyless stream" if handler.response_streaming else "keyless"
    return "stream" if handler.response_streaming else "call"


def _begun(context: _Context) -> Call:
    """The call that this task answers, with what only its context knows."""
    call = CALL.get()
    if (left := context.time_remaining()) is not None:
        call.deadline = time.monotonic() + left
    if call.audited:
        _note_caller(call, context)
    return call


def _note_caller(call: Call, context: _Context) -> None:
    call.peer = context.peer()
    if call.audited:
        names = context.auth_context().get("x509_common_name", ())
        call.certificate = b", ".join(names).decode("utf-8", "replace")


def _read(raw: bytes, deserialize: Deserialize, call: Call) -> Any:
    """A message, counted. Raises InvalidArgument for bytes that are none: gRPC would answer INTERNAL."""
    call.requests += 1
    try:
        request = deserialize(raw)
    except (DecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(
            f"the request's bytes are no message that {call.method} takes: they are another type's, or a text in them "
            f"is not UTF-8, such as one that was cut within a character",
            field="request",
        ) from error
    if call.audited:  # to ask a message for a field that it has not takes longer than all else here
        inside = getattr(request, "request", request)  # a stream's has its request inside
        call.items += len(getattr(inside, "articles", ())) + len(getattr(inside, "ids", ()))
    return request


def _code(context: _Context) -> str:
    code: Any = context.code()
    return str(code.name)
