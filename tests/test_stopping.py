"""What a stop waits for, and what it does not."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from coldframe import Client
from coldframe.errors import NoGeneration, Unavailable
from coldframe.store import Store
from coldframe.v1.embedding_service_pb2 import EmbedRequest
from coldframe.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from server.address import Address
from server.app import Server
from server.embed_queue import EmbedQueue
from server.engine import Engine
from server.serving import Served
from server.view import Base, View
from tests.test_server_process import NOT_SERVING, SERVING, Process, dial
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from coldframe import Encoder
    from coldframe.generation import Generation
    from tests.conftest import Background

LONG_S = 40.0


class Slow:
    """An encoder that takes its time for every text, and asks between two steps."""

    def __init__(self) -> None:
        self.begun = threading.Event()

    def embed_ids(self, documents: list[list[int]], between: Callable[[], None]) -> NDArray[np.float32]:
        self.begun.set()
        until = time.monotonic() + LONG_S
        while time.monotonic() < until:
            between()
            time.sleep(0.01)
        return np.zeros((len(documents), 4), np.float32)


class Slowly(Engine):
    """An engine with a slow encoder. searching: so long texts are computed aside."""

    def __init__(self, generation: Generation, encoder: Encoder, store: Store, *, searching: bool) -> None:
        super().__init__(store)
        self.slow, aside, stopping = Slow(), self._aside, self._stopping
        queue = EmbedQueue(
            cast("Encoder", self.slow), self._compute, aside=aside, busy=lambda: searching, stopping=stopping
        )
        self._served = Served(View.of(Base(generation)), encoder, queue)


@pytest.mark.parametrize("searching", [False, True])
def test_a_long_text_is_given_up_when_the_grace_is_over(
    background: Background, generation: Generation, encoder: Encoder, store_path: Path, searching: bool
) -> None:
    engine = Slowly(generation, encoder, Store(store_path), searching=searching)
    with background.serving(engine) as address, dial(address) as channel:
        call = EmbeddingServiceStub(channel).Embed.future(EmbedRequest(texts=["flood " * 1000]))
        assert engine.slow.begun.wait(60)
        begun = time.monotonic()
    assert time.monotonic() - begun < LONG_S / 2
    assert call.exception(10) is not None
    assert isinstance(call.exception(), grpc.RpcError)


def test_streams_that_watch_hold_no_stop_and_hear_of_it(background: Background, tmp_path: Path) -> None:
    async def start() -> tuple[Server, Address]:
        server = Server(Engine(Store(tmp_path)))
        return server, await server.start(Address("127.0.0.1", 0))

    server, address = background.run(start())
    over = threading.Event()

    def questions() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        over.wait(60)

    with dial(str(address)) as channel, ThreadPoolExecutor(1) as pool:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", "no.such.Service")]
        told = [[next(watch).status] for watch in watches]
        background.run(server._health.set(serving=True))
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        answers = reflection.ServerReflectionInfo(questions())
        next(answers)
        begun = time.monotonic()
        stopping = pool.submit(background.run, server.stop(30))
        for watch, statuses in zip(watches, told, strict=True):
            with pytest.raises(grpc.RpcError) as ended:
                statuses.extend(status.status for status in watch)
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        stopping.result()
        assert time.monotonic() - begun < 15
        assert answers.exception(10).code() is grpc.StatusCode.UNAVAILABLE
        over.set()
    assert told[0] == [NOT_SERVING, SERVING, NOT_SERVING]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_still_loads_ends_at_once(
    own_newsroom: Path, tmp_path: Path, workers: int, number: signal.Signals
) -> None:
    file = Store(own_newsroom).find() / "clusters.json"
    file.unlink()
    os.mkfifo(file)  # who reads it waits
    flags = ("--store", own_newsroom, "--precision", "fp32", "--listen", "127.0.0.1:0", "--workers", workers)
    with Process(tmp_path, *flags) as server:
        with file.open("w"):  # once somebody reads
            begun = time.monotonic()
            server.popen.send_signal(number)
            assert server.popen.wait(30) == 0
            assert time.monotonic() - begun < 10
        assert server.errors() == ""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_is_told_to_stop_again_and_again_ends_in_order(
    newsroom: Path, tmp_path: Path, workers: int
) -> None:
    flags = ("--store", newsroom, "--precision", "fp32", "--listen", "127.0.0.1:0", "--workers", workers)
    with Process(tmp_path, *flags) as server:
        server.address()
        while server.popen.poll() is None:
            server.popen.send_signal(signal.SIGTERM)
            time.sleep(0.03)
        assert server.popen.returncode == 0


def test_a_collector_of_traces_that_does_not_answer_holds_no_stop(newsroom: Path, tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        flags = ("--store", newsroom, "--precision", "fp32", "--listen", "127.0.0.1:0", "--traces")
        with Process(tmp_path, *flags, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint) as server:
            with Client(server.address()) as client:
                assert client.search("rain", timeout=60).hits
            begun = time.monotonic()
            server.popen.send_signal(signal.SIGTERM)
            assert server.popen.wait(30) == 0
            assert time.monotonic() - begun < 6


def test_a_server_whose_lines_nobody_reads_any_more_goes_on(tmp_path: Path) -> None:
    with Process(tmp_path, "--store", tmp_path, "--listen", "127.0.0.1:0") as server:
        with Client(server.address()) as client:
            assert server.popen.stdout is not None
            server.popen.stdout.close()
            server.popen.stdout = None
            for _ in range(3):
                with pytest.raises(NoGeneration):
                    client.index()
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(30) == 0, server.errors()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_that_ends_for_a_file_that_was_cut_short_below_it_says_so(
    own_newsroom: Path, tmp_path: Path, workers: int
) -> None:
    """Files of a generation are mapped: the system ends who looks at what is not there any more."""
    flags = ("--precision", "fp32", "--listen", "127.0.0.1:0", "--workers", workers)
    with Process(tmp_path, "--store", own_newsroom, *flags) as server, Client(server.address(), attempts=1) as client:
        assert client.search("a").hits
        os.truncate(Store(own_newsroom).find() / "vectors.npy", 100)
        with pytest.raises(Unavailable):
            client.search("b")
        wait_until(lambda: "Fatal Python error: Bus error" in server.errors())
