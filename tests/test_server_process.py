"""How the server fails, bears load, waits, starts and stops: in this process, and as `python -m server`."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status  # type: ignore[import-untyped, unused-ignore]

from coldframe import Client, settings
from coldframe.errors import (
    ColdframeError,
    CorruptGeneration,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    NoGeneration,
    Overloaded,
    error_classes,
)
from coldframe.store import Store
from coldframe.v1.embedding_service_pb2 import EmbedRequest, EmbedResponse
from coldframe.v1.embedding_service_pb2_grpc import EmbeddingServiceStub
from server.__main__ import app
from server.address import Address
from server.app import SERVICES, Server
from server.embed_queue import EmbedQueue
from server.engine import Engine
from server.serving import Served
from server.view import Base, View
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from coldframe import Encoder
    from coldframe.generation import Generation
    from coldframe.live import Embedded
    from tests.conftest import Background

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def dial(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)])  # no proxy can reach this machine itself


def health(channel: grpc.Channel) -> set[int]:
    """The states of the server as a whole and of each of its services."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return {stub.Check(health_pb2.HealthCheckRequest(service=name)).status for name in ("", *SERVICES)}


async def nothing() -> None:
    """Is told that a generation was loaded."""


def damage(store: Store, file: str = "clusters.json") -> Path:
    """Flips a bit of a file of the current generation."""
    path = store.directory(str(store.current())) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    return path


# ------------------------------------------------------------------------------------------------------------ errors


class Failing(Engine):
    """An engine that answers every question with one error."""

    error: Exception = NoGeneration("")

    def served(self) -> Served:
        raise self.error


@pytest.fixture(scope="module")
def failing(background: Background, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Failing, str]]:
    engine = Failing(Store(tmp_path_factory.mktemp("failing")))
    with background.serving(engine) as address:
        yield engine, address


@pytest.mark.parametrize("kind", error_classes().values())
def test_every_error_keeps_its_class_its_code_and_its_sentence(
    failing: tuple[Failing, str], kind: type[ColdframeError]
) -> None:
    engine, address = failing
    engine.error = kind("Größe 100%: ein Satz, 新聞\nund noch einer")
    with Client(address, attempts=1) as client, pytest.raises(ColdframeError) as raised:
        client.index()
    assert (type(raised.value), raised.value.message) == (kind, str(engine.error))
    cause = raised.value.__cause__
    assert isinstance(cause, grpc.RpcError)
    assert cause.code().name == kind.code
    status = rpc_status.from_call(cause)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("coldframe", kind.__name__)


def test_what_an_error_carries_arrives_too(failing: tuple[Failing, str]) -> None:
    engine, address = failing
    with Client(address) as client:
        engine.error = InvalidArgument("no", field="seed.text[3] ä%")
        with pytest.raises(InvalidArgument) as invalid:
            client.search("x")
        engine.error = Overloaded("later", retry_after_s=2.25)
        with pytest.raises(Overloaded) as overloaded:
            client.search("x")
    assert invalid.value.field == "seed.text[3] ä%"
    assert overloaded.value.retry_after_s == 2.25


def test_a_fault_of_the_servers_own_says_nothing_but_where_to_look(
    failing: tuple[Failing, str], caplog: pytest.LogCaptureFixture
) -> None:
    engine, address = failing
    engine.error = RuntimeError("/etc/secrets: line 7")
    with Client(address) as client, pytest.raises(InternalError) as raised:
        client.clusters().__next__()
    assert "secrets" not in raised.value.message
    assert "RuntimeError" not in raised.value.message
    ticket = raised.value.message.split()[-1]
    assert ticket in caplog.text
    assert "/etc/secrets: line 7" in caplog.text


# -------------------------------------------------------------------------------------------------------------- load


