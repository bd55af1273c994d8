"""The connection of an event loop: what `coldframe.connection` is to threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from copy import deepcopy
from typing import TYPE_CHECKING, TypeVar, cast

import grpc

from coldframe.connection import Page, Paged, Terms, Timeout, Turns
from coldframe.errors import FailedPrecondition

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from coldframe.streams import Requests

_LOOKS, _LOOK_S = 100, 0.01
"""How often and in which distance it is asked how a call ended. Mostly the first answer is the one."""

Item = TypeVar("Item")
Request = TypeVar("Request")
Response = TypeVar("Response")


class AsyncConnection(Terms):
    """Channels to a server on which the tasks of one event loop wait for answers."""

    _loop: asyncio.AbstractEventLoop | None = None
    _opened: Sequence[grpc.aio.Channel] = ()

    @property
    def channel(self) -> grpc.aio.Channel:
        """What stubs are made of: opened at the first call, since gRPC binds channels to the loop that runs then."""
        self._require_usable()  # a stub over a closed channel of grpc.aio ends the process
        if not self._opened:
            self._loop = asyncio.get_running_loop()
            self._opened = [self._open() for _ in range(self._connections)]
        return self._opened[0] if len(self._opened) == 1 else cast("grpc.aio.Channel", Turns(self._opened))

    def _open(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.target, self._options)
        return grpc.aio.secure_channel(self.target, self._credentials, self._options)

    async def close(self) -> None:
        """Cancel what is in flight; closing twice does no harm."""
        if self.closed:
            return
        self._require_usable()
        self.closed = True
        await asyncio.gather(*(channel.close() for channel in self._opened))

    def _require_usable(self) -> None:
        super()._require_usable()
        # gRPC would say that some future is attached to a different loop, or wait for ever.
        if self._loop not in {None, asyncio.get_running_loop()}:
            raise FailedPrecondition(
                "this client belongs to the event loop of its first call, and another one runs here; "
                "make an AsyncClient for each event loop."
            )

    async def call(self, method: Callable[..., Awaitable[Response]], request: object, timeout: Timeout) -> Response:
        """Ask once, or as often as `Connection.call` does."""
        seconds = self._seconds(timeout)
        try:
            return await method(request, timeout=seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._error(error, seconds) from error
        except asyncio.CancelledError as error:
            self._explain_closing(error)
            raise

    async def pages(
        self,
        method: Callable[[], Callable[..., Awaitable[Page]]],
        request: Paged,
        items: Callable[[Page], Iterable[Item]],
        timeout: Timeout,
    ) -> AsyncGenerator[Item, None]:
        """Ask for page after page, and yield the items of each."""
        request = deepcopy(request)
        while True:
            page = await self.call(method(), request, timeout)
            for item in items(page):
                yield item
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return

    async def stream(
        self,
        method: Callable[[], grpc.aio.StreamStreamMultiCallable[Request, Response]],
        requests: Requests[Item, Request],
        items: Iterable[Item] | AsyncIterable[Item],
        timeout: Timeout,
    ) -> AsyncGenerator[Response, None]:
        """Send requests as the server takes them, and yield its answers. Leaving the generator ends the call.

        Where the items themselves raise, those before are answered first: then the same error is raised here.
        """
        seconds = self._seconds(timeout)
        failures: list[BaseException] = []
        call = method()(timeout=seconds, metadata=self._metadata)
        ending = _Ending(call)
        feeding = asyncio.create_task(_feed(call, _made(requests, items), failures))
        try:
            async for answer in call:
                yield answer
        except grpc.RpcError as error:
            said = await ending.said(error)
            if said.code() is not grpc.StatusCode.OK:
                raise self._error(said, seconds) from said
        except asyncio.CancelledError as error:
            self._explain_closing(error)
            raise
        finally:
            call.cancel()
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        for failure in failures:
            raise failure

    def _explain_closing(self, error: asyncio.CancelledError) -> None:
        """Raise what `Connection` raises where nobody cancelled the task, but somebody closed the client.

        gRPC cancels the calls, and their tasks with them, as though they had been told to end.
        """
        if self.closed and not _is_cancelled():
            raise self._closed_meanwhile() from error


class _Ending:
    """How a call ended, as the server said it.

    A write that fails because the call is over makes gRPC say INTERNAL in its place: from then on, or until it hears
    of the end itself (https://github.com/grpc/grpc/issues/36066).
    """

    def __init__(self, call: grpc.aio.StreamStreamCall[Request, Response]) -> None:
        self._call = call
        self._said: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._keep)

    def _keep(self, _: object) -> None:
        reading = _status(self._call)
        try:
            reading.send(None)  # a task would come too late; of a call that is over nothing has to be waited for
        except StopIteration as read:
            if not _is_of_a_write(read.value):
                self._said = read.value
        finally:
            reading.close()

    async def said(self, error: grpc.RpcError) -> grpc.RpcError:
        """Return how the call ended, where its reader was told this."""
        for _ in range(_LOOKS):
            if not _is_of_a_write(error) or self._said is not None:
                break
            await asyncio.sleep(_LOOK_S)
            error = await _status(self._call)
        return self._said or error


def _is_of_a_write(error: grpc.RpcError) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core"


async def _status(call: grpc.aio.StreamStreamCall[Request, Response]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _feed(
    call: grpc.aio.StreamStreamCall[Request, Response],
    requests: AsyncIterator[Request],
    failures: list[BaseException],
) -> None:
    """Send until there are no more requests, they raise, or the call is over."""
    try:
        async for request in requests:
            if not await _sent(call, request):
                return
    except (Exception, asyncio.CancelledError) as error:
        if _is_cancelled():
            raise
        failures.append(error)
    await call.done_writing()


async def _sent(call: grpc.aio.StreamStreamCall[Request, Response], request: Request) -> bool:
    """Send a request as soon as the server takes it; False where the call is over, which its reader is told, too."""
    try:
        await call.write(request)
    except (grpc.RpcError, asyncio.InvalidStateError):
        return False
    return True


async def _made(
    requests: Requests[Item, Request], items: Iterable[Item] | AsyncIterable[Item]
) -> AsyncGenerator[Request, None]:
    async for item in _each(items):
        for request in requests.add(item):
            yield request
    for request in requests.rest():
        yield request


async def _each(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncGenerator[Item, None]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
