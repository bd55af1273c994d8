"""A state machine that drives a server over gRPC and holds every answer against the model (`tests.index_model`).

    put, put_again, put_several, rehearse, remove           what changes articles
    get, search, next_page, recommend, clusters, members    what asks
    swap, roll_back, restart                                what changes what is served

A swap goes on while other rules run. Each answer says what generation it came from, and is held against that.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

import grpc
import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coldframe.store import Store
from coldframe.v1 import article_service_pb2 as articles_pb
from coldframe.v1 import cluster_service_pb2 as clusters_pb
from coldframe.v1 import search_service_pb2 as search_pb
from coldframe.v1 import types_pb2
from coldframe.v1.article_service_pb2_grpc import ArticleServiceStub
from coldframe.v1.cluster_service_pb2_grpc import ClusterServiceStub
from coldframe.v1.index_service_pb2 import GetIndexRequest
from coldframe.v1.index_service_pb2_grpc import IndexServiceStub
from coldframe.v1.search_service_pb2_grpc import SearchServiceStub
from server.engine import Engine
from tests.index_model import Article, State, unit
from tests.index_questions import ATTRIBUTES, DATES, Ranking, message_of, rankings
from tests.index_world import CLUSTER_IDS, IDS, TEXTS
from tests.ranking_model import TOLERANCE, Question, check

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sequence

    from tests.index_model import Change, Log, Row, Vector
    from tests.index_world import World

CREATED, REPLACED, UNCHANGED = (
    articles_pb.UPSERT_OUTCOME_CREATED,
    articles_pb.UPSERT_OUTCOME_REPLACED,
    articles_pb.UPSERT_OUTCOME_UNCHANGED,
)
_POLL_S = 0.02
_PATIENCE = 6_000  # naps: a machine that stops its work for a while must not look like a fault
_numbers = itertools.count()
Seed = tuple[str, Any]


async def _nothing() -> None:
    """What is told of a swap."""


articles = st.builds(
    lambda number, text, date, attributes: Article(IDS[number], *TEXTS[text], date, attributes),
    st.integers(0, len(IDS) - 1),
    st.integers(0, len(TEXTS) - 1),
    st.sampled_from(DATES),
    st.sampled_from(ATTRIBUTES),
)
ids = st.sampled_from(IDS)
asked = rankings(ids, CLUSTER_IDS)
near = st.sampled_from([0, 0, 1, 5, 100])
any_number = st.integers(0, 10_000)
seeds = st.one_of(
    st.tuples(st.just("id"), ids),
    st.tuples(st.just("vector"), st.integers(0, len(TEXTS) - 1)),
    st.tuples(st.just("text"), st.integers(0, len(TEXTS) - 1)),
    st.tuples(st.just("article"), articles),
)


class IndexMachine(RuleBasedStateMachine):
    """See the module. `world` is set by a subclass, and `steps` counts what was done."""

    world: ClassVar[World]
    steps: ClassVar[Counter[str]]

    # --- the server --------------------------------------------------------------------------------------------------

    @initialize(number=st.integers(0, 2))
    def begin(self, number: int) -> None:
        self.folder = self.world.copy(self.world.template.with_name(f"run-{next(_numbers)}"))
        self.store = Store(self.folder)
        self.store.activate(self.world.names[number])
        self.log: Log = dict(self.world.log)
        self.sequence = len(self.log)
        self.swapping: str | None = None
        self.logs: list[Log] = []  # since the swap that is under way was asked for
        self.state = self.read(self.world.names[number])
        self.start()

    def read(self, name: str) -> State:
        """The state that a server has which begins to serve a generation."""
        return State(self.world.basis(self.folder, name), self.log)

    def start(self) -> None:
        background = self.world.background
        engine = Engine(self.store, precision="fp32")
        engine.load()
        self.serving = background.serving(engine)
        self.channel = grpc.insecure_channel(self.serving.__enter__(), [("grpc.enable_http_proxy", 0)])
        grpc.channel_ready_future(self.channel).result()
        self.watching = asyncio.run_coroutine_threadsafe(engine.watch(_nothing, _POLL_S), background.loop)
        self.articles = ArticleServiceStub(self.channel)
        self.searches = SearchServiceStub(self.channel)
        self.clusters_service = ClusterServiceStub(self.channel)
        self.index = IndexServiceStub(self.channel)

    def stop(self) -> None:
        self.watching.cancel()
        self.channel.close()
        self.serving.__exit__(None, None, None)

    def teardown(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def see(self, served_by: types_pb2.ServedBy, changes: Sequence[Change] = ()) -> None:
        """Takes note of a swap, which happens when it will; `changes` are those that the answer tells of."""
        if served_by.generation == self.swapping:
            self.state, self.swapping = self.taken_over(self.swapping, changes), None
        assert served_by.generation == self.state.basis.name

    def taken_over(self, name: str, changes: Sequence[Change]) -> State:
        """The state after a swap. Stories depend on what was there when each article was placed: where that cannot be
        known, they are those that the server has, if these can be.
        """
        basis = self.world.basis(self.folder, name)
        states = [State.taken_over(basis, before, self.log) for before in self.logs]
        if all(state.stories == states[0].stories for state in states):
            return states[0]
        ask = self.clusters_service.ListClusterArticles
        pages = [
            ask(clusters_pb.ListClusterArticlesRequest(cluster_id=each, page_size=1_000)) for each in basis.cluster_ids
        ]
        told = {article.id: article.story_id for page in pages for article in page.articles}
        states = [state for state in states if state.after(changes).stories == told]
        assert states, "after a swap, the stories are none that can be"
        return states[0]

    def know(self, served_by: types_pb2.ServedBy) -> None:
        """The same of an answer that changed nothing."""
        self.see(served_by)
        assert served_by.live_sequence == max(self.sequence, self.state.basis.watermark)

    # --- changes -----------------------------------------------------------------------------------------------------

    @rule(article=articles, clusters=near, neighbours=near)
    def put(self, article: Article, clusters: int, neighbours: int) -> None:
        self.upsert("put", [article], clusters, neighbours)

    @rule(
        number=any_number, date=st.none() | st.sampled_from(DATES), attributes=st.none() | st.sampled_from(ATTRIBUTES)
    )
    def put_again(self, number: int, date: datetime | None, attributes: dict[str, str] | None) -> None:
        """An article that is there, the same or with another date or other attributes."""
        known = [*self.state.alive.values()][number % len(self.state.alive)].article
        about = known.attributes if attributes is None else attributes
        self.upsert("put_again", [replace(known, published_at=date or known.published_at, attributes=about)], 0, 0)

    @rule(several=st.lists(articles, min_size=2, max_size=6, unique_by=lambda article: article.id))
    def put_several(self, several: list[Article]) -> None:
        self.upsert("put_several", several, 0, 2)

    def upsert(self, name: str, sent: Sequence[Article], clusters: int, neighbours: int) -> None:
        self.steps[name] += 1
        reply = self.articles.UpsertArticles(_upsert(sent, clusters, neighbours))
        self.see(reply.served_by, [(article.id, article) for article in sent])
        outcomes = [self.change(article.id, article) for article in sent]
        self.know(reply.served_by)
        self.check_results(self.state, sent, outcomes, reply, clusters, neighbours)

    def change(self, article_id: str, article: Article | None) -> int:
        """Changes the model, and says what comes of it."""
        there = article_id in self.state.alive
        if article is not None and self.state.same(article):
            return UNCHANGED
        gone = article_id in self.log and self.log[article_id][1] is None
        if article is not None or there or not gone:
            self.sequence += 1
            self.log[article_id] = self.sequence, article
        self.state.change(article_id, article)
        self.logs.append(dict(self.log))
        return REPLACED if there else CREATED

    @rule(several=st.lists(articles, min_size=1, max_size=4, unique_by=lambda article: article.id), neighbours=near)
    def rehearse(self, several: list[Article], neighbours: int) -> None:
        """`validate_only` answers what a call would, and nothing is changed."""
        self.steps["rehearse"] += 1
        request = _upsert(several, 2, neighbours)
        request.validate_only = True
        reply = self.articles.UpsertArticles(request)
        self.know(reply.served_by)
        same = [self.state.same(article) for article in several]
        there = [article.id in self.state.alive for article in several]
        outcomes = [UNCHANGED if s else REPLACED if t else CREATED for s, t in zip(same, there, strict=True)]
        tried = self.state.after([(article.id, article) for article in several])
        self.check_results(tried, several, outcomes, reply, 2, neighbours)

    def check_results(
        self, state: State, sent: Sequence[Article], outcomes: Sequence[int], reply: Any, clusters: int, neighbours: int
    ) -> None:
        assert [result.outcome for result in reply.results] == outcomes
        for article, result in zip(sent, reply.results, strict=True):
            row = state.alive[article.id]
            self.check_article(state, row, result, clusters, neighbours)

    @rule(gone=st.lists(ids, min_size=1, max_size=4), twice=st.booleans(), validate_only=st.booleans())
    def remove(self, gone: list[str], twice: bool, validate_only: bool) -> None:
        """Some that are there and some that are not, and some of them once more."""
        for _ in range(1 + twice):
            self.steps["remove"] += 1
            request = articles_pb.DeleteArticlesRequest(ids=gone, validate_only=validate_only)
            reply = self.articles.DeleteArticles(request)
            self.see(reply.served_by, [] if validate_only else [(name, None) for name in gone])
            there = {name: name in self.state.alive for name in dict.fromkeys(gone)}
            if not validate_only:
                for name in there:
                    self.change(name, None)
            self.know(reply.served_by)
            assert list(reply.deleted_ids) == [name for name, known in there.items() if known]
            assert list(reply.missing_ids) == [name for name, known in there.items() if not known]

    # --- questions ---------------------------------------------------------------------------------------------------

    def check_article(self, state: State, row: Row, reply: Any, clusters: int, neighbours: int) -> None:
        """An article, its nearest clusters and its neighbours, as upserts and GetArticle answer them."""
        self.check_summary(state, row, reply.article)
        assert 0 < reply.usage.tokens_used == reply.usage.tokens_seen
        nearest = state.basis.nearest(row.vector)[:clusters]
        assert len(reply.clusters) == len(nearest)
        for match, (similarity, number) in zip(reply.clusters, nearest, strict=True):
            assert match.cluster.id == state.basis.cluster_ids[number]
            assert abs(match.similarity - similarity) <= TOLERANCE
            assert match.cluster.size == len(state.members(number))
        if neighbours:
            exact = state.basis.probes >= len(state.basis.centroids)
            asked = Question(row.vector, neighbours, hidden=[row], max_per_story=0, exact=exact)
            check(state, asked, reply.neighbors)

    def check_summary(self, state: State, row: Row, summary: types_pb2.ArticleSummary) -> None:
        article = row.article
        found = (summary.id, summary.title, summary.excerpt, dict(summary.attributes), summary.live)
        assert found == (article.id, article.title, article.excerpt, dict(article.attributes), row.live)
        date = summary.published_at.ToDatetime(UTC) if summary.HasField("published_at") else None
        assert date == article.published_at
        assert summary.cluster_id == state.cluster_id(row)
        story = state.story_id(row)
        assert summary.story_id == story, f"{article.id!r}: story {summary.story_id!r}, not {story!r}"
        assert abs(summary.centrality - row.centrality) <= TOLERANCE
        edge = state.basis.outlier_below[row.cluster]
        assert summary.outlier == (row.centrality < edge) or abs(row.centrality - edge) <= TOLERANCE

    @rule(article_id=ids, clusters=near, neighbours=near)
    def get(self, article_id: str, clusters: int, neighbours: int) -> None:
        self.steps["get"] += 1
        request = articles_pb.GetArticleRequest(id=article_id, cluster_limit=clusters, neighbor_limit=neighbours)
        reply = self.or_missing(lambda: self.articles.GetArticle(request), article_id)
        if reply is not None:
            self.know(reply.served_by)
            self.check_article(self.state, self.state.alive[article_id], reply, clusters, neighbours)

    def or_missing(self, call: Callable[[], Any], article_id: str | None) -> Any:
        """The reply; None where there is no article of that id, which must be why the server has none."""
        if article_id is None:
            return call()
        if article_id not in self.state.alive or self.swapping is not None:
            self.settle()  # a refusal does not say what it came from
        try:
            reply = call()
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND and article_id not in self.state.alive:
                return None
            raise
        assert article_id in self.state.alive
        return reply

    @rule(seed=seeds, asked=asked)
    def search(self, seed: Seed, asked: Ranking) -> None:
        self.steps["search"] += 1
        request = search_pb.SearchRequest(seed=self.written(seed), limit=asked.limit, ranking=asked.written())
        reply = self.or_missing(lambda: self.searches.Search(request), seed[1] if seed[0] == "id" else None)
        if reply is not None:
            self.know(reply.served_by)
            vector, row = self.point(seed)
            hidden = [] if row is None else [row]
            check(self.state, asked.question(self.state, vector, hidden=hidden), reply.hits)
            assert list(reply.missing_ids) == asked.missing(self.state)
            for hit in reply.hits:
                self.check_summary(self.state, self.state.alive[hit.article.id], hit.article)

    @rule(number=st.integers(0, len(TEXTS) - 1), asked=asked)
    def next_page(self, number: int, asked: Ranking) -> None:
        """Two pages of a search are the one that is as long as both; one that ends has shown all."""
        self.steps["next_page"] += 1
        self.settle()
        asked = replace(asked, limit=min(asked.limit, 25))
        request = search_pb.SearchRequest(seed=self.written(("vector", number)), ranking=asked.written())
        request.limit = asked.limit
        first = self.searches.Search(request)
        self.know(first.served_by)
        hits = list(first.hits)
        if first.next_page_token:
            request.page_token = first.next_page_token
            second = self.searches.Search(request)
            assert len(first.hits) == asked.limit
            assert len(second.hits) > 0
            hits.extend(second.hits)
        whole = replace(asked, limit=2 * asked.limit)
        check(self.state, whole.question(self.state, self.direction(number)), hits)

    @rule(liked=seeds, disliked=st.none() | seeds, weight=st.sampled_from([-0.5, -1.0, -4.0]), asked=asked)
    def recommend(self, liked: Seed, disliked: Seed | None, weight: float, asked: Ranking) -> None:
        self.steps["recommend"] += 1
        request = search_pb.RecommendRequest(limit=asked.limit, ranking=asked.written())
        request.seeds.add(seed=self.written(liked))
        if disliked is not None:
            request.seeds.add(seed=self.written(disliked), weight=weight)
        reply = self.searches.Recommend(request)
        self.know(reply.served_by)
        points = [self.point(seed) for seed in (liked, disliked) if seed is not None and self.has(seed)]
        gone = [str(seed[1]) for seed in (liked, disliked) if seed is not None and not self.has(seed)]
        assert list(reply.missing_ids) == [*dict.fromkeys([*gone, *asked.missing(self.state)])]
        if not self.has(liked):
            assert len(reply.hits) == 0
            return
        read = [row for _, row in points if row is not None]
        against = [(min(-weight, 1.0), vector) for vector, _ in points[1:]]
        taken = [row.story for row in read]
        question = asked.question(self.state, points[0][0], hidden=read, against=against, stories_taken=taken)
        check(self.state, replace(question, exact=question.exact or bool(against)), reply.hits)
        (interest,) = reply.interests
        assert interest.cluster_id == self.state.basis.cluster_ids[self.state.basis.nearest(points[0][0])[0][1]]

    # --- seeds -------------------------------------------------------------------------------------------------------

    def written(self, seed: Seed) -> types_pb2.Seed:
        kind, about = seed
        if kind == "id":
            return types_pb2.Seed(article_id=about)
        if kind == "vector":
            packed = self.direction(about).astype("<f4").tobytes()
            return types_pb2.Seed(vector=types_pb2.Vector(packed=packed))
        if kind == "text":
            return types_pb2.Seed(text=Article("", *TEXTS[about]).text)
        return types_pb2.Seed(article=message_of(about))

    def has(self, seed: Seed) -> bool:
        return seed[0] != "id" or seed[1] in self.state.alive

    def point(self, seed: Seed) -> tuple[Vector, Row | None]:
        """Where a seed lies, and the article that it is."""
        kind, about = seed
        if kind == "id":
            row = self.state.alive[about]
            return row.vector, row
        if kind == "vector":
            return self.direction(about), None
        if kind == "text":
            return self.state.basis.place(Article("", *TEXTS[about]).text), None
        return self.state.basis.place(about.text), self.state.alive.get(about.id)

    def direction(self, number: int) -> Vector:
        """Near a text, and not of it."""
        vector = self.world.raw(Article("", *TEXTS[number]).text)
        noise = np.random.default_rng(number).standard_normal(len(vector))
        return unit(unit(vector) + 0.5 * unit(noise))

    # --- clusters ----------------------------------------------------------------------------------------------------

    @rule(page_size=st.sampled_from([2, 100]))
    def clusters(self, page_size: int) -> None:
        """Sizes add up, the largest first."""
        self.steps["clusters"] += 1
        self.settle()
        found: list[types_pb2.Cluster] = []
        request = clusters_pb.ListClustersRequest(page_size=page_size)
        while not found or request.page_token:
            reply = self.clusters_service.ListClusters(request)
            self.know(reply.served_by)
            found.extend(reply.clusters)
            request.page_token = reply.next_page_token
        sizes = {name: self.state.members(number) for number, name in enumerate(self.state.basis.cluster_ids)}
        order = sorted(sizes, key=lambda name: (-len(sizes[name]), self.state.basis.cluster_ids.index(name)))
        assert [cluster.id for cluster in found] == order
        assert [cluster.size for cluster in found] == [len(sizes[name]) for name in order]
        assert [cluster.live_count for cluster in found] == [sum(row.live for row in sizes[name]) for name in order]
        assert sum(cluster.size for cluster in found) == len(self.state.alive)

    @rule(order=st.sampled_from(clusters_pb.ArticleOrder.values()), page_size=st.sampled_from([3, 100]))
    def members(self, order: clusters_pb.ArticleOrder.ValueType, page_size: int) -> None:
        """Every article is in the list of its nearest cluster, and in no other."""
        self.steps["members"] += 1
        self.settle()
        for number, name in enumerate(self.state.basis.cluster_ids):
            listed: list[types_pb2.ArticleSummary] = []
            request = clusters_pb.ListClusterArticlesRequest(cluster_id=name, order=order, page_size=page_size)
            while request.page_token or not listed:
                reply = self.clusters_service.ListClusterArticles(request)
                self.know(reply.served_by)
                listed.extend(reply.articles)
                request.page_token = reply.next_page_token
                if not reply.total_size:
                    break
            self.check_members(self.state.members(number), listed, order)

    def check_members(self, rows: list[Row], listed: list[types_pb2.ArticleSummary], order: int) -> None:
        by_id = {row.article.id: row for row in rows}
        assert sorted(summary.id for summary in listed) == sorted(by_id)
        for summary in listed:
            self.check_summary(self.state, by_id[summary.id], summary)
        if order == clusters_pb.ARTICLE_ORDER_ID:
            assert [summary.id for summary in listed] == sorted(by_id)
        elif order == clusters_pb.ARTICLE_ORDER_NEWEST:
            ever = datetime.min.replace(tzinfo=UTC)
            dated = sorted(by_id)
            dated.sort(key=lambda name: by_id[name].article.published_at or ever, reverse=True)
            assert [summary.id for summary in listed] == dated
        else:
            found = [(-summary.centrality, summary.id) for summary in listed]
            assert found == sorted(found)

    # --- what is served ----------------------------------------------------------------------------------------------

    @rule(number=st.integers(0, 2), wait=st.booleans())
    def swap(self, number: int, wait: bool) -> None:
        self.settle()
        name = self.world.names[number]
        if name != self.state.basis.name:
            self.steps["swap"] += 1
            self.store.activate(name)
            self.swapping, self.logs = name, [dict(self.log)]
        if wait:
            self.settle()

    @precondition(lambda self: self.store.before() is not None)
    @rule(wait=st.booleans())
    def roll_back(self, wait: bool) -> None:
        self.settle()
        name = self.store.rollback()
        if name != self.state.basis.name:
            self.steps["roll_back"] += 1
            self.swapping, self.logs = name, [dict(self.log)]
        if wait:
            self.settle()

    def settle(self) -> None:
        """Waits until the generation that was made current is served."""
        naps = 0
        while self.swapping is not None:
            assert (naps := naps + 1) < _PATIENCE, "the server does not come to serve what is current"
            self.know(self.index.GetIndex(GetIndexRequest()).served_by)
            time.sleep(_POLL_S / 2)

    @rule()
    def restart(self) -> None:
        self.steps["restart"] += 1
        self.stop()
        current = self.store.current()
        assert current in {self.state.basis.name, self.swapping}
        self.state, self.swapping = self.read(str(current)), None
        self.start()

    @invariant()
    def counts(self) -> None:
        """How many articles there are, and how many of them are live."""
        reply = self.index.GetIndex(GetIndexRequest())
        self.know(reply.served_by)
        rows, basis = self.state.alive.values(), self.state.basis
        live = sum(row.live for row in rows)
        expected = (len(rows), live, len(basis.rows) - (len(rows) - live), len(basis.centroids))
        index = reply.index
        assert (index.article_count, index.live_count, index.replaced_count, index.cluster_count) == expected


def _upsert(sent: Sequence[Article], clusters: int, neighbours: int) -> articles_pb.UpsertArticlesRequest:
    return articles_pb.UpsertArticlesRequest(
        articles=[message_of(article) for article in sent], cluster_limit=clusters, neighbor_limit=neighbours
    )
