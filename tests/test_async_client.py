"""The asyncio client: equal to the blocking one in what it offers, answers and raises, and at home in an event loop."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import grpc
import pytest

from coldframe import AsyncClient, Client, recommend_request
from coldframe.errors import (
    ColdframeError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    Overloaded,
    Unauthenticated,
    Unavailable,
    error_classes,
)
from tests.asking import CALLS, STREAMS, Watched, answer, answer_of_blocking, asked, raised
from tests.guarded import guarded
from tests.scripted import MAX_REQUEST_BYTES, Failure, Server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from tests.conftest import Background, Sample

    Ask = Callable[[Callable[[AsyncClient], Awaitable[Any]]], Any]


@pytest.fixture
def server() -> Iterator[Watched]:
    with Watched() as running:
        yield running


@pytest.fixture
def ask(background: Background, server: Server) -> Ask:
    return lambda work: asked(background, server.target, work)


# --------------------------------------------------------------------------------------------- as the blocking one


def offered(kind: type) -> dict[str, list[tuple[str, Any, Any]]]:
    """Names, kinds and defaults of the parameters of all public methods, and of those that the language calls."""
    methods = {name: value for name, value in vars(kind).items() if callable(value) and not name.startswith("_")}
    methods["__init__"] = vars(kind)["__init__"]
    return {
        name: [(one.name, one.kind, one.default) for one in inspect.signature(method).parameters.values()]
        for name, method in methods.items()
    }


def test_both_clients_offer_the_same() -> None:
    assert offered(AsyncClient) == offered(Client)
    assert {*CALLS} == {*offered(Client)} - {"__init__", "close"}


@pytest.mark.parametrize("name", CALLS)
def test_both_clients_ask_and_answer_the_same(background: Background, name: str) -> None:
    with Server() as first, Client(first.target, timeout=10) as blocking:
        expected = answer_of_blocking(CALLS[name](blocking))
    with Server() as second:
        assert asked(background, second.target, lambda client: answer(CALLS[name](client))) == expected
    assert second.requests == first.requests
    assert second.metadata.keys() == first.metadata.keys()


@pytest.mark.parametrize("name", CALLS)
def test_what_yields_there_is_an_async_generator_here(background: Background, server: Server, name: str) -> None:
    with Client(server.target) as blocking:
        yields = inspect.isgenerator(CALLS[name](blocking))

    async def kinds(client: AsyncClient) -> tuple[bool, bool]:
        given = CALLS[name](client)
        await answer(given)
        return inspect.isasyncgen(given), inspect.iscoroutine(given)

    assert asked(background, server.target, kinds) == (yields, not yields)


def test_fifty_searches_at_once_are_answered_as_one_by_one(
    background: Background, target: str, articles: list[Sample]
) -> None:
    seeds = [articles[n % len(articles)].id for n in range(50)]

    async def search(client: AsyncClient) -> list[Any]:
        return await asyncio.gather(*(client.search(article_id=seed, limit=3) for seed in seeds))

    with Client(target, timeout=60) as blocking:
        for seed, found in zip(seeds, asked(background, target, search, timeout=60), strict=True):
            expected = blocking.search(article_id=seed, limit=3)
            assert [hit.article.id for hit in found.hits] == [hit.article.id for hit in expected.hits]
            assert [hit.score for hit in found.hits] == pytest.approx([hit.score for hit in expected.hits], abs=1e-5)


def test_keys_and_tls_are_the_same(background: Background, newsroom: Path, tmp_path: Path) -> None:
    with guarded(background, newsroom, tmp_path / "guarded", tls=True) as server:
        assert server.files is not None
        trusted: dict[str, Any] = {"tls_ca": server.files.ca, "attempts": 1}
        key = server.key()
        found = asked(background, server.target, lambda client: client.index(), api_key=key, **trusted)
        assert found.index.article_count == 120
        error = asked(background, server.target, lambda client: raised(client.index()), **trusted)
        assert type(error) is Unauthenticated
        error = asked(background, server.target, lambda client: raised(client.index()), api_key=key, insecure=True)
        assert type(error) is Unavailable
        assert "it may speak TLS: tls, tls_ca" in error.message


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"target": "http://localhost:50051"}, "target"),
        ({"timeout": -1.0}, "timeout"),
        ({"attempts": 6}, "attempts"),
        ({"target": "example.org:50051", "api_key": "cfk_x"}, "api_key"),
        ({"tls_cert": "client.pem"}, "tls_cert"),
        ({"tls_ca": "/no/such/file"}, "tls_ca"),
        ({"tls": True, "credentials": grpc.ssl_channel_credentials()}, "credentials"),
    ],
)
def test_options_are_refused_as_by_the_blocking_client(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as expected:
        Client(**options)
    with pytest.raises(InvalidArgument) as caught:
        AsyncClient(**options)
    assert (caught.value.field, caught.value.message) == (field, expected.value.message)


def test_a_channel_is_told_the_same() -> None:
    options: Any = {"attempts": 3, "tls": True, "tls_server_name": "elsewhere", "metadata": [("A", "b")]}
    one, other = Client("example.org", **options)._connection, AsyncClient("example.org", **options)._connection
    assert (one._options, one._metadata) == (other._options, other._metadata)


# -------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", error_classes())
def test_every_class_crosses_the_wire(background: Background, server: Server, name: str) -> None:
    kind = error_classes()[name]
    message = "what was wrong, and what to do: 100 % of it."
    for stream in (False, True):
        server.failures.append(Failure(grpc.StatusCode[kind.code], message, (("coldframe-error", name),)))
        ask: Any = STREAMS["stream_embed"] if stream else CALLS["index"]
        error = asked(background, server.target, lambda client, ask=ask: raised(ask(client)), attempts=1)  # type: ignore[misc]
        assert (type(error), error.message) == (kind, message)
        assert isinstance(error.__cause__, grpc.RpcError)


def test_fields_and_waits_cross_the_wire(server: Server, ask: Ask) -> None:
    field = (("coldframe-error", "InvalidArgument"), ("coldframe-field", quote("seed.text[ü]")))
    wait = (("coldframe-error", "Overloaded"), ("coldframe-retry-after-ms", "250"))
    server.failures.append(Failure(grpc.StatusCode.INVALID_ARGUMENT, metadata=field))
    assert ask(lambda client: raised(client.index())).field == "seed.text[ü]"
    server.failures.append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, metadata=wait))
    assert ask(lambda client: raised(client.index())).retry_after_s == 0.25


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.search(),
        lambda client: client.search("\ud800"),
        lambda client: client.search("a", timeout=0),
        lambda client: client.embed("one string"),
        lambda client: client.delete("one string"),
        lambda client: client.cluster("\udcff"),
        lambda client: client.get_article("a1", neighbor_limit=2**40),
        lambda client: client.trending(baseline_windows=2**40),
        lambda client: client.activate("\ud800"),
        lambda client: client.clusters(page_size=2**31),
        lambda client: client.cluster_articles("c0", order="best"),
        lambda client: client.stream_embed("one string"),
        lambda client: client.stream_embed(["\ud800"]),
        lambda client: client.stream_upsert([], group=257),
        lambda client: client.search(article_id="a9"),
        lambda client: client.cluster("c9"),
        lambda client: client.search("economy " * 150_000),
        lambda client: client.hits(recommend_request([])),
    ],
)
def test_what_cannot_be_asked_is_refused_as_by_the_blocking_client(
    background: Background, server: Server, call: Callable[[Any], Any]
) -> None:
    with Client(server.target, timeout=10) as blocking, pytest.raises(ColdframeError) as expected:
        answer_of_blocking(call(blocking))

    async def work(client: AsyncClient) -> ColdframeError:
        with pytest.raises(ColdframeError) as caught:
            await answer(call(client))  # some refuse before there is anything to wait for
        return caught.value

    error = asked(background, server.target, work)
    assert type(error) is type(expected.value)
    assert (error.message, vars(error)) == (expected.value.message, vars(expected.value))


# -------------------------------------------------------------------------------------------- retries, deadlines


def test_unavailable_is_tried_again(server: Server, ask: Ask) -> None:
    server.failures.extend([Failure(grpc.StatusCode.UNAVAILABLE)] * 2)
    assert ask(lambda client: client.index()).index.model == "minilm"
    assert len(server.requests) == 3
    server.failures.append(Failure(grpc.StatusCode.UNAVAILABLE))
    ask(lambda client: client.search("economy " * (MAX_REQUEST_BYTES // 10)))  # past gRPC's own retry buffer
    assert len(server.requests) == 5


def test_attempts_come_to_an_end(background: Background, server: Server) -> None:
    server.failures.extend([Failure(grpc.StatusCode.UNAVAILABLE)] * 9)
    assert type(asked(background, server.target, lambda client: raised(client.index()), attempts=2)) is Unavailable
    assert len(server.requests) == 2


def test_a_call_that_was_turned_away_unseen_is_made_again(server: Server, ask: Ask) -> None:
    server.failures += [Failure(grpc.StatusCode.CANCELLED, "CANCELLED")] * 7  # as gRPC's own server ends it
    error = ask(lambda client: raised(client.index()))
    assert type(error) is Overloaded
    assert "turned the call away before it looked at it" in error.message
    assert ask(lambda client: client.index()).index.model == "minilm"


def test_a_server_that_restarts_is_found_again(background: Background) -> None:
    first = Server()
    client = AsyncClient(first.target, timeout=10)
    with first:
        background.run(client.index())
    with Server(first.target) as second:
        assert background.run(client.index()).index.model == "minilm"
        assert len(second.requests) == 1
        background.run(client.close())


def test_an_unreachable_server(background: Background) -> None:
    error = asked(background, "localhost:1", lambda client: raised(client.search("anything")), attempts=1)
    assert type(error) is Unavailable
    assert error.message.startswith("no Coldframe server answers at localhost:1 (")
    assert type(asked(background, "localhost:1", lambda client: raised(client.stream_embed(["a"])))) is Unavailable


def test_the_deadline_is_the_clients_or_the_calls(background: Background, server: Server) -> None:
    server.stalled = True

    async def work(client: AsyncClient) -> None:
        for call, seconds in (
            (client.index(), "0.2"),
            (client.index(timeout=0.1), "0.1"),
            (client.clusters(), "0.2"),
            (client.stream_embed(["storm"], timeout=0.3), "0.3"),
        ):
            error = await raised(call)
            assert type(error) is DeadlineExceeded
            assert f"no answer from {server.target} within {seconds} s" in error.message
        server.stalled = False
        for timeout in (None, 10**400):
            assert (await client.index(timeout=timeout)).index.model == "minilm"

    asked(background, server.target, work, timeout=0.2)


# --------------------------------------------------------------------------------- cancelling, closing, event loops


@pytest.mark.parametrize("name", ["search", "clusters", "stream_embed"])
def test_a_task_that_is_cancelled_ends_its_call(server: Watched, ask: Ask, name: str) -> None:
    server.stalled = True

    async def work(client: AsyncClient) -> None:
        task = asyncio.create_task(answer(CALLS[name](client)))
        while not server.requests:
            await asyncio.sleep(0.01)
        assert not server.ended.is_set()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert await asyncio.to_thread(server.ended.wait, 5)  # it would be stalled for longer
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await answer(CALLS[name](client))
        server.stalled = False
        assert (await client.index()).index.model == "minilm"

    ask(work)


@pytest.mark.parametrize("name", ["search", "clusters", "stream_embed"])
def test_closing_ends_calls_with_an_error_and_cancels_no_task(server: Watched, ask: Ask, name: str) -> None:
    server.stalled = True

    async def work(client: AsyncClient) -> str:
        task = asyncio.create_task(raised(CALLS[name](client)))
        while not server.requests:
            await asyncio.sleep(0.01)
        await client.close()
        assert await asyncio.to_thread(server.ended.wait, 5)
        message: str = (await task).message
        return message

    assert ask(work) == "the client was closed before the answer came."


def test_a_closed_client_says_so(background: Background, server: Server) -> None:
    client = AsyncClient(server.target)
    assert repr(client) == f"<coldframe.AsyncClient {server.target}>"

    async def work() -> None:
        async with client:
            await client.index()
        await client.close()
        for ask in CALLS.values():
            assert "closed" in (await raised(ask(client))).message

    background.run(work())
    assert repr(client) == f"<coldframe.AsyncClient {server.target} (closed)>"
    unused = AsyncClient(server.target)
    background.run(unused.close())
    assert type(background.run(raised(unused.index()))) is FailedPrecondition


def test_a_client_is_made_without_a_loop_and_belongs_to_the_first_that_asks(
    background: Background, server: Server
) -> None:
    client = AsyncClient(server.target, timeout=10)
    assert background.run(client.index()).index.model == "minilm"
    assert not client._connection.closed

    async def elsewhere() -> None:
        for call in (client.index(), client.clusters(), client.stream_embed(["storm"]), client.close()):
            error = await raised(call)
            assert type(error) is FailedPrecondition
            assert "make an AsyncClient for each event loop" in error.message

    asyncio.run(elsewhere())
    assert background.run(client.index()).index.model == "minilm"
    background.run(client.close())
    asyncio.run(client.close())  # closing twice does no harm, wherever
