"""Clusters over real gRPC: orders, pages, ages, neighbours, trends, and what live articles change."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from coldframe.errors import InvalidArgument
from tests.newsroom import COUNT, every_id, opened, piece, words

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from coldframe import Client
    from server.engine import Engine
    from server.view import View
    from tests.conftest import Background

LATE = datetime(2026, 2, 1, tzinfo=UTC)
DAY = timedelta(days=1)
EVER = datetime.min.replace(tzinfo=UTC)


@pytest.fixture(scope="module")
def served(
    background: Background, newsroom: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Client, Engine]]:
    store = shutil.copytree(newsroom, tmp_path_factory.mktemp("clusters") / "store")
    with opened(background, store) as (client, engine):
        client.upsert([piece(f"live-{n}", published_at=LATE - n * timedelta(hours=5)) for n in range(20)])
        client.upsert([piece("undated"), piece("003", published_at=LATE), piece("004", words("x"))])
        client.delete([f"{n:03}" for n in range(50, 60)])
        yield client, engine


@pytest.fixture(scope="module")
def client(served: tuple[Client, Engine]) -> Client:
    return served[0]


@pytest.fixture(scope="module")
def view(served: tuple[Client, Engine]) -> View:
    return served[1].served().view


def dates(view: View) -> dict[str, list[datetime | None]]:
    """Dates of the articles of each cluster, one by one."""
    found: dict[str, list[datetime | None]] = {cluster.id: [] for cluster in view.base.generation.clusters}
    for row in every_id(view).values():
        article = view.article(row)
        found[view.base.generation.clusters[article.cluster].id].append(article.published_at)
    return found


def growth(view: View, window: timedelta, windows: int, end: datetime) -> dict[str, tuple[int, float, float]]:
    """Count, usual and growth of each cluster, article by article."""
    found = {}
    for name, days in dates(view).items():
        ages = [end - day for day in days if day is not None and day <= end]
        count = sum(age < window for age in ages)
        usual = sum(window <= age < window * (1 + windows) for age in ages) / windows
        found[name] = count, usual, (count + 1) / (usual + 1)
    return found


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize("order", ["size", "freshness", "growth"])
def test_every_order_holds_every_cluster_once_whatever_the_pages(
    client: Client, view: View, order: Any, size: int
) -> None:
    by_cluster, grown = dates(view), growth(view, DAY, 7, LATE)
    numbers = view.base.generation.numbers
    keys: dict[str, Any] = {
        "size": lambda name: -len(by_cluster[name]),
        "freshness": lambda name: -max((day for day in by_cluster[name] if day), default=EVER).timestamp(),
        "growth": lambda name: (-grown[name][2], -grown[name][0]),
    }
    wanted = sorted(by_cluster, key=lambda name: (keys[order](name), numbers[name]))
    assert [cluster.id for cluster in client.clusters(order=order, page_size=size)] == wanted


def test_a_cluster_counts_live_articles_and_knows_the_newest(client: Client, view: View) -> None:
    by_cluster = dates(view)
    live = Counter(view.article(row).cluster for row in every_id(view).values() if view.is_live(row))
    for cluster in client.clusters():
        days = [day for day in by_cluster[cluster.id] if day is not None]
        assert cluster.size == len(by_cluster[cluster.id])
        assert cluster.newest_at.ToDatetime(UTC) == max(days)
        assert cluster.live_count == live[view.base.generation.numbers[cluster.id]]
    assert sum(live.values()) == 23 == client.index().index.live_count


def test_a_cluster_says_how_its_articles_lie_how_old_they_are_and_what_is_beside_it(client: Client, view: View) -> None:
    generation, by_cluster = view.base.generation, dates(view)
    for number, described in enumerate(generation.clusters):
        reply = client.cluster(described.id, neighbor_limit=3)
        far, wanted = reply.residuals, described.residuals
        assert [far.mean, far.p50, far.p90, far.p99] == pytest.approx([wanted.mean, wanted.p50, wanted.p90, wanted.p99])
        assert (far.outliers, reply.lineage.kind, [*reply.lineage.parent_ids]) == (described.outliers, "first", [])
        assert not reply.lineage.HasField("similarity")
        cosines = generation.index.centroids.astype(np.float64) @ generation.index.centroids[number].astype(np.float64)
        others = [int(n) for n in np.argsort(-cosines, kind="stable") if n != number][:3]
        assert [n.id for n in reply.neighbors] == [generation.clusters[n].id for n in others]
        assert [n.similarity for n in reply.neighbors] == pytest.approx(cosines[others].tolist(), abs=1e-6)
        assert [n.size for n in reply.neighbors] == [len(by_cluster[n.id]) for n in reply.neighbors]
        assert sum(bucket.count for bucket in reply.ages) == reply.cluster.size
    assert len(client.cluster("c0000").neighbors) == len(generation.clusters) - 1
    assert not client.cluster("c0000", neighbor_limit=0).neighbors


def test_ages_are_counted_bucket_by_bucket(client: Client, view: View) -> None:
    now, by_cluster = time.time(), dates(view)
    for name, days in by_cluster.items():
        *buckets, undated = client.cluster(name).ages
        assert (undated.undated, undated.count) == (True, days.count(None))
        assert not undated.HasField("min_age")
        assert not undated.HasField("max_age")
        ages = [now - day.timestamp() for day in days if day is not None]
        ends = [bucket.max_age.ToTimedelta().total_seconds() for bucket in buckets[:-1]]
        assert not buckets[-1].HasField("max_age")
        begins = [bucket.min_age.ToTimedelta().total_seconds() for bucket in buckets]
        assert begins == [0, *ends] == sorted(begins)
        wanted = [
            sum(begin <= max(age, 0) < end for age in ages)
            for begin, end in zip(begins, [*ends, float("inf")], strict=True)
        ]
        assert [bucket.count for bucket in buckets] == wanted


@pytest.mark.parametrize(
    ("window", "windows", "end", "least"),
    [
        (DAY, 7, None, 2),
        (timedelta(hours=6), 3, None, 0),
        (3 * DAY, 5, LATE - 4 * DAY, 1),
        (DAY, 1, LATE - DAY, 0),  # two of unequal counts grow alike
        (timedelta(days=3650), 1, LATE, 0),
        (timedelta(minutes=1), 100, LATE - 500 * DAY, 0),
    ],
)
def test_trends_are_those_of_a_slow_count(
    client: Client, view: View, window: timedelta, windows: int, end: datetime | None, least: int
) -> None:
    reply = client.trending(window=window, baseline_windows=windows, as_of=end, min_count=least, limit=1000)
    grown = growth(view, window, windows, end or LATE)
    assert reply.as_of.ToDatetime(UTC) == (end or LATE)
    numbers = view.base.generation.numbers
    kept = [name for name, (count, _, _) in grown.items() if count >= least]
    wanted = sorted(kept, key=lambda name: (-grown[name][2], -grown[name][0], numbers[name]))
    assert [trend.cluster.id for trend in reply.clusters] == wanted
    for trend in reply.clusters:
        assert (trend.count, trend.usual, trend.growth) == pytest.approx(grown[trend.cluster.id])
    assert len(client.trending(limit=1, min_count=0).clusters) == 1


def test_a_date_in_the_future_moves_no_window(background: Background, own_newsroom: Path) -> None:
    with opened(background, own_newsroom) as (client, _):
        before = client.trending(min_count=0)
        today = sum(client.cluster(cluster.id).ages[0].count for cluster in client.clusters())
        client.upsert([piece("early", published_at=datetime.now(UTC) + timedelta(days=40_000))])
        after = client.trending(min_count=0)
        youngest = sum(client.cluster(cluster.id).ages[0].count for cluster in client.clusters())
        assert youngest == today + 1
    assert after.as_of == before.as_of
    assert [trend.count for trend in after.clusters] == [trend.count for trend in before.clusters]


def test_clusters_without_articles_are_last_and_in_every_order(background: Background, own_newsroom: Path) -> None:
    with opened(background, own_newsroom) as (client, _):
        names, orders = [cluster.id for cluster in client.clusters()], list[Any](["size", "freshness", "growth"])
        for emptied, order in enumerate(orders[:2], 1):
            first = next(iter(client.clusters(order=order))).id
            client.delete([article.id for article in client.cluster_articles(first)])
            assert first in [cluster.id for cluster in client.clusters(order=order)][-emptied:]
        client.delete([f"{n:03}" for n in range(COUNT)])
        for order in orders:
            assert [cluster.id for cluster in client.clusters(order=order)] == names
        trending = client.trending(min_count=0)
        assert (len(trending.clusters), trending.HasField("as_of")) == (0, False)


@pytest.mark.parametrize("window", [timedelta(seconds=59), timedelta(days=3661)])
def test_a_window_is_a_minute_to_ten_years(client: Client, window: timedelta) -> None:
    with pytest.raises(InvalidArgument, match="allowed are 60") as refused:
        client.trending(window=window)
    assert refused.value.field == "window"


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("order", ["centrality", "newest", "id"])
def test_the_articles_of_a_cluster_come_in_order_live_ones_among_them(
    client: Client, view: View, order: Any, size: int
) -> None:
    members: dict[str, list[Any]] = {cluster.id: [] for cluster in view.base.generation.clusters}
    for row in every_id(view).values():
        article = view.article(row)
        members[view.base.generation.clusters[article.cluster].id].append(article)
    keys: dict[str, Any] = {
        "centrality": lambda article: -np.float32(article.similarity),
        "newest": lambda article: -(article.published_at or EVER).timestamp(),
        "id": lambda article: 0,
    }
    for name, articles in members.items():
        wanted = [article.id for article in sorted(articles, key=lambda a: (keys[order](a), a.id))]
        assert [a.id for a in client.cluster_articles(name, order=order, page_size=size)] == wanted
    assert sum(map(len, members.values())) == COUNT + 21 - 10


def test_shares_are_a_softmax_over_all_clusters_and_far_seeds_are_outliers(client: Client, view: View) -> None:
    generation = view.base.generation
    rng = np.random.default_rng(0)
    seen = set()
    near = [generation.index.centroids[n] for n in range(3)]
    for vector in (*near, *rng.standard_normal((10, generation.index.dim)).astype(np.float32)):
        for heat in (None, 0.001, 10.0):
            reply = client.nearest_clusters(vector=vector.tolist(), limit=1000, temperature=heat)
            cosines = np.array([match.similarity for match in reply.matches], np.float64)
            shares = np.exp((cosines - cosines.max()) / (heat or 0.05))
            assert [m.share for m in reply.matches] == pytest.approx((shares / shares.sum()).tolist(), abs=1e-4)
            assert sum(match.share for match in reply.matches) == pytest.approx(1, abs=1e-5)
            assert [m.distance for m in reply.matches] == pytest.approx((1 - cosines).tolist(), abs=1e-6)
        nearest = generation.clusters[generation.numbers[reply.matches[0].cluster.id]]
        assert reply.outlier == (reply.matches[0].similarity < nearest.outlier_below)
        seen.add(reply.outlier)
        assert client.nearest_clusters(vector=vector.tolist(), limit=2, temperature=10.0).matches == reply.matches[:2]
    assert seen == {True, False}
