"""Centroids, warm and cold, and the one assignment, held against numpy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldframe.recipe import unit
from indexer.sample import draw
from indexer.train import assign, choose_clusters, fit, loss, resize, train
from tests.mixtures import around, random_units

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Rows = NDArray[np.int64]


def planted(sizes: list[int], dim: int = 32, seed: int = 0) -> tuple[Floats, Rows]:
    """Tight bundles of directions, one after another, and the bundle of each row."""
    bundle = np.repeat(np.arange(len(sizes)), sizes)
    noise = np.random.default_rng(seed).standard_normal((len(bundle), dim))
    return unit((np.eye(len(sizes), dim)[bundle] + 0.05 * noise).astype(np.float32)), bundle


def same_partition(found: Rows, wanted: Rows) -> bool:
    pairs = set(zip(found.tolist(), wanted.tolist(), strict=True))
    return len(pairs) == len(set(found.tolist())) == len(set(wanted.tolist()))


def oracle_loss(points: Floats, centroids: Floats, weights: Floats | None = None) -> float:
    nearest = (points.astype(np.float64) @ centroids.astype(np.float64).T).max(axis=1)
    return float(np.average(1 - nearest, weights=weights))


# --- how many ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("texts", "clusters"), [(1, 1), (2, 1), (3, 2), (100, 10), (2_225, 47), (1_000_000, 1000)])
def test_by_default_there_are_about_as_many_clusters_as_articles_in_one(texts: int, clusters: int) -> None:
    assert choose_clusters(texts, None, None) == clusters


@pytest.mark.parametrize("previous", [None, 3, 50])
def test_the_number_that_is_wanted_is_taken(previous: int | None) -> None:
    assert choose_clusters(100, 7, previous) == 7


@pytest.mark.parametrize(
    ("texts", "previous", "clusters"),
    [
        (2_225, 46, 46),
        (3_000, 47, 47),  # 55 would fit: near enough
        (3_500, 47, 48),  # 59 would fit: no nearer than need be
        (2_225, 58, 58),
        (2_225, 60, 58),
        (450, 16, 17),
        (40_000, 16, 160),
        (14, 5, 5),
        (10, 4, 3),
        (1, 1, 1),
    ],
)
def test_the_number_stays_while_it_is_near_and_goes_no_farther(texts: int, previous: int, clusters: int) -> None:
    assert choose_clusters(texts, None, previous) == clusters


@given(st.integers(1, 10**7), st.integers(1, 5_000))
def test_the_number_is_always_near_the_root_and_never_above_the_texts(texts: int, previous: int) -> None:
    clusters = choose_clusters(texts, None, previous)
    assert 1 <= clusters <= texts
    assert 1 / 1.25 - 1e-9 <= clusters / max(1, round(math.sqrt(texts))) <= 1.25 + 1e-9


# --- k-means ---------------------------------------------------------------------------------------------------------


def test_training_is_repeatable_and_follows_the_seed() -> None:
    vectors = random_units(400)
    first = train(vectors, 7, seed=3)
    assert train(vectors, 7, seed=3).tobytes() == first.tobytes()
    assert train(vectors, 7, seed=4).tobytes() != first.tobytes()


def test_starts_side_by_side_end_where_they_do_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, threads = random_units(1_000), faiss.omp_get_max_threads()
    found = []
    for cores in (1, 3):
        monkeypatch.setattr("indexer.train.affordable", lambda _, cores=cores: cores)
        found.append(train(vectors, 16, seed=3))
    assert np.array_equal(found[0], found[1])
    assert faiss.omp_get_max_threads() == threads, "whoever searches next has as many"


def test_centroids_have_unit_length() -> None:
    centroids = train(random_units(300), 9, seed=0)
    assert centroids.shape == (9, 16)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_planted_clusters_are_found(seed: int) -> None:
    vectors, bundle = planted([40, 30, 20, 10, 5, 5], seed=seed)
    _, assignment, _ = assign(vectors, train(vectors, 6, seed))
    assert same_partition(assignment, bundle)


def test_a_corpus_in_order_of_topic_is_sampled_all_over() -> None:
    sizes = [3_000, 400, 400, 400]  # the sample is of 1,024 rows: the first so many hold one topic only
    vectors, bundle = planted(sizes)
    _, assignment, _ = assign(vectors, train(vectors, 4, seed=0))
    assert same_partition(assignment, bundle)


def test_training_leaves_the_vectors_alone() -> None:
    vectors = random_units(200)
    before = vectors.copy()
    train(vectors, 5, seed=0)
    assert vectors.tobytes() == before.tobytes()


def test_every_text_may_be_a_cluster_of_its_own() -> None:
    vectors = random_units(12)
    centroids, assignment, similarity = assign(vectors, train(vectors, 12, seed=0))
    assert sorted(assignment) == list(range(12)) == list(range(len(centroids)))
    np.testing.assert_allclose(similarity, 1, atol=1e-6)


# --- the sample ------------------------------------------------------------------------------------------------------


def sampled(vectors: Floats, count: int, seed: int) -> set[bytes]:
    rows = draw(vectors, count, seed)
    assert len(rows) == count
    assert (np.diff(rows) > 0).all()
    return {vectors[row].tobytes() for row in rows}


def test_the_sample_is_drawn_all_over_and_follows_the_seed() -> None:
    vectors = random_units(20_000)
    rows = draw(vectors, 4_000, 0)
    counts, _ = np.histogram(rows, 10, (0, 20_000))
    assert counts.min() > 330, "400 of each tenth, give or take four deviations"
    assert sampled(vectors, 4_000, 0) == sampled(vectors, 4_000, 0)
    assert len(sampled(vectors, 4_000, 0) & sampled(vectors, 4_000, 1)) < 1_000


def test_an_article_of_the_last_sample_is_in_the_next_wherever_its_row_is() -> None:
    vectors = random_units(20_000)
    changed = np.random.default_rng(0).permutation(np.concatenate([vectors[200:], random_units(200, seed=9)]))
    assert len(sampled(vectors, 4_000, 0) & sampled(changed, 4_000, 0)) > 3_900


# --- warm start ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_what_numpy_finds(seed: int) -> None:
    points, centroids = random_units(300, seed=seed), random_units(9, seed=seed + 100)
    weights = np.random.default_rng(seed).uniform(1, 9, 300).astype(np.float32)
    assert loss(points, centroids) == pytest.approx(oracle_loss(points, centroids), abs=1e-6)
    assert loss(points, centroids, weights) == pytest.approx(oracle_loss(points, centroids, weights), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_warm_start_stays_where_it_was(seed: int) -> None:
    vectors = around(random_units(40, 32, seed), 2_000, seed)
    yesterday = train(vectors, 40, seed)
    today = train(np.concatenate([vectors[20:], around(yesterday, 20, seed + 50)]), 40, seed + 1, yesterday)
    assert (today * yesterday).sum(axis=1).min() > 0.95
    assert (today @ yesterday.T).argmax(axis=1).tolist() == list(range(40))


@pytest.mark.parametrize("seed", range(3))
def test_a_corpus_that_has_moved_gets_clusters_as_good_as_a_cold_start_finds(seed: int) -> None:
    yesterday = train(around(random_units(40, 32, seed), 2_000, seed), 40, seed)
    vectors = around(random_units(40, 32, seed + 100), 2_000, seed + 100)
    warm, cold = train(vectors, 40, seed, yesterday), train(vectors, 40, seed)
    assert oracle_loss(vectors, warm) <= 1.02 * oracle_loss(vectors, cold) + 1e-6


def test_a_start_that_cannot_be_mended_is_given_up() -> None:
    vectors, bundle = planted([200, 200, 200])
    stuck = unit(np.eye(3, 32, dtype=np.float32)[[0, 0, 0]] + 0.01 * random_units(3, 32))
    stuck[1:] = -stuck[1:]  # two centroids that no article is near to: k-means may leave them there
    _, assignment, _ = assign(vectors, train(vectors, 3, 0, stuck))
    assert same_partition(assignment, bundle)


def test_a_warm_start_is_repeatable() -> None:
    vectors = random_units(500)
    start = train(vectors[50:], 12, seed=3)
    assert train(vectors, 12, 3, start).tobytes() == train(vectors, 12, 3, start).tobytes()


def test_weights_count_like_copies() -> None:
    points = random_units(40, 8)
    weights = np.random.default_rng(0).integers(1, 6, 40)
    copies = np.repeat(points, weights, axis=0)
    found = fit(points, 5, 0, weights=weights.astype(np.float32))
    assert loss(points, found, weights.astype(np.float32)) == pytest.approx(loss(copies, found), abs=1e-6)
    assert loss(copies, found) <= 1.02 * loss(copies, fit(copies, 5, 0))


# --- another number of clusters --------------------------------------------------------------------------------------


def test_the_centroids_that_are_missed_least_are_dropped() -> None:
    vectors, _ = planted([40, 5, 30, 20])
    centroids = np.eye(4, 32, dtype=np.float32)
    twin = unit(centroids[2:3] + 0.1 * centroids[3:4])  # as large as the others, and beside one of them
    five = np.concatenate([centroids, twin])
    np.testing.assert_array_equal(resize(five, vectors, 5, 0), five)
    np.testing.assert_array_equal(resize(five, vectors, 4, 0), centroids)
    np.testing.assert_array_equal(resize(five, vectors, 3, 0), centroids[[0, 2, 3]])
    np.testing.assert_array_equal(resize(five, vectors, 1, 0), centroids[:1])


@pytest.mark.parametrize("seed", range(3))
def test_each_one_dropped_is_the_one_that_numpy_finds(seed: int) -> None:
    vectors, centroids = random_units(200, seed=seed), random_units(12, seed=seed + 100)
    left = list(range(12))
    while len(left) > 5:
        losses = [oracle_loss(vectors, centroids[[n for n in left if n != gone]]) for gone in left]
        left.pop(int(np.argmin(losses)))
        np.testing.assert_array_equal(resize(centroids, vectors, len(left), 0), centroids[left])


def test_the_cluster_with_the_greatest_loss_is_split() -> None:
    vectors, bundle = planted([30, 30, 110, 40])
    both = unit(vectors[bundle < 2].mean(axis=0, keepdims=True))
    centroids = np.concatenate([np.eye(4, 32, dtype=np.float32)[2:], both])
    grown = resize(centroids, vectors, 4, 0)
    np.testing.assert_array_equal(grown[:2], centroids[:2])
    assert same_partition(assign(vectors, grown)[1], bundle)


def test_points_count_as_much_as_they_weigh() -> None:
    vectors, _ = planted([40, 5])
    weights = np.where(np.arange(45) < 40, 1, 100).astype(np.float32)
    centroids = np.eye(2, 32, dtype=np.float32)
    np.testing.assert_array_equal(resize(centroids, vectors, 1, 0), centroids[:1])
    np.testing.assert_array_equal(resize(centroids, vectors, 1, 0, weights), centroids[1:])


def test_a_centroid_is_moved_to_where_it_is_missed() -> None:
    vectors, bundle = planted([40, 40, 40])
    twins = unit(np.eye(3, 32, dtype=np.float32)[[0, 0]] + 0.05 * random_units(2, 32))
    both = unit(vectors[bundle > 0].mean(axis=0, keepdims=True))
    moved = resize(np.concatenate([twins, both]), vectors, 3, 0, moved=1)
    assert same_partition(assign(vectors, moved)[1], bundle)


def test_copies_of_one_text_are_not_split() -> None:
    copies = np.tile(np.eye(1, 32, dtype=np.float32), (90, 1))
    others, bundle = planted([0, 20, 20])
    start = np.concatenate([copies[:1], unit(others.mean(axis=0, keepdims=True))])
    grown = resize(start, np.concatenate([copies, others]), 3, 0)
    _, assignment, _ = assign(others, grown)
    assert same_partition(assignment, bundle)


@pytest.mark.parametrize(("before", "after"), [(5, 9), (9, 5), (1, 12), (12, 1)])
def test_there_are_as_many_centroids_as_were_asked_for(before: int, after: int) -> None:
    vectors = random_units(150)
    centroids = train(vectors, after, 0, train(vectors, before, 0))
    assert centroids.shape == (after, 16)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)


# --- assignment ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_every_row_belongs_to_the_centroid_of_its_largest_product(seed: int) -> None:
    vectors, centroids = random_units(500, seed=seed), random_units(40, seed=seed + 100)
    kept, assignment, similarity = assign(vectors, centroids)
    products = vectors.astype(np.float64) @ centroids.astype(np.float64).T
    np.testing.assert_array_equal(kept[assignment], centroids[products.argmax(axis=1)])
    np.testing.assert_allclose(similarity, products.max(axis=1), atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_clusters_are_numbered_by_size(seed: int) -> None:
    kept, assignment, _ = assign(random_units(300, seed=seed), random_units(30, seed=seed + 100))
    sizes = np.bincount(assignment, minlength=len(kept))
    assert sizes.tolist() == sorted(sizes.tolist(), reverse=True)
    assert sizes.sum() == 300


def test_clusters_of_one_size_keep_the_order_of_their_centroids() -> None:
    centroids = np.eye(4, dtype=np.float32)
    kept, assignment, _ = assign(centroids[[3, 1, 1, 0, 2]], centroids)
    np.testing.assert_array_equal(kept, centroids[[1, 0, 2, 3]])
    assert assignment.tolist() == [3, 0, 0, 1, 2]


def test_a_centroid_that_nothing_is_nearest_to_is_dropped() -> None:
    centroids = np.eye(4, dtype=np.float32)
    kept, assignment, _ = assign(centroids[[2, 0, 2]], centroids)
    np.testing.assert_array_equal(kept, centroids[[2, 0]])
    assert assignment.tolist() == [0, 1, 0]


def test_of_two_equal_centroids_the_first_takes_all() -> None:
    centroids = np.eye(3, dtype=np.float32)[[0, 1, 1]]
    kept, assignment, _ = assign(centroids, centroids)
    assert len(kept) == 2
    assert assignment.tolist() == [1, 0, 0]
