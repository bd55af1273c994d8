"""ClusterService: the index's clusters as things of their own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from coldframe.errors import InvalidArgument, UnknownCluster
from coldframe.v1 import cluster_service_pb2 as pb
from coldframe.v1 import cluster_service_pb2_grpc
from server import clusters, pages
from server.columns import microseconds
from server.engine import Timing
from server.pages import Last, Place
from server.wire import paging, replies, requests
from server.wire.hits import summary

if TYPE_CHECKING:
    from coldframe.v1 import types_pb2
    from server.engine import Engine
    from server.services import Context
    from server.serving import Served
    from server.view import View

_DAY_S = 86_400.0
_ORDERS = {
    pb.CLUSTER_ORDER_UNSPECIFIED: clusters.by_size,
    pb.CLUSTER_ORDER_SIZE: clusters.by_size,
    pb.CLUSTER_ORDER_FRESHNESS: clusters.by_freshness,
    pb.CLUSTER_ORDER_GROWTH: clusters.by_growth,
}
_ARTICLE_ORDERS = {
    pb.ARTICLE_ORDER_UNSPECIFIED: clusters.members_by_centrality,
    pb.ARTICLE_ORDER_CENTRALITY: clusters.members_by_centrality,
    pb.ARTICLE_ORDER_NEWEST: clusters.members_by_date,
    pb.ARTICLE_ORDER_ID: clusters.members_by_id,
}


class ClusterService(cluster_service_pb2_grpc.ClusterServiceServicer):
    """Lists, describes, and tells which grow."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def ListClusters(  # noqa: N802, D102
        self, request: pb.ListClustersRequest, context: Context
    ) -> pb.ListClustersResponse:
        clock, served = Timing(), self._engine.served()
        size = requests.count(request, "page_size", 100)
        view, put_in_order = served.view, _ORDERS.get(request.order)
        if put_in_order is None:
            raise _no_order(request.order, pb.ClusterOrder.keys())
        asked, total = paging.Asked(served, request), len(view.sizes)
        shown = asked.shown(request.page_token, total)

        def run() -> tuple[list[types_pb2.Cluster], bool]:
            numbers = put_in_order(view)
            # An article that comes or goes moves its own cluster: no place in the order parts what was shown from the
            # rest.
            left = numbers[~shown[numbers]]
            shown[left[:size]] = True
            return [replies.cluster(view, number) for number in left[:size].tolist()], len(left) > size

        listed, more = await self._engine.searching(run, clock)
        response = pb.ListClustersResponse(
            clusters=listed, next_page_token=asked.without(shown) if more else "", total_size=total
        )
        return replies.signed(response, served, clock)

    async def GetCluster(self, request: pb.GetClusterRequest, context: Context) -> pb.GetClusterResponse:  # noqa: N802, D102
        clock, served = Timing(), self._engine.served()
        number = _number(served, request.cluster_id)
        limit = requests.count(request, "neighbor_limit", 5, least=0, most=100)
        response = await self._engine.searching(lambda: _described(served.view, number, limit), clock)
        return replies.signed(response, served, clock)

    async def ListClusterArticles(  # noqa: N802, D102
        self, request: pb.ListClusterArticlesRequest, context: Context
    ) -> pb.ListClusterArticlesResponse:
        clock, served = Timing(), self._engine.served()
        number = _number(served, request.cluster_id)
        size = requests.count(request, "page_size", 100)
        asked = paging.Asked(served, request)
        place = asked.place(request.page_token)
        view, put_in_order = served.view, _ARTICLE_ORDERS.get(request.order)
        if put_in_order is None:
            raise _no_order(request.order, pb.ArticleOrder.keys())

        def run() -> tuple[list[types_pb2.ArticleSummary], Place, int]:
            rows, keys = put_in_order(view, number)
            start = place.start
            if place.last is not None:
                start = pages.passed(view, place.last, rows, keys, start)
            page = rows[start : start + size].tolist()
            end = start + len(page)
            last = Last(view.id_of(page[-1]), float(keys[end - 1])) if page else None
            return [summary(view, row) for row in page], Place(end, last=last), len(rows)

        articles, after, total = await self._engine.searching(run, clock)
        token = asked.at(after) if after.start < total else ""
        response = pb.ListClusterArticlesResponse(articles=articles, next_page_token=token, total_size=total)
        return replies.signed(response, served, clock)

    async def TrendingClusters(  # noqa: N802, D102
        self, request: pb.TrendingClustersRequest, context: Context
    ) -> pb.TrendingClustersResponse:
        clock, served = Timing(), self._engine.served()
        limit = requests.count(request, "limit", 10)
        baseline = requests.count(request, "baseline_windows", 7, most=100)
        least = requests.count(request, "min_count", 2, least=0, most=1_000_000)
        window = _DAY_S
        if request.HasField("window"):
            window = requests.seconds(request.window, "window", 60.0, 10 * requests.YEAR_S)
        as_of = microseconds(requests.moment(request.as_of, "as_of")) if request.HasField("as_of") else None
        view = served.view

        def run() -> tuple[list[pb.TrendingCluster], int | None]:
            found, end = clusters.trends(view, int(1e6 * window), baseline, as_of, least)
            return [_trending(view, trend) for trend in found[:limit]], end

        trending, end = await self._engine.searching(run, clock)
        response = pb.TrendingClustersResponse(clusters=trending)
        if end is not None:
            response.as_of.FromMicroseconds(end)
        return replies.signed(response, served, clock)


