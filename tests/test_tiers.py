"""More articles than are ranked by more than similarity at once: full answers, and priors wherever articles lie."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from coldframe.recipe import unit
from coldframe.store import Store
from server.overlay import LiveRow
from server.pages import Place
from server.ranking import Options
from server.search import POOL, Ask, Found, Shape, Taste, recommend, search
from server.seeds import Point
from server.view import Base, View
from tests.generations import DIM, LISTS, ROWS, publish, row
from tests.newsroom import every_id

if TYPE_CHECKING:
    from numpy.typing import NDArray

COUNT = 2_970
AS_OF = datetime(2026, 2, 1, tzinfo=UTC)
PAIRS: dict[str, Any] = {"as_of_s": int(AS_OF.timestamp()), "max_per_story": 1}
"""Options: of two articles that tell one story only one is answered."""
FADING: dict[str, Any] = {"half_life_s": 86_400.0, "recency_weight": 0.5}


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> View:
    """3,000 articles in three clusters, two of a story each, ten days apart."""
    store = Store(tmp_path_factory.mktemp("tiers") / "store")
    publish(store)
    view = View.of(Base(store.open()))
    vectors = unit(np.random.default_rng(0).standard_normal((COUNT, DIM)).astype(np.float32))
    clusters = view.base.generation.index.nearest_clusters(vectors, 1)[0][:, 0].tolist()
    for n, cluster in enumerate(clusters):
        told = replace(
            row(f"live-{n:04}", cluster=cluster),
            story=ROWS + n - n % 2,
            attributes={"views": f"{n % 97}"},
            published_at=AS_OF - timedelta(days=n % 10),
        )
        view = view.with_article(LiveRow(told, vectors[n], np.empty(0, np.uint64)), n + 1)
    return view


def question(seed: int = 5) -> NDArray[np.float32]:
    drawn: NDArray[np.float32] = unit(np.random.default_rng(seed).standard_normal((1, DIM)).astype(np.float32))[0]
    return drawn


def asked(limit: int, probes: int = LISTS, *, explores: float = 0.0, **given: Any) -> Ask:
    names = {name for name in given if name in Options.__dataclass_fields__}
    options = Options(**PAIRS | {name: given.pop(name) for name in names} | {"explore_fraction": explores})
    return Ask(limit, options, probes, **given)


def ids(view: View, found: Found) -> list[str]:
    return [view.id_of(n) for n in found.rows.tolist()]


def by_similarity(view: View, vector: NDArray[np.float32]) -> list[tuple[str, np.float32]]:
    """Every id and its similarity, the most similar first."""
    names, rows = zip(*sorted(every_id(view).items()), strict=True)
    vectors = view.vectors(np.array(rows)).astype(np.float64)
    scores = (vectors * vector.astype(np.float64)).sum(axis=1).astype(np.float32)
    return [(names[n], scores[n]) for n in np.argsort(-scores, kind="stable").tolist()]


# -------------------------------------------------------------------------------------------------------------- priors


@pytest.mark.parametrize("probes", [1, LISTS])
def test_a_prior_lifts_an_article_from_wherever_it_lies(view: View, probes: int) -> None:
    vector = question()
    far, similarity = by_similarity(view, vector)[-1]
    boosted: dict[str, Any] = {"priors": {far: 2.0, "nobody": 2.0}}
    first = search(view, Point(vector), asked(10, probes, **boosted))
    assert ids(view, first)[0] == far
    assert first.ranked.score[0] == similarity + np.float32(2)
    alone = search(view, Point(vector), asked(10, probes, min_score=1.05, **boosted))
    assert ids(view, alone) == [far]
    excluded = search(view, Point(vector), asked(10, probes, excluded=[far], **boosted))
    assert far not in ids(view, excluded)


@pytest.mark.parametrize("limit", [10, 300, 1_000])
def test_with_priors_alone_the_order_is_that_of_the_scores_to_the_end(view: View, limit: int) -> None:
    vector = question()
    ranked = by_similarity(view, vector)
    down = {name: -0.75 for name, _ in ranked[:950]}  # nearly all that is ranked at first
    up = {name: 0.5 for name, _ in ranked[1_200:2_900:7]}
    priors = down | up
    found = search(view, Point(vector), asked(limit, priors=priors, max_per_story=0))
    true = sorted(((-(score + np.float32(priors.get(name, 0))), name) for name, score in ranked))[:limit]
    assert list(zip((-found.ranked.score).tolist(), ids(view, found), strict=True)) == true


def test_of_a_small_index_all_are_answered_those_whose_prior_puts_them_last_too(view: View) -> None:
    small, vector = View.of(view.base), question()
    ranked = by_similarity(small, vector)
    priors = {name: -3.0 + n / 10 for n, (name, _) in enumerate(ranked[::3])}
    found = search(small, Point(vector), asked(2 * ROWS, priors=priors, max_per_story=0))
    true = sorted((-(score + np.float32(priors.get(name, 0))), name) for name, score in ranked)
    assert ids(small, found) == [name for _, name in true]


def test_a_threshold_and_priors_of_many_leave_out_nobody_in_between(view: View) -> None:
    vector = question()
    ranked = by_similarity(view, vector)
    priors = {name: 2.0 for name, _ in ranked[2_000:2_400]}  # and the nearest are no longer all of the first tier
    least = ranked[700][1]
    reached = [name for name, score in ranked if score >= least or name in priors]
    stories = view.stories(np.array([view.row_of(name) for name in reached]))
    found = search(view, Point(vector), asked(1_000, priors=priors, min_score=float(least)))
    assert len(found.rows) == len({*stories.tolist()})


# ------------------------------------------------------------------------------------- answers are as long as can be

SHORT: dict[str, dict[str, Any]] = {
    "half_life": FADING,
    "popularity": {"popularity": ("views", 0.3)},
    "diversity": {"diversity": 0.3},
    "priors": {"priors": {"live-0003": -0.5}},
}


@pytest.mark.parametrize("name", SHORT)
def test_an_answer_is_full_where_more_are_allowed(view: View, name: str) -> None:
    found = search(view, Point(question()), asked(1_000, **SHORT[name]))
    assert len(found.rows) == 1_000
    assert len({*view.stories(found.rows).tolist()}) == 1_000
    capped = search(view, Point(question()), asked(600, max_per_cluster=200, **SHORT[name]))
    assert np.bincount(view.clusters(capped.rows)).tolist() == [200] * LISTS


def test_a_negative_seed_does_not_shorten_the_answer(view: View) -> None:
    taste = Taste([Point(question()), Point(question(6))], [1.0, -1.0], Shape(5, 1.0, None))
    found = recommend(view, taste, asked(600, max_per_cluster=200))
    assert len(found.rows) == 600


def test_no_interest_is_passed_over_that_has_more_to_give(view: View) -> None:
    taste = Taste([Point(question(7)), Point(question(8))], [1.0, 1.0], Shape(5, 1.0, None))
    priors = {f"live-{n:04}": 0.5 for n in range(0, 80, 2)}
    found = recommend(view, taste, asked(1_000, diversity=0.2, max_per_cluster=350, priors=priors))
    assert np.bincount(found.ranked.interest).tolist() == [500, 500]
    own = np.stack([question(7 + interest.medoid) for interest in found.interests])[found.ranked.interest]
    np.testing.assert_allclose(found.ranked.similarity, (view.vectors(found.rows) * own).sum(axis=1), atol=1e-6)


@pytest.mark.parametrize("name", SHORT)
def test_pages_make_the_long_answer_across_the_tiers(view: View, name: str) -> None:
    given = SHORT[name] | {"max_per_cluster": 330}
    whole = search(view, Point(question()), asked(1_000, **given))
    assert len(whole.rows) == 3 * 330
    pages = [search(view, Point(question()), asked(150, place=Place(n, 150), **given)) for n in range(0, 1_000, 150)]
    assert [name for page in pages for name in ids(view, page)] == ids(view, whole)
    assert [page.more for page in pages] == [True] * 6 + [False]


def test_the_nearest_are_ranked_first_and_those_behind_them_among_themselves(view: View) -> None:
    nearest = {name for name, _ in by_similarity(view, question())[:POOL]}
    found = search(view, Point(question()), asked(1_000, **FADING))
    tiers = [name in nearest for name in ids(view, found)]
    first = sum(tiers)
    assert 500 < first < len(tiers) == 1_000
    assert tiers == sorted(tiers, reverse=True)
    for tier in (found.ranked.score[:first], found.ranked.score[first:]):
        assert (np.diff(tier) <= 0).all()


def test_a_threshold_leaves_out_what_scores_less_and_nothing_else(view: View) -> None:
    every = search(view, Point(question()), asked(1_000, max_per_story=0, **FADING))
    least = float(every.ranked.score[200])
    found = search(view, Point(question()), asked(1_000, max_per_story=0, min_score=least, **FADING))
    assert ids(view, found) == ids(view, every)[:201]
    near = by_similarity(view, question())
    popularity = view.popularity(np.array([view.row_of(name) for name, _ in near]), "views")
    scores = [score + 2 * popular for (_, score), popular in zip(near, popularity, strict=True)]
    least = sorted(scores)[-990]
    assert sum(score >= least for score in scores[POOL:]) > 100
    popular: dict[str, Any] = {"popularity": ("views", 2.0), "max_per_story": 0}
    found = search(view, Point(question()), asked(1_000, min_score=least - 1e-6, **popular))
    assert len(found.rows) == 990


# --------------------------------------------------------------------------------------------------------- exploration


@pytest.mark.parametrize("limit", [10, 900, 1_000])
def test_there_is_somebody_to_explore_however_long_the_answer(view: View, limit: int) -> None:
    found = search(view, Point(question()), asked(limit, explores=0.5, max_per_story=0))
    assert len(found.rows) == limit
    assert np.count_nonzero(found.ranked.explored) == limit // 2


# ------------------------------------------------------------------------------------------------------ what caps allow


class _Watched:
    """A view that notes how many articles it is asked for."""

    def __init__(self, view: View) -> None:
        self._view, self.fetched = view, list[int]()

    def search(self, vector: NDArray[np.float32], **options: Any) -> Any:
        self.fetched.append(options["limit"])
        return self._view.search(vector, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)


@pytest.mark.parametrize("options", [{}, FADING])
def test_nobody_reads_the_whole_index_for_places_that_no_cluster_may_fill(view: View, options: dict[str, Any]) -> None:
    watched: Any = _Watched(view)
    clusters = len(view.base.generation.clusters)
    found = search(watched, Point(question()), asked(clusters + 5, max_per_cluster=1, **options))
    assert len(set(view.clusters(found.rows).tolist())) == len(found.rows) == clusters
    assert not found.more
    assert max(watched.fetched) <= POOL < len(view)
