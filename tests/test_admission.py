"""Who is let in, and who is told to come back: full lines, deadlines that have passed, callers who have gone."""

from __future__ import annotations

import asyncio
import math
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from coldframe import Client
from coldframe.errors import DeadlineExceeded, Overloaded, Unavailable
from coldframe.requests import search_request
from coldframe.store import Store
from coldframe.v1.search_service_pb2_grpc import SearchServiceStub
from server.admission import CALL, Call, SearchLine
from server.embed_queue import Line
from tests.newsroom import opened, piece, sealed_again, words
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.engine import Engine
    from tests.conftest import Background


@pytest.fixture(scope="module")
def served(background: Background, newsroom: Path) -> Iterator[tuple[Client, Engine]]:
    with opened(background, newsroom, threads=1, max_searches=6) as both:
        yield both


class Held:
    """The one search thread of an engine, held until it is opened."""

    def __init__(self, background: Background, engine: Engine) -> None:
        self._opened, reached = threading.Event(), threading.Event()

        def wait() -> None:
            reached.set()
            assert self._opened.wait(60)

        async def begin() -> asyncio.Future[None]:
            return engine._search.run(wait)

        self._done = background.run(begin())
        assert reached.wait(60)

    def open(self) -> None:
        """Lets the thread go on."""
        self._opened.set()


class Crowd:
    """Callers that wait until the search thread is let go."""

    def __init__(self, client: Client, engine: Engine, count: int) -> None:
        self._pool = ThreadPoolExecutor(count)
        self.calls = [self._pool.submit(client.search, article_id=f"{n:03}") for n in range(count)]
        wait_until(lambda: engine.searches.waiting == count)

    def results(self) -> list[int]:
        """How many hits each found."""
        found = [len(call.result(60).hits) for call in self.calls]
        self._pool.shutdown()
        return found


# ------------------------------------------------------------------------------------------------------------- search


def test_a_full_line_refuses_every_kind_of_call_at_once_and_answers_those_it_let_in(
    served: tuple[Client, Engine], background: Background
) -> None:
    client, engine = served
    held = Held(background, engine)
    crowd = Crowd(client, engine, 6)
    refused = engine.searches.counts.refused
    calls: list[Callable[[], Any]] = [
        lambda: client.search(article_id="009"),
        lambda: client.recommend(["a b"]),
        lambda: client.nearest_clusters(article_id="009"),
        lambda: client.get_article("009"),
        lambda: client.upsert([piece("new")]),
        lambda: next(iter(client.clusters())),
    ]
    for call in calls:
        start = time.perf_counter()
        with pytest.raises(Overloaded, match="6 searches are waiting or running") as raised:
            call()
        assert raised.value.retry_after_s == 1
        assert time.perf_counter() - start < 5, "nothing was waited for"
    [streamed] = client.stream_search([search_request(article_id="009")])
    assert streamed.error.code == "RESOURCE_EXHAUSTED"
    assert engine.searches.counts.refused == refused + len(calls) + 1
    assert client.index().index.article_count == 120, "what needs no search is answered"
    held.open()
    assert crowd.results() == [10] * 6
    assert client.search(article_id="009").hits, "and others again"
    assert engine.searches.waiting == 0


def test_a_full_line_of_searches_keeps_back_no_rollback_and_no_deletion(
    background: Background, own_newsroom: Path
) -> None:
    store = Store(own_newsroom)
    before = store.current()
    assert before is not None
    other = sealed_again(Path(shutil.copytree(store.directory(before), own_newsroom / "generations" / "other")))
    with opened(background, own_newsroom, threads=1, max_searches=6) as (client, engine):
        held = Held(background, engine)
        crowd = Crowd(client, engine, 6)
        with pytest.raises(Overloaded):
            client.get_article("009")
        with pytest.raises(Overloaded, match="6 searches are waiting or running"):
            client.delete(["119"], validate_only=True)
        assert [*client.delete(["119"]).deleted_ids] == ["119"]
        assert client.activate(other).changed
        assert client.index().index.generation == other
        assert client.index().index.article_count == 119
        held.open()
        assert crowd.results() == [10] * 6


def test_a_batch_and_a_stream_are_not_refused_for_their_own_company(served: tuple[Client, Engine]) -> None:
    client, engine = served
    refused = engine.searches.counts.refused
    requests = [search_request(article_id=f"{n:03}", limit=3) for n in range(60)]
    assert all(len(result.response.hits) == 3 for result in client.batch_search(requests).results)
    assert all(len(reply.response.hits) == 3 for reply in client.stream_search(requests))
    texts = [search_request(words(f"seed {n}", 100), limit=3) for n in range(30)]  # thrice what the line of texts takes
    assert all(len(reply.response.hits) == 3 for reply in client.stream_search(texts))
    assert all(len(result.response.hits) == 3 for result in client.batch_search(texts).results)
    assert engine.searches.counts.refused == refused
    assert [line.counts.refused for line in (engine.served().queue.quick, engine.served().queue.bulk)] == [0, 0]


