"""What the client makes of plain Python: filters, rankings, seeds, groups of articles, streams."""

from __future__ import annotations

import itertools
import struct
import threading
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from coldframe import article, expansion, filters, recommend_request, search_request, seed, streams
from coldframe.client import Client, error_of
from coldframe.errors import ColdframeError, DeadlineExceeded, InvalidArgument, Unavailable, UnknownArticle
from coldframe.requests import RankingOptions
from coldframe.v1.ranking_pb2 import Filter, Ranking
from coldframe.v1.search_service_pb2 import RecommendRequest, SearchRequest
from coldframe.v1.types_pb2 import EFFORT_EXACT, EFFORT_FAST, Article, Explanation, ItemError, Vector
from tests.scripted import Failure, Server
from tests.scripted_index import ARTICLES, Entry, matches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from coldframe.v1.search_service_pb2 import WeightedSeed

MARCH = datetime(2026, 3, 1, tzinfo=UTC)
ALL_OPTIONS: RankingOptions = {
    "filter": filters.attribute("section").is_in("sport"),
    "exclude_ids": ["a1"],
    "max_per_story": 0,
    "max_per_cluster": 2,
    "diversity": 0.5,
    "half_life": timedelta(days=3),
    "recency_weight": 0.25,
    "as_of": MARCH,
    "priors": {"a2": 0.5},
    "popularity_attribute": "views",
    "popularity_weight": 0.125,
    "explore_fraction": 0.25,
    "explore_seed": 7,
    "min_score": -0.5,
    "effort": "fast",
    "target_recall": 0.75,
    "read_mask": ["article.title", "score"],
}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.target, timeout=10) as opened:
        yield opened


# ------------------------------------------------------------------------------------------------------- filters


def entry(section: str | None = None, views: str | None = None, date: datetime | None = None) -> Entry:
    attributes = {"section": section, "views": views}
    given = {key: value for key, value in attributes.items() if value is not None}
    return Entry("", "", date, "c1", (0.0, 0.0, 0.0), given)


ENTRIES = [
    entry(section, views, date)
    for section, views, date in itertools.product(
        (None, "sport", "city"), (None, "3", "50"), (None, MARCH, MARCH - timedelta(seconds=1))
    )
]
SPORT = filters.attribute("section").is_in("sport")
READ = filters.attribute("views").between(10)
NEW = filters.published(since=MARCH)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (SPORT, lambda one: one.attributes.get("section") == "sport"),
        (READ, lambda one: float(one.attributes.get("views", 0)) >= 10),
        (filters.attribute("views").between(maximum=3), lambda one: one.attributes.get("views") == "3"),
        (filters.attribute("section").exists(), lambda one: "section" in one.attributes),
        (NEW, lambda one: one.published_at == MARCH),
        (filters.published(before=MARCH), lambda one: one.published_at not in (None, MARCH)),
        (filters.cluster("c0", "c1"), lambda one: True),
        (filters.cluster("c2"), lambda one: False),
        (SPORT & READ & NEW, lambda one: bool(matches_all(one))),
        (SPORT | (READ & NEW), lambda one: matches(SPORT.message, one) or matches((READ & NEW).message, one)),
        (~SPORT & ~~NEW, lambda one: one.attributes.get("section") != "sport" and one.published_at == MARCH),
        (filters.all_of(), lambda one: True),
        (filters.any_of(), lambda one: False),
    ],
)
def test_conditions_mean_what_they_say(condition: filters.Condition, expected: Callable[[Entry], bool]) -> None:
    for one in ENTRIES:
        assert matches(condition.message, one) == expected(one)


def matches_all(one: Entry) -> bool:
    return all(matches(condition.message, one) for condition in (SPORT, READ, NEW))


def test_long_conditions_stay_flat() -> None:
    parts = [filters.cluster(f"c{n}") for n in range(200)]
    every, some = parts[0], parts[0]
    for part in parts[1:]:
        every, some = every & part, some | part
    assert len(every.message.all_of.filters) == len(some.message.any_of.filters) == 200
    assert (~~SPORT).message == SPORT.message


def test_a_condition_is_no_truth() -> None:
    with pytest.raises(TypeError, match=r"combine conditions with &, \| and ~"):
        bool(SPORT)


