"""Streams both ways: in order, so many under way and no more, and nothing left behind when the caller goes."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from typing import TYPE_CHECKING, Any, cast

import grpc
import numpy as np
import pytest

from coldframe.requests import search_request
from coldframe.v1.embedding_service_pb2 import StreamEmbedRequest
from coldframe.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from server.streaming import IN_FLIGHT
from server.wire.ranking import ask
from tests.newsroom import Barrier, opened
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from coldframe import Client
    from server.engine import Engine
    from server.search import Ask
    from tests.conftest import Background


@pytest.fixture(scope="module")
def served(background: Background, newsroom: Path) -> Iterator[tuple[Client, Engine]]:
    with opened(background, newsroom) as both:
        yield both


@pytest.fixture
def channel(served: tuple[Client, Engine]) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(served[0]._connection.target, [("grpc.enable_http_proxy", 0)]) as opened_channel:
        yield opened_channel


class Asked:
    """Texts without end, and how many of them were taken."""

    def __init__(self) -> None:
        self.taken = 0
        self.ended = threading.Event()

    def __iter__(self) -> Iterator[StreamEmbedRequest]:
        while not self.ended.is_set():
            self.taken += 1
            yield StreamEmbedRequest(correlation_id=str(self.taken), text="a " * (1 + self.taken % 7))
            time.sleep(0.001)


def test_answers_come_in_the_order_of_the_requests_and_bad_ones_fail_alone(served: tuple[Client, Engine]) -> None:
    client, _ = served
    texts = ["a b " * (1 + 97 * n % 50) for n in range(100)]
    texts[40] = " "
    replies = [*client.stream_embed(texts)]
    assert [reply.correlation_id for reply in replies] == [str(n) for n in range(100)]
    assert (replies[40].error.code, replies[40].error.field) == ("INVALID_ARGUMENT", "text")
    seen = [reply.embedding.usage.tokens_seen for n, reply in enumerate(replies) if n != 40]
    assert seen == [len(text.split()) + 2 for n, text in enumerate(texts) if n != 40]
    assert [reply.served_by.generation for reply in replies].count(client.index().index.generation) == 99
    requests = [search_request(f"{letter} a", limit=3) for letter in "abcdefghij"]
    requests[4] = search_request(article_id="nobody")
    for n, answer in enumerate(client.stream_search(requests)):
        assert answer.correlation_id == str(n)
        if n == 4:
            assert answer.error.code == "NOT_FOUND"
        else:
            alone = client.search("abcdefghij"[n] + " a", limit=3)  # in another batch: other last places
            assert [hit.article.id for hit in answer.response.hits] == [hit.article.id for hit in alone.hits]


def test_a_batch_of_searches_is_each_of_them(served: tuple[Client, Engine]) -> None:
    client, _ = served
    requests = [
        search_request(article_id="009", limit=3),
        search_request(article_id="no"),
        search_request("c", limit=0),
    ]
    first, second, third = client.batch_search(requests).results
    assert first.response.hits == client.search(article_id="009", limit=3).hits
    assert [result.error.code for result in (second, third)] == ["NOT_FOUND", "INVALID_ARGUMENT"]
    assert third.error.field == "limit"


def test_large_searches_of_a_batch_are_read_in_turns_of_the_loop_and_small_ones_at_once(
    served: tuple[Client, Engine], background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, read = 0, []

    async def tick() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    def noting(*given: Any) -> Ask:
        read.append(turn)
        return ask(*given)

    monkeypatch.setattr("server.services.search.ask", noting)
    ticking = asyncio.run_coroutine_threadsafe(tick(), background.loop)
    try:
        for ids, turns in ((400, 8), (1, 1)):
            out = [f"{n:0200}" for n in range(ids)]
            asked = [search_request(article_id=f"{n:03}", exclude_ids=out) for n in range(8)]
            assert all(one.HasField("response") for one in served[0].batch_search(asked).results)
            assert (len(read), len(set(read))) == (8, turns)
            read.clear()
    finally:
        ticking.cancel()


def test_packed_vectors_are_the_repeated_ones(served: tuple[Client, Engine]) -> None:
    client, _ = served
    texts = ["a b c", "x y", "q " * 300]
    packed = [np.frombuffer(e.vector.packed, "<f4") for e in client.embed(texts, packed=True).embeddings]
    embeddings = client.embed(texts).embeddings
    assert [e.usage.tokens_seen for e in embeddings] == [len(text.split()) + 2 for text in texts]
    values = [np.array(e.vector.values, np.float32) for e in embeddings]
    streamed = [np.frombuffer(r.embedding.vector.packed, "<f4") for r in client.stream_embed(texts)]
    for one, other, third in zip(packed, values, streamed, strict=True):
        assert one.tobytes() == other.tobytes()
        np.testing.assert_allclose(third, one, atol=1e-5)
        assert client.search(vector=one.tolist()).hits == client.search(vector=one.astype("<f4").tobytes()).hits


@pytest.mark.parametrize("gone", ["cancelled", "taken up again"])
def test_so_many_requests_are_under_way_and_no_more(
    served: tuple[Client, Engine], channel: grpc.Channel, background: Background, gone: str
) -> None:
    _, engine = served
    queue, asked = engine.served().queue, Asked()
    held = Barrier(engine._compute)
    queue.quick.pace = math.inf  # or the line would be short where tests before were slow
    call = EmbeddingServiceStub(channel).StreamEmbed(iter(asked), timeout=60)
    wait_until(lambda: queue.quick.texts >= IN_FLIGHT - 10)
    time.sleep(0.3)
    first = IN_FLIGHT - queue.quick.texts
    assert 1 <= first <= 10, "what the encoder took before it was held, and 32 in all"
    if gone == "cancelled":
        call.cancel()
        asked.ended.set()
        wait_until(lambda: queue.quick.texts == queue.quick.tokens == 0)
        held.open()
        wait_until(lambda: queue._worker is not None and queue._worker.done())
        wait_until(lambda: "in_order" not in str(asyncio.all_tasks(background.loop)))
        return
    held.open()
    replies = [next(call).correlation_id for _ in range(100)]
    asked.ended.set()
    replies += [reply.correlation_id for reply in call]
    assert replies == [str(n + 1) for n in range(asked.taken)]


@pytest.mark.parametrize("bad", [b"\xff\xff\xff", b"\x12\x05cut\xf0\x9f"], ids=["no message", "a cut character"])
def test_bytes_that_are_no_request_end_the_stream_after_the_answers_before(
    channel: grpc.Channel, served: tuple[Client, Engine], bad: bytes
) -> None:
    untyped: Any = channel.stream_stream("/coldframe.v1.EmbeddingService/StreamEmbed")
    good = StreamEmbedRequest(correlation_id="1", text="a b").SerializeToString()
    call = untyped(iter([good, good, bad, good]), timeout=60)
    answered: list[bytes] = []
    with pytest.raises(grpc.RpcError) as raised:
        answered.extend(iter(call.__next__, None))
    assert len(answered) == 2
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "not UTF-8, such as one that was cut within a character" in cast("Any", raised.value).details()
    assert served[0].embed(["a"]).embeddings, "and the server goes on"


def test_an_empty_stream_is_answered_with_nothing(channel: grpc.Channel) -> None:
    assert [*EmbeddingServiceStub(channel).StreamEmbed(iter([]), timeout=60)] == []
