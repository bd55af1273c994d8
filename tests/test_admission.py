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
import numpy as np
import pytest

from coldframe import Client
from coldframe.encoder import Tokens
from coldframe.errors import DeadlineExceeded, Overloaded, Unavailable
from coldframe.longformer import Longformer
from coldframe.requests import search_request
from coldframe.store import Store
from coldframe.v1.search_service_pb2_grpc import SearchServiceStub
from server.admission import CALL, Call, SearchLine
from server.embed_queue import MAX_QUICK_TOKENS, QUICK_TOKENS, EmbedQueue, Line
from tests.newsroom import opened, piece, sealed_again, words
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

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
        CALL.set(Call(time.monotonic() - 0.001))
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


# ---------------------------------------------------------------------------------------------------------- embedding


class Slow:
    """An encoder by the clock: a token takes a tenth of a millisecond, and it can be interrupted every 512 tokens."""

    def __init__(self) -> None:
        self.order: list[int] = []

    def embed_ids(
        self, documents: Sequence[Sequence[int]], between: Callable[[], None] | None = None
    ) -> NDArray[np.float32]:
        for document in documents:
            for start in range(0, len(document), 512):
                time.sleep(1e-4 * min(512, len(document) - start))
                if between is not None:
                    between()
            self.order.append(len(document))
        return np.array([[len(document)] for document in documents], np.float32)


def text_of(tokens: int) -> Tokens:
    return Tokens([1] * tokens, tokens)


class Lines:
    """A queue before a slow encoder, on a loop of its own."""

    def __init__(self, **options: int) -> None:
        self.encoder, self._pool = Slow(), ThreadPoolExecutor(1)
        self.queue = EmbedQueue(self.encoder, self._pool, **options)  # type: ignore[arg-type]

    async def embed(self, tokens: int, deadline_s: float | None = None, *, bulk: bool = False) -> float:
        """Seconds until a text of so many tokens has its vector."""
        if deadline_s is not None:
            CALL.set(Call(time.monotonic() + deadline_s))
        start = time.perf_counter()
        found = await self.queue.embed([text_of(tokens)], bulk=bulk)
        assert found.vectors.tolist() == [[tokens]]
        return time.perf_counter() - start

    def close(self) -> None:
        self._pool.shutdown()


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines = Lines()
    yield lines
    lines.close()


def test_a_seed_text_overtakes_long_articles_even_in_the_middle_of_one(lines: Lines) -> None:
    async def run() -> tuple[float, list[float]]:
        articles = [asyncio.create_task(lines.embed(4_096)) for _ in range(3)]  # 0.4 s each
        await asyncio.sleep(0.1)
        seed = await lines.embed(20)
        return seed, await asyncio.gather(*articles)

    seed, articles = asyncio.run(run())
    assert seed < 0.2, "no longer than 512 tokens take, and its own"
    assert lines.encoder.order == [20, 4_096, 4_096, 4_096]
    assert max(articles) < 3, "all of them in turn"
    assert lines.queue.batches.overtaken == 1


def test_short_articles_overtake_long_ones_and_nobody_waits_for_ever(lines: Lines) -> None:
    async def run() -> float:
        long = [asyncio.create_task(lines.embed(4_096)) for _ in range(2)]
        await asyncio.sleep(0.05)
        short = [asyncio.create_task(lines.embed(300)) for _ in range(3)]
        last = (await asyncio.gather(*long))[-1]
        await asyncio.gather(*short)
        return last

    asyncio.run(run())
    assert lines.encoder.order == [4_096, 300, 300, 300, 4_096]


def test_a_long_article_is_computed_while_seed_texts_never_end(lines: Lines) -> None:
    async def endless(stop: asyncio.Event) -> int:
        count = 0
        while not stop.is_set():
            await asyncio.gather(*(lines.embed(100) for _ in range(4)))
            count += 1
        return count

    async def run() -> tuple[float, int]:
        stop = asyncio.Event()
        seeds = asyncio.create_task(endless(stop))
        await asyncio.sleep(0.05)
        took = await lines.embed(4_096)
        stop.set()
        return took, await seeds

    took, count = asyncio.run(run())
    assert took < 0.41 * 4 * 2, "a quarter of the time is its own"
    assert count > 5, "and the others did not wait for it"


def test_where_both_lines_wait_they_take_turns(lines: Lines) -> None:
    lines.queue.quick.texts = lines.queue.bulk.texts = 1
    assert [lines.queue._next_line().name for _ in range(4)] == ["quick", "bulk", "quick", "bulk"]