def test_a_filter_finds_articles_on_the_server(client: Client) -> None:
    found = client.search("sport", filter=SPORT | filters.cluster("c2"), limit=10)
    assert {hit.article.id for hit in found.hits} == {"a3", "a4", "a5", "a6"}
    raw = Filter(cluster=filters.cluster("c2", "c9").message.cluster)
    reply = client.search("sport", filter=raw)
    assert {hit.article.id for hit in reply.hits} == {"a5", "a6"}
    assert list(reply.missing_ids) == ["c9"]


# ------------------------------------------------------------------------------------------------------- options


def test_every_field_of_a_ranking_is_an_option_and_is_sent() -> None:
    assert RankingOptions.__optional_keys__ == set(Ranking.DESCRIPTOR.fields_by_name) == set(ALL_OPTIONS)
    for request in (search_request("a", **ALL_OPTIONS), recommend_request(["a"], **ALL_OPTIONS)):
        sent = request.ranking
        assert {field.name for field, _ in sent.ListFields()} == set(ALL_OPTIONS)
        assert (sent.filter, sent.effort) == (SPORT.message, EFFORT_FAST)
        assert (sent.half_life.ToTimedelta(), sent.as_of.ToDatetime(UTC)) == (timedelta(days=3), MARCH)
        assert (dict(sent.priors), list(sent.exclude_ids)) == ({"a2": 0.5}, ["a1"])
        assert list(sent.read_mask.paths) == ["article.title", "score"]
        for name, value in ALL_OPTIONS.items():
            if isinstance(value, int | float):
                assert getattr(sent, name) == value


@pytest.mark.parametrize("request_type", [SearchRequest, RecommendRequest])
def test_every_field_of_a_request_is_an_option(request_type: type[SearchRequest | RecommendRequest]) -> None:
    from coldframe.requests import RecommendOptions, SearchOptions

    options = SearchOptions if request_type is SearchRequest else RecommendOptions
    known = {*options.__optional_keys__, "ranking", "seed", "seeds"}
    assert set(request_type.DESCRIPTOR.fields_by_name) <= known


def test_none_is_the_servers_default() -> None:
    nothing: Any = dict.fromkeys(RankingOptions.__optional_keys__)
    assert search_request("a", **nothing, limit=None, page_token=None) == search_request("a")
    assert not search_request("a").HasField("ranking")
    assert recommend_request(["a"], interest_similarity=0.0).HasField("interest_similarity"), "0 is no default"


