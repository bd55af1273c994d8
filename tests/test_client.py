"""The client against a real server in this process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import grpc
import pytest

from coldframe import article, connection, expansion, filters, seed
from coldframe.client import Client
from coldframe.errors import (
    ColdframeError,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    NotFound,
    Overloaded,
    Unavailable,
    UnknownCluster,
    error_classes,
)
from coldframe.v1.search_service_pb2 import SearchRequest
from coldframe.v1.types_pb2 import EFFORT_EXACT, EFFORT_UNSPECIFIED, Article
from tests.scripted import MAX_REQUEST_BYTES, Failure, Server
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.target, timeout=10) as opened:
        yield opened


def test_every_seed_finds_its_neighbours(client: Client) -> None:
    assert client.search("the economy").hits[0].article.id == "a1"
    assert client.search(article=Article(title="Storm", content="at sea")).hits[0].article.id == "a5"
    assert client.search(article_id="a4").hits[0].article.id == "a3"
    assert [hit.article.id for hit in client.search(vector=[0.0, 0.0, 1.0], limit=2).hits] == ["a5", "a6"]


def test_a_reply_says_what_answered_and_where_the_time_went(client: Client) -> None:
    reply = client.search("the economy")
    assert reply.served_by.model == "minilm"
    assert reply.usage.tokens_seen == reply.usage.tokens_used == 4
    assert reply.timing.total_ms > 0


def test_limit_and_effort_reach_the_server(server: Server, client: Client) -> None:
    client.search("economy", limit=3, exact=True)
    client.search("economy")
    first, second = server.requests
    assert isinstance(first, SearchRequest)
    assert isinstance(second, SearchRequest)
    assert (first.limit, first.effort) == (3, EFFORT_EXACT)
    assert (second.HasField("limit"), second.effort) == (False, EFFORT_UNSPECIFIED)


def test_nearest_clusters(client: Client) -> None:
    reply = client.nearest_clusters("sport on sunday", limit=1)
    assert [match.cluster.id for match in reply.matches] == ["c1"]
    assert client.nearest_clusters(article_id="a5").matches[0].cluster.id == "c2"


def test_embed_keeps_the_order(client: Client) -> None:
    reply = client.embed(["storm", "economy"])
    assert [list(item.vector.values) for item in reply.embeddings] == [[0, 0, 1], [1, 0, 0]]


def test_index_and_cluster(client: Client) -> None:
    assert client.index().index.article_count == 2225
    assert [article.id for article in client.cluster("c1").cluster.representatives] == ["a3", "a4"]


@pytest.mark.parametrize(("page_size", "calls"), [(1, 3), (2, 2), (3, 1), (None, 1)])
def test_clusters_come_from_all_pages(server: Server, client: Client, page_size: int | None, calls: int) -> None:
    assert [cluster.id for cluster in client.clusters(page_size=page_size)] == ["c0", "c1", "c2"]
    assert len(server.requests) == calls


def test_metadata_goes_with_every_call(server: Server) -> None:
    with Client(server.target, metadata=[("Authorization", "Bearer abc")]) as client:
        client.index()
    assert server.metadata["authorization"] == "Bearer abc"


# ------------------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize("ask", [Client.search, Client.nearest_clusters])
@pytest.mark.parametrize(
    ("seeds", "given"),
    [
        ({}, "no seed"),
        ({"text": "a", "article_id": "b"}, "text and article_id"),
        ({"article": Article(), "vector": [1.0]}, "article and vector"),
        ({"text": "", "vector": []}, "text and vector"),
    ],
)
def test_exactly_one_seed(
    server: Server, client: Client, ask: Callable[..., object], seeds: dict[str, Any], given: str
) -> None:
    with pytest.raises(
        InvalidArgument, match=f"^{given} given; give exactly one of text, article, article_id"
    ) as caught:
        ask(client, **seeds)
    assert caught.value.field == "seed"
    assert not server.requests


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda client: client.embed("one string"), "texts"),
        (lambda client: client.embed(["\ud800"]), "texts"),
        (lambda client: client.stream_embed("one string"), "texts"),
        (lambda client: list(client.stream_embed(["\ud800"])), "text"),
        (lambda client: client.search("\ud800"), "seed.text"),
        (lambda client: client.search("a", read_mask=["\ud800"]), "read_mask"),
        (lambda client: client.search(vector=[10**400]), "seed.vector"),
        (lambda client: client.search("a", limit=2**40), "limit"),
        (lambda client: client.nearest_clusters("a", limit=-(2**40)), "limit"),
        (lambda client: client.cluster("\udcff"), "cluster_id"),
        (lambda client: list(client.clusters(page_size=2**31)), "page_size"),
        (lambda client: client.recommend([seed("a", weight=10**400)]), "weight"),
        (lambda _: expansion(articles=2**40), "expansion"),
        (lambda client: client.delete(["\ud800"]), "ids"),
        (lambda client: client.stream_upsert([], group=0), "group"),
        (lambda client: client.search("a", timeout=0), "timeout"),
        (lambda client: client.search("a", timeout=float("nan")), "timeout"),
    ],
)
def test_what_cannot_be_sent_is_named(client: Client, call: Callable[[Client], object], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        call(client)
    assert caught.value.field == field
    assert field.removeprefix("seed.") in caught.value.message


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_moment_that_no_year_of_utc_holds_is_named(client: Client, moment: str) -> None:
    beyond = datetime.fromisoformat(moment)
    calls: dict[str, Callable[[], object]] = {
        "as_of": lambda: client.trending(as_of=beyond),
        "since": lambda: filters.published(since=beyond),
        "published_at": lambda: article("n1", published_at=beyond),
    }
    for field, call in calls.items():
        with pytest.raises(InvalidArgument, match=r"in UTC before the year 1 or after 9999; give a moment") as caught:
            call()
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"target": ""}, "target"),
        ({"target": "http://localhost:50051"}, "target"),
        ({"timeout": -1.0}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"attempts": 0}, "attempts"),
        ({"attempts": 6}, "attempts"),
    ],
)
def test_a_client_checks_its_options(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Client(**options)
    assert caught.value.field == field


def test_a_closed_client_says_so(server: Server) -> None:
    with Client(server.target) as client:
        client.index()
    client.close()
    with pytest.raises(FailedPrecondition, match="closed"):
        client.index()
    assert repr(client) == f"<coldframe.Client {server.target} (closed)>"


def test_a_call_says_that_the_client_was_closed_meanwhile(server: Server) -> None:
    server.stalled = True
    client = Client(server.target)

    def close() -> None:
        wait_until(lambda: bool(server.requests))
        client.close()

    closing = threading.Thread(target=close)
    closing.start()
    with pytest.raises(ColdframeError, match=r"^the client was closed before the answer came\.$"):
        client.index()
    closing.join()


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_begins_as_another_thread_closes_the_client_says_so(
    server: Server, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    client = Client(server.target)
    stub, name = (client._embedding, "StreamEmbed") if stream else (client._index, "GetIndex")
    method = getattr(stub, name)

    def closed_first(*request: Any, **terms: Any) -> Any:
        client.close()
        return method(*request, **terms)

    monkeypatch.setattr(stub, name, closed_first)
    with pytest.raises(ColdframeError, match=r"^the client was closed before the answer came\.$"):
        list(client.stream_embed(["storm"])) if stream else client.index()


# -------------------------------------------------------------------------------------------- retries, deadlines


def test_unavailable_is_tried_again(server: Server, client: Client) -> None:
    server.failures.extend([Failure(grpc.StatusCode.UNAVAILABLE)] * 2)
    assert client.index().index.model == "minilm"
    assert len(server.requests) == 3


@pytest.mark.parametrize("attempts", [1, 2, 4])
def test_attempts_come_to_an_end(server: Server, attempts: int) -> None:
    server.failures.extend([Failure(grpc.StatusCode.UNAVAILABLE)] * 9)
    with Client(server.target, attempts=attempts) as client, pytest.raises(Unavailable):
        client.index()
    assert len(server.requests) == attempts


def test_a_long_request_is_tried_again_too(server: Server, client: Client) -> None:
    server.failures.append(Failure(grpc.StatusCode.UNAVAILABLE))
    client.search("economy " * (MAX_REQUEST_BYTES // 10))  # past gRPC's own retry buffer of 256 KiB
    assert len(server.requests) == 2


RETRIED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code not in {grpc.StatusCode.OK, *RETRIED}])
def test_nothing_else_is_tried_again(server: Server, client: Client, code: grpc.StatusCode) -> None:
    server.failures.append(Failure(code))
    with pytest.raises(ColdframeError):
        client.index()
    assert len(server.requests) == 1


def test_a_server_that_restarts_is_found_again() -> None:
    with Server() as first, Client(first.target, timeout=10) as client:
        client.index()
        first.__exit__()
        with Server(first.target) as second:
            assert client.index().index.model == "minilm"
            assert len(second.requests) == 1


def test_the_deadline_is_the_clients_or_the_calls(server: Server) -> None:
    server.stalled = True
    with Client(server.target, timeout=0.2) as client:
        with pytest.raises(DeadlineExceeded, match=rf"no answer from {server.target} within 0\.2 s"):
            client.index()
        with pytest.raises(DeadlineExceeded, match=r"within 0\.1 s"):
            client.index(timeout=0.1)
        server.stalled = False
        assert client.index(timeout=None).index.model == "minilm"
        for longer_than_grpc_counts in (1e10, 1e300, 10**400):
            assert client.index(timeout=longer_than_grpc_counts).index.model == "minilm"


def test_an_unreachable_server() -> None:
    with Client("localhost:1", attempts=1) as client, pytest.raises(Unavailable) as caught:
        client.search("anything")
    assert caught.value.message.startswith("no Coldframe server answers at localhost:1 (")
    assert caught.value.message.endswith("start one with: python -m server --store DIR --listen localhost:1")


@pytest.mark.parametrize("target", ["", "http://localhost:50051", ":50051", "localhost:65536", "[::1]:99999"])
def test_a_target_that_is_no_address_is_refused_before_it_is_asked(target: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a server's address; give HOST:PORT"):
        Client(target)


def test_a_target_that_cannot_be_found_says_so_and_which_port_was_meant() -> None:
    for target, cause in (
        ("my server:5", "(Misformatted domain name)"),
        ("my server", "(Misformatted domain name; the port is 443 where none is given)"),
        ("unix:/no/such/socket", "(No such file or directory)"),
    ):
        with Client(target, attempts=1) as client, pytest.raises(Unavailable) as caught:
            client.index()
        assert f"{target} {cause}; start one with: python -m server --store DIR" in caught.value.message
        assert caught.value.message.endswith(" --listen my server:5" if target == "my server:5" else "--store DIR")


def test_what_answers_and_is_no_grpc_server_is_told_so() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        target = f"127.0.0.1:{web.server_port}"
        with Client(target, attempts=1) as client, pytest.raises(Unavailable, match=f"{target} does not speak gRPC"):
            client.index()
        web.shutdown()


# -------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("name", error_classes())
def test_every_class_crosses_the_wire(server: Server, name: str) -> None:
    kind = error_classes()[name]
    message = "what was wrong, and what to do: 100 % of it."
    server.failures.append(Failure(grpc.StatusCode[kind.code], message, (("coldframe-error", name),)))
    with Client(server.target, attempts=1) as client, pytest.raises(kind) as caught:
        client.index()
    assert type(caught.value) is kind
    assert caught.value.message == message
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_field_and_retry_after_cross_the_wire(server: Server, client: Client) -> None:
    field = (("coldframe-error", "InvalidArgument"), ("coldframe-field", quote("seed.text[ü]")))
    wait = (("coldframe-error", "Overloaded"), ("coldframe-retry-after-ms", "250"))
    server.failures.append(Failure(grpc.StatusCode.INVALID_ARGUMENT, metadata=field))
    server.failures.append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, metadata=wait))
    with pytest.raises(InvalidArgument) as invalid:
        client.index()
    with pytest.raises(Overloaded) as overloaded:
        client.index()
    assert invalid.value.field == "seed.text[ü]"
    assert overloaded.value.retry_after_s == 0.25


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("INVALID_ARGUMENT", "InvalidArgument"),
        ("NOT_FOUND", "NotFound"),
        ("FAILED_PRECONDITION", "FailedPrecondition"),
        ("RESOURCE_EXHAUSTED", "Overloaded"),
        ("DATA_LOSS", "CorruptGeneration"),
        ("DEADLINE_EXCEEDED", "DeadlineExceeded"),
        ("INTERNAL", "InternalError"),
        ("UNAUTHENTICATED", "Unauthenticated"),
        ("PERMISSION_DENIED", "PermissionDenied"),
        ("CANCELLED", "ColdframeError"),
        ("UNIMPLEMENTED", "ColdframeError"),
        ("UNKNOWN", "ColdframeError"),
    ],
)
def test_without_metadata_the_status_decides(server: Server, code: str, name: str) -> None:
    server.failures.append(Failure(grpc.StatusCode[code], metadata=(("coldframe-error", "FromTheFuture"),)))
    with Client(server.target, attempts=1) as client, pytest.raises(ColdframeError) as caught:
        client.index()
    assert type(caught.value).__name__ == name


def test_a_call_that_was_turned_away_unseen_is_made_again(server: Server, client: Client) -> None:
    server.failures += [Failure(grpc.StatusCode.CANCELLED, "CANCELLED")] * 3  # as gRPC's own server ends it
    assert client.index().index.model == "minilm"
    server.failures += [Failure(grpc.StatusCode.CANCELLED, "CANCELLED")] * 4
    with pytest.raises(Overloaded, match="turned the call away before it looked at it"):
        client.index()
    assert not server.failures


def test_the_service_config_for_other_clients_is_our_own() -> None:
    page = (Path(__file__).parents[1] / "docs" / "operations.md").read_text(encoding="utf-8")
    told = json.loads(page.partition("```json\n")[2].partition("```")[0])
    own = json.loads(connection._service_config(attempts=4))
    assert told == own | {"methodConfig": own["methodConfig"][:1]}  # beside which ours retries no stream


def test_who_is_turned_away_all_the_time_stops_asking_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connection._RETRY_THROTTLING, "maxTokens", 20)
    server.failures += [Failure(grpc.StatusCode.CANCELLED, "CANCELLED")] * 100
    with Client(server.target) as client:
        for _ in range(20):
            with pytest.raises(Overloaded):
                client.index()
    # 4 attempts each until half of the tokens are gone, and then 1.
    assert 27 <= 100 - len(server.failures) <= 30


def test_unknown_ids(client: Client) -> None:
    with pytest.raises(UnknownCluster, match="no cluster has the id 'c9'"):
        client.cluster("c9")
    with pytest.raises(NotFound, match="no article has the id 'a9'"):
        client.search(article_id="a9")


def test_a_bad_retry_after_does_no_harm(server: Server, client: Client) -> None:
    wait = (("coldframe-error", "Overloaded"), ("coldframe-retry-after-ms", "soon"))
    server.failures.append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, metadata=wait))
    with pytest.raises(Overloaded) as caught:
        client.index()
    assert caught.value.retry_after_s == 1.0


def test_a_fault_of_the_servers_is_an_internal_error(server: Server, client: Client) -> None:
    server.failures.append(Failure(grpc.StatusCode.INTERNAL, "see the log"))
    with pytest.raises(InternalError, match="see the log"):
        client.index()


def test_a_message_past_the_servers_limit(client: Client) -> None:
    with pytest.raises(InvalidArgument, match=r"too large: 1,2\d\d,\d\d\d bytes, and at most 1,048,576 are allowed"):
        client.search("economy " * 150_000)


def test_a_message_past_the_clients_limit(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_MESSAGE_BYTES", 100)
    with Client(server.target) as client:
        with pytest.raises(InvalidArgument, match="at most 100 are allowed"):
            client.search("economy " * 100)
        with pytest.raises(InvalidArgument, match="at most 100 are allowed"):
            client.search("economy")  # the reply is the larger one
    assert len(server.requests) == 1


# -------------------------------------------------------------------------------------------------------- import


def test_the_client_stands_on_grpc_and_protobuf_alone() -> None:
    heavy = ["torch", "faiss", "numpy", "typer", "rich", "pyarrow", "transformers", "google.rpc"]
    script = f"import sys, coldframe.client; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