def _number(served: Served, cluster_id: str) -> int:
    requests.identifier(cluster_id, "cluster_id", "a cluster; ListClusters gives them")
    number = served.generation.numbers.get(cluster_id)
    if number is None:
        raise UnknownCluster(f"no cluster {cluster_id!r} in the index; ListClusters gives the ids")
    return number


def _no_order(order: int, names: list[str]) -> InvalidArgument:
    return InvalidArgument(f"order is {order}; allowed are {', '.join(names)}", field="order")


def _described(view: View, number: int, limit: int) -> pb.GetClusterResponse:
    cluster = view.base.generation.clusters[number]
    far = cluster.residuals
    return pb.GetClusterResponse(
        cluster=replies.cluster(view, number, representatives=True),
        residuals=pb.Residuals(mean=far.mean, p50=far.p50, p90=far.p90, p99=far.p99, outliers=cluster.outliers),
        lineage=pb.Lineage(
            kind=cluster.lineage.kind, parent_ids=cluster.lineage.parents, similarity=cluster.lineage.similarity
        ),
        ages=_ages(view, number),
        neighbors=_neighbours(view, number, limit),
    )


def _ages(view: View, number: int) -> list[pb.AgeBucket]:
    counts, undated = clusters.ages(view, number, int(1e6 * time.time()))
    buckets = [pb.AgeBucket(count=count) for count in counts]
    for bucket, begin, end in zip(buckets, clusters.AGES_US, (*clusters.AGES_US[1:], None), strict=True):
        bucket.min_age.FromMicroseconds(begin)
        if end is not None:
            bucket.max_age.FromMicroseconds(end)
    return [*buckets, pb.AgeBucket(count=undated, undated=True)]


def _neighbours(view: View, number: int, limit: int) -> list[pb.NeighborCluster]:
    numbers, similarities = clusters.neighbours(view, number, limit)
    return [
        pb.NeighborCluster(
            id=view.base.generation.clusters[n].id,
            label=view.base.generation.clusters[n].label,
            size=int(view.sizes[n]),
            similarity=near,
        )
        for n, near in zip(numbers.tolist(), similarities.tolist(), strict=True)
    ]


def _trending(view: View, trend: clusters.Trend) -> pb.TrendingCluster:
    cluster = replies.cluster(view, trend.number)
    return pb.TrendingCluster(cluster=cluster, count=trend.count, usual=trend.usual, growth=trend.growth)