def test_a_stream_is_not_refused_where_the_line_becomes_shorter_on_its_way(
    served: tuple[Client, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, engine = served
    line = engine.served().queue.quick
    refused = line.counts.refused

    def slow(line: Line, _tokens: int, _seconds: float) -> None:
        line.pace = 1.0

    monkeypatch.setattr(Line, "noticed", slow)
    monkeypatch.setattr(line, "pace", math.inf)  # as before anything was computed
    texts = [search_request(words(f"seed {n}", 100), limit=3) for n in range(40)]
    assert [len(reply.response.hits) for reply in client.stream_search(texts)] == [3] * 40
    assert line.room < 300
    assert line.counts.refused == refused


def test_a_batch_in_a_crowd_is_refused_search_by_search(served: tuple[Client, Engine], background: Background) -> None:
    client, engine = served
    held = Held(background, engine)
    crowd = Crowd(client, engine, 4)
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(client.batch_search, [search_request(article_id="009", limit=3)] * 8)
        wait_until(lambda: engine.searches.full)
        held.open()
        results = batch.result(60).results
    assert len(results) == 8
    codes = {result.error.code for result in results if result.HasField("error")}
    assert codes == {"RESOURCE_EXHAUSTED"}
    assert sum(result.HasField("response") for result in results) >= 6 - 4
    assert crowd.results() == [10] * 4


def test_a_search_whose_deadline_has_passed_is_not_run(served: tuple[Client, Engine]) -> None:
    _, engine = served
    line, ran = engine.searches, threading.Event()
    before = line.counts.dropped["deadline"]

    async def too_late() -> None:
        CALL.set(Call(deadline=time.monotonic() - 0.001))
        await line.through(engine._search, ran.set)

    with pytest.raises(DeadlineExceeded, match="nothing was computed"):
        asyncio.run(too_late())
    assert not ran.is_set()
    assert line.counts.dropped["deadline"] == before + 1
    assert line.waiting == 0


def test_a_search_whose_caller_has_gone_is_not_run_and_makes_room(
    served: tuple[Client, Engine], background: Background
) -> None:
    client, engine = served
    held, before = Held(background, engine), dict(engine.searches.counts.dropped)
    with grpc.insecure_channel(client._connection.target, [("grpc.enable_http_proxy", 0)]) as channel:
        call: Any = SearchServiceStub(channel)
        going = call.Search.future(search_request(article_id="009"), timeout=60)
        wait_until(lambda: engine.searches.waiting == 1)
        going.cancel()
        wait_until(lambda: engine.searches.waiting == 0)
    assert engine.searches.counts.dropped == {**before, "gone": before["gone"] + 1}
    held.open()


@pytest.mark.parametrize("timeout", [0.2, 2.0049])
def test_a_search_that_is_late_in_the_line_is_dropped_by_its_deadline(
    served: tuple[Client, Engine], background: Background, timeout: float
) -> None:
    """gRPC says 2.01 s to the server, and ends the call at the caller's after 2.0049."""
    client, engine = served
    held, before = Held(background, engine), dict(engine.searches.counts.dropped)
    with pytest.raises(DeadlineExceeded):
        client.search(article_id="009", timeout=timeout)
    wait_until(lambda: engine.searches.waiting == 0)
    assert engine.searches.counts.dropped == {**before, "deadline": before["deadline"] + 1}
    held.open()


# --------------------------------------------------------------------------------------------------------------- stop


def test_a_server_that_stops_answers_whom_it_let_in_and_nobody_else(background: Background, newsroom: Path) -> None:
    from coldframe.store import Store
    from server.address import Address
    from server.app import Server
    from server.engine import Engine

    engine = Engine(Store(newsroom), precision="fp32", threads=1)
    engine.load()

    async def start() -> tuple[Server, Address]:
        server = Server(engine)
        return server, await server.start(Address("127.0.0.1", 0))

    server, address = background.run(start())
    held = Held(background, engine)
    with Client(str(address), timeout=60) as client, ThreadPoolExecutor(4) as pool:
        waiting = threading.Event()

        def requests() -> Iterator[Any]:
            yield search_request(article_id="001")
            waiting.wait(60)

        stream = client.stream_search(requests())
        calls = [pool.submit(client.search, article_id=f"{n:03}") for n in range(2)]
        streamed = pool.submit(next, stream)
        wait_until(lambda: engine.searches.waiting == 3)
        stopping = asyncio.run_coroutine_threadsafe(server.stop(30), background.loop)
        wait_until(server._door.closed)
        with pytest.raises(Unavailable):
            client.search(article_id="009", timeout=5)
        held.open()
        assert [len(call.result(60).hits) for call in calls] == [10, 10]
        assert len(streamed.result(60).response.hits) == 10
        with pytest.raises(Unavailable):
            next(stream)
        stopping.result(60)
        waiting.set()


def test_the_line_is_counted_by_the_numbers_it_says() -> None:
    line = SearchLine(2)
    found = []
    for line.waiting in (1, 2, 3):
        found.append(line.full)
    assert found == [False, True, True]
    assert grpc.StatusCode[Overloaded.code] is grpc.StatusCode.RESOURCE_EXHAUSTED