def test_unknown_options_are_refused_as_by_a_signature(client: Client) -> None:
    wrong: Any = {"limt": 3}
    with pytest.raises(TypeError, match=r"search\(\) got an unexpected keyword argument 'limt'"):
        client.search("a", **wrong)
    with pytest.raises(TypeError, match=r"recommend\(\) got an unexpected keyword argument 'limt'"):
        client.recommend(["a"], **wrong)
    with pytest.raises(TypeError, match=r"seed\(\) got an unexpected keyword argument 'limt'"):
        seed("a", **wrong)


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        ({"as_of": datetime(2026, 3, 1)}, "as_of", "in no time zone; give one"),
        ({"exclude_ids": "a1"}, "exclude_ids", "is one string; pass a list"),
        ({"read_mask": "score"}, "read_mask", "is one string; pass a list"),
        ({"effort": "best"}, "effort", "effort is 'best'; allowed are balanced, exact, fast."),
        ({"effort": "fast", "exact": True}, "effort", "both exact and effort are given"),
        ({"max_per_story": 2**31}, "max_per_story", "cannot be sent"),
        ({"explore_seed": 2**63}, "explore_seed", "cannot be sent"),
        ({"priors": {"\ud800": 1.0}}, "priors", "cannot be sent"),
        ({"page_token": "\ud800"}, "page_token", "cannot be sent"),
    ],
)
def test_options_that_cannot_be_sent(options: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        search_request("a", **options)
    assert caught.value.field == field


def test_exact_is_an_effort(server: Server, client: Client) -> None:
    client.search("a", exact=True)
    client.search("a", effort="exact")
    client.search("a", exact=False)
    first, second, third = server.requests
    assert isinstance(first, SearchRequest)
    assert isinstance(second, SearchRequest)
    assert (first.effort, second.ranking.effort, second.effort) == (EFFORT_EXACT, EFFORT_EXACT, 0)
    assert third == search_request("a")


def test_vectors_in_three_forms(client: Client) -> None:
    packed = client.embed(["sport"], packed=True).embeddings[0].vector
    assert packed.packed == struct.pack("<3f", 0, 1, 0)
    for vector in ([0.0, 1.0, 0.0], packed.packed, packed, Vector(values=[0, 1, 0])):
        assert client.search(vector=vector).hits[0].article.id == "a3"


def test_articles_in_plain_python() -> None:
    berlin = timezone(timedelta(hours=1))
    made = article(
        "n1", title="T", content="C", published_at=datetime(2026, 3, 1, 1, tzinfo=berlin), attributes={"a": "b"}
    )
    assert (made.id, made.title, made.content, dict(made.attributes)) == ("n1", "T", "C", {"a": "b"})
    assert made.published_at.ToDatetime(UTC) == MARCH
    assert article() == Article()
    with pytest.raises(InvalidArgument) as caught:
        article("n1", title="\ud800")
    assert caught.value.field == "title"


# --------------------------------------------------------------------------------------------- paging, batches


@pytest.mark.parametrize("limit", [1, 2, 4, 10])
def test_hits_come_from_all_pages(server: Server, client: Client, limit: int) -> None:
    whole = [hit.article.id for hit in client.search("economy sport", limit=1000).hits]
    server.requests.clear()
    request = search_request("economy sport", limit=limit)
    assert [hit.article.id for hit in client.hits(request)] == whole
    assert len(server.requests) == -(-len(whole) // limit)
    assert request == search_request("economy sport", limit=limit)
    recommended = [hit.article.id for hit in client.hits(recommend_request(["sport", "economy"], limit=limit))]
    assert sorted(recommended) == sorted(ARTICLES)


def test_a_batch_fails_alone(client: Client) -> None:
    requests = [search_request("storm", limit=1), search_request(article_id="a9"), search_request(article_id="a1")]
    first, second, third = client.batch_search(requests).results
    assert first.response.hits[0].article.id == "a5"
    error = error_of(second.error)
    assert type(error).__name__ == "NotFound"
    assert error.message == "no article has the id 'a9'."
    assert third.response.hits[0].article.id == "a2"


@pytest.mark.parametrize(
    ("code", "name"),
    [("INVALID_ARGUMENT", "InvalidArgument"), ("RESOURCE_EXHAUSTED", "Overloaded"), ("?", "ColdframeError")],
)
def test_an_items_error_is_one_of_ours(code: str, name: str) -> None:
    error = error_of(ItemError(code=code, message="what was wrong", field="seed.text"))
    assert (type(error).__name__, error.message) == (name, "what was wrong")
    assert getattr(error, "field", "seed.text") == "seed.text"


# --------------------------------------------------------------------------------------------------- recommending


def test_recommend_keeps_interests_apart_and_explains(client: Client) -> None:
    seeds: list[WeightedSeed | str] = [
        "sport",
        seed(article_id="a1", weight=3),
        seed("storm", weight=-0.5),
        seed(article_id="a9"),
    ]
    reply = client.recommend(
        seeds, limit=4, read_mask=["article.id", "score", "explanation"], half_life=timedelta(days=9)
    )
    assert [(list(one.seeds), one.medoid, one.weight, one.cluster_id) for one in reply.interests] == [
        ([1], 1, 0.75, "c0"),
        ([0], 0, 0.25, "c1"),
    ]
    assert list(reply.missing_ids) == ["a9"]
    for hit in reply.hits:
        why: Explanation = hit.explanation
        parts = why.similarity + why.negative + why.recency + why.prior + why.diversity
        assert hit.score == pytest.approx(parts, abs=1e-6)
        assert not hit.article.title
    assert any(hit.explanation.negative < 0 for hit in reply.hits)


def test_seeds_and_expansion_reach_the_server(server: Server, client: Client) -> None:
    mix = expansion(weight=0.25, articles=3, max_age=timedelta(days=2))
    client.recommend(
        [seed("a", weight=2), seed(cluster_id="c1")], expansion=mix, max_interests=2, interest_similarity=0.5
    )
    (request,) = server.requests
    assert isinstance(request, RecommendRequest)
    assert [one.weight for one in request.seeds] == [2.0, 1.0]
    assert (request.max_interests, request.interest_similarity) == (2, 0.5)
    assert (request.expansion.weight, request.expansion.articles) == (0.25, 3)
    assert request.expansion.max_age.ToTimedelta() == timedelta(days=2)


@pytest.mark.parametrize("given", ["one string", [seed("a"), ""]])
def test_seeds_that_are_none(client: Client, given: Any) -> None:
    if isinstance(given, str):
        with pytest.raises(InvalidArgument, match="seeds is one string") as caught:
            client.recommend(given)
        assert caught.value.field == "seeds"
    with pytest.raises(InvalidArgument, match="exactly one of text, article, article_id, vector, cluster_id"):
        seed("a", article_id="b")


# ------------------------------------------------------------------------------------------------------- clusters


def test_clusters_and_their_articles(server: Server, client: Client) -> None:
    assert [one.id for one in client.clusters(order="freshness")] == ["c0", "c1", "c2"]
    server.requests.clear()
    assert [one.id for one in client.cluster_articles("c0", page_size=1)] == ["a1", "a2"]
    assert len(server.requests) == 2
    assert [one.id for one in client.cluster_articles("c0", order="newest")] == ["a2", "a1"]
    assert [one.id for one in client.cluster("c0", neighbor_limit=1).neighbors] == ["c1"]
    assert len(client.cluster("c0").neighbors) == 2
    assert client.nearest_clusters(cluster_id="c2", limit=1, temperature=0.1).matches[0].cluster.id == "c2"
    assert server.requests[-1].temperature == pytest.approx(0.1)  # type: ignore[attr-defined]


def test_trending(client: Client) -> None:
    reply = client.trending(window=timedelta(days=5), as_of=datetime(2026, 3, 2, tzinfo=UTC), min_count=1, limit=3)
    assert [(one.cluster.id, one.count, one.growth) for one in reply.clusters] == [("c0", 2, 1.5), ("c1", 2, 1.5)]
    with pytest.raises(InvalidArgument, match="baseline_windows cannot be sent"):
        client.trending(baseline_windows=2**40)


# ------------------------------------------------------------------------------------------------------- articles


def test_an_article_comes_and_goes(client: Client) -> None:
    new = article("n1", title="Storm at sea", content="storm", published_at=MARCH)
    (checked,) = client.upsert([new], validate_only=True).results
    assert checked.outcome == 1
    assert "n1" not in [hit.article.id for hit in client.search("storm").hits]
    (done,) = client.upsert([new], cluster_limit=2, neighbor_limit=3).results
    assert (done.outcome, done.article.cluster_id, done.article.live) == (1, "c2", True)
    assert (len(done.clusters), len(done.neighbors)) == (2, 3)
    assert client.upsert([new]).results[0].outcome == 3
    assert client.get_article("n1", neighbor_limit=1).neighbors[0].article.id == "a5"
    assert "n1" in [hit.article.id for hit in client.search("storm").hits]
    reply = client.delete(["n1", "n2"])
    assert (list(reply.deleted_ids), list(reply.missing_ids)) == (["n1"], ["n2"])
    with pytest.raises(UnknownArticle):
        client.get_article("n1")


def test_upserts_and_deletes_are_tried_again(server: Server, client: Client) -> None:
    server.failures.extend([Failure(grpc.StatusCode.UNAVAILABLE)] * 2)
    assert client.upsert([article("n1", title="Storm")]).results[0].outcome == 1
    server.failures.extend([Failure(grpc.StatusCode.UNAVAILABLE)] * 2)
    assert client.delete(["n1"]).deleted_ids == ["n1"]
    assert len(server.requests) == 6


def test_an_upsert_that_is_refused_names_the_field(client: Client) -> None:
    with pytest.raises(InvalidArgument) as caught:
        client.upsert([article("n1", title="Storm"), article("n2")])
    assert caught.value.field == "articles[1].title"
    with pytest.raises(InvalidArgument, match="ids is one string"):
        client.delete("a1")
    with pytest.raises(InvalidArgument, match="neighbor_limit cannot be sent"):
        client.get_article("a1", neighbor_limit=2**40)


# -------------------------------------------------------------------------------------------------------- streams


def test_streams_answer_in_order_with_their_numbers(client: Client) -> None:
    texts = ["storm", "sport"] * 40
    answers = list(client.stream_embed(iter(texts)))
    assert [answer.correlation_id for answer in answers] == [str(n) for n in range(80)]
    assert answers[1].embedding.vector.packed == struct.pack("<3f", 0, 1, 0)
    assert list(next(client.stream_embed(["storm"], packed=False)).embedding.vector.values) == [0, 0, 1]
    found = list(client.stream_search([search_request("storm"), search_request(article_id="a9")]))
    assert found[0].response.hits[0].article.id == "a5"
    assert (found[1].correlation_id, error_of(found[1].error).code) == ("1", "NOT_FOUND")


def test_articles_stream_in_groups(server: Server, client: Client) -> None:
    articles = [article(f"n{n}", title="Storm") for n in range(10)]
    articles.insert(5, article("n4", title="Storm again"))
    replies = list(client.stream_upsert(articles, group=4))
    assert [reply.correlation_id for reply in replies] == ["0-3", "4-4", "5-8", "9-10"]
    assert [len(reply.response.results) for reply in replies] == [4, 1, 4, 2]
    assert len(server.services.index.sent) == 10
    whole = list(client.stream_upsert(articles, group=256, cluster_limit=1, neighbor_limit=2))
    assert [reply.correlation_id for reply in whole] == ["0-4", "5-10"]
    assert {(len(one.clusters), len(one.neighbors)) for reply in whole for one in reply.response.results} == {(1, 2)}
    with pytest.raises(InvalidArgument, match="group is 257; give 1 to 256"):
        client.stream_upsert(articles, group=257)


def test_a_group_is_bounded_in_bytes(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_GROUP_BYTES", 1000)
    articles = [article(str(n), title="Storm", content="x" * size) for n, size in enumerate((400, 400, 400, 5000, 10))]
    replies = client.stream_upsert(articles)
    assert [reply.correlation_id for reply in replies] == ["0-1", "2-2", "3-3", "4-4"]


def test_a_stream_is_read_as_it_is_answered(client: Client) -> None:
    asked: list[int] = []

    def texts() -> Iterator[str]:
        for n in range(3):
            asked.append(n)
            yield "storm"
            answered.wait(10)
            answered.clear()

    answered = threading.Event()
    for n, _ in enumerate(client.stream_embed(texts())):
        assert asked == list(range(n + 1))
        answered.set()
    assert asked == [0, 1, 2]


def test_requests_that_raise_end_a_stream_after_those_before(client: Client) -> None:
    def texts() -> Iterator[str]:
        yield "storm"
        raise KeyError("the caller's own")

    answers = client.stream_embed(texts())
    assert next(answers).correlation_id == "0"
    with pytest.raises(KeyError, match="the caller's own"):
        next(answers)
    with pytest.raises(InvalidArgument, match="seed given; give exactly one"):
        list(client.stream_search(search_request() for _ in range(1)))
    answers = client.stream_embed(["storm", "\ud800"])
    assert next(answers).correlation_id == "0"
    with pytest.raises(InvalidArgument, match="text cannot be sent"):
        next(answers)


def test_a_stream_that_is_left_ends(client: Client) -> None:
    left = threading.Event()

    def texts() -> Iterator[str]:
        try:
            while True:
                yield "storm"
        finally:
            left.set()

    answers = client.stream_embed(texts())
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert left.wait(10)


def test_streams_are_not_tried_again(server: Server, client: Client) -> None:
    for stream in (
        client.stream_embed(["storm"]),
        client.stream_search([search_request("storm")]),
        client.stream_upsert([article("n1", title="Storm")]),
    ):
        server.requests.clear()
        server.failures.append(Failure(grpc.StatusCode.UNAVAILABLE))
        with pytest.raises(Unavailable):
            list(stream)
        assert len(server.requests) == 1


def test_a_stream_has_a_deadline_where_it_is_given_one(server: Server, client: Client) -> None:
    server.stalled = True
    with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
        list(client.stream_embed(["storm"], timeout=0.2))
    client.close()
    with pytest.raises(ColdframeError, match="closed"):
        list(client.stream_embed(["storm"]))
