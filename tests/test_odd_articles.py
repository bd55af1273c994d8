"""Articles that no newsroom would expect: without a date, from tomorrow, told twice, gone before they came."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.newsroom import COUNT, opened, piece, words

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from coldframe import Client
    from tests.conftest import Background


@pytest.fixture
def client(background: Background, own_newsroom: Path) -> Iterator[Client]:
    with opened(background, own_newsroom) as (client, _):
        yield client


def test_without_a_date_nothing_grows_and_the_largest_cluster_comes_first(client: Client) -> None:
    client.delete([f"{n:03}" for n in range(COUNT)])
    client.upsert([piece(f"undated-{n}") for n in range(9)])
    trending = client.trending(min_count=0)
    assert not trending.HasField("as_of")
    assert not trending.clusters
    by_size = [cluster.id for cluster in client.clusters(order="size")]
    for order in ("growth", "freshness"):
        found = [*client.clusters(order=order)]
        assert sum(cluster.size for cluster in found) == 9
        assert not any(cluster.HasField("newest_at") for cluster in found)
        if order == "growth":
            assert [cluster.id for cluster in found] == by_size
    *buckets, undated = client.cluster(by_size[0]).ages
    assert undated.count == client.cluster(by_size[0]).cluster.size > 0
    assert not any(bucket.count for bucket in buckets)


def test_where_all_articles_are_from_the_future_the_newest_ends_the_window(client: Client) -> None:
    client.delete([f"{n:03}" for n in range(COUNT)])
    tomorrow = datetime(2999, 1, 1, tzinfo=UTC)
    client.upsert([piece(f"early-{n}", words("a"), published_at=tomorrow + timedelta(hours=n)) for n in range(3)])
    trending = client.trending()
    assert trending.as_of.ToDatetime(UTC) == tomorrow + timedelta(hours=2)
    assert [one.count for one in trending.clusters] == [3]
    youngest, *others = client.cluster(trending.clusters[0].cluster.id).ages
    assert youngest.count == 3, "they are as young as can be"
    assert not any(bucket.count for bucket in others)


def test_the_articles_near_one_are_all_that_tell_a_story(client: Client) -> None:
    client.upsert([piece(name, words("a story")) for name in ("one", "other", "third")])
    near = client.get_article("one", neighbor_limit=3).neighbors
    assert [hit.article.id for hit in near[:2]] == ["other", "third"]
    assert len({hit.article.story_id for hit in near}) == 2
    (result,) = client.upsert([piece("fourth", words("a story"))], neighbor_limit=3, validate_only=True).results
    assert [hit.article.id for hit in result.neighbors] == ["one", "other", "third"]


def test_an_id_that_no_article_can_have_is_missing_and_is_not_written_down(client: Client) -> None:
    long = 513 * "x"
    reply = client.delete(["nobody", long, "000"])
    assert ([*reply.deleted_ids], [*reply.missing_ids]) == (["000"], ["nobody", long])
    assert reply.served_by.live_sequence == 2
    alone = client.delete([long])
    assert ([*alone.deleted_ids], [*alone.missing_ids]) == ([], [long])
    assert alone.served_by.live_sequence == 2


def test_an_id_that_is_named_twice_is_deleted_once(client: Client) -> None:
    for validate_only in (True, False):
        reply = client.delete(["000", "nobody", "000", "nobody"], validate_only=validate_only)
        assert ([*reply.deleted_ids], [*reply.missing_ids]) == (["000"], ["nobody"])


def test_a_change_is_answered_from_the_state_that_has_it(client: Client) -> None:
    assert client.upsert([piece("new")]).served_by.live_sequence == 1
    assert client.delete(["new"]).served_by.live_sequence == 2
    assert client.upsert([piece("new")], validate_only=True).served_by.live_sequence == 2


def test_what_is_tried_out_is_found_as_if_it_were_there_whatever_becomes_of_the_others(client: Client) -> None:
    known: Any = client.get_article("000").article
    same = piece("000", known.excerpt, title=known.title, published_at=known.published_at.ToDatetime(UTC))
    same.attributes.update(known.attributes)
    sent = [same, piece("new", words("a story")), piece("001", words("a story"))]
    tried = client.upsert(sent, validate_only=True, neighbor_limit=2)
    done = client.upsert(sent, neighbor_limit=2)
    assert [result.outcome for result in tried.results] == [result.outcome for result in done.results] == [3, 1, 2]
    for one, other in zip(tried.results, done.results, strict=True):
        assert one.article == other.article
        assert one.neighbors == other.neighbors