def test_a_small_article_that_is_to_be_kept_waits_behind_seed_texts(lines: Lines) -> None:
    async def run() -> None:
        first = asyncio.create_task(lines.embed(200))
        await asyncio.sleep(0.005)
        kept = [asyncio.create_task(lines.embed(50, bulk=True)) for _ in range(2)]
        await asyncio.sleep(0)
        assert lines.queue.bulk.texts == 2
        assert lines.queue.quick.texts == 0
        await asyncio.gather(first, *kept)

    asyncio.run(run())


def test_a_full_line_of_texts_refuses_and_the_other_line_does_not() -> None:
    lines = Lines(max_quick_tokens=95, max_bulk_tokens=1_000)

    async def run() -> None:
        first = asyncio.create_task(lines.embed(200))  # computed at once
        await asyncio.sleep(0.005)
        waiting = [asyncio.create_task(lines.embed(90)), asyncio.create_task(lines.embed(900))]
        await asyncio.sleep(0)
        for tokens in (20, 300):
            with pytest.raises(Overloaded, match="1 texts are waiting to be embedded"):
                await lines.embed(tokens)
        with pytest.raises(Overloaded), lines.queue.expecting(["four short texts without room"] * 4):
            pass
        waiting.append(asyncio.create_task(lines.embed(5)))
        await asyncio.gather(first, *waiting)
        assert [line.counts.refused for line in (lines.queue.quick, lines.queue.bulk)] == [2, 1]
        assert [line.tokens for line in (lines.queue.quick, lines.queue.bulk)] == [0, 0]

    asyncio.run(run())
    lines.close()


def test_texts_of_a_letter_do_not_make_others_look_too_long(lines: Lines) -> None:
    async def run() -> None:
        for _ in range(1_000):
            lines.queue.noticed(["a"], [text_of(3)])
        first = asyncio.create_task(lines.embed(200))
        await asyncio.sleep(0.005)
        waiting = asyncio.create_task(lines.embed(20))
        await asyncio.sleep(0)
        with lines.queue.expecting(["word " * 40]):  # some 50 tokens
            pass
        await asyncio.gather(first, waiting)

    asyncio.run(run())


def test_a_text_that_is_late_or_given_up_is_dropped_counted_and_makes_room(lines: Lines) -> None:
    async def run() -> None:
        first = asyncio.create_task(lines.embed(256))  # 26 ms
        await asyncio.sleep(0.005)
        late = asyncio.create_task(lines.embed(30, deadline_s=0.001))
        gone = asyncio.create_task(lines.embed(40))
        stays = asyncio.create_task(lines.embed(50, deadline_s=60))
        await asyncio.sleep(0)
        assert lines.queue.quick.tokens == 120
        gone.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert lines.queue.quick.tokens == 80, "others may have its room"
        with pytest.raises(DeadlineExceeded, match="nothing was computed"):
            await late
        await asyncio.gather(first, stays)

    asyncio.run(run())
    assert lines.encoder.order == [256, 50]
    assert lines.queue.quick.counts.dropped == {"deadline": 1, "gone": 1}
    assert lines.queue.quick.texts == 0


def test_texts_that_are_nearly_here_are_computed_together(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.embed_queue._WAIT_S", 10.0)

    async def run() -> None:
        with lines.queue.expecting(["another text"]):
            first = asyncio.create_task(lines.embed(20))
            await asyncio.sleep(0.0005)
        await lines.embed(30)
        await first

    asyncio.run(run())
    assert lines.queue.batches.tokens.counts[2] == 1, "one batch of 50 tokens"
    assert lines.queue.batches.texts == 2


def test_a_bound_is_above_what_one_call_may_have() -> None:
    assert MAX_QUICK_TOKENS >= 2 * QUICK_TOKENS


def test_vectors_are_the_same_whatever_overtook(served: tuple[Client, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    client, engine = served
    long, alone = "q w e " * 250, engine.served().queue.batches.overtaken
    wanted = [client.embed([text]).embeddings[0].vector.values for text in (long, "a b c")]
    forward, inside = Longformer.forward, threading.Event()

    def slowly(self: Longformer, documents: Any, recipes: Any, between: Any = None) -> Any:
        if between is None:
            return forward(self, documents, recipes)

        def pause() -> None:
            inside.set()
            time.sleep(0.2)
            between()

        return forward(self, documents, recipes, pause)

    monkeypatch.setattr(Longformer, "forward", slowly)
    with ThreadPoolExecutor(1) as pool:
        article = pool.submit(client.embed, [long])
        assert inside.wait(30)
        seed = client.embed(["a b c"]).embeddings[0].vector.values
        assert not article.done()
        np.testing.assert_allclose(article.result(60).embeddings[0].vector.values, wanted[0], atol=1e-6)
    np.testing.assert_allclose(seed, wanted[1], atol=1e-6)
    assert engine.served().queue.batches.overtaken > alone


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
        wait_until(lambda: server._door.refusal("/coldframe.v1.SearchService/Search") is not None)
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
