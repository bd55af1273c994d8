"""Centroids, the one assignment, and the measure of a search, held against numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from coldframe.index import ClusterIndex
from coldframe.recipe import unit
from indexer.measure import Measured, measure
from indexer.train import assign, default_clusters, train
from tests.builds import recall_at_10

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Rows = NDArray[np.int64]


def random_units(count: int, dim: int = 16, seed: int = 0) -> Floats:
    return unit(np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32))


def planted(sizes: list[int], dim: int = 32, seed: int = 0) -> tuple[Floats, Rows]:
    """Tight bundles of directions, one after another, and the bundle of each row."""
    bundle = np.repeat(np.arange(len(sizes)), sizes)
    noise = np.random.default_rng(seed).standard_normal((len(bundle), dim))
    return unit((np.eye(len(sizes), dim)[bundle] + 0.05 * noise).astype(np.float32)), bundle


def same_partition(found: Rows, wanted: Rows) -> bool:
    pairs = set(zip(found.tolist(), wanted.tolist(), strict=True))
    return len(pairs) == len(set(found.tolist())) == len(set(wanted.tolist()))


def index_of(vectors: Floats, clusters: int, seed: int = 0) -> tuple[ClusterIndex, Rows]:
    centroids, assignment, _ = assign(vectors, train(vectors, clusters, seed))
    return ClusterIndex.build(centroids, vectors, assignment), assignment


# --- k-means ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("texts", "clusters"), [(1, 1), (2, 1), (3, 2), (100, 10), (2_225, 47), (1_000_000, 1000)])
def test_by_default_there_are_about_as_many_clusters_as_articles_in_one(texts: int, clusters: int) -> None:
    assert default_clusters(texts) == clusters


def test_training_is_repeatable_and_follows_the_seed() -> None:
    vectors = random_units(400)
    first = train(vectors, 7, seed=3)
    assert train(vectors, 7, seed=3).tobytes() == first.tobytes()
    assert train(vectors, 7, seed=4).tobytes() != first.tobytes()


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


# --- measure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clusters", [1, 8, 11])
def test_recall_is_what_numpy_finds(clusters: int) -> None:
    vectors = random_units(150)
    index, assignment = index_of(vectors, clusters)
    measured = measure(index, 1.0, seed=0)
    wanted = [(probes, recall_at_10(vectors, index.centroids, assignment, probes)) for probes, _ in measured.curve]
    assert measured.curve == [(probes, round(recall, 4)) for probes, recall in wanted]
    assert measured.curve[-1][1] == 1.0


@pytest.mark.parametrize("target", [0.01, 0.5, 0.8, 0.95, 1.0])
def test_the_fewest_lists_that_reach_the_target_are_chosen(target: float) -> None:
    index, _ = index_of(random_units(220), 11)
    whole = measure(index, 1.0, seed=0).curve
    assert [probes for probes, _ in whole] == [1, 2, 4, 8, 11][: len(whole)]
    measured = measure(index, target, seed=0)
    assert (measured.probes, measured.recall) == next(point for point in whole if point[1] >= target)
    assert measured.curve[-1] == (measured.probes, measured.recall)


def test_the_articles_asked_for_are_drawn_by_the_seed() -> None:
    index, _ = index_of(random_units(300), 12)
    first = measure(index, 1.0, seed=1)
    assert measure(index, 1.0, seed=1) == first
    assert measure(index, 1.0, seed=2) != first


def test_one_article_is_found_by_one_list() -> None:
    index, _ = index_of(random_units(1), 1)
    assert measure(index, 0.99, seed=0) == Measured(1, 1.0, [(1, 1.0)])


def test_the_report_tells_the_sizes_of_clusters() -> None:
    report = Measured(2, 0.99, [(1, 0.9), (2, 0.99)]).report(np.array([9, 4, 3, 1]))
    assert report == {
        "recall_at_10": 0.99,
        "recall_by_probes": [[1, 0.9], [2, 0.99]],
        "cluster_sizes": {"smallest": 1, "median": 3.5, "largest": 9},
    }
