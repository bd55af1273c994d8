"""What operators see: metrics that add up, probes that say no, logs for machines, spans that follow each other."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import logging
import re
import signal
import socket
import struct
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from benchmarks.storm import Connection
from coldframe import Client
from coldframe.errors import InvalidArgument, UnknownArticle
from coldframe.requests import search_request
from coldframe.store import Store
from coldframe.v1.search_service_pb2 import BatchSearchRequest, StreamSearchRequest
from coldframe.v1.search_service_pb2_grpc import SearchServiceStub
from server.address import Address
from server.engine import Engine
from server.observe import logs
from server.observe.metrics import Pulse, ServerCollector, registry
from server.observe.port import SILENT_S, Port
from server.observe.traces import Tracer
from server.observe.witness import Witness
from server.security.guard import Guard
from tests.newsroom import words
from tests.test_server_process import Process
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from prometheus_client import Metric

    from tests.conftest import Background

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def read(text: str) -> Samples:
    """Samples by name and labels, as Prometheus's own parser reads them."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


class Observed:
    """A server whose calls are noted, and what is told of them."""

    def __init__(self, engine: Engine, witness: Witness, client: Client, guard: Guard) -> None:
        self.engine, self.witness, self.client = engine, witness, client
        self.pulse = Pulse()
        self._registry = registry(ServerCollector(engine, witness, self.pulse, guard))
        self.ready = True
        self.port = Port(Address("127.0.0.1", 0), self._registry, self.pulse, lambda: self.ready)

    def samples(self) -> Samples:
        status, text = get(self.port.port, "/metrics")
        assert status == 200
        return read(text)


def observed(background: Background, store: Path, witness: Witness, guard: Guard | None = None) -> Iterator[Observed]:
    from server.app import Server

    engine, guard = Engine(Store(store), precision="fp32"), guard or Guard()
    engine.load()

    async def start() -> tuple[Server, Address]:
        server = Server(engine, guard, witness=witness)
        return server, await server.start(Address("127.0.0.1", 0))

    server, address = background.run(start())
    with Client(str(address), timeout=60) as client:
        of = Observed(engine, witness, client, guard)
        yield of
        of.port.close()
    background.run(server.stop(1))


@pytest.fixture
def server(background: Background, own_newsroom: Path) -> Iterator[Observed]:
    yield from observed(background, own_newsroom, Witness())


def labels(**values: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(values.items()))


SEARCH = "SearchService/Search"


def test_probes_say_what_is(server: Observed) -> None:
    port = server.port.port
    assert get(port, "/livez") == (200, "alive\n")
    assert get(port, "/readyz") == (200, "ready\n")
    server.ready = False
    assert get(port, "/readyz") == (503, "not ready\n")
    server.pulse.beat -= SILENT_S + 1
    assert get(port, "/livez")[0] == 503
    assert get(port, "/elsewhere")[0] == 404


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["[::1]", "[::]", "127.0.0.1", "localhost", "0.0.0.0"])
def test_probes_are_answered_on_hosts_of_either_family(host: str) -> None:
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    port = Port(Address(host, 0), CollectorRegistry(), Pulse(), lambda: True)
    asked = host.replace("[::]", "[::1]").replace("0.0.0.0", "127.0.0.1")
    with urllib.request.urlopen(f"http://{asked}:{port.port}/livez", timeout=10) as reply:
        assert reply.status == 200
    port.close()


class Broken(Collector):
    """Metrics that cannot be had."""

    def collect(self) -> Iterator[Metric]:
        raise RuntimeError("no metrics today")


