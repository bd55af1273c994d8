"""The order of answers against an oracle that looks at every candidate at every place, and small cases to be read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.columns import UNDATED
from server.ranking import Candidates, Options, Ranked, in_order, merge
from tests.ranking_oracle import Answer, Chosen

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

DAY = 86_400
DAY_US = 1_000_000 * DAY
PARTS = ("similarity", "negative", "recency", "prior", "diversity")
# Unit vectors whose products, like all numbers drawn below, have few binary digits: fp32 makes no error with them.
VECTORS = np.concatenate([np.eye(4), -np.eye(4), np.array(np.meshgrid(*[[0.5, -0.5]] * 4)).reshape(4, -1).T])


def candidates(similarity: ArrayLike, **given: Any) -> Candidates:
    """A list with one story and one cluster an article, undated, unless said otherwise."""
    c = np.size(similarity)
    usual: dict[str, Any] = {
        "rows": np.arange(c),
        "negative": np.zeros(c),
        "prior": np.zeros(c),
        "microseconds": np.full(c, UNDATED),
        "stories": np.arange(c),
        "clusters": np.arange(c),
    }
    columns = {name: np.asarray(values) for name, values in {**usual, "similarity": similarity, **given}.items()}
    types: dict[str, Any] = {"clusters": np.int32}
    types |= dict.fromkeys(("similarity", "negative", "prior", "vectors"), np.float32)
    typed: dict[str, Any] = {name: values.astype(types.get(name, np.int64)) for name, values in columns.items()}
    return Candidates(**typed)


def rank(found: Candidates, options: Options, limit: int, **given: Any) -> Ranked:
    """The best of one list."""
    return merge([found], [1.0], options, limit, **given)


@st.composite
def lists_of_candidates(draw: st.DrawFn, tiers: int = 1) -> Candidates:
    c = draw(st.integers(0, 12))

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=c, max_size=c))

    tier = sorted(column(st.integers(0, tiers - 1)))
    return candidates(
        sorted(column(st.integers(-8, 8).map(lambda n: n / 8)), reverse=True),
        rows=draw(st.permutations(range(16)))[:c],
        negative=column(st.sampled_from([0, 0, -0.25, -0.5])),
        prior=column(st.sampled_from([0, 0, 0.25, -0.125])),
        microseconds=column(st.sampled_from([UNDATED, *(n * DAY_US for n in (0, 5, 8, 9, 10, 11))])),
        stories=column(st.integers(0, 6)),
        clusters=column(st.integers(0, 3)),
        vectors=VECTORS[column(st.integers(0, len(VECTORS) - 1))].reshape(c, 4)[: c if tiers == 1 else tier.count(0)],
        **({} if tiers == 1 else {"tier": tier}),
    )


OPTIONS = st.builds(
    Options,
    max_per_story=st.integers(0, 2),
    max_per_cluster=st.integers(0, 3),
    diversity=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    half_life_s=st.sampled_from([None, float(DAY)]),
    recency_weight=st.sampled_from([0.0, 0.25]),
    as_of_s=st.just(10 * DAY),
    min_score=st.sampled_from([None, -0.25, 0.0]),
)


def explained(ranked: Ranked) -> NDArray[np.float32]:
    total: NDArray[np.float32] = np.sum([getattr(ranked, part) for part in PARTS], axis=0, dtype=np.float32)
    return total


@settings(max_examples=300)
@given(
    lists=st.lists(lists_of_candidates() | lists_of_candidates(tiers=3), min_size=1, max_size=3),
    weights=st.lists(st.integers(1, 6), min_size=3, max_size=3),
    options=OPTIONS,
    limit=st.integers(1, 20),
    stories_taken=st.sets(st.integers(0, 6), max_size=2),
    data=st.data(),
)
def test_each_place_goes_to_the_best_that_is_allowed(
    lists: list[Candidates],
    weights: list[int],
    options: Options,
    limit: int,
    stories_taken: set[int],
    data: st.DataObject,
) -> None:
    shares = weights[: len(lists)]
    ties = [np.array(data.draw(st.permutations(range(len(c)))), np.int64) for c in lists]
    given_ties = ties if data.draw(st.booleans()) else None
    ranked = merge(lists, shares, options, limit, ties=given_ties, stories_taken=stories_taken)
    in_order = [range(len(c)) for c in lists]
    oracle = Answer(lists, options, [t.tolist() for t in ties] if given_ties else in_order, stories_taken)
    assert list(zip(ranked.interest, ranked.place, ranked.score, strict=True)) == oracle.fill(shares, limit)
    assert explained(ranked).tolist() == ranked.score.tolist()
    assert (ranked.diversity <= 0).all()
    assert (ranked.recency <= 0).all()
    for shorter in range(limit):
        start = merge(lists, shares, options, shorter, ties=given_ties, stories_taken=stories_taken)
        assert start.place.tolist() == ranked.place[:shorter].tolist()
        assert start.score.tolist() == ranked.score[:shorter].tolist()


@settings(max_examples=100)
@given(found=lists_of_candidates(), options=OPTIONS, limit=st.integers(1, 12))
def test_a_search_is_a_recommendation_with_one_interest(found: Candidates, options: Options, limit: int) -> None:
    one, same = rank(found, options, limit), merge([found], [3.0], options, limit)
    for name in Ranked.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
    assert (np.diff(one.score) <= 0).all()


@settings(max_examples=100)
@given(
    found=lists_of_candidates(),
    per_story=st.integers(0, 2),
    per_cluster=st.integers(0, 3),
    limit=st.integers(1, 12),
    taken=st.sets(st.integers(0, 6), max_size=3),
)
def test_where_similarity_alone_decides_the_short_way_takes_the_same(
    found: Candidates, per_story: int, per_cluster: int, limit: int, taken: set[int]
) -> None:
    plain = replace(found, negative=0 * found.negative, prior=0 * found.prior)
    options = Options(max_per_story=per_story, max_per_cluster=per_cluster)
    whole = rank(plain, options, limit, stories_taken=taken)
    places = in_order(plain.stories, plain.clusters if per_cluster else None, options, limit, taken)
    assert places == whole.place.tolist()
    short = Ranked.plain(plain.similarity[places], places)
    for name in Ranked.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(short, name), getattr(whole, name))


@pytest.mark.parametrize("diversity", [0.0, 0.3, 0.9])
def test_parts_add_up_to_the_score_to_rounding(diversity: float) -> None:
    random = np.random.default_rng(5)
    vectors = random.standard_normal((300, 32))
    found = candidates(
        np.sort(random.uniform(-0.2, 1, 300))[::-1],
        negative=-random.random(300),
        prior=random.uniform(-2, 2, 300),
        microseconds=random.integers(0, 30 * DAY_US, 300),
        vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
    )
    options = Options(diversity=diversity, half_life_s=3.7 * DAY, as_of_s=28 * DAY, explore_fraction=0.2)
    ranked = rank(found, options, 100)
    np.testing.assert_allclose(explained(ranked), ranked.score, rtol=0, atol=1e-6)
    assert len(set(ranked.place)) == 100


def test_equal_vectors_are_equally_near_wherever_they_stand() -> None:
    vector = np.random.default_rng(0).standard_normal(771)
    found = candidates([1.0] * 37, vectors=np.tile(vector / np.linalg.norm(vector), (37, 1)))
    assert rank(found, Options(diversity=0.7), 37).place.tolist() == list(range(37))


# To be read: five articles of two stories and three clusters.
NEWS = candidates(
    [0.9, 0.8, 0.7, 0.6, 0.5],
    stories=[1, 1, 2, 3, 4],
    clusters=[0, 0, 0, 1, 2],
    microseconds=[0, 9 * DAY_US, 10 * DAY_US, UNDATED, 12 * DAY_US],
    vectors=[[1, 0, 0], [1, 0, 0], [0.8, 0.6, 0], [0, 1, 0], [0, 0, 1]],
)


def order(options: Options, **given: Any) -> list[int]:
    places: list[int] = rank(NEWS, options, 5, **given).place.tolist()
    return places


def test_one_article_of_a_story_unless_said_otherwise() -> None:
    assert order(Options()) == [0, 2, 3, 4]
    assert order(Options(max_per_story=0)) == order(Options(max_per_story=2)) == [0, 1, 2, 3, 4]
    assert order(Options(), stories_taken=[1]) == order(Options(max_per_story=0), stories_taken=[1]) == [2, 3, 4]


def test_chance_answers_no_story_that_is_taken() -> None:
    for seed in range(10):
        drawn = order(Options(explore_fraction=0.5, explore_seed=seed), stories_taken=[1, 3])
        assert sorted(drawn) == [2, 4]


def test_a_cap_per_cluster_lets_the_next_cluster_through() -> None:
    assert order(Options(max_per_cluster=1)) == [0, 3, 4]
    assert order(Options(max_per_story=0, max_per_cluster=2)) == [0, 1, 3, 4]


def test_ages_are_counted_to_the_fraction_of_a_second() -> None:
    found = candidates([0.5, 0.5], microseconds=[9_250_000, 8_750_000])
    ranked = rank(found, Options(half_life_s=1, as_of_s=9.75), 2)
    np.testing.assert_allclose(ranked.freshness, [2**-0.5, 0.5], atol=1e-7)


def test_age_takes_half_of_the_weight_after_one_half_life() -> None:
    options = Options(max_per_story=0, half_life_s=DAY, recency_weight=0.5, as_of_s=10 * DAY)
    ranked = rank(NEWS, options, 5)
    # A day old: -0.25. No date, fresh, or of the future: nothing.
    assert ranked.place.tolist() == [2, 3, 1, 4, 0]
    np.testing.assert_allclose(ranked.recency, [0, 0, -0.25, 0, -0.5 * (1 - 2**-10)], atol=1e-7)
    np.testing.assert_allclose(ranked.freshness, [1, 1, 0.5, 1, 2**-10], atol=1e-7)
    assert rank(NEWS, replace(options, half_life_s=None), 5).freshness.tolist() == [1] * 5


def test_diversity_prefers_what_is_unlike_what_stands_before() -> None:
    ranked = rank(NEWS, Options(max_per_story=0, diversity=0.5), 5)
    # 0.45 first; then 0.3 and 0.25 for those at right angles, 0.35 - 0.4 for the like, 0.4 - 0.5 for the same.
    assert ranked.place.tolist() == [0, 3, 4, 2, 1]
    np.testing.assert_allclose(ranked.score, [0.45, 0.3, 0.25, -0.05, -0.1], atol=1e-6)
    np.testing.assert_allclose(ranked.diversity, [-0.45, -0.3, -0.25, -0.75, -0.9], atol=1e-6)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32), count=st.integers(2, 40))
def test_after_the_seed_itself_comes_what_is_most_like_it_where_half_a_diversity_makes_all_equal(
    seed: int, count: int
) -> None:
    drawn = np.random.default_rng(seed).standard_normal((count, 48)) + 0.3  # all of them somewhat alike
    vectors = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    similarity = vectors.astype(np.float64) @ vectors[0].astype(np.float64)
    nearest = np.argsort(-similarity)
    found = candidates(similarity[nearest].tolist(), vectors=vectors[nearest])
    assert rank(found, Options(diversity=0.5), 2).place.tolist() == [0, 1]


def test_with_full_diversity_the_first_is_the_most_relevant_and_the_rest_are_unlike_it() -> None:
    assert order(Options(max_per_story=0, diversity=1.0)) == [0, 3, 4, 2, 1]


def test_a_relevance_below_0_is_not_made_better() -> None:
    found = candidates([0.1, -0.4], vectors=[[1, 0], [0, 1]])
    assert rank(found, Options(diversity=0.9), 2).diversity.tolist() == pytest.approx([-0.09, 0.0], abs=1e-6)


def test_equal_scores_go_by_id() -> None:
    found = candidates([0.5, 0.25, 0.25], prior=[0, 0.25, 0.25])
    assert rank(found, Options(), 3).place.tolist() == [0, 1, 2]
    assert rank(found, Options(), 3, ties=[np.array([7, 9, 3])]).place.tolist() == [2, 0, 1]


def test_diversity_without_vectors_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="needs the vectors"):
        rank(candidates([0.5]), Options(diversity=0.1), 1)


def test_interests_take_turns_and_pass_when_they_have_nothing_left() -> None:
    sport = candidates([0.4, 0.3, 0.2], rows=[1, 2, 3], stories=[1, 2, 3])
    music = candidates([0.9, 0.8, 0.7, 0.6], rows=[4, 2, 5, 6], stories=[4, 2, 5, 6])
    ranked = merge([sport, music], [2.0, 1.0], Options(), 10)
    # sport, music, sport, sport, then sport is done; article 2 came for sport.
    assert ranked.interest.tolist() == [0, 1, 0, 0, 1, 1]
    assert [int([sport, music][i].rows[p]) for i, p in zip(ranked.interest, ranked.place, strict=True)] == [
        *(1, 4, 2, 3),
        *(5, 6),
    ]


def many(c: int = 60) -> Candidates:
    return candidates(np.linspace(1, 0, c).tolist(), stories=np.arange(c) // 2, clusters=np.arange(c) % 6)


def test_exploration_gives_its_share_of_places_to_those_who_had_none() -> None:
    usual = set(rank(many(), Options(), 10).place.tolist())
    counts = Counter[int]()
    for seed in range(-300, 300):
        ranked = rank(many(), Options(explore_fraction=0.25, explore_seed=seed), 10)
        drawn = set(ranked.place[ranked.explored].tolist())
        counts[len(drawn)] += 1
        assert len(ranked) == 10
        assert not drawn & usual
        assert set(ranked.place[~ranked.explored].tolist()) <= usual
    assert set(counts) == {2, 3}
    assert 0.4 < counts[2] / 600 < 0.6  # two and a half of ten


def test_every_other_candidate_is_equally_likely_and_every_place_too() -> None:
    drawn, places = Counter[int](), Counter[int]()
    for seed in range(2_000):
        ranked = rank(candidates([0.5] * 30), Options(explore_fraction=0.2, explore_seed=seed), 10)
        drawn.update(ranked.place[ranked.explored].tolist())
        places.update(np.flatnonzero(ranked.explored).tolist())
    assert set(drawn) == set(range(10, 30))
    assert all(abs(count - 200) < 60 for count in drawn.values())  # 4 standard deviations
    assert set(places) == set(range(10))
    assert all(abs(count - 400) < 80 for count in places.values())


@settings(max_examples=100)
@given(
    lists=st.lists(lists_of_candidates() | lists_of_candidates(tiers=3), min_size=1, max_size=3),
    options=OPTIONS,
    fraction=st.floats(0, 1),
    seed=st.integers(-(2**63), 2**63 - 1),
    limit=st.integers(1, 12),
)
def test_what_is_drawn_obeys_every_cap_and_is_drawn_again(
    lists: list[Candidates], options: Options, fraction: float, seed: int, limit: int
) -> None:
    options = replace(options, explore_fraction=fraction, explore_seed=seed)
    ranked, again = (merge(lists, [1.0] * len(lists), options, limit) for _ in range(2))
    assert ranked.place.tolist() == again.place.tolist()
    taken = Answer(lists, options, [range(len(c)) for c in lists], ())
    for interest, place, score in zip(ranked.interest, ranked.place, ranked.score, strict=True):
        assert taken.allows(interest, place)
        assert taken.score(interest, place) == score
        taken.chosen.append(Chosen(int(interest), int(place), float(score)))
    assert explained(ranked).tolist() == ranked.score.tolist()


def test_those_behind_the_first_tier_are_drawn_where_that_has_nobody_left() -> None:
    ranked = rank(candidates([0.5] * 30, tier=[0] * 20 + [1] * 10), Options(explore_fraction=1.0), 12)
    assert sorted(ranked.place[:8].tolist()) == [*range(12, 20)]
    assert min(ranked.place[8:].tolist()) >= 20
    assert ranked.explored.all()


def test_all_places_can_be_given_to_chance_and_where_nobody_is_left_score_decides() -> None:
    assert rank(many(), Options(explore_fraction=1.0), 10).explored.all()
    few = rank(candidates([0.3, 0.2, 0.1]), Options(explore_fraction=1.0), 3)
    assert few.place.tolist() == [0, 1, 2]
    assert not few.explored.any()


def test_an_empty_list_gives_an_empty_answer() -> None:
    ranked = rank(candidates([], vectors=np.empty((0, 4))), Options(diversity=0.5, explore_fraction=0.5), 10)
    assert len(ranked) == 0
    assert ranked.score.dtype == np.float32


def test_what_reranks() -> None:
    assert not Options(max_per_story=0, max_per_cluster=2, min_score=0.1).reranks
    assert Options(diversity=0.1).reranks
    assert Options(half_life_s=1.0).reranks
    assert Options(explore_fraction=0.1).reranks
