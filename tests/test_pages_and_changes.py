"""Pages go on after the last hit that was shown, whatever comes and goes between them."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from coldframe import InvalidArgument, expansion, seed
from coldframe.v1.cluster_service_pb2 import ListClustersRequest
from server.wire import ranking
from tests.newsroom import COUNT, opened, piece, words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from coldframe import Client
    from coldframe.v1.types_pb2 import Hit
    from tests.conftest import Background

LIMIT = 15
NEAR, FAR = words("a"), "z z z z q q q q"
EVERY: dict[str, Any] = {"exact": True, "max_per_story": 0}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "floor": {"min_score": -1.0},
    "recency": {"half_life": timedelta(days=30), "as_of": datetime(2026, 3, 1, tzinfo=UTC)},
    "priors": {"priors": {"003": 0.1, "004": -0.1}},
    "popularity": {"popularity_attribute": "views", "popularity_weight": 0.5},
    "diversity": {"diversity": 0.3},
}


@pytest.fixture
def client(background: Background, own_newsroom: Path) -> Iterator[Client]:
    with opened(background, own_newsroom) as (client, _):
        yield client


def more_come_than_a_page_has(client: Client, hits: list[Hit]) -> set[str]:
    """They are the nearest of all."""
    client.upsert([piece(f"new-{n}", NEAR) for n in range(2 * LIMIT + 1)])
    return set()


def the_first_goes(client: Client, hits: list[Hit]) -> set[str]:
    return set(client.delete([hits[0].article.id]).deleted_ids)


def the_last_goes(client: Client, hits: list[Hit]) -> set[str]:
    return set(client.delete([hits[-1].article.id]).deleted_ids)


def the_last_goes_down(client: Client, hits: list[Hit]) -> set[str]:
    client.upsert([piece(hits[-1].article.id, FAR)])
    return {hits[-1].article.id}


def the_last_goes_up(client: Client, hits: list[Hit]) -> set[str]:
    client.upsert([piece(hits[-1].article.id, NEAR)])
    return {hits[-1].article.id}


def one_comes_that_more_have_read(client: Client, hits: list[Hit]) -> set[str]:
    """And all others are less popular by now."""
    read = 10 ** (6 + client.index().index.live_count)
    client.upsert([piece(f"read-{read}", FAR, attributes={"views": str(read)})])
    return {f"read-{read}"}


CHANGES = [
    one_comes_that_more_have_read,
    more_come_than_a_page_has,
    the_first_goes,
    the_last_goes,
    the_last_goes_down,
    the_last_goes_up,
]
# What was chosen before an article is the same without it; what comes in may change whatever is unlike it.
DIVERSE = [the_last_goes, the_last_goes_down]


@pytest.mark.parametrize(
    ("change", "way"),
    [(change, way) for change in CHANGES for way in WAYS if way != "diversity" or change in DIVERSE],
)
def test_what_stays_comes_on_one_page(
    client: Client, change: Callable[[Client, list[Hit]], set[str]], way: str
) -> None:
    before = {hit.article.id for hit in client.search(NEAR, limit=1_000, **EVERY, **WAYS[way]).hits}
    changed: set[str] = set()
    page = client.search(NEAR, limit=LIMIT, **EVERY, **WAYS[way])
    found = [hit.article.id for hit in page.hits]
    while page.next_page_token:
        changed |= change(client, list(page.hits))
        page = client.search(NEAR, limit=LIMIT, page_token=page.next_page_token, **EVERY, **WAYS[way])
        assert len(page.hits) == LIMIT or not page.next_page_token
        found += [hit.article.id for hit in page.hits]
    stayed = [name for name in found if name not in changed]
    assert len(stayed) == len(set(stayed))
    assert set(stayed) == before - changed


def test_what_comes_in_above_moves_no_page_of_several_interests(client: Client) -> None:
    asked: dict[str, Any] = {"limit": LIMIT, "interest_similarity": 1.0, "effort": "exact", "max_per_story": 0}
    seeds = [seed(words("a"), weight=3), seed(words("z"), weight=1)]
    page = client.recommend(seeds, **asked)
    client.upsert([piece(f"new-{n}", NEAR) for n in range(5)])
    found = [hit.article.id for hit in page.hits]
    while page.next_page_token:
        page = client.recommend(seeds, page_token=page.next_page_token, **asked)
        found += [hit.article.id for hit in page.hits]
    assert len(found) == len(set(found))


@pytest.mark.parametrize("order", ["centrality", "newest", "id"])
@pytest.mark.parametrize("text", [None, NEAR, FAR])
def test_the_articles_of_a_cluster_that_stay_come_on_one_page(client: Client, order: Any, text: str | None) -> None:
    name = next(iter(client.clusters())).id
    before = {article.id for article in client.cluster_articles(name)}
    found: list[str] = []
    changed: set[str] = set()
    for n, article in enumerate(client.cluster_articles(name, order=order, page_size=3)):
        found.append(article.id)
        if n % 3 == 2:
            # The next page is asked for after this one's last is gone, or another, and one came in at the top.
            client.upsert([piece(f"!{n}", words(article.id), published_at=datetime(2027, 1, 1, tzinfo=UTC))])
            client.delete([article.id]) if text is None else client.upsert([piece(article.id, text)])
            changed.add(article.id)
    stayed = [article_id for article_id in found if article_id not in changed and article_id in before]
    assert len(stayed) == len(set(stayed))
    assert set(stayed) == before - changed


@pytest.mark.parametrize("order", ["size", "freshness", "growth"])
def test_every_cluster_comes_on_one_page_whichever_grows(client: Client, order: Any) -> None:
    before = [cluster.id for cluster in client.clusters()]
    found: list[str] = []
    for n, cluster in enumerate(client.clusters(order=order, page_size=2)):
        found.append(cluster.id)
        if n % 2:
            # Before the next page is asked for the last cluster becomes the first.
            *_, last = client.clusters(order=order)
            date = datetime(2026, 3, 1 + n, tzinfo=UTC)
            client.upsert([piece(f"{n}-{m}", last.medoid.excerpt, published_at=date) for m in range(60)])
            assert next(iter(client.clusters(order=order))).id == last.id
    assert sorted(found) == sorted(before)


@pytest.mark.parametrize("said", ["", "0", "zz", "0000", "2:0:0::"])
def test_a_token_of_clusters_that_somebody_made_is_refused(client: Client, said: str) -> None:
    ask: Any = client._clusters.ListClusters
    token = ask(ListClustersRequest(page_size=2)).next_page_token
    name, digest, _ = base64.urlsafe_b64decode(token).decode().split(":")
    token = base64.urlsafe_b64encode(f"{name}:{digest}:{said}".encode()).decode()
    with pytest.raises(InvalidArgument, match="none of this server's"):
        client._connection.call(ask, ListClustersRequest(page_size=2, page_token=token), 60.0)


@pytest.mark.parametrize("name", ["a:b::c:", ":", 512 * "\N{NEWSPAPER}", "line\nfeed"])
def test_a_token_goes_on_after_any_id(client: Client, name: str) -> None:
    client.upsert([piece(name, NEAR)])
    page = client.search(NEAR, limit=1, **EVERY)
    assert [hit.article.id for hit in page.hits] == [name]
    assert page.next_page_token.isascii()
    assert page.next_page_token.isprintable()
    following = client.search(NEAR, limit=COUNT, page_token=page.next_page_token, **EVERY)
    assert len({hit.article.id for hit in following.hits} - {name}) == COUNT


def test_tokens_of_equal_calls_are_equal_where_no_age_counts(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    minutes = iter(range(1_770_000_000, 2_000_000_000, 60))
    monkeypatch.setattr(ranking, "_minute", lambda: next(minutes))
    calls: dict[str, Callable[[], Any]] = {
        "search": lambda: client.search(NEAR, limit=5),
        "recommend": lambda: client.recommend([NEAR], limit=5, expansion=expansion(articles=3)),
    }
    for name, call in calls.items():
        assert call().next_page_token == call().next_page_token, name
    fading = [client.search(NEAR, limit=5, half_life=timedelta(days=1)).next_page_token for _ in range(2)]
    assert fading[0] != fading[1]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "place", [f"{2**40}:10:0::-9.5:gone", "1:1:0::-9.5:gone", "1:1:0:::gone", "1:1:0:7:9.5:000", "0:1:0:::"]
)
def test_a_token_that_somebody_made_ends_in_a_page(client: Client, way: str, place: str) -> None:
    asked: dict[str, Any] = {"limit": 5, **EVERY, **WAYS[way]}
    name, digest, *_ = base64.urlsafe_b64decode(client.search(NEAR, **asked).next_page_token).decode().split(":")
    token = base64.urlsafe_b64encode(f"{name}:{digest}:{place}".encode()).decode()
    assert len(client.search(NEAR, page_token=token, **asked).hits) <= asked["limit"]