def test_callers_of_metrics_that_go_are_nothing_to_tell_and_what_breaks_is_logged(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = CollectorRegistry()
    port = Port(Address("127.0.0.1", 0), metrics, Pulse(), lambda: True)
    metrics.register(Broken())
    with socket.create_connection(("127.0.0.1", port.port)) as gone:
        time.sleep(0.1)
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # is reset when it is closed
    with pytest.raises(http.client.RemoteDisconnected):
        get(port.port, "/metrics")
    wait_until(lambda: bool(caplog.records))
    port.close()
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "no metrics today" in str(record.exc_info[1])
    assert capsys.readouterr().err == ""


def test_a_metrics_host_that_there_is_not_is_said_by_its_flag() -> None:
    with pytest.raises(InvalidArgument, match="--metrics HOST:PORT"):
        Port(Address("no-such-host.invalid", 0, "metrics"), CollectorRegistry(), Pulse(), lambda: True)


# --------------------------------------------------------------------------------------------------------------- logs


def test_every_answer_says_the_id_of_its_request(server: Observed) -> None:
    with grpc.insecure_channel(server.client._connection.target, [("grpc.enable_http_proxy", 0)]) as channel:
        call: Any = SearchServiceStub(channel).Search
        ids = []
        for metadata in ([("x-request-id", "mine-1")], [], [("x-request-id", "x" * 200)]):
            _, done = call.with_call(search_request(article_id="001"), metadata=metadata)
            ids.append(dict(done.trailing_metadata())["x-request-id"])
        with pytest.raises(grpc.RpcError) as raised:
            call(search_request(article_id="no"), metadata=[("x-request-id", "mine-2")])
        error: Any = raised.value
        assert dict(error.trailing_metadata())["x-request-id"] == "mine-2"
    assert ids[0] == "mine-1"
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]+", ids[1])
    assert ids[2] != "x" * 200, "what is too long is not taken"
    assert len(set(ids)) == 3


@pytest.mark.parametrize("name", ["é-1".encode(), b"\xff\xfe", b"a\tb", b"\x7f", b" a, b "])
def test_a_call_whose_id_cannot_be_sent_back_is_answered(server: Observed, name: bytes) -> None:
    """No client of Python's sends these; others do."""
    ended: list[str] = []
    target, method = server.client._connection.target, "/coldframe.v1.IndexService/GetIndex"
    connection = Connection.to(target, method, 30, lambda status, _: ended.append(status))
    connection.headers += b"\x00\x0cx-request-id" + bytes([len(name)]) + name
    connection.waiting.append((0.0, b""))
    connection.send()

    def answered() -> bool:
        connection.receive()
        return bool(ended)

    wait_until(answered)
    connection.socket.close()
    assert ended == ["OK"]


def test_a_slow_call_is_logged_with_its_parts(
    background: Background, own_newsroom: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for server in observed(background, own_newsroom, Witness(slow_ms=0.0)):
        server.client.search(words("a seed"))
    [record] = [record for record in caplog.records if record.name == "coldframe.slow"]
    fields = record.__dict__
    assert fields["method"] == "/coldframe.v1.SearchService/Search"
    assert fields["total_ms"] >= fields["embed_ms"] > 0
    assert fields["request_id"]


def test_slow_replies_of_streams_and_calls_that_ended_otherwise_are_logged_too(
    background: Background, own_newsroom: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def slow() -> list[dict[str, Any]]:
        return [record.__dict__ for record in caplog.records if record.name == "coldframe.slow"]

    for server in observed(background, own_newsroom, Witness(slow_ms=0.0)):
        assert len([*server.client.stream_embed(["one", "another"])]) == 2
        replies = slow()
        with pytest.raises(UnknownArticle):
            server.client.search(article_id="nobody")
        wait_until(lambda: len(slow()) > 2)
    assert [line["method"] for line in replies] == ["/coldframe.v1.EmbeddingService/StreamEmbed"] * 2
    assert all(line["total_ms"] >= line["embed_ms"] > 0 for line in replies)
    [ended] = slow()[2:]
    assert (ended["method"], ended["code"]) == ("/coldframe.v1.SearchService/Search", "NOT_FOUND")
    assert ended["total_ms"] > 0
    assert ended["request_id"]


def test_json_lines_hold_what_was_said_and_broke() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter())
    handler.addFilter(logs.with_request_id)
    logger = logging.Logger("coldframe.test")
    logger.addHandler(handler)
    logger.warning("slow: %s", "Ärger", extra={"total_ms": 12.5, "request_id": "r-1"})
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("broken")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["message"] == "slow: Ärger"
    assert (first["level"], first["total_ms"], first["request_id"]) == ("WARNING", 12.5, "r-1")
    assert second["exception"].endswith("ValueError: two\nlines\n")
    assert second["request_id"] == ""


def test_a_form_of_log_that_there_is_not_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="allowed are text and json"):
        logs.begin("xml")


