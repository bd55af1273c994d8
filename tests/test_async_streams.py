"""Streams of the asyncio client: fed as the server takes them, answered in order, over when they are left."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import pytest

from coldframe import AsyncClient, search_request
from coldframe.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, Unavailable, UnknownArticle
from tests.asking import ARTICLES, STREAMS, Watched, asked, raised
from tests.scripted import Failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.conftest import Background

    Ask = Callable[[Callable[[AsyncClient], Awaitable[Any]]], Any]

T = TypeVar("T")


@pytest.fixture
def server() -> Iterator[Watched]:
    with Watched() as running:
        yield running


@pytest.fixture
def ask(background: Background, server: Watched) -> Ask:
    return lambda work: asked(background, server.target, work)


# -------------------------------------------------------------------------------------------------------- streams


async def each(*items: T) -> AsyncIterator[T]:
    """Items that come now and then."""
    for item in items:
        await asyncio.sleep(0.001)
        yield item


def test_streams_take_async_iterables(ask: Ask) -> None:
    async def work(client: AsyncClient) -> None:
        found = [one async for one in client.stream_embed(each("storm", "sport", "economy"))]
        assert found == [one async for one in client.stream_embed(["storm", "sport", "economy"])]
        assert [one.correlation_id for one in found] == ["0", "1", "2"]
        searches = [search_request(text) for text in ("storm", "sport")]
        answers = [one.response.hits[0].article.id async for one in client.stream_search(each(*searches))]
        assert answers == ["a5", "a3"]
        upserts = [one async for one in client.stream_upsert(each(*ARTICLES, ARTICLES[9]), group=4)]
        assert [one.correlation_id for one in upserts] == ["0-3", "4-7", "8-9", "10-10"]
        assert [one async for one in client.stream_upsert(each())] == []

    ask(work)


def test_a_stream_is_fed_as_it_is_answered(ask: Ask) -> None:
    async def work(client: AsyncClient) -> None:
        taken: list[int] = []
        answered = asyncio.Event()

        async def texts() -> AsyncIterator[str]:
            for n in range(3):
                taken.append(n)
                yield "storm"
                await answered.wait()
                answered.clear()

        count = 0
        async for _ in client.stream_embed(texts()):
            assert taken == list(range(count + 1))
            count += 1
            answered.set()
        assert count == 3

    ask(work)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_no_more_is_read_than_the_server_takes(server: Watched, ask: Ask, asynchronous: bool) -> None:
    server.stalled = True
    taken = []

    def texts() -> Iterator[str]:
        while True:
            taken.append(1)
            yield "storm " * 10_000

    async def later() -> AsyncIterator[str]:
        for text in texts():
            yield text

    async def work(client: AsyncClient) -> None:
        given = later() if asynchronous else texts()
        assert type(await raised(client.stream_embed(given, timeout=0.5))) is DeadlineExceeded

    ask(work)
    assert 1 <= len(taken) < 500


@pytest.mark.parametrize(
    "failure",
    [KeyError("the caller's own"), UnknownArticle("the caller's own"), grpc.RpcError(), asyncio.CancelledError()],
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_items_that_raise_end_a_stream_after_those_before(ask: Ask, failure: BaseException, asynchronous: bool) -> None:
    def texts() -> Iterator[str]:
        yield "storm"
        yield "sport"
        raise failure

    async def later() -> AsyncIterator[str]:
        for text in texts():
            yield text

    async def work(client: AsyncClient) -> None:
        answers = client.stream_embed(later() if asynchronous else texts())
        assert [(await anext(answers)).correlation_id for _ in range(2)] == ["0", "1"]
        with pytest.raises(type(failure)) as caught:
            await anext(answers)
        assert caught.value is failure

    ask(work)


def test_requests_that_cannot_be_made_end_a_stream_after_those_before(ask: Ask) -> None:
    async def work(client: AsyncClient) -> None:
        answers = client.stream_embed(["storm", "\ud800"])
        assert (await anext(answers)).correlation_id == "0"
        with pytest.raises(InvalidArgument, match="text cannot be sent"):
            await anext(answers)

    ask(work)


def test_a_stream_that_fails_while_it_is_fed_says_why(server: Watched, ask: Ask) -> None:
    async def work(client: AsyncClient) -> None:
        for _ in range(50):
            server.failures.append(Failure(grpc.StatusCode.FAILED_PRECONDITION, "as it happens"))
            error = await raised(client.stream_embed("storm" for _ in range(1000)))
            assert (type(error), error.message) == (FailedPrecondition, "as it happens")
        server.stalled = True
        for _ in range(20):
            long = ("storm " * 10_000 for _ in range(1000))
            assert type(await raised(client.stream_embed(long, timeout=0.1))) is DeadlineExceeded

    ask(work)


class Waiting:
    """Texts of which the second never comes."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[str]:
        try:
            yield "storm"
            await asyncio.Event().wait()
        finally:
            self.left.set()


def test_a_stream_that_is_left_ends_its_call(server: Watched, ask: Ask) -> None:
    async def work(client: AsyncClient) -> None:
        texts = Waiting()
        async with aclosing(client.stream_embed(texts)) as answers:
            async for one in answers:
                assert one.correlation_id == "0"
                break
        assert texts.left.is_set()
        assert await asyncio.to_thread(server.ended.wait, 5)
        server.ended.clear()
        texts = Waiting()
        async for _ in client.stream_embed(texts):
            break  # the event loop closes what nobody holds any more
        await asyncio.wait_for(texts.left.wait(), 5)
        assert await asyncio.to_thread(server.ended.wait, 5)
        assert (await client.index()).index.model == "minilm"

    ask(work)


@pytest.mark.parametrize("name", STREAMS)
def test_streams_are_not_tried_again(server: Watched, ask: Ask, name: str) -> None:
    server.failures.append(Failure(grpc.StatusCode.UNAVAILABLE))
    assert type(ask(lambda client: raised(STREAMS[name](client)))) is Unavailable
    assert len(server.requests) == 1
