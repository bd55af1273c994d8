"""Callers who open much and say little: they are ended with a reason, and others are answered all the while."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from benchmarks.attack import Crowd, flood
from coldframe.errors import DeadlineExceeded, Overloaded
from coldframe.requests import search_request
from coldframe.store import Store
from coldframe.v1.search_service_pb2 import StreamSearchRequest
from server.engine import Engine
from server.security.guard import Guard
from server.security.limits import Limits
from tests.guarded import guarded
from tests.newsroom import words
from tests.test_security import endless
from tests.test_server_process import dial
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from coldframe.v1.search_service_pb2 import SearchRequest
    from tests.conftest import Background

SEARCH, STREAM = "/coldframe.v1.SearchService/Search", "/coldframe.v1.SearchService/StreamSearch"
CHECK = "/grpc.health.v1.Health/Check"


@pytest.mark.parametrize("method", [SEARCH, CHECK])
def test_a_call_whose_message_does_not_come_is_ended(
    background: Background, newsroom: Path, tmp_path: Path, method: str
) -> None:
    with guarded(background, newsroom, tmp_path / "s", receive_s=0.3) as server, dial(server.target) as channel:
        metadata = [("authorization", f"Bearer {server.key()}")]
        ask: Any = channel.stream_unary(method)
        calls = [ask.future(endless(), metadata=metadata, timeout=30) for _ in range(20)]
        with server.client(server.key()) as client:
            assert client.search(words("x")).hits
        codes = Counter(call.code() for call in calls)
        assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED: 20}
        assert "was not there within 0.3 s" in calls[0].details()
        wait_until(lambda: server.guard.gate.open == 0)


def test_of_those_who_show_no_key_so_many_bring_a_message_at_once_and_the_next_ones_wait(
    background: Background, newsroom: Path, tmp_path: Path
) -> None:
    with guarded(background, newsroom, tmp_path / "s", receive_s=1.0) as server, dial(server.target) as channel:
        ask: Any = channel.stream_unary(CHECK)
        silent = [ask.future(endless(), timeout=30) for _ in range(40)]
        wait_until(lambda: server.guard.gate.open == 40)
        with server.client(server.key()) as client:
            assert client.search(words("x")).hits
        assert server.guard.gate._keyless.locked()
        assert {call.code() for call in silent} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert ask(iter([b""]), timeout=30)


def test_nonsense_that_takes_no_key_leaves_nothing_in_the_log_and_names_no_library(
    background: Background, newsroom: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with guarded(background, newsroom, tmp_path / "s") as server, dial(server.target) as channel:
        metadata = [("authorization", f"Bearer {server.key()}")]
        ask: Any = channel.unary_unary(CHECK)
        watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
        reflect: Any = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        calls: list[Callable[[], Any]] = [
            lambda: ask(b"\xff\xff"),
            lambda: [*watch(b"\xff\xff")],
            lambda: [*reflect(iter([b"\xff\xff"]), metadata=metadata)],
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError) as raised:
                call()
            error: Any = raised.value
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "the request's bytes are no message" in error.details()
    assert caplog.text == ""


def test_a_stream_that_brings_nothing_is_ended_and_one_that_does_goes_on(
    background: Background, newsroom: Path, tmp_path: Path
) -> None:
    with guarded(background, newsroom, tmp_path / "s", idle_s=1.0) as server, server.client(server.key()) as client:

        def slowly() -> Iterator[SearchRequest]:
            for _ in range(4):
                yield search_request(words("x"))
                time.sleep(0.5)

        assert len([*client.stream_search(slowly())]) == 4, "2 s in all"

        def stops() -> Iterator[SearchRequest]:
            yield search_request(words("x"))
            time.sleep(10)

        answers = client.stream_search(stops())
        assert next(answers).response.hits
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="this stream brought no message for 1 s"):
            next(answers)
        assert time.monotonic() - start < 5


def test_a_stream_whose_answers_nobody_takes_is_read_no_further_and_costs_others_nothing(
    background: Background, newsroom: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    question = StreamSearchRequest(correlation_id="x" * 10_000, request=search_request(words("x"), limit=120))
    message, sent = question.SerializeToString(), 0

    def ever_more() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(20_000):
            sent += 1
            yield message

    with guarded(background, newsroom, tmp_path / "s") as server, dial(server.target) as channel:
        ask: Any = channel.stream_stream(STREAM)
        calls = [ask(ever_more(), metadata=[("authorization", f"Bearer {server.key()}")]) for _ in range(5)]
        wait_until(lambda: server.guard.gate.open == 5)
        wait_until(lambda: still(lambda: sent))
        assert sent < 100_000, "flow control held the senders back"
        with server.client(server.key(name="other")) as client:
            assert client.search(words("x")).hits
        for call in calls:
            call.cancel()
        wait_until(lambda: server.guard.gate.open == 0)
    assert "Traceback" not in caplog.text


def still(value: Callable[[], int]) -> bool:
    before = value()
    time.sleep(0.5)
    return value() == before


@pytest.mark.parametrize("good", [True, False])
def test_a_thousand_streams_at_once(background: Background, newsroom: Path, tmp_path: Path, good: bool) -> None:
    """`python -m benchmarks.attack` opens ten thousand."""
    with guarded(background, newsroom, tmp_path / "s", streams=200, calls_per_key=5_000) as server:
        key = server.key() if good else "cfk_" + 16 * "0" + "_" + 64 * "0"

        async def attack() -> tuple[Crowd, int, list[float]]:
            crowd, waits = Crowd(server.target, key, connections=10), list[float]()
            async with crowd:
                opening = asyncio.create_task(flood(crowd, 1_000))
                while not opening.done():
                    start = time.perf_counter()
                    await asyncio.to_thread(ask)
                    waits.append(time.perf_counter() - start)
                await opening
                await asyncio.to_thread(ask)
                return crowd, crowd.standing, waits

        with server.client(server.key(name="other")) as client:

            def ask() -> None:
                assert client.search(words("x")).hits

            crowd, standing, waits = background.run(attack(), timeout_s=120)
        wait_until(lambda: server.guard.gate.open == 0)
        expected = "RESOURCE_EXHAUSTED" if good else "UNAUTHENTICATED"
        assert crowd.codes == {expected: 800 if good else 1_000}
        assert standing == (200 if good else 0)
        assert waits
        assert max(waits) < 10


@pytest.mark.parametrize("attempts", [1, 4])
def test_a_burst_finds_room_when_it_asks_again(
    background: Background, newsroom: Path, tmp_path: Path, attempts: int
) -> None:
    with (
        guarded(background, newsroom, tmp_path / "s", unseen=16) as server,
        server.client(server.key(), attempts=attempts) as client,
        ThreadPoolExecutor(40) as pool,
    ):
        client.index()
        background.loop.call_soon_threadsafe(time.sleep, 0.2)  # it looks at none of them
        calls = [pool.submit(client.index) for _ in range(40)]
        turned_away = [call for call in calls if isinstance(call.exception(60), Overloaded)]
        assert all(call in turned_away or call.result().index.article_count for call in calls)
        assert len(turned_away) >= 20 if attempts == 1 else not turned_away


# ----------------------------------------------------------------------------------------------------------- pings

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
PING = b"\0\0\x08\6\0\0\0\0\0" + b"are here"


class Brisk(Limits):
    """Pings may come every 50 ms, where others allow one in 10 s."""

    def options(self, *, keys: bool) -> list[tuple[str, int]]:
        return [*{**dict(super().options(keys=keys)), "grpc.http2.min_ping_interval_without_data_ms": 50}.items()]


def pinged(target: str, every_s: float) -> bytes:
    """What comes back on a connection that has no call and pings eight times, or until it is closed."""
    host, _, port = target.rpartition(":")
    said = b""
    with socket.create_connection((host, int(port)), timeout=10) as idle:
        idle.sendall(PREFACE)
        with contextlib.suppress(ConnectionError):
            for _ in range(8):
                idle.sendall(PING)
                said += idle.recv(4096)
                time.sleep(every_s)
    return said


def test_an_idle_connection_may_ping_as_often_as_it_is_said_and_no_more_often(
    background: Background, tmp_path: Path
) -> None:
    with background.serving(Engine(Store(tmp_path)), Guard(limits=Brisk())) as target:
        answered = pinged(target, 0.1)
        assert b"too_many_pings" not in answered
        assert answered.count(b"are here") >= 7
        assert b"too_many_pings" in pinged(target, 0)