# ------------------------------------------------------------------------------------------------------------- traces


def tracing() -> tuple[Tracer, Any]:
    """A tracer, and the exporter that remembers its spans."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(memory))
    return Tracer(provider), memory


def test_spans_follow_each_other_inside_the_callers_trace(
    background: Background, own_newsroom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracer, memory = tracing()
    clock = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: clock() + 3_600 * 10**9)  # it was an hour late, and is put right
    before = time.time_ns()
    for server in observed(background, own_newsroom, Witness(tracer=tracer)):
        with grpc.insecure_channel(server.client._connection.target, [("grpc.enable_http_proxy", 0)]) as channel:
            call: Any = SearchServiceStub(channel).Search
            parent = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
            call(search_request(words("a seed"), limit=3), metadata=parent)
    spans = {span.name: span for span in memory.get_finished_spans()}
    whole = spans["coldframe.v1.SearchService/Search"]
    assert f"{whole.context.trace_id:x}" == "af7651916cd43dd8448eb211c80319c"
    assert f"{whole.parent.span_id:x}" == "b7ad6b7169203331"
    moments = [before]
    for name in ("tokenize", "queue", "embed", "search", "rank"):
        assert spans[name].parent.span_id == whole.context.span_id
        moments += [spans[name].start_time, spans[name].end_time]
    assert moments == sorted(moments)
    assert whole.start_time <= moments[1]
    assert moments[-1] <= whole.end_time <= time.time_ns()


def test_a_batch_has_the_spans_of_its_parts_and_a_stream_those_of_each_reply(
    background: Background, own_newsroom: Path
) -> None:
    tracer, memory = tracing()
    searches = [search_request(words(f"seed {n}"), limit=3) for n in range(3)]
    parent = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
    for server in observed(background, own_newsroom, Witness(tracer=tracer)):
        with grpc.insecure_channel(server.client._connection.target, [("grpc.enable_http_proxy", 0)]) as channel:
            stub: Any = SearchServiceStub(channel)
            stub.BatchSearch(BatchSearchRequest(requests=searches), metadata=parent)
            asked = (StreamSearchRequest(correlation_id=str(n), request=one) for n, one in enumerate(searches))
            assert len(list(stub.StreamSearch(asked, metadata=parent))) == 3
    spans = memory.get_finished_spans()

    def below(span: Any) -> list[Any]:
        return [other for other in spans if other.parent.span_id == span.context.span_id]

    whole = {name: [span for span in spans if span.name.endswith(name)] for name in ("BatchSearch", "StreamSearch")}
    assert [len(found) for found in whole.values()] == [1, 3]
    parts = [span.name for span in below(whole["BatchSearch"][0])]
    assert parts.count("search") == parts.count("tokenize") == 3
    for span in [*whole["BatchSearch"], *whole["StreamSearch"]]:
        assert f"{span.context.trace_id:x}" == "af7651916cd43dd8448eb211c80319c"
        assert f"{span.parent.span_id:x}" == "b7ad6b7169203331"
    for span in whole["StreamSearch"]:
        inside = below(span)
        assert [part.name for part in inside] == ["tokenize", "queue", "embed", "search", "rank"]
        assert span.start_time <= inside[0].start_time
        assert inside[-1].end_time <= span.end_time


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "coldframe"),
        ({"OTEL_SERVICE_NAME": "news"}, "news"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=sport,team=a"}, "sport"),
    ],
)
def test_spans_have_the_name_of_the_service_that_the_environment_gives(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str
) -> None:
    from server.observe.traces import tracer

    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    for variable in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    made = tracer()
    assert made._provider.resource.attributes["service.name"] == name
    made.close()


def test_traces_without_the_extra_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from server.observe.traces import tracer

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InvalidArgument, match=re.escape("pip install '.[server,telemetry]'")):
        tracer()


# ------------------------------------------------------------------------------------------------- python -m server


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def test_a_server_tells_machines_all_its_life_long(newsroom: Path, tmp_path: Path) -> None:
    port = free_port()
    with Process(
        tmp_path,
        *("--store", newsroom, "--precision", "fp32", "--listen", "127.0.0.1:0"),
        *("--metrics", f"127.0.0.1:{port}", "--log-format", "json", "--slow-ms", "0"),
    ) as server:
        with Client(server.address()) as client:
            client.search(article_id="001")
            assert get(port, "/readyz")[0] == get(port, "/livez")[0] == 200
            # A call is counted when it is over, a moment after its caller has the answer.
            counted = labels(method=SEARCH, code="OK")
            wait_until(lambda: read(get(port, "/metrics")[1]).get("coldframe_requests_total", {}).get(counted) == 1)
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(30) == 0
        lines = [json.loads(line) for line in server.errors().splitlines()]
    assert {"coldframe.server", "coldframe.slow"} <= {line["logger"] for line in lines}


def test_a_server_is_ready_once_it_listens_and_not_before(newsroom: Path, tmp_path: Path) -> None:
    """Who sends it calls as soon as its probe says so must not be refused."""
    port, own = free_port(), free_port()

    def ready() -> bool:
        with contextlib.suppress(OSError):
            return get(own, "/readyz")[0] == 200
        return False

    arguments = ("--store", newsroom, "--precision", "fp32", "--metrics", f"127.0.0.1:{own}")
    with Process(tmp_path, *arguments, "--listen", f"127.0.0.1:{port}"):
        wait_until(ready)
        socket.create_connection(("127.0.0.1", port), timeout=10).close()


def test_a_worker_whom_nobody_asks_tells_of_the_articles_that_there_are(own_newsroom: Path, tmp_path: Path) -> None:
    port = next(port for port in iter(free_port, 0) if port < 65_535)
    with Process(
        tmp_path,
        *("--store", own_newsroom, "--precision", "fp32", "--listen", "127.0.0.1:0"),
        *("--workers", 2, "--metrics", f"127.0.0.1:{port}"),
    ) as server:
        with Client(server.address(), timeout=60) as client:  # one connection, and so one of them
            assert len(client.delete([f"{n:03}" for n in range(40)]).deleted_ids) == 40

        def articles() -> list[float]:
            told = [read(get(own, "/metrics")[1]) for own in (port, port + 1)]
            return [found["coldframe_articles"][()] for found in told]

        wait_until(lambda: articles() == [80, 80])


def test_a_metrics_address_in_use_is_a_usage_error(newsroom: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with Process(tmp_path, "--store", newsroom, "--listen", "127.0.0.1:0", "--metrics", address) as server:
            assert server.popen.wait(60) == 2
            assert f"cannot listen on {address}" in server.errors()
            assert "--metrics HOST:PORT" in server.errors()


def test_a_late_event_loop_is_seen(background: Background) -> None:
    from server.observe.station import _beat

    pulse = Pulse()

    async def hang() -> None:
        beating = asyncio.create_task(_beat(pulse))
        await asyncio.sleep(0)
        time.sleep(1.3)
        await asyncio.sleep(0.05)
        beating.cancel()

    background.run(hang())
    assert 0.2 < pulse.lag_s < 5


def test_an_event_loop_that_hangs_is_late_while_it_does(server: Observed) -> None:
    server.pulse.note(0.0)
    assert server.samples()["coldframe_loop_lag_seconds"][()] == 0
    server.pulse.beat -= 8
    assert server.samples()["coldframe_loop_lag_seconds"][()] == pytest.approx(7, abs=0.9)
