"""The measure of a search, held against numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldframe.index import REACH, ClusterIndex
from coldframe.recipe import unit
from indexer.measure import Measured, measure
from indexer.sample import draw, held_out, training_rows
from indexer.train import assign, train
from tests.builds import recall_at_10
from tests.test_storage import bundles

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Rows = NDArray[np.int64]


def random_units(count: int, dim: int = 16, seed: int = 0) -> Floats:
    return unit(np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32))


def index_of(vectors: Floats, clusters: int, storage: str = "flat") -> tuple[ClusterIndex, Rows]:
    centroids, assignment, _ = assign(vectors, train(vectors, clusters, 0))
    return ClusterIndex.build(centroids, vectors, assignment, storage), assignment


def shape(measured: Measured) -> list[tuple[int, float]]:
    return [(probes, recall) for probes, recall, _ in measured.curve]


# --- recall ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clusters", [1, 8, 11])
def test_recall_is_what_numpy_finds(clusters: int) -> None:
    vectors = random_units(150)
    index, assignment = index_of(vectors, clusters)
    measured = measure(index, 1.0, seed=0)
    wanted = [(probes, recall_at_10(vectors, index.centroids, assignment, probes)) for probes, _, _ in measured.curve]
    assert shape(measured) == [(probes, round(recall, 4)) for probes, recall in wanted]
    assert measured.recall == 1.0


@pytest.mark.parametrize("storage", ["flat", "sq8", "pq8"])
def test_recall_is_that_of_new_articles_or_of_known_ones_whichever_is_lower(storage: str) -> None:
    vectors = bundles(2400, dim=16)
    index, _ = index_of(vectors, 40, storage)
    kinds = held_out(vectors, 3), draw(vectors, 500, 3)
    for probes, recall in shape(measure(index, 0.999, seed=3)):
        assert recall == pytest.approx(min(recall_of(index, rows, probes) for rows in kinds), abs=5e-5)


def recall_of(index: ClusterIndex, rows: Rows, probes: int) -> float:
    found = 0
    for row in rows:
        exact = (index.vectors.astype(np.float64) * index.vectors[row].astype(np.float64)).sum(axis=1)
        exact[row] = -1
        near = set(np.argsort(-exact, kind="stable")[:10].tolist())
        found += len(near & set(index.search(index.vector(row), 10, probes, frozenset({int(row)}))[0].tolist()))
    return found / (10 * len(rows))


@pytest.mark.parametrize("target", [0.01, 0.5, 0.8, 0.95, 1.0])
def test_the_fewest_lists_that_reach_the_target_are_chosen(target: float) -> None:
    vectors = random_units(220)
    index, assignment = index_of(vectors, 11)
    measured = measure(index, target, seed=0)
    every = [round(recall_at_10(vectors, index.centroids, assignment, probes), 4) for probes in range(1, 12)]
    assert measured.probes == 1 + next(n for n, recall in enumerate(every) if recall >= target)
    assert measured.recall >= every[measured.probes - 1]
    assert measured.margin is not None or measured.recall == every[measured.probes - 1]


def test_the_curve_is_at_powers_of_two_and_close_about_the_choice() -> None:
    index, _ = index_of(random_units(900, dim=24), 60)
    measured = measure(index, 0.97, seed=0)
    probes = [probes for probes, _, _ in measured.curve]
    assert probes == sorted(set(probes))
    assert {1, 2, 4, 8, 16, 32} <= set(probes)
    assert {measured.probes - 1, measured.probes} <= set(probes)
    assert all(recall < 0.97 for count, recall, _ in measured.curve if count < measured.probes)
    if measured.margin is None:
        assert (measured.probes, measured.recall, measured.latency_ms) in measured.curve
    assert all(ms > 0 for _, _, ms in measured.curve)


def test_what_is_as_near_as_a_true_neighbour_counts_as_found() -> None:
    """40 copies of each of 20 texts, each copy equally near: the list of a text holds 10 as good as any."""
    vectors = np.repeat(random_units(20), 40, axis=0)
    index = ClusterIndex.build(vectors[::40], vectors, np.repeat(np.arange(20), 40))
    assert shape(measure(index, 0.99, seed=0)) == [(1, 1.0)]


def test_articles_of_the_same_story_are_no_neighbours() -> None:
    rng = np.random.default_rng(0)
    stories = np.repeat(np.arange(60), 12).astype(np.int32)
    first = random_units(60)
    vectors = unit(first[stories] + 1e-3 * rng.standard_normal((720, 16)).astype(np.float32))
    index = ClusterIndex.build(first, vectors, stories.astype(np.int64))
    alone, told = measure(index, 1.0, seed=0), measure(index, 1.0, seed=0, stories=stories)
    assert alone.probes == 1
    assert told.probes > 1
    assert told.curve[0][1] < 1.0


def test_a_corpus_of_one_story_is_measured_all_the_same() -> None:
    index, _ = index_of(random_units(300), 9)
    measured = measure(index, 0.99, seed=0, stories=np.zeros(300, np.int32))
    assert (measured.probes, measured.recall) == (1, 1.0)


def test_one_article_is_found_by_one_list() -> None:
    index, _ = index_of(random_units(1), 1)
    measured = measure(index, 0.99, seed=0)
    assert (measured.probes, measured.recall, shape(measured)) == (1, 1.0, [(1, 1.0)])


def test_codes_that_cannot_reach_the_target_say_what_they_reach() -> None:
    vectors = random_units(3000, dim=64)
    index, _ = index_of(vectors, 20, "pq1")
    measured = measure(index, 1.0, seed=0)
    assert measured.recall == max(recall for _, recall in shape(measured)) < 1.0
    assert max(probes for probes, _ in shape(measured)) == 19
    assert measured.probes == min(probes for probes, recall in shape(measured) if recall == measured.recall)


# --- queries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "count"), [(0, 0), (1, 0), (1999, 0), (2000, 100), (9000, 450), (50_000, 500)])
def test_a_twentieth_of_a_large_corpus_is_held_out_and_at_most_500(rows: int, count: int) -> None:
    vectors = random_units(rows, dim=4)
    held = held_out(vectors, 7)
    assert len(held) == count == rows - training_rows(rows)
    assert held.tolist() == sorted(set(held.tolist()))
    trained = draw(vectors, training_rows(rows), 7)
    np.testing.assert_array_equal(np.sort(np.concatenate([held, trained])), np.arange(rows))


def test_the_rows_held_out_are_drawn_all_over_by_the_seed() -> None:
    vectors = random_units(40_000, dim=4)
    assert held_out(vectors, 1).tolist() == held_out(vectors, 1).tolist() != held_out(vectors, 2).tolist()
    assert np.histogram(held_out(vectors, 0), 4, (0, 40_000))[0].min() > 80


def test_tomorrow_the_same_articles_are_held_out() -> None:
    today = random_units(11_000)
    tomorrow = np.concatenate([today[500:], random_units(500, seed=1)])
    before = {today[row].tobytes() for row in held_out(today, 0)}
    after = {tomorrow[row].tobytes() for row in held_out(tomorrow, 0)}
    assert len(before & after) > 430


@given(rows=st.integers(1, 300), count=st.integers(0, 300), seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_a_sample_is_of_so_many_rows_whatever_their_order(rows: int, count: int, seed: int) -> None:
    vectors, count = random_units(rows, seed=seed), min(rows, count)
    drawn = draw(vectors, count, seed)
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert len(drawn) == count
    order = np.random.default_rng(seed).permutation(rows)
    assert sorted(order[draw(vectors[order], count, seed)].tolist()) == drawn.tolist()


def test_the_articles_asked_for_are_drawn_by_the_seed() -> None:
    index, _ = index_of(random_units(1500), 12)
    first = shape(measure(index, 1.0, seed=1))
    assert shape(measure(index, 1.0, seed=1)) == first
    assert shape(measure(index, 1.0, seed=2)) != first


# --- the rest --------------------------------------------------------------------------------------------------------


def test_a_mapped_index_measures_the_same(tmp_path: Path) -> None:
    vectors = bundles(2100)
    index, _ = index_of(vectors, 30)
    index.write(tmp_path / "index.faiss")
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = ClusterIndex.read(tmp_path / "index.faiss", np.load(tmp_path / "vectors.npy", mmap_mode="r"))
    assert shape(measure(mapped, 0.99, seed=0)) == shape(measure(index, 0.99, seed=0))


def test_the_number_of_threads_is_left_as_it_was() -> None:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        measure(index_of(random_units(60), 4)[0], 0.9, seed=0)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


# --- the margin ------------------------------------------------------------------------------------------------------


def test_a_margin_finds_as_much_in_fewer_rows() -> None:
    """Bundles of unequal width: some questions lie deep in a list, others between several."""
    vectors = bundles(4_000, dim=16)
    index, assignment = index_of(vectors, 60)
    measured = measure(index, 0.99, seed=0)
    fixed = next(recall for probes, recall, _ in measured.curve if probes == measured.probes)
    assert measured.margin is not None
    assert measured.recall >= fixed >= 0.99
    similarities = vectors[np.concatenate([held_out(vectors, 0), draw(vectors, 500, 0)])] @ index.centroids.T
    order = np.argsort(-similarities, axis=1)[:, : REACH * measured.probes]
    near = np.take_along_axis(similarities, order, axis=1)
    within = near >= near[:, :1] - measured.margin
    sizes = np.bincount(assignment, minlength=60)[order]
    assert (sizes * within).sum() < sizes[:, : measured.probes].sum()
    assert measured.visited == pytest.approx(within.sum(axis=1).mean(), abs=0.02)


def test_with_a_margin_questions_unlike_all_articles_find_nearly_as_much() -> None:
    """As short texts are: no centroid is near, and many are about as near as the nearest."""
    rng = np.random.default_rng(0)
    topics = rng.standard_normal((30, 32))[rng.integers(0, 30, 4_000)]
    vectors = unit((topics + rng.standard_normal((4_000, 32))).astype(np.float32))
    index, _ = index_of(vectors, 60)
    measured = measure(index, 0.99, seed=0)
    assert measured.margin is not None
    found = 0
    for query in unit(vectors[:200] + 0.5 * rng.standard_normal((200, 32)).astype(np.float32)):
        near, _ = index.search(query, 10, index.clusters)
        found += len(set(near) & set(index.search(query, 10, measured.probes, margin=measured.margin)[0]))
    assert found >= 0.98 * 2_000


def test_where_one_list_is_enough_there_is_no_margin() -> None:
    index, _ = index_of(random_units(220), 11)
    for target in (0.01, 1.0):  # one list, and all of them
        measured = measure(index, target, seed=0)
        assert (measured.margin, measured.visited) == (None, measured.probes)