class Door:
    """The real encoder behind a door: what goes in waits until it is opened."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.batches: list[list[list[int]]] = []
        self.open = threading.Event()
        self.broken = False

    def embed_ids(self, documents: list[list[int]]) -> NDArray[np.float32]:
        broken = self.broken
        self.batches.append(documents)
        assert self.open.wait(60)
        if broken:
            raise RuntimeError("no memory left")
        return self._encoder.embed_ids(documents)


class Crowded(Engine):
    """An engine whose encoder stands behind a door and whose line is short."""

    def __init__(self, generation: Generation, encoder: Encoder, store: Store) -> None:
        super().__init__(store)
        self.door = Door(encoder)
        self.queue = EmbedQueue(cast("Encoder", self.door), self._compute)
        self.queue.quick.most = 20
        self.gone = threading.Semaphore(0)
        self._fixed = Served(View.of(Base(generation)), encoder, self.queue)

    def served(self) -> Served:
        return self._fixed

    async def embed(self, *asked: Any, **how: Any) -> list[Embedded]:
        try:
            return await super().embed(*asked, **how)
        finally:
            self.gone.release()

    async def close(self) -> None:
        await self.queue.drain()
        await super().close()


@pytest.fixture
def crowded(
    background: Background, generation: Generation, encoder: Encoder, store_path: Path
) -> Iterator[tuple[Crowded, EmbeddingServiceStub]]:
    """One text is being embedded already: what comes now stands in line."""
    engine = Crowded(generation, encoder, Store(store_path))
    with background.serving(engine) as address, dial(address) as channel:
        stub = EmbeddingServiceStub(channel)
        first = stub.Embed.future(EmbedRequest(texts=["the first in line"]))
        wait_until(lambda: bool(engine.door.batches))
        yield engine, stub
        engine.door.open.set()
        assert len(first.result(60).embeddings) == 1


def stand_in_line(crowded: tuple[Crowded, EmbeddingServiceStub], *texts: str) -> Any:
    """Sends texts and waits until they stand in the line."""
    engine, stub = crowded
    before = engine.queue.quick.texts
    call = stub.Embed.future(EmbedRequest(texts=texts))
    wait_until(lambda: engine.queue.quick.texts == before + len(texts))
    return call


def test_a_full_line_refuses_at_once_and_takes_more_later(crowded: tuple[Crowded, EmbeddingServiceStub]) -> None:
    engine, stub = crowded
    waiting = stand_in_line(crowded, "a second text")
    with pytest.raises(grpc.RpcError) as raised:
        stub.Embed(EmbedRequest(texts=["rain " * 30]), timeout=30)
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    status, retry = rpc_status.from_call(raised.value), error_details_pb2.RetryInfo()
    assert status is not None
    assert [detail.Unpack(retry) for detail in status.details] == [False, True]
    assert retry.retry_delay.seconds == 1
    fitting = stand_in_line(crowded, "this one fits")
    engine.door.open.set()
    assert len(waiting.result(60).embeddings) == len(fitting.result(60).embeddings) == 1
    assert len(stub.Embed(EmbedRequest(texts=["rain " * 30]), timeout=60).embeddings) == 1


def test_texts_that_wait_together_are_computed_together(crowded: tuple[Crowded, EmbeddingServiceStub]) -> None:
    engine, _ = crowded
    calls = [stand_in_line(crowded, f"{n} drops", f"{n} leaves") for n in range(2)]
    engine.door.open.set()
    replies: list[EmbedResponse] = [call.result(60) for call in calls]
    assert [len(batch) for batch in engine.door.batches] == [1, 4]
    assert {len(reply.embeddings) for reply in replies} == {2}
    assert all(reply.timing.queue_ms > 0 for reply in replies)


def test_a_text_whose_caller_has_gone_is_not_computed(crowded: tuple[Crowded, EmbeddingServiceStub]) -> None:
    engine, _ = crowded
    left, stays = stand_in_line(crowded, "nobody waits for this"), stand_in_line(crowded, "somebody waits")
    left.cancel()
    assert engine.gone.acquire(timeout=30)
    engine.door.open.set()
    assert len(stays.result(60).embeddings) == 1
    assert [len(batch) for batch in engine.door.batches] == [1, 1]


def test_a_batch_that_fails_fails_its_callers_and_nobody_else(crowded: tuple[Crowded, EmbeddingServiceStub]) -> None:
    engine, stub = crowded
    first, second = stand_in_line(crowded, "one", "two"), stand_in_line(crowded, "three")
    engine.door.broken = True
    engine.door.open.set()
    assert {call.exception(60).code() for call in (first, second)} == {grpc.StatusCode.INTERNAL}
    engine.door.broken = False
    assert len(stub.Embed(EmbedRequest(texts=["again"]), timeout=60).embeddings) == 1


# ------------------------------------------------------------------------------------------------------------ health


def test_every_service_is_healthy(target: str) -> None:
    with dial(target) as channel:
        assert health(channel) == {SERVING}


def test_the_services_are_those_of_the_contract() -> None:
    names = ("EmbeddingService", "SearchService", "ClusterService", "ArticleService", "IndexService")
    assert tuple(f"coldframe.v1.{name}" for name in names) == SERVICES


# ------------------------------------------------------------------------------ before there is something to serve


def refused_by(client: Client, kind: type[ColdframeError]) -> bool:
    try:
        client.index()
    except ColdframeError as error:
        return type(error) is kind
    return False


def test_a_generation_that_cannot_be_served_is_the_answer_until_a_better_one_comes(
    background: Background, own_store: Path
) -> None:
    store = Store(own_store)
    whole = store.directory(str(store.current()))
    shutil.copytree(whole, whole.with_name("20990101T000000Z-whole"))
    damage(store)
    engine = Engine(store, precision="fp32")
    with background.serving(engine) as address, Client(address) as client, dial(address) as channel:
        assert refused_by(client, NoGeneration)
        waiting = asyncio.run_coroutine_threadsafe(engine.watch(nothing, poll_s=0.02), background.loop)
        wait_until(lambda: refused_by(client, CorruptGeneration))
        assert health(channel) == {NOT_SERVING}
        with pytest.raises(CorruptGeneration, match=r"clusters\.json") as raised:
            client.search("rain")
        assert str(own_store) not in raised.value.message
        store.activate("20990101T000000Z-whole")
        wait_until(lambda: engine.ready)
        waiting.cancel()
        assert client.search("rain").hits


def test_a_model_that_is_not_there_is_named_in_the_log_and_not_on_the_wire(
    background: Background, own_store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(Store(own_store), model=str(tmp_path / "no-model"))
    with background.serving(engine) as address, Client(address) as client:
        waiting = asyncio.run_coroutine_threadsafe(engine.watch(nothing, poll_s=0.02), background.loop)
        wait_until(lambda: refused_by(client, FailedPrecondition))
        with pytest.raises(FailedPrecondition, match="the server's log says why") as raised:
            client.search("rain")
        waiting.cancel()
    assert "no-model" not in raised.value.message
    assert "no-model" in caplog.text


def test_a_refusal_that_is_given_a_thousand_times_does_not_grow(tmp_path: Path, background: Background) -> None:
    engine = Engine(Store(tmp_path))
    lengths = set()
    for _ in range(1000):
        with pytest.raises(NoGeneration) as raised:
            engine.served()
        lengths.add(len(raised.traceback))
    background.run(engine.close())
    assert len(lengths) == 1


# ------------------------------------------------------------------------------------------------- python -m server


class Process:
    """`python -m server`, its standard error in a file, gone when the block ends. `by`: the command that runs it."""

    def __init__(self, folder: Path, *args: object, by: Sequence[str] = (), **environment: str) -> None:
        self._errors = (folder / "stderr").open("w+")
        self.popen = subprocess.Popen(
            [*by, sys.executable, "-m", "server", *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # One thread: a slow call is then slow on any machine, and a busy machine does not make it crawl.
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        self._guard = threading.Timer(120, self.popen.kill)
        self._guard.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.kill()
        self.popen.communicate()
        self._guard.cancel()
        self._errors.close()

    def address(self) -> str:
        """HOST:PORT, as it says on its first line."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline().strip()
        assert line.startswith("listening on 127.0.0.1:"), (line, self.errors())
        return line.removeprefix("listening on ")

    def errors(self) -> str:
        """What stands on standard error so far."""
        self._errors.seek(0)
        return self._errors.read()


