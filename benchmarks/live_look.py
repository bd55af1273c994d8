"""One look at a server: all its articles, by the lists of its clusters, and whether searches find the same."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from benchmarks.live_clients import BASE, whole
from coldframe.v1 import article_service_pb2, cluster_service_pb2, search_service_pb2, types_pb2
from coldframe.v1.article_service_pb2_grpc import ArticleServiceStub
from coldframe.v1.cluster_service_pb2_grpc import ClusterServiceStub
from coldframe.v1.index_service_pb2 import GetIndexRequest
from coldframe.v1.index_service_pb2_grpc import IndexServiceStub
from coldframe.v1.search_service_pb2_grpc import SearchServiceStub

if TYPE_CHECKING:
    import grpc

_SAMPLED = 4


class Look:
    """`shown` is what each id was made by, `faults` what does not agree with itself."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.faults: list[str] = []
        self._articles: dict[str, types_pb2.ArticleSummary] = {}
        reply = IndexServiceStub(channel).GetIndex(GetIndexRequest())
        self.generation = reply.index.generation
        self._list(ClusterServiceStub(channel), reply.index.article_count)
        self.corpus = "A" if "corpus-A" in self._articles else "B"
        self.shown = {
            name: article.attributes.get("op", BASE)
            for name, article in self._articles.items()
            if not name.startswith("corpus-")
        }
        halves = [a.id for a in self._articles.values() if "op" in a.attributes and not whole(a)]
        self.faults.extend(f"{name!r} is not as it was sent" for name in halves)
        for name in [*self._articles][:: max(len(self._articles) // _SAMPLED, 1)]:
            self._search(SearchServiceStub(channel), name)
            self._place(ArticleServiceStub(channel), name)

    def _list(self, clusters: ClusterServiceStub, count: int) -> None:
        listed = clusters.ListClusters(cluster_service_pb2.ListClustersRequest(page_size=1_000)).clusters
        times: Counter[str] = Counter()
        for cluster in listed:
            request = cluster_service_pb2.ListClusterArticlesRequest(cluster_id=cluster.id, page_size=1_000)
            reply = clusters.ListClusterArticles(request)
            times.update(article.id for article in reply.articles)
            self._articles |= {article.id: article for article in reply.articles}
            lost = [article.id for article in reply.articles if article.cluster_id != cluster.id]
            if len(reply.articles) != cluster.size or lost:
                self.faults.append(
                    f"cluster {cluster.id} of {cluster.size} lists {len(reply.articles)}; not its: {lost}"
                )
        self.faults.extend(f"{name!r} is in {n} lists" for name, n in times.items() if n > 1)
        if not len(times) == count == sum(cluster.size for cluster in listed):
            self.faults.append(f"{len(times)} articles are listed, {count} counted")

    def _search(self, searches: SearchServiceStub, name: str) -> None:
        """An exact search finds all there is but the article that it asks about."""
        request = search_service_pb2.SearchRequest(seed=types_pb2.Seed(article_id=name), limit=1_000)
        request.ranking.effort, request.ranking.max_per_story = types_pb2.EFFORT_EXACT, 0
        found = [hit.article.id for hit in searches.Search(request).hits]
        if sorted([*found, name]) != sorted(self._articles):
            self.faults.append(f"a search by {name!r} finds {len(found)} of {len(self._articles) - 1} articles")

    def _place(self, articles: ArticleServiceStub, name: str) -> None:
        """An article is in its nearest cluster."""
        reply = articles.GetArticle(article_service_pb2.GetArticleRequest(id=name, cluster_limit=1))
        if reply.clusters[0].cluster.id != self._articles[name].cluster_id:
            self.faults.append(f"{name!r} is not in the nearest cluster")
