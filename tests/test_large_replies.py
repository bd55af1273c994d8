"""What is asked for and too large to be sent: refused in words, counted, and no reason to come back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest

from coldframe import Client
from coldframe.errors import InvalidArgument
from coldframe.requests import search_request
from coldframe.v1.search_service_pb2_grpc import SearchServiceStub
from server.observe.witness import Witness
from server.security.guard import Guard
from server.security.limits import Limits
from tests.newsroom import piece, words
from tests.test_observe import labels, observed
from tests.test_server_process import Process, dial
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Background
    from tests.test_observe import Observed

MOST = 1 << 16
ALL = 120 + 12


@pytest.fixture
def server(background: Background, own_newsroom: Path) -> Iterator[Observed]:
    """Its messages may have 64 KiB; 12 of its articles have 12 KB of attributes each."""
    guard = Guard(limits=Limits(message_bytes=MOST))
    for server in observed(background, own_newsroom, Witness(), guard):
        for n in range(12):
            server.client.upsert([piece(f"large-{n}", attributes={key: key * 4_000 for key in "abc"})])
        yield server


ASKED: dict[str, tuple[str, str, Any]] = {
    "Search": ("SearchService/Search", "limit", lambda client: client.search(words("x"), limit=ALL)),
    "Recommend": ("SearchService/Recommend", "limit", lambda client: client.recommend([words("x")], limit=ALL)),
    "Batch": (
        "SearchService/BatchSearch",
        "requests",
        lambda client: client.batch_search([search_request(article_id=f"large-{n}", limit=40) for n in range(8)]),
    ),
    "Upsert": (
        "ArticleService/UpsertArticles",
        "neighbor_limit",
        lambda client: client.upsert([piece("one-more")], neighbor_limit=100),
    ),
}


@pytest.mark.parametrize(("method", "field", "ask"), ASKED.values(), ids=ASKED)
def test_a_reply_that_is_too_large_says_what_to_ask_for_instead(
    server: Observed, caplog: pytest.LogCaptureFixture, method: str, field: str, ask: Any
) -> None:
    with pytest.raises(InvalidArgument, match=r"the reply has \d+,\d+ bytes, and at most 65,536 are sent; ") as raised:
        ask(server.client)
    assert raised.value.field == field
    assert field in raised.value.message or field == "requests"
    counted = labels(method=method, code="INVALID_ARGUMENT")
    wait_until(lambda: server.samples()["coldframe_requests_total"].get(counted) == 1)
    assert "Traceback" not in caplog.text


def test_what_it_says_to_ask_for_is_answered(server: Observed) -> None:
    client = server.client
    assert len(client.search(words("x"), limit=ALL, read_mask=["article.id"]).hits) == ALL
    assert client.search(words("x"), limit=4).hits
    with pytest.raises(InvalidArgument, match="what it was to write is written"):
        client.upsert([piece("one-more")], neighbor_limit=100)
    assert client.get_article("one-more").article.id == "one-more"


def test_a_stream_goes_on_behind_a_reply_that_is_too_large(server: Observed) -> None:
    asked = [search_request(words("x"), limit=limit) for limit in (3, ALL, 4)]
    first, large, last = server.client.stream_search(asked)
    assert (len(first.response.hits), len(last.response.hits)) == (3, 4)
    assert (large.error.code, large.error.field) == ("INVALID_ARGUMENT", "limit")
    assert "at most 65,536 are sent; ask for fewer hits by limit" in large.error.message
    replies = server.samples()["coldframe_stream_replies_total"]
    stream = "SearchService/StreamSearch"
    assert replies[labels(method=stream, code="INVALID_ARGUMENT")] == 1
    assert replies[labels(method=stream, code="OK")] == 2


def test_a_caller_who_takes_4_mib_and_is_sent_more_leaves_no_traceback(own_store: Path, tmp_path: Path) -> None:
    request = search_request("rain", limit=24, max_per_story=0, read_mask=["article.attributes"])
    large = [piece(f"large-{n}", "rain", attributes={f"{key}": "x" * 4_000 for key in range(64)}) for n in range(20)]
    with (
        Process(tmp_path, "--store", own_store, "--precision", "fp32", "--listen", "127.0.0.1:0") as server,
        Client(address := server.address()) as client,
        dial(address) as channel,
    ):
        client.upsert(large)
        plain: Any = SearchServiceStub(channel)
        for _ in range(60):
            with pytest.raises(grpc.RpcError) as raised:
                plain.Search(request, timeout=60)
            assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert client.index().index.generation
        assert "Traceback" not in server.errors()