def test_an_empty_store_is_served_once_something_is_published(store_path: Path, tmp_path: Path) -> None:
    store, published = Store(tmp_path / "store"), Store(store_path)
    with (
        Process(tmp_path, "--store", store.path, "--precision", "fp32", "--listen", "127.0.0.1:0") as server,
        Client(address := server.address()) as client,
        dial(address) as channel,
    ):
        assert server.popen.stdout is not None
        wanted = f"waiting for a generation in {store.path}, which is not there yet: nothing has been published"
        assert server.popen.stdout.readline().startswith(wanted), "whoever mistyped it sees where it is looked for"
        with pytest.raises(NoGeneration, match="indexer build") as raised:
            client.search("rain")
        assert cast("Any", raised.value.__cause__).code() == grpc.StatusCode.FAILED_PRECONDITION
        assert health(channel) == {NOT_SERVING}
        name = str(published.current())
        with store.draft() as draft:
            shutil.copytree(published.directory(name), draft / "generation")
            store.publish(draft / "generation", name)
        wait_until(lambda: health(channel) == {SERVING})
        assert client.search("rain").served_by.generation == name
        server.popen.send_signal(signal.SIGINT)
        assert server.popen.wait(30) == 0


def test_sigterm_lets_the_call_under_way_finish_and_exits_0(store_path: Path, tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text(
        f'store = "{store_path}"\nlisten = "127.0.0.1:0"\nprecision = "fp32"\ngrace = 60\n'
    )
    with Process(tmp_path, "--config", tmp_path / "server.toml") as server, Client(server.address()) as client:
        client.index()
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(client.embed, ["flood " * 5000], timeout=100)
            time.sleep(0.3)
            assert not slow.done()
            server.popen.send_signal(signal.SIGTERM)
            assert len(slow.result().embeddings) == 1
        assert server.popen.wait(30) == 0
        assert "Traceback" not in server.errors()


def test_the_environment_says_where_to_listen_and_a_second_server_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    with Process(tmp_path, "--store", tmp_path / "store", COLDFRAME_SERVER_LISTEN="127.0.0.1:0") as first:
        address = first.address()
        with Process(tmp_path / "second", "--store", tmp_path / "store", "--listen", address) as second:
            assert second.popen.wait(60) == 2
            assert second.errors().startswith(f"error: cannot listen on {address}: the port is taken")
            assert second.errors().count("\n") == 1
        with Client(address) as client, pytest.raises(NoGeneration):
            client.index()


def test_a_corrupt_generation_ends_the_server_with_the_files_name(own_store: Path, tmp_path: Path) -> None:
    damage(Store(own_store))
    with Process(tmp_path, "--store", own_store, "--listen", "127.0.0.1:0") as server:
        assert server.popen.wait(60) == 1
        assert server.errors().startswith("error: clusters.json of generation ")
        assert server.errors().count("\n") == 1


def run_here(*args: object) -> int:
    """The same command in this process, without the seconds that imports take; it must end on its own."""
    with pytest.raises(SystemExit) as ended:
        settings.run(app, prog="python -m server", prefix="COLDFRAME_SERVER", args=[*map(str, args)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_store_that_is_a_file_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "articles.csv").touch()
    assert run_here("--store", tmp_path / "articles.csv", "--listen", "127.0.0.1:0") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the store ")
    assert said.endswith("is no folder that can be read (Not a directory); give the one that a build published into\n")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0.0.0.0"])
def test_a_port_taken_on_one_of_a_hosts_addresses_is_taken(background: Background, tmp_path: Path, host: str) -> None:
    async def start(port: int) -> None:
        await Server(Engine(Store(tmp_path))).start(Address(host, port))

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InvalidArgument, match=f"cannot listen on {host}:{port}: the port is taken") as raised:
            background.run(start(port))
    assert raised.value.field == "listen"


def test_a_host_that_is_not_there_is_refused(background: Background, tmp_path: Path) -> None:
    async def start() -> None:
        await Server(Engine(Store(tmp_path))).start(Address("no-such-host.invalid", 0))

    with pytest.raises(InvalidArgument, match=r"no-such-host\.invalid:0"):
        background.run(start())


BAD_ADDRESSES = ["", "50051", "localhost", "localhost:", ":50051", "localhost:x", "localhost:-1", "localhost:65536"]


@pytest.mark.parametrize("value", [*BAD_ADDRESSES, "localhost:50051/path", "a:b:c"])
def test_an_address_that_is_none_says_what_one_looks_like(value: str) -> None:
    with pytest.raises(InvalidArgument, match="HOST:PORT with a port of 0 to 65535") as raised:
        Address.parse(value)
    assert raised.value.field == "listen"


def test_a_bad_listen_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("--store", tmp_path, "--listen", "localhost") == 2
    assert capsys.readouterr().err == (
        "error: --listen is 'localhost'; give HOST:PORT with a port of 0 to 65535, such as localhost:50051 or "
        "[::1]:50051\n"
    )
