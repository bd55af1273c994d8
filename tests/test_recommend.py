"""User cold start over real gRPC: several interests, what counts against, explanations, pages, and every option."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from coldframe import article, expansion, seed
from coldframe.errors import InvalidArgument
from coldframe.filters import cluster
from coldframe.recipe import unit
from coldframe.requests import recommend_request, search_request
from server.interests import share_places
from server.wire import requests
from tests.newsroom import COUNT, every_id, everything, opened, piece, words

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from coldframe import Client
    from coldframe.v1.search_service_pb2 import RecommendResponse
    from coldframe.v1.types_pb2 import Hit
    from server.engine import Engine
    from server.view import View
    from tests.conftest import Background

AS_OF = datetime(2026, 2, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def served(
    background: Background, newsroom: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Client, Engine]]:
    """Live articles, a copy and a replaced one, are among them; no test of this file changes that."""
    store = shutil.copytree(newsroom, tmp_path_factory.mktemp("recommend") / "store")
    with opened(background, store) as (client, engine):
        old = client.get_article("010").article
        client.upsert([piece("copy", old.excerpt, title=old.title), piece("live", published_at=AS_OF), piece("011")])
        client.upsert([piece(f"live-{n}", attributes={"views": str(10**n)}, published_at=AS_OF) for n in range(5)])
        yield client, engine


@pytest.fixture(scope="module")
def client(served: tuple[Client, Engine]) -> Client:
    return served[0]


@pytest.fixture(scope="module")
def view(served: tuple[Client, Engine]) -> View:
    return served[1].served().view


def ids(hits: Any) -> list[str]:
    return [hit.article.id for hit in hits]


def vector_of(view: View, name: str) -> NDArray[np.float64]:
    row = view.row_of(name)
    assert row is not None
    return view.vector(row).astype(np.float64)


def far_apart(view: View) -> tuple[str, str]:
    """The two articles that are least alike."""
    names, vectors = everything(view)
    first, second = divmod(int((vectors @ vectors.T).argmin()), len(names))
    return names[first], names[second]


# ----------------------------------------------------------------------------------------------------------- interests


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (1.0, 2.5)])
def test_two_interests_share_the_places_by_weight_and_neither_is_averaged(
    client: Client, view: View, weights: tuple[float, float]
) -> None:
    pair = far_apart(view)
    seeds = [seed(article_id=name, weight=weight) for name, weight in zip(pair, weights, strict=True)]
    reply = client.recommend(seeds, limit=12, effort="exact", read_mask=["article.id", "score", "explanation"])
    shares = [interest.weight for interest in reply.interests]
    assert shares == pytest.approx(sorted((weight / sum(weights) for weight in weights), reverse=True))
    assert [[*interest.seeds] for interest in reply.interests] == [[interest.medoid] for interest in reply.interests]
    turns = [hit.explanation.interest for hit in reply.hits]
    assert turns == share_places(shares, [100, 100], 12)
    taken: set[str] = set()
    for hit in reply.hits:
        medoid = reply.interests[hit.explanation.interest].medoid
        assert hit.explanation.seed == medoid
        own = client.search(article_id=pair[medoid], exact=True, limit=100, exclude_ids=[*pair, *taken]).hits[0]
        assert (hit.article.id, hit.score) == (own.article.id, own.score)
        taken.add(hit.article.id)


def test_seeds_that_are_alike_are_one_interest_and_its_medoid_stands_for_it(client: Client, view: View) -> None:
    rng = np.random.default_rng(0)
    one, other = (vector_of(view, name) for name in far_apart(view))
    near = [unit((one + 0.05 * rng.standard_normal(len(one))).astype(np.float32)) for _ in range(4)]
    vectors = [near[0], other.astype(np.float32), *near[1:]]
    seeds = [seed(vector=v.tolist()) for v in vectors]
    reply = client.recommend(seeds, limit=20, read_mask=["article.id", "explanation"], max_interests=2)
    first, second = reply.interests
    assert ([*first.seeds], [*second.seeds]) == ([0, 2, 3, 4], [1])
    cosines = np.array(near).astype(np.float64) @ np.array(near).astype(np.float64).T
    assert first.medoid == [0, 2, 3, 4][int(cosines.sum(axis=1).argmax())]
    assert second.medoid == 1
    assert [first.weight, second.weight] == pytest.approx([0.8, 0.2])
    for interest in reply.interests:
        nearest = client.nearest_clusters(vector=vectors[interest.medoid].tolist(), limit=1).matches[0].cluster
        assert (interest.cluster_id, interest.cluster_label) == (nearest.id, nearest.label)
    assert Counter(hit.explanation.interest for hit in reply.hits) == {0: 16, 1: 4}
    assert len(client.recommend(seeds, max_interests=1).interests) == 1
    assert len(client.recommend(seeds, interest_similarity=1.0).interests) == 5
    assert len(client.recommend(seeds, interest_similarity=-1.0).interests) == 1


def test_a_likeness_of_zero_is_one_that_was_asked_for(client: Client, view: View) -> None:
    names, vectors = everything(view)
    cosines = vectors @ vectors.T
    first, second = divmod(int(np.where(cosines > 0.01, cosines, np.inf).argmin()), len(names))
    seeds = [seed(article_id=names[first]), seed(article_id=names[second])]
    assert len(client.recommend(seeds).interests) == 2
    assert len(client.recommend(seeds, interest_similarity=0.0).interests) == 1


def test_an_interest_whose_nearest_are_copies_of_one_story_has_its_places_all_the_same(
    background: Background, own_newsroom: Path
) -> None:
    with opened(background, own_newsroom) as (client, engine):
        one, other = far_apart(engine.served().view)
        text = words("a story", 60)
        client.upsert([piece(f"copy-{n:02}", text) for n in range(60)])
        seeds = [seed(article=piece("", text)), seed(article_id=one), seed(article_id=other)]
        asked: dict[str, Any] = {"effort": "exact", "interest_similarity": 1.0, "read_mask": ["article", "explanation"]}
        long = client.recommend(seeds, limit=30, **asked)
        assert Counter(hit.explanation.interest for hit in long.hits) == {0: 10, 1: 10, 2: 10}
        short = [*client.hits(recommend_request(seeds, limit=7, **asked))]
        assert ids(short)[:30] == ids(long.hits)
        assert len({*ids(short)}) == len(short) == COUNT - 2 + 1


# ------------------------------------------------------------------------------------------- what is never among them


def test_neither_seeds_nor_their_stories_come_back(client: Client) -> None:
    for most in (None, 0, 3):
        reply = client.recommend(
            [
                seed(article_id="010"),
                seed(article_id="live"),
                seed(article=piece("020")),
                seed(article_id="030", weight=-1),
            ],
            limit=1000,
            effort="exact",
            max_per_story=most,
        )
        assert not {"010", "copy", "live", "020", "030"} & {*ids(reply.hits)}, most
        assert len(reply.hits) == COUNT + 7 - 5


def test_unknown_ids_are_told_and_passed_over(client: Client) -> None:
    seeds = [seed(article_id="nobody"), seed(article_id="010"), seed(cluster_id="c9999"), seed(article_id="nobody")]
    reply = client.recommend(seeds, exclude_ids=["000", "gone"], filter=~cluster("c8888"))
    assert [*reply.missing_ids] == ["nobody", "c9999", "gone", "c8888"]
    assert [[*interest.seeds] for interest in reply.interests] == [[1]]
    assert ids(reply.hits) == ids(client.recommend([seed(article_id="010")], exclude_ids=["000"]).hits)
    none = client.recommend([seeds[0], seed("a b", weight=-1)], exclude_ids=["gone"], filter=~cluster("c8888"))
    assert ([*none.hits], [*none.interests]) == ([], [])
    assert [*none.missing_ids] == ["nobody", "gone", "c8888"]
    assert not none.next_page_token


def test_excluded_articles_do_not_shorten_the_list(client: Client) -> None:
    asked: dict[str, Any] = {"effort": "exact", "max_per_story": 0}  # else a copy of what is excluded comes forward
    all_of_them = ids(client.recommend(["a b c"], limit=1000, **asked).hits)
    reply = client.recommend(["a b c"], limit=20, exclude_ids=all_of_them[:90], **asked)
    assert ids(reply.hits) == all_of_them[90:110]


# -------------------------------------------------------------------------------------------------- negative, expansion


def test_a_negative_seed_pushes_down_what_is_like_it(client: Client, view: View) -> None:
    one, other = far_apart(view)
    reply = client.recommend(
        [seed(article_id=one, weight=2), seed(article_id=other, weight=-1)],
        limit=1000,
        effort="exact",
        read_mask=["article.id", "score", "explanation"],
    )
    for hit in reply.hits:
        own = vector_of(view, hit.article.id)
        assert hit.explanation.negative == pytest.approx(-max(0.5 * float(own @ vector_of(view, other)), 0), abs=1e-6)
        assert hit.explanation.similarity == pytest.approx(float(own @ vector_of(view, one)), abs=1e-6)
    assert any(hit.explanation.negative < 0 for hit in reply.hits)
    scores = [hit.score for hit in reply.hits]
    assert scores == sorted(scores, reverse=True)


def test_expansion_moves_texts_towards_the_articles_and_nothing_else(client: Client, view: View) -> None:
    text = "q q q z z"
    (embedding,) = client.embed([text]).embeddings
    plain = np.array(embedding.vector.values)
    names, vectors = everything(view)
    scores = (vectors * plain).sum(axis=1)
    for share, count in ((0.5, 5), (1.0, 1), (0.2, 100)):
        nearest = np.lexsort((np.arange(len(names)), -scores))[:count]
        moved = unit(((1 - share) * plain + share * vectors[nearest].mean(axis=0)).astype(np.float32))
        reply = client.recommend(
            [text], expansion=expansion(weight=share, articles=count), effort="exact", max_per_story=0
        )
        wanted = client.recommend([seed(vector=moved.tolist())], effort="exact", max_per_story=0)
        assert ids(reply.hits) == ids(wanted.hits)
        assert [hit.score for hit in reply.hits] == pytest.approx([hit.score for hit in wanted.hits], abs=1e-5)
    held = words("live")  # a text is one, too, where an article has the same
    assert client.recommend([held], expansion=expansion()).hits != client.recommend([held]).hits
    known = client.get_article("010").article
    for still in (
        *(seed(article_id=view.id_of(0)), seed(article=piece("010", known.excerpt, title=known.title))),
        *(seed(article=piece("never seen")), seed(article=article(title="q", content="z z"))),
        *(seed(vector=plain.tolist()), seed(cluster_id="c0000")),
    ):
        assert client.recommend([still], expansion=expansion()).hits == client.recommend([still]).hits != []


def test_expansion_asks_young_articles_only_where_it_is_told_so(client: Client, view: View) -> None:
    young = client.recommend(
        ["q q z"], expansion=expansion(max_age=timedelta(hours=1), weight=1, articles=50), as_of=AS_OF, effort="exact"
    )
    mean = np.mean([vector_of(view, name) for name in ("live", *(f"live-{n}" for n in range(5)))], axis=0)
    wanted = client.recommend([seed(vector=unit(mean.astype(np.float32)).tolist())], effort="exact")
    assert ids(young.hits) == ids(wanted.hits)
    old = datetime(50, 1, 1, tzinfo=UTC)
    assert client.recommend(["q"], expansion=expansion(max_age=timedelta(days=36_000)), as_of=old).hits
    nobody = client.recommend(
        ["q q z"], expansion=expansion(max_age=timedelta(hours=1)), as_of=AS_OF + timedelta(days=9)
    )
    assert nobody.hits == client.recommend(["q q z"]).hits
    with pytest.raises(InvalidArgument) as refused:
        client.recommend(["q"], expansion=expansion(weight=0))
    assert refused.value.field == "expansion.weight"


@pytest.mark.parametrize(
    ("length", "said"),
    [
        (Duration(seconds=2, nanos=-1), "2 seconds, -1 nanoseconds"),
        (Duration(nanos=2**31 - 1), "0 seconds, 2147483647 nanoseconds"),
        (Duration(nanos=999_999_999), "0.999999999 seconds; allowed are 1 to 3,162,240,000"),
    ],
)
def test_a_duration_that_is_none_is_refused_as_a_timestamp_is(length: Duration, said: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^expansion.max_age is .*{said}") as refused:
        requests.seconds(length, "expansion.max_age", 1.0)
    assert refused.value.field == "expansion.max_age"
    assert requests.seconds(Duration(seconds=1, nanos=999_999_999), "expansion.max_age", 1.0) == 1.999999999


@pytest.mark.parametrize("similarity", [1.5, float("nan")])
def test_the_likeness_of_an_interest_has_no_number_for_a_default(client: Client, similarity: float) -> None:
    with pytest.raises(InvalidArgument, match=r"allowed are -1 to 1, default as similar as two articles of") as refused:
        client.recommend(["q"], interest_similarity=similarity)
    assert refused.value.field == "interest_similarity"


# ----------------------------------------------------------------------------------------------------------- seed kinds


def test_every_kind_of_seed_leads_where_it_points(client: Client, view: View) -> None:
    centroid = view.base.generation.index.centroids[view.base.generation.numbers["c0001"]]
    (embedding,) = client.embed(["k l m"], packed=True).embeddings
    pairs = [
        (seed(cluster_id="c0001"), seed(vector=centroid.tolist())),
        (seed("k l m"), seed(vector=embedding.vector)),
        (seed("k l m"), seed(article=piece("", "k l m"))),
    ]
    for one, other in pairs:
        assert ids(client.recommend([one], limit=50).hits) == ids(client.recommend([other], limit=50).hits)
    by_id = client.recommend([seed(article_id="033")], limit=50).hits
    by_vector = client.recommend([seed(vector=vector_of(view, "033").tolist())], limit=50, exclude_ids=["033"]).hits
    assert ids(by_id) == ids(by_vector)
    assert [hit.score for hit in by_id] == pytest.approx([hit.score for hit in by_vector], abs=1e-6)
    usages = client.recommend([seed("k l m"), seed(article_id="033"), seed(article=piece("", "k l"))]).usages
    assert [usage.tokens_seen for usage in usages] == [5, 0, 4]


# --------------------------------------------------------------------------------------------------------- explanations

OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "recency": {"half_life": timedelta(days=3), "as_of": AS_OF, "recency_weight": 0.7},
    "priors": {"priors": {"001": 0.5, "live": -0.3, "nobody": 2.0}},
    "popularity": {"popularity_attribute": "views", "popularity_weight": 0.4},
    "diversity": {"diversity": 0.6},
    "explore": {"explore_fraction": 0.5, "explore_seed": 3},
    "caps": {"max_per_cluster": 2, "max_per_story": 0},
    "all": {
        "half_life": timedelta(days=3),
        "as_of": AS_OF,
        "priors": {"001": 0.5, "live": -0.3},
        "popularity_attribute": "views",
        "diversity": 0.3,
        "explore_fraction": 0.2,
        "max_per_cluster": 5,
        "min_score": -0.5,
    },
}
SEEDS = [seed(article_id="010"), seed("a b c", weight=2), seed(cluster_id="c0002"), seed(article_id="099", weight=-1.5)]
WHY = ["article", "score", "explanation"]


def added_up(hit: Hit) -> float:
    why = hit.explanation
    return why.similarity + why.negative + why.recency + why.prior + why.diversity


def test_a_moment_between_two_seconds_is_what_ages_are_counted_to(client: Client) -> None:
    published_at = client.get_article("010").article.published_at.ToDatetime(UTC)
    moment: dict[str, Any] = {"as_of": published_at + timedelta(seconds=0.5), "half_life": timedelta(seconds=1)}
    hits = client.search(article_id="011", limit=1000, max_per_story=0, read_mask=WHY, **moment).hits
    (freshness,) = [hit.explanation.freshness for hit in hits if hit.article.id == "010"]
    assert freshness == pytest.approx(2**-0.5, abs=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_parts_of_a_score_add_up_and_each_is_what_it_says(client: Client, view: View, name: str) -> None:
    options = OPTIONS[name]
    reply = client.recommend(SEEDS, limit=30, read_mask=WHY, effort="exact", **options)
    searched = client.search(article_id="010", limit=30, read_mask=WHY, exact=True, **options)
    largest = math.log1p(max(10**4, (COUNT - 1) ** 2))
    for hit in (*reply.hits, *searched.hits):
        why, shown = hit.explanation, hit.article
        assert added_up(hit) == pytest.approx(hit.score, abs=1e-6)
        assert (why.cluster_id, why.cluster_label != "") == (shown.cluster_id, True)
        age = (AS_OF - shown.published_at.ToDatetime(UTC)).total_seconds() if shown.HasField("published_at") else 0
        fresh = 2 ** (-age / (3 * 86_400)) if "half_life" in options else 1
        assert why.freshness == pytest.approx(fresh, abs=1e-6)
        weight = options.get("recency_weight", 0.2) if "half_life" in options else 0
        assert why.recency == pytest.approx(weight * (fresh - 1), abs=1e-6)
        prior = options.get("priors", {}).get(shown.id, 0.0)
        if "popularity_attribute" in options:
            views = float(shown.attributes.get("views", 0))
            prior += options.get("popularity_weight", 0.1) * math.log1p(views) / largest
        assert why.prior == pytest.approx(prior, abs=1e-6)
        assert why.diversity == 0 or (why.diversity < 0 and "diversity" in options)
        assert not why.explored or "explore_fraction" in options
        if "min_score" in options:
            assert hit.score - why.diversity >= options["min_score"]
    assert {hit.explanation.negative for hit in searched.hits} == {0}
    assert {(hit.explanation.seed, hit.explanation.interest) for hit in searched.hits} == {(0, 0)}


def test_the_largest_of_the_index_is_the_largest_of_those_that_are_there(
    background: Background, own_newsroom: Path
) -> None:
    asked: dict[str, Any] = {"popularity_attribute": "views", "effort": "exact", "limit": 1000}
    with opened(background, own_newsroom) as (client, _):
        before = client.search("a b", **asked).hits
        client.upsert([piece("famous", attributes={"views": "1e12"})])
        assert client.search("a b", **asked).hits != before
        client.upsert([piece("famous", attributes={"views": "none"})])
        client.delete(["famous"])
        assert client.search("a b", **asked).hits == before
        client.delete([f"{COUNT - 1}"])
        shown = client.search("a b", **asked | {"read_mask": WHY}).hits
        assert max(hit.explanation.prior for hit in shown) == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_two_equal_calls_have_equal_answers(client: Client, name: str) -> None:
    replies = [client.recommend(SEEDS, limit=30, read_mask=WHY, **OPTIONS[name]) for _ in range(2)]
    for reply in replies:
        reply.ClearField("timing")
    assert replies[0].SerializeToString(deterministic=True) == replies[1].SerializeToString(deterministic=True)


def test_the_attribution_token_names_index_state_and_request(background: Background, own_newsroom: Path) -> None:
    def token(reply: RecommendResponse) -> str:
        return reply.served_by.attribution_token

    with opened(background, own_newsroom) as (client, _):
        first = token(client.recommend(SEEDS, limit=5))
        assert first == token(client.recommend(SEEDS, limit=5))
        assert first != token(client.recommend(SEEDS, limit=6))
        assert first != token(client.recommend(SEEDS[:3], limit=5))
        client.upsert([piece("new")])
        later = client.recommend(SEEDS, limit=5)
        assert first != token(later)
        by = later.served_by
        assert token(later).startswith(f"{by.generation}.{by.live_sequence}.{by.fingerprint[:12]}.")


# ------------------------------------------------------------------------------------------------------ caps and chance


def test_chance_has_its_share_and_draws_the_same_by_the_same_seed(client: Client) -> None:
    def draw(number: int) -> RecommendResponse:
        return client.recommend(
            ["a b c"], limit=20, explore_fraction=0.25, explore_seed=number, read_mask=["article.id", "explanation"]
        )

    plain = ids(client.recommend(["a b c"], limit=20).hits)
    drawn = [draw(number) for number in (1, 1, 2, -5)]
    for reply in drawn:
        explored = [hit.article.id for hit in reply.hits if hit.explanation.explored]
        assert len(explored) == 5
        assert not {*explored} & {*plain}
        kept = [hit.article.id for hit in reply.hits if not hit.explanation.explored]
        assert kept == plain[:15]
    assert drawn[0].hits == drawn[1].hits
    assert drawn[0].hits != drawn[2].hits != drawn[3].hits


@pytest.mark.parametrize("name", ["recency_weight", "popularity_weight"])
@pytest.mark.parametrize("weight", [-0.1, 2.1, math.nan])
def test_a_weight_is_held_to_its_range_also_where_it_weighs_nothing(client: Client, name: str, weight: float) -> None:
    asked: dict[str, Any] = {name: weight}
    with pytest.raises(InvalidArgument, match="0 to 2") as refused:
        client.search("a b c", **asked)
    assert refused.value.field == f"ranking.{name}"


@pytest.mark.parametrize("cap", [1, 3])
def test_no_cluster_has_more_than_its_cap(client: Client, cap: int) -> None:
    reply = client.recommend(["a b c", "x y z"], limit=1000, effort="exact", max_per_cluster=cap)
    counts = Counter(hit.article.cluster_id for hit in reply.hits)
    assert {*counts.values()} == {cap}
    assert len(counts) == 6


def test_a_threshold_leaves_out_what_scores_less(client: Client) -> None:
    whole = client.recommend(["a b c"], limit=1000, effort="exact").hits
    least = whole[17].score
    assert client.recommend(["a b c"], limit=1000, effort="exact", min_score=least).hits == whole[:18]
    assert not client.recommend(["a b c"], min_score=1.1).hits


def test_a_mask_says_what_of_a_hit_comes_back(client: Client) -> None:
    whole = client.recommend(["a b c"], read_mask=WHY).hits
    some = client.recommend(["a b c"], read_mask=["article.title", "article.attributes"]).hits
    for full, part in zip(whole, some, strict=True):
        assert (part.article.title, part.article.attributes) == (full.article.title, full.article.attributes)
        assert (part.article.id, part.article.story_id, part.score) == ("", "", 0)
        assert not part.HasField("explanation")
    scores = client.recommend(["a b c"], read_mask=["score"]).hits
    assert [hit.score for hit in scores] == [hit.score for hit in whole]
    assert not any(hit.HasField("article") for hit in scores)
    with pytest.raises(InvalidArgument, match=r"article\.title") as refused:
        client.recommend(["a b c"], read_mask=["article.body"])
    assert refused.value.field == "ranking.read_mask"


# ---------------------------------------------------------------------------------------------------------------- pages

PAGED = ["none", "recency", "priors", "popularity", "diversity", "caps"]


@pytest.mark.parametrize("name", PAGED)
@pytest.mark.parametrize("size", [1, 7, 50])
def test_the_pages_make_the_long_list(client: Client, view: View, name: str, size: int) -> None:
    options: dict[str, Any] = {"effort": "exact", "read_mask": ["article.id", "score"], **OPTIONS[name]}
    if size == 1:
        options |= {"exclude_ids": sorted(every_id(view))[20:]}
    whole = client.recommend(SEEDS, limit=1000, **options)
    assert not whole.next_page_token
    assert [*client.hits(recommend_request(SEEDS, limit=size, **options))] == [*whole.hits]
    found = client.search("a b c", limit=1000, **options)
    assert not found.next_page_token
    assert [*client.hits(search_request("a b c", limit=size, **options))] == [*found.hits]


def test_a_page_token_belongs_to_its_request(client: Client) -> None:
    token = client.recommend(["a b c"], limit=5).next_page_token
    with pytest.raises(InvalidArgument, match="belongs to another request") as refused:
        client.recommend(["a b d"], limit=5, page_token=token)
    assert refused.value.field == "page_token"
    whole = client.recommend(["a b c"], limit=15).hits
    assert client.recommend(["a b c"], limit=10, page_token=token).hits == whole[5:]
