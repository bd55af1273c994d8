"""Item cold start over real gRPC: what an upsert and a delete promise, at once, after a restart and when they fail."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest

from coldframe.errors import FailedPrecondition, InvalidArgument, UnknownArticle
from coldframe.live import LIVE, LiveStore
from coldframe.v1.article_service_pb2 import (
    UPSERT_OUTCOME_CREATED,
    UPSERT_OUTCOME_REPLACED,
    UPSERT_OUTCOME_UNCHANGED,
    DeleteArticlesRequest,
    StreamUpsertArticlesRequest,
    UpsertArticlesRequest,
)
from coldframe.v1.article_service_pb2_grpc import ArticleServiceStub
from tests.disks import mount, used_kib
from tests.newsroom import COUNT, Barrier, every_id, nearest, opened, piece, settled, words
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from coldframe import Client
    from coldframe.v1.article_service_pb2 import UpsertArticlesResponse
    from coldframe.v1.types_pb2 import Article
    from server.engine import Engine
    from tests.conftest import Background

CREATED, REPLACED, UNCHANGED = UPSERT_OUTCOME_CREATED, UPSERT_OUTCOME_REPLACED, UPSERT_OUTCOME_UNCHANGED
DAY = timedelta(days=1)
MAY = datetime(2026, 5, 1, 12, 30, 15, 123456, tzinfo=UTC)


@pytest.fixture
def served(background: Background, own_newsroom: Path) -> Iterator[tuple[Client, Engine]]:
    with opened(background, own_newsroom) as both:
        yield both


def outcomes(reply: UpsertArticlesResponse) -> list[int]:
    return [result.outcome for result in reply.results]


def bare(message: Any) -> Any:
    """A reply without what differs from call to call."""
    message.ClearField("timing")
    return message


def answers(client: Client) -> list[Any]:
    """All that a server says of its articles."""
    clusters = [*client.clusters()]
    listed = [article for cluster in clusters for article in client.cluster_articles(cluster.id)]
    found = bare(client.search(words("anything"), exact=True, limit=1000, max_per_story=0))
    return [clusters, listed, found, bare(client.index())]


# ------------------------------------------------------------------------------------------------------ what it becomes


def test_an_article_is_created_then_unchanged_then_replaced(served: tuple[Client, Engine]) -> None:
    client, _ = served
    assert outcomes(client.upsert([piece("new"), piece("000")])) == [CREATED, REPLACED]
    sequence = client.index().served_by.live_sequence
    again = client.upsert([piece("new"), piece("000")])
    assert outcomes(again) == [UNCHANGED, UNCHANGED]
    assert again.served_by.live_sequence == sequence, "nothing was written"
    assert outcomes(client.upsert([piece("new", words("other"))])) == [REPLACED]
    index = client.index().index
    assert (index.article_count, index.live_count, index.replaced_count) == (COUNT + 1, 2, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"title": "other"},
        {"published_at": MAY + timedelta(microseconds=1)},
        {"published_at": None},
        {"attributes": {"desk": "b"}},
        {"attributes": {}},
        {"attributes": {"desk": "a", "more": ""}},
    ],
)
def test_what_is_said_of_an_article_is_part_of_it(served: tuple[Client, Engine], change: dict[str, Any]) -> None:
    client, _ = served
    fields: dict[str, Any] = {"title": "T", "published_at": MAY, "attributes": {"desk": "a"}}
    first = client.upsert([piece("new", "a b c", **fields)]).results[0]
    second = client.upsert([piece("new", "a b c", **fields | change)]).results[0]
    assert (first.outcome, second.outcome) == (CREATED, REPLACED)
    shown, wanted = client.get_article("new").article, piece("new", "a b c", **fields | change)
    assert (shown.title, dict(shown.attributes)) == (wanted.title, dict(wanted.attributes))
    assert shown.published_at == wanted.published_at
    assert shown.HasField("published_at") == wanted.HasField("published_at")


def test_spaces_around_a_title_and_a_content_are_nothing(served: tuple[Client, Engine]) -> None:
    client, _ = served
    client.upsert([piece("new", "a b c", title="T")])
    assert outcomes(client.upsert([piece("new", "\n a b c\t", title="  T ")])) == [UNCHANGED]
    assert client.get_article("new").article.title == "T"


def test_an_article_of_the_corpus_that_comes_again_as_it_was_is_unchanged(served: tuple[Client, Engine]) -> None:
    client, _ = served
    shown = client.get_article("007").article
    same = piece("007", shown.excerpt, title=shown.title, attributes=dict(shown.attributes))
    same.published_at.CopyFrom(shown.published_at)
    result = client.upsert([same]).results[0]
    assert (result.outcome, result.article) == (UNCHANGED, shown)
    assert not result.article.live


def test_an_article_is_in_the_cluster_whose_centroid_is_nearest(served: tuple[Client, Engine]) -> None:
    client, engine = served
    reply = client.upsert([piece(f"n{n}") for n in range(20)], cluster_limit=3, neighbor_limit=7)
    view, generation = engine.served().view, engine.served().generation
    for result in reply.results:
        row = view.row_of(result.article.id)
        assert row is not None
        cosines = generation.index.centroids.astype(np.float64) @ view.vector(row).astype(np.float64)
        best = int(cosines.argmax())
        assert result.article.cluster_id == generation.clusters[best].id == result.clusters[0].cluster.id
        assert result.article.centrality == pytest.approx(cosines[best], abs=1e-6)
        assert result.article.outlier == (cosines[best] < generation.clusters[best].outlier_below)
        assert result.article.live
        wanted = nearest(view, view.vector(row), {result.article.id})[:7]
        exact = client.search(article_id=result.article.id, limit=7, exact=True, max_per_story=0)
        assert [hit.article.id for hit in exact.hits] == wanted
        assert len({hit.article.id for hit in result.neighbors} & {*wanted}) >= 5, "of the lists that are visited"
        assert (result.usage.tokens_seen, result.usage.tokens_used) == (42, 42)


def test_neighbours_and_clusters_are_those_of_the_other_calls(served: tuple[Client, Engine]) -> None:
    client, _ = served
    (result,) = client.upsert([piece("new")], cluster_limit=100, neighbor_limit=100).results
    got = client.get_article("new", cluster_limit=100, neighbor_limit=100)
    assert (got.article, got.usage) == (result.article, result.usage)
    assert [*got.clusters] == [*result.clusters] == [*client.nearest_clusters(article_id="new", limit=100).matches]
    assert [*got.neighbors] == [*result.neighbors]
    searched = client.search(article_id="new", limit=100, max_per_story=0).hits
    assert [(hit.article.id, hit.score) for hit in searched] == [(n.article.id, n.score) for n in result.neighbors]


# ------------------------------------------------------------------------------------------------------------- stories


def nearly(text: str) -> str:
    """The text with its last word changed."""
    return text.rsplit(" ", 1)[0] + (" a" if text[-1] != "a" else " b")


def dated(client: Client, article_id: str) -> datetime:
    return client.get_article(article_id).article.published_at.ToDatetime(UTC)


def test_a_version_of_a_known_article_joins_its_story_within_the_window(served: tuple[Client, Engine]) -> None:
    client, engine = served
    days = engine.served().generation.manifest.parameters.story_window_days
    old = client.get_article("011").article
    version = nearly(old.excerpt)
    inside, outside = dated(client, "011") + days * DAY, dated(client, "011") + days * DAY + timedelta(seconds=1)
    articles = {
        "inside": piece("inside", version, title=old.title, published_at=inside),
        "undated": piece("undated", version + " x y", title=old.title),
        "outside": piece("outside", version + " p q r", title=old.title, published_at=outside),
        "copy": piece("copy", old.excerpt, title=old.title, published_at=outside + 365 * DAY),
        "another": piece("another"),
    }
    stories = {name: client.upsert([sent]).results[0].article.story_id for name, sent in articles.items()}
    assert stories["inside"] == stories["undated"] == stories["copy"] == old.story_id == "011"
    assert (stories["outside"], stories["another"]) == ("outside", "another")
    found = client.search(article_id="011", limit=1000, exact=True).hits
    assert not {"inside", "undated", "copy"} & {hit.article.id for hit in found[1:]}, "one of a story"


def test_versions_of_a_live_article_share_its_story_and_its_name_while_it_is_there(
    served: tuple[Client, Engine],
) -> None:
    client, _ = served
    text = words("first", 60)
    for name, sent in (("first", text), ("second", nearly(text)), ("third", nearly(nearly(text) + " c"))):
        day = MAY + DAY * len(name)
        assert client.upsert([piece(name, sent, published_at=day)]).results[0].article.story_id == "first"
    client.upsert([piece("first", words("something else"), published_at=MAY)])
    stories = {name: client.get_article(name).article.story_id for name in ("first", "second", "third")}
    assert stories == {"first": "first", "second": "third", "third": "third"}, "the earliest that is left, by date"
    client.delete(["third"])
    assert client.get_article("second").article.story_id == "second"


# -------------------------------------------------------------------------------------------------------- validate_only


def test_validate_only_says_what_would_be_and_changes_nothing(
    served: tuple[Client, Engine], own_newsroom: Path
) -> None:
    client, engine = served
    sent = [piece("new", words("x")), piece("000"), piece("copy", words("x"))]
    before = answers(client)
    assert not (own_newsroom / LIVE).exists()
    tried = bare(client.upsert(sent, validate_only=True, cluster_limit=2, neighbor_limit=3))
    gone = client.delete(["001", "nobody"], validate_only=True)
    assert ([*gone.deleted_ids], [*gone.missing_ids]) == (["001"], ["nobody"])
    assert outcomes(tried) == [CREATED, REPLACED, CREATED]
    assert answers(client) == before
    assert not (own_newsroom / LIVE).exists()
    done = bare(client.upsert(sent, cluster_limit=2, neighbor_limit=3))
    for rehearsed, real in zip(tried.results, done.results, strict=True):
        assert rehearsed.article == real.article
        assert [n.article.id for n in rehearsed.neighbors] == [n.article.id for n in real.neighbors]
        assert [*rehearsed.clusters] == [*real.clusters]
    with pytest.raises(InvalidArgument, match="at most 64"):
        client.upsert([piece("bad", attributes={str(n): "" for n in range(65)})], validate_only=True)
    assert engine.served().view.sequence == 3


# -------------------------------------------------------------------------------------------------------------- deletes


def test_what_is_deleted_is_gone_at_once_from_every_answer(served: tuple[Client, Engine], own_newsroom: Path) -> None:
    client, _ = served
    client.upsert([piece("live")])
    medoids = [cluster.medoid.id for cluster in client.clusters()]
    gone = ["live", "005", "nobody", *medoids]
    clusters = {name: client.get_article(name).article.cluster_id for name in gone if name != "nobody"}
    before = {cluster.id: cluster.size for cluster in client.clusters()}
    reply = client.delete([*gone, "005"])
    assert [*reply.deleted_ids] == [name for name in gone if name != "nobody"]
    assert [*reply.missing_ids] == ["nobody"]
    after = {cluster.id: cluster.size for cluster in client.clusters()}
    assert {name: before[name] - [*clusters.values()].count(name) for name in before} == after
    everything = client.search(words("x"), limit=1000, exact=True, max_per_story=0).hits
    assert len(everything) == client.index().index.article_count == COUNT + 1 - len(clusters)
    shown = {hit.article.id for hit in everything}
    shown |= {
        hit.article.id for hit in client.recommend([words("x")], limit=1000, effort="exact", max_per_story=0).hits
    }
    for cluster in client.clusters():
        shown |= {article.id for article in client.cluster_articles(cluster.id)}
        whole = client.cluster(cluster.id).cluster
        shown |= {cluster.medoid.id, *(article.id for article in whole.representatives)}
        assert whole.medoid == whole.representatives[0] == cluster.medoid
    assert not shown & {*gone}
    for name in gone:
        with pytest.raises(UnknownArticle, match="no article"):
            client.get_article(name)
        with pytest.raises(UnknownArticle):
            client.search(article_id=name)
    with LiveStore(own_newsroom / LIVE, read_only=True) as live:
        entries = [live.get(name) for name in gone]
    assert all(entry is not None and entry.article is None for entry in entries), "a corpus does not bring them back"


def test_a_deletion_that_changes_nothing_is_written_once(served: tuple[Client, Engine]) -> None:
    client, _ = served
    sequences = [client.delete(["nobody", "005"]).served_by.live_sequence for _ in range(3)]
    assert sequences == [2, 2, 2]
    assert outcomes(client.upsert([piece("005"), piece("nobody")])) == [CREATED, CREATED]


# ---------------------------------------------------------------------------------------------------- restart, failures


def test_a_restart_keeps_everything(background: Background, own_newsroom: Path) -> None:
    with opened(background, own_newsroom) as (client, _):
        client.upsert([piece(f"n{n}", published_at=MAY, attributes={"desk": "x"}) for n in range(30)])
        client.upsert([piece("n3", words("again")), piece("007"), piece("n4", words("n4"))])
        client.delete(["n5", "008", "nobody"])
        before = answers(client)
    with opened(background, own_newsroom) as (client, _):
        assert answers(client) == before
        assert outcomes(client.upsert([piece("n3", words("again")), piece("007")])) == [UNCHANGED, UNCHANGED]


BAD: dict[str, tuple[list[Article], str]] = {
    "none": ([], "articles"),
    "too many": ([piece(str(n), "a") for n in range(257)], "articles"),
    "one id twice": ([piece("new"), piece("x", "a"), piece("x", "b")], "articles[2].id"),
    "no id": ([piece("new"), piece("", "a")], "articles[1].id"),
    "long id": ([piece("new"), piece("x" * 513, "a")], "articles[1].id"),
    "spaced id": ([piece("new"), piece("x ", "a")], "articles[1].id"),
    "no text": ([piece("new"), piece("x", " ", title="\n")], "articles[1]"),
    "long text": ([piece("new"), piece("x", "a" * 1_000_001)], "articles[1]"),
    "long key": ([piece("new"), piece("x", attributes={"k" * 129: ""})], "articles[1].attributes"),
    "long value": ([piece("new"), piece("x", attributes={"k": "v" * 4097})], "articles[1].attributes"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_bad_article_and_none_is_taken(served: tuple[Client, Engine], own_newsroom: Path, name: str) -> None:
    client, _ = served
    sent, field = BAD[name]
    with pytest.raises(InvalidArgument) as refused:
        client.upsert(sent)
    assert refused.value.field == field
    assert client.index().index.article_count == COUNT
    assert not (own_newsroom / LIVE).exists()


def test_a_store_that_cannot_be_written_is_searched_and_says_so(
    background: Background, newsroom: Path, disk: Path
) -> None:
    store = shutil.copytree(newsroom, disk / "store")
    assert mount(disk, "remount,ro")
    with opened(background, store) as (client, _):
        for change in (lambda: client.upsert([piece("new")]), lambda: client.delete(["000"])):
            with pytest.raises(FailedPrecondition, match="cannot write in its store") as refused:
                change()
            assert str(disk) not in refused.value.message
        assert outcomes(client.upsert([piece("new")], validate_only=True)) == [CREATED]
        assert len(client.search(words("x")).hits) == 10
        assert mount(disk, "remount,rw")
        assert outcomes(client.upsert([piece("new")])) == [CREATED], "once it can be written it is"


def test_a_full_disk_takes_nothing_of_a_call_and_everything_later(
    background: Background, newsroom: Path, disk: Path
) -> None:
    store = shutil.copytree(newsroom, disk / "store")
    sent = [piece(f"n{n}", "a " * 20_000) for n in range(3)]
    with opened(background, store) as (client, _):
        client.upsert([piece("first")])
        before = answers(client)
        assert mount(disk, f"remount,size={used_kib(disk) + 8}k")
        with pytest.raises(FailedPrecondition, match="Make room") as refused:
            client.upsert(sent)
        assert str(disk) not in refused.value.message
        assert answers(client) == before
        assert mount(disk, "remount,size=64m")
        assert outcomes(client.upsert(sent)) == [CREATED] * 3


# --------------------------------------------------------------------------------------------------------- many at once


def count_commits(patch: pytest.MonkeyPatch) -> list[int]:
    """How many changes each transaction has, from now on."""
    commits: list[int] = []
    apply = LiveStore.apply

    def counted(self: LiveStore, changes: Sequence[Any], after: int, **how: Any) -> list[int]:
        commits.append(len(changes))
        return apply(self, changes, after, **how)

    patch.setattr(LiveStore, "apply", counted)
    return commits


def test_many_callers_share_commits_and_each_finds_what_was_acknowledged(served: tuple[Client, Engine]) -> None:
    client, engine = served

    def work(caller: int) -> None:
        for n in range(5):
            name = f"{caller}-{n}"
            client.upsert([piece(name), piece("contended", words(name))])
            hits = client.search(article=piece(name, words(name)), limit=3, max_per_story=0).hits
            assert name not in {hit.article.id for hit in hits}
            assert client.get_article(name).article.live
            if n % 2:
                client.delete([name])

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(16) as pool:
        commits = count_commits(patch)
        assert [*pool.map(work, range(16))] == [None] * 16
    assert client.index().index.article_count == len(every_id(engine.served().view)) == COUNT + 1 + 16 * 3
    assert sum(commits) == engine.served().view.sequence
    assert sum(cluster.size for cluster in client.clusters()) == COUNT + 1 + 16 * 3


def test_callers_that_wait_together_are_committed_together(served: tuple[Client, Engine]) -> None:
    client, engine = served
    client.upsert([piece("first")])
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(20) as pool:
        commits = count_commits(patch)
        held = Barrier(engine._write)
        calls = [pool.submit(client.delete, [f"{n:03}"]) for n in range(20)]
        wait_until(lambda: engine.writer.waiting >= 19)
        held.open()
        assert {len(call.result(60).deleted_ids) for call in calls} == {1}
    assert sum(commits) == 20
    assert len(commits) <= 3


def test_a_change_does_not_wait_behind_one_whose_caller_has_gone(
    background: Background, served: tuple[Client, Engine]
) -> None:
    client, engine = served
    with grpc.insecure_channel(client._connection.target, [("grpc.enable_http_proxy", 0)]) as channel:
        stub = ArticleServiceStub(channel)
        held = Barrier(engine._write)

        def stand_in_line(name: str, waiting: int) -> Any:
            call = stub.DeleteArticles.future(DeleteArticlesRequest(ids=[name]))
            wait_until(lambda: engine.writer.waiting >= waiting)
            return call

        first = stub.DeleteArticles.future(DeleteArticlesRequest(ids=["000"]))
        wait_until(lambda: engine.writer._worker is not None)
        settled(background)
        left = stand_in_line("001", 1)
        stays = stand_in_line("001", 2)
        left.cancel()
        wait_until(engine.writer._line[0].done.cancelled)
        held.open()
        assert [*first.result(60).deleted_ids] == ["000"]
        assert [*stays.result(60).deleted_ids] == ["001"]


# -------------------------------------------------------------------------------------------------- vectors of one text


def test_equal_texts_have_equal_vectors_and_a_text_that_is_held_is_not_embedded_anew(
    served: tuple[Client, Engine],
) -> None:
    client, engine = served
    batches: list[int] = []
    embed_ids = engine.served().encoder.embed_ids

    def counted(documents: list[list[int]]) -> Any:
        batches.append(len(documents))
        return embed_ids(documents)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.served().encoder, "embed_ids", counted)
        client.upsert([piece("one", "a b c d"), piece("two", words("x")), piece("three", "a b c d")])
        client.upsert([piece("four", "a b c d"), piece("two", words("x"), title="")])
        assert sum(batches) == 3
        client.upsert([piece("one", "a b c d", published_at=MAY)])
        reply = client.search("a b c d", limit=5, max_per_story=0)
        client.recommend(["a b c d"])
        client.search(article=piece("whatever", "a b c d"))
        client.nearest_clusters(
            client.get_article("007").article.title + "\n" + client.get_article("007").article.excerpt
        )
    assert sum(batches) == 3
    assert reply.usage.tokens_seen == 6
    assert [hit.article.id for hit in reply.hits][:3] == ["four", "one", "three"]
    assert len({hit.score for hit in reply.hits[:3]}) == 1
    view = engine.served().view
    vectors = view.vectors(np.array([view.row_of(name) for name in ("one", "three", "four")]))
    assert (vectors == vectors[0]).all()


# -------------------------------------------------------------------------------------------------------------- streams


def stream(client: Client, requests: Sequence[StreamUpsertArticlesRequest]) -> list[Any]:
    with grpc.insecure_channel(client._connection.target, [("grpc.enable_http_proxy", 0)]) as channel:
        return [*ArticleServiceStub(channel).StreamUpsertArticles(iter(requests), timeout=60)]


def asked(correlation_id: str, *articles: Article) -> StreamUpsertArticlesRequest:
    return StreamUpsertArticlesRequest(
        correlation_id=correlation_id, request=UpsertArticlesRequest(articles=articles, neighbor_limit=1)
    )


def test_a_stream_answers_in_order_and_one_bad_request_fails_alone(served: tuple[Client, Engine]) -> None:
    client, _ = served
    requests = [asked(f"ä{n}", piece(f"n{n}")) for n in range(50)]
    requests[7] = asked("", piece("x"), piece("y", " "))
    replies = stream(client, requests)
    assert [reply.correlation_id for reply in replies] == [request.correlation_id for request in requests]
    error = replies[7].error
    assert (error.code, error.field) == ("INVALID_ARGUMENT", "articles[1]")
    assert {reply.WhichOneof("result") for n, reply in enumerate(replies) if n != 7} == {"response"}
    names = [reply.response.results[0].article.id for n, reply in enumerate(replies) if n != 7]
    assert names == [f"n{n}" for n in range(50) if n != 7]
    assert client.index().index.article_count == COUNT + 49
    with pytest.raises(UnknownArticle):
        client.get_article("x")


def test_of_two_versions_in_one_stream_the_later_one_stays(served: tuple[Client, Engine]) -> None:
    """Though the first must be embedded, with a long text before it, and the second is held already."""
    client, _ = served
    client.upsert([piece("held", words("held"))])
    rounds = [
        [
            asked("", piece(f"slow{n}", "a " * 1000 + str(n))),
            asked("", piece("x", words(f"x{n}", 1000))),
            asked("", piece("x", words("held"))),
        ]
        for n in range(2)
    ]
    for requests in rounds:
        replies = stream(client, requests)
        assert [reply.WhichOneof("result") for reply in replies] == ["response"] * 3
        assert client.get_article("x").article.excerpt == client.get_article("held").article.excerpt
