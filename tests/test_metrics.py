"""Metrics that add up: calls, lines, the index and its drift, held against what happened."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from coldframe import article
from coldframe.articles import Articles
from coldframe.errors import DeadlineExceeded, Overloaded, UnknownArticle
from coldframe.requests import search_request
from coldframe.v1.search_service_pb2_grpc import SearchServiceStub
from server.admission import MAX_SEARCHES
from server.observe.drift import Drift
from server.observe.witness import Witness
from server.security.limits import Limits
from server.tally import Histogram
from server.wire.requests import MAX_DELETES
from server.writer import MAX_WAITING
from tests.newsroom import piece, words
from tests.test_observe import SEARCH, get, labels, observed, read
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from coldframe.articles import ArticleRow
    from coldframe.v1.search_service_pb2 import SearchRequest
    from tests.conftest import Background
    from tests.test_observe import Observed


@pytest.fixture
def server(background: Background, own_newsroom: Path) -> Iterator[Observed]:
    yield from observed(background, own_newsroom, Witness())


@pytest.fixture
def held(server: Observed) -> Iterator[threading.Event]:
    """What threads of the server wait for, no longer than a test that fails: it would not stop otherwise."""
    event = threading.Event()
    yield event
    event.set()


def test_metrics_count_calls_by_status_and_say_where_their_time_went(server: Observed) -> None:
    client = server.client
    for n in range(5):
        client.search(article_id=f"{n:03}")
    client.search(words("a seed"))
    with pytest.raises(UnknownArticle):
        client.search(article_id="nobody")
    assert len([*client.stream_search([search_request(article_id="001"), search_request(article_id="no")])]) == 2
    found = server.samples()
    requests = found["coldframe_requests_total"]
    assert requests[labels(method=SEARCH, code="OK")] == 6
    assert requests[labels(method=SEARCH, code="NOT_FOUND")] == 1
    streamed = found["coldframe_stream_replies_total"]
    assert {key: streamed[labels(method="SearchService/StreamSearch", code=key)] for key in ("OK", "NOT_FOUND")} == {
        "OK": 1,
        "NOT_FOUND": 1,
    }
    assert found["coldframe_request_seconds_count"][labels(method=SEARCH)] == 7
    stages = found["coldframe_stage_seconds_count"]
    assert stages[labels(method=SEARCH, stage="search")] == 6
    assert stages[labels(method=SEARCH, stage="embed")] == 1
    assert found["coldframe_embedded_texts_total"][()] == 1
    assert found["coldframe_batch_tokens_sum"][()] == 42
    whole = found["coldframe_request_seconds_sum"][labels(method=SEARCH)]
    sums = found["coldframe_stage_seconds_sum"]
    parts = sum(sums[labels(method=SEARCH, stage=stage)] for stage in ("search", "embed"))
    assert 0 < parts < whole


def test_a_call_that_is_late_is_counted_as_its_caller_was_told(
    server: Observed, background: Background, held: threading.Event
) -> None:
    codes = {"DEADLINE_EXCEEDED", "CANCELLED"}

    async def hold() -> None:
        for _ in range(2):  # threads that search
            server.engine._search.run(held.wait)

    background.run(hold())
    with grpc.insecure_channel(server.client._connection.target, [("grpc.enable_http_proxy", 0)]) as channel:
        stub: Any = SearchServiceStub(channel)
        late = [stub.Search.future(search_request(article_id="001"), timeout=0.3) for _ in range(3)]
        assert {call.code() for call in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        gone = stub.Search.future(search_request(article_id="001"), timeout=60)
        wait_until(lambda: server.engine.searches.waiting == 1)
        gone.cancel()

        def counted() -> dict[str, float]:
            requests = server.samples().get("coldframe_requests_total", {})
            return {code: requests.get(labels(method=SEARCH, code=code), 0) for code in codes}

        wait_until(lambda: counted() == {"DEADLINE_EXCEEDED": 3, "CANCELLED": 1})
    held.set()
    dropped = server.samples()["coldframe_dropped_total"]
    assert dropped[labels(queue="search", reason="deadline")] == 3
    assert dropped[labels(queue="search", reason="gone")] == 1


def test_open_calls_and_streams_are_told_and_how_many_there_may_be(server: Observed) -> None:
    def opened(of: str = "") -> dict[str, float]:
        return {dict(key)["pool"]: count for key, count in server.samples()[f"coldframe_open_calls{of}"].items()}

    none = dict.fromkeys(("call", "stream", "keyless", "keyless stream"), 0)
    assert opened() == none
    most, limits = opened("_limit"), Limits()
    assert (most["call"], most["stream"]) == (limits.calls, limits.streams)
    ended = threading.Event()

    def requests() -> Iterator[SearchRequest]:
        yield search_request(article_id="001")
        ended.wait()

    replies = server.client.stream_search(requests())
    next(replies)
    assert opened() == none | {"call": 1, "stream": 1}
    ended.set()
    assert [*replies] == []
    wait_until(lambda: opened() == none)


def test_no_series_is_told_twice_where_reflection_is_asked_in_both_versions(server: Observed) -> None:
    request = reflection_pb2.ServerReflectionRequest
    methods = [f"grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")]
    with grpc.insecure_channel(server.client._connection.target, [("grpc.enable_http_proxy", 0)]) as channel:
        for method in methods:
            call: Any = channel.stream_stream(f"/{method}", request.SerializeToString)
            assert len([*call(iter([request(list_services="")]))]) == 1
    wait_until(lambda: len(server.samples().get("coldframe_requests_total", {})) == 2)
    text = get(server.port.port, "/metrics")[1]
    told = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(told) == len(set(told))
    counted = read(text)["coldframe_requests_total"]
    assert counted == {labels(method=method, code="OK"): 1 for method in methods}


def test_whatever_looks_in_the_index_says_how_long(server: Observed) -> None:
    client = server.client
    replies: list[Any] = [
        client.upsert([piece(f"new-{n}") for n in range(20)], cluster_limit=5, neighbor_limit=50),
        client.get_article("001", neighbor_limit=50),
        client.nearest_clusters(words("a seed")),
        client.cluster(next(iter(client.clusters())).id),
        client.trending(),
    ]
    assert all(reply.timing.search_ms > 0 for reply in replies)
    counted = server.samples()["coldframe_stage_seconds_count"]
    assert counted[labels(method="ArticleService/UpsertArticles", stage="search")] == 1


def test_metrics_tell_of_the_index_and_of_what_waits(server: Observed) -> None:
    server.client.upsert([piece(f"new-{n}") for n in range(3)])
    server.client.delete(["007"])
    found = server.samples()
    one = {name: series[()] for name, series in found.items() if () in series}
    assert one["coldframe_articles"] == 122
    assert (one["coldframe_live_articles"], one["coldframe_replaced_articles"]) == (3, 1)
    assert one["coldframe_changed_ratio"] == pytest.approx(4 / 120)
    assert one["coldframe_ready"] == 1
    manifest = server.engine.served().generation.manifest
    created = manifest.created_at.timestamp()
    assert one["coldframe_generation_created_timestamp_seconds"] == created
    assert one["coldframe_generation_age_seconds"] == pytest.approx(time.time() - created, abs=60)
    assert found["coldframe_generation_info"][labels(generation=manifest.name, model=manifest.model.name)] == 1
    assert found["coldframe_queue_depth"] == {labels(queue=q): 0 for q in ("search", "write", "quick", "bulk")}
    assert found["coldframe_queue_limit"][labels(queue="search")] == MAX_SEARCHES
    assert one["coldframe_threads"] >= 3
    assert one["process_resident_memory_bytes"] > 1 << 20


def test_what_is_computed_or_written_stands_in_its_line_until_it_is_done(
    server: Observed, held: threading.Event
) -> None:
    client, engine = server.client, server.engine

    def depth() -> dict[str, float]:
        return {dict(key)["queue"]: value for key, value in server.samples()["coldframe_queue_depth"].items()}

    for pool in (engine._compute, engine._write):
        pool.submit(held.wait)
    with ThreadPoolExecutor(4) as callers:
        asked: list[Future[Any]] = [callers.submit(client.embed, [words(f"long {n}", 400)]) for n in range(2)]
        wait_until(lambda: depth()["bulk"] == 2)
        asked.append(callers.submit(client.delete, ["001", "002", "003"]))
        wait_until(lambda: depth()["write"] == 3)
        held.set()
        for one in asked:
            one.result(60)
    assert set(depth().values()) == {0}


def test_changes_that_find_the_line_full_or_whose_caller_goes_are_counted(
    server: Observed, held: threading.Event
) -> None:
    writer, delete = server.engine.writer, server.client.delete
    server.engine._write.submit(held.wait)
    with ThreadPoolExecutor(20) as callers:
        asked = [callers.submit(delete, ["001"])]
        wait_until(lambda: writer.writing == 1)
        with pytest.raises(DeadlineExceeded):
            delete(["002"], timeout=0.2)
        for n in range(MAX_WAITING // MAX_DELETES):
            asked.append(callers.submit(delete, [f"{n}-{m}" for m in range(MAX_DELETES)]))
        wait_until(lambda: writer.waiting > MAX_WAITING - MAX_DELETES)
        with pytest.raises(Overloaded):
            delete([f"b{m}" for m in range(MAX_DELETES)])
        held.set()
        for one in asked:
            one.result(60)
    found = server.samples()
    assert found["coldframe_refused_total"][labels(queue="write")] == 1
    assert found["coldframe_dropped_total"][labels(queue="write", reason="deadline")] == 1
    assert server.client.get_article("002").article.id == "002"


def test_an_article_that_changed_is_counted_once_whatever_became_of_it(server: Observed) -> None:
    client, changed = server.client, "coldframe_changed_ratio"
    assert server.samples()[changed][()] == 0
    client.upsert([piece(f"{n:03}", words(f"new {n}")) for n in range(10)])
    assert server.samples()[changed][()] == pytest.approx(10 / 120), "replaced"
    client.upsert([piece("000", words("newer"))])
    assert server.samples()[changed][()] == pytest.approx(10 / 120), "and again"
    client.delete(["000", "001"])
    assert server.samples()[changed][()] == pytest.approx(10 / 120), "and removed"
    client.delete(["010"])
    client.upsert([piece("fresh"), piece("000")])
    assert server.samples()[changed][()] == pytest.approx(12 / 120), "another, and one that came"
    client.delete(["fresh"])
    assert server.samples()[changed][()] == pytest.approx(11 / 120), "and went"


def test_an_article_that_was_removed_and_came_back_as_it_was_is_no_change(server: Observed) -> None:
    client, changed = server.client, "coldframe_changed_ratio"
    view = server.engine.served().view
    known = [view.article(row) for row in range(30)]  # so short that excerpts are all of them
    client.delete([one.id for one in known])
    assert server.samples()["coldframe_rebuild_advised"][()] == 1
    client.upsert(
        article(one.id, title=one.title, content=one.excerpt, published_at=one.published_at, attributes=one.attributes)
        for one in known[:28]
    )
    found = server.samples()
    assert found["coldframe_live_articles"][()] == 28
    assert found[changed][()] == pytest.approx(2 / 120), "a build of them would find nothing to do"
    assert found["coldframe_rebuild_advised"][()] == 0
    client.upsert([article(known[0].id, title="another", content=known[0].excerpt)])
    assert server.samples()[changed][()] == pytest.approx(3 / 120)


def test_a_generation_that_became_current_and_cannot_be_served_is_a_file_that_is_refused(
    server: Observed, background: Background, own_newsroom: Path
) -> None:
    def refused() -> float:
        return server.samples()["coldframe_file_refused"][labels(file="generation")]

    current = own_newsroom / "CURRENT"
    served, damaged = current.read_text().strip(), "20990101T000000Z-0123456789ab"
    shutil.copytree(own_newsroom / "generations" / served, own_newsroom / "generations" / damaged)
    (own_newsroom / "generations" / damaged / "index.faiss").write_bytes(b"")
    following = asyncio.run_coroutine_threadsafe(server.engine.watch(nothing, poll_s=0.02), background.loop)
    try:
        assert refused() == 0
        current.write_text(f"{damaged}\n")
        wait_until(lambda: refused() == 1)
        assert server.client.search(article_id="001").served_by.generation == served
        current.write_text(f"{served}\n")
        wait_until(lambda: refused() == 0)
    finally:
        following.cancel()


async def nothing() -> None:
    """Is told that a generation was loaded."""


def test_each_scrape_reads_only_what_changed_since_the_last(server: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    client, read_row, rows = server.client, Articles.__getitem__, list[int]()

    def noted(articles: Articles, row: int) -> ArticleRow:
        rows.append(row)
        return read_row(articles, row)

    monkeypatch.setattr(Articles, "__getitem__", noted)

    def drift_reads() -> int:
        rows.clear()
        assert server.samples()["coldframe_changed_ratio"][()] == pytest.approx(20 / 120)
        return len(rows)

    client.upsert([piece(f"{n:03}", words(f"new {n}")) for n in range(20)])
    assert drift_reads() == 20
    client.upsert([piece("000", words("newer"))])
    assert drift_reads() == 1
    assert drift_reads() == 0


def test_a_histogram_counts_each_value_in_one_range() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 3.0):
        histogram.observe(value)
    assert histogram.counts == [2, 1, 1]
    assert histogram.total == 6.0


@pytest.mark.parametrize(
    ("drift", "advised"),
    [
        (Drift(live=10, changed=0.1, outliers=1.0, built=0.01), False),
        (Drift(live=10, changed=0.21, outliers=0.0, built=0.01), True),
        (Drift(live=50, changed=0.1, outliers=0.04, built=0.01), False),
        (Drift(live=50, changed=0.1, outliers=0.07, built=0.01), True),
        (Drift(live=500, changed=0.1, outliers=0.25, built=0.1), False),
    ],
)
def test_a_rebuild_is_advised_where_much_changed_or_many_live_articles_are_outliers(
    drift: Drift, advised: bool
) -> None:
    assert drift.rebuild_advised is advised
