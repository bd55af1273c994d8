"""The inverted file and the one path of assignment, beside brute force in numpy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from coldframe.errors import CorruptGeneration
from coldframe.index import REACH, ClusterIndex, nearest_centroids
from coldframe.recipe import unit
from coldframe.rows import RowSet

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

DIM = 48


def random_units(rows: int, seed: int = 0, dim: int = DIM) -> NDArray[np.float32]:
    return unit(np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32))


def built(vectors: NDArray[np.float32], clusters: int = 12, seed: int = 1) -> ClusterIndex:
    """An index whose centroids are random: the search must be right wherever they lie."""
    centroids = random_units(clusters, seed, vectors.shape[1])
    assignment, _ = nearest_centroids(centroids, vectors, 1)
    return ClusterIndex.build(centroids, vectors, assignment[:, 0])


def similarities(vectors: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float32]:
    """The slow obvious scores, (n,)."""
    exact = vectors.astype(np.float64) @ query.astype(np.float64)
    return exact.astype(np.float32)


def brute_force(
    vectors: NDArray[np.float32], query: NDArray[np.float32], limit: int, hidden: frozenset[int] = frozenset()
) -> list[int]:
    """Rows by falling score, equal scores by row, without the hidden ones."""
    order = np.argsort(-similarities(vectors, query), kind="stable")
    return [int(row) for row in order if int(row) not in hidden][:limit]


# ------------------------------------------------------------------------------------------------------ assignment


@pytest.mark.parametrize("rows", [1, 19, 20, 21, 3000])
def test_the_nearest_centroid_is_the_fp64_argmax_whatever_the_batch(rows: int) -> None:
    centroids, vectors = random_units(150, 7), random_units(rows, rows)
    exact = vectors.astype(np.float64) @ centroids.astype(np.float64).T
    numbers, similarity = nearest_centroids(centroids, vectors, 5)
    np.testing.assert_array_equal(numbers, np.argsort(-exact, axis=1, kind="stable")[:, :5])
    np.testing.assert_array_equal(numbers[:, 0], exact.argmax(axis=1))
    np.testing.assert_allclose(similarity, np.take_along_axis(exact, numbers, axis=1), atol=1e-7)


def test_a_vector_alone_and_in_a_crowd_gets_the_same_bits() -> None:
    centroids, vectors = random_units(60, 1), random_units(3000, 2)
    crowd = nearest_centroids(centroids, vectors, 3)
    for n in range(0, 3000, 97):
        alone = nearest_centroids(centroids, vectors[n : n + 1], 3)
        np.testing.assert_array_equal(alone[0][0], crowd[0][n])
        np.testing.assert_array_equal(alone[1][0], crowd[1][n])


@given(seed=st.integers(0, 10_000), rows=st.sampled_from([1, 7, 25]), distinct=st.integers(1, 6))
@settings(max_examples=40)
def test_equal_centroids_come_by_number(seed: int, rows: int, distinct: int) -> None:
    copies = np.random.default_rng(seed).integers(0, distinct, 40)
    centroids, vectors = random_units(distinct, seed, 8)[copies], random_units(rows, seed + 1, 8)
    numbers, _ = nearest_centroids(centroids, vectors, 4)
    for vector, found in zip(vectors, numbers, strict=True):
        assert found.tolist() == brute_force(centroids, vector, 4)


def permutations(count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors that are as near to another one but for rounding, each in another order of summation; and that one."""
    rng, one = np.random.default_rng(2), np.abs(random_units(1, 3)[0])
    return np.stack([rng.permutation(one) for _ in range(count)]), unit(np.ones((1, DIM), np.float32))[0]


@pytest.mark.parametrize("batch", [1, 25])
def test_centroids_that_fp32_takes_for_others_are_told_apart_in_fp64(batch: int) -> None:
    centroids, vector = permutations(60)
    exact = (centroids.astype(np.float64) * vector).sum(axis=1)
    numbers, _ = nearest_centroids(centroids, np.repeat(vector[None], batch, axis=0), 2)
    assert numbers.tolist() == [np.argsort(-exact, kind="stable")[:2].tolist()] * batch


def test_more_clusters_than_there_are_means_all_of_them() -> None:
    numbers, similarity = nearest_centroids(random_units(3), random_units(2, 9), 1000)
    assert numbers.shape == similarity.shape == (2, 3)


def test_every_row_lies_in_the_list_of_its_nearest_centroid() -> None:
    vectors = random_units(5000, 3)
    index = built(vectors, clusters=70)
    exact = vectors.astype(np.float64) @ index.centroids.astype(np.float64).T
    lists = [index.members(number) for number in range(index.clusters)]
    for number, members in enumerate(lists):
        assert (exact[members].argmax(axis=1) == number).all()
    np.testing.assert_array_equal(np.sort(np.concatenate(lists)), np.arange(5000))


# ---------------------------------------------------------------------------------------------------------- search


@pytest.mark.parametrize("limit", [1, 10, 100, 799, 800])
def test_with_all_lists_probed_a_search_is_brute_force(limit: int) -> None:
    vectors = random_units(800, 4)
    index = built(vectors)
    for query in random_units(20, 5):
        rows, scores = index.search(query, limit, index.clusters)
        assert rows.tolist() == brute_force(vectors, query, limit)
        np.testing.assert_allclose(scores, similarities(vectors, query)[rows], rtol=0, atol=1e-7)


def test_of_fifty_equal_vectors_the_ten_lowest_rows_come() -> None:
    vectors = random_units(400, 6)
    equal = np.sort(np.random.default_rng(8).choice(400, 50, replace=False))
    vectors[equal] = vectors[equal[0]]
    index = built(vectors)
    rows, scores = index.search(vectors[equal[0]], 10, index.clusters)
    assert rows.tolist() == equal[:10].tolist()
    assert len(set(scores.tolist())) == 1


def test_equal_rows_that_fp32_takes_for_others_come_in_their_order() -> None:
    vectors, query = permutations(200)
    index, everything = built(vectors), np.ones(200, np.bool_)
    allowed = RowSet.of(everything, nearest_centroids(index.centroids, vectors, 1)[0][:, 0].astype(np.int32), 12)
    for limit in (1, 5, 40):
        for rows, scores in (
            index.search(query, limit, index.clusters),
            index.search_among(query, limit, index.clusters, allowed),
        ):
            assert len(set(scores.tolist())) == 1
            assert rows.tolist() == list(range(limit))


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 300),
    distinct=st.integers(1, 40),
    limit=st.integers(1, 310),
    hide=st.integers(0, 20),
)
@settings(max_examples=80)
def test_ties_at_the_cut_and_hidden_rows_change_nothing(
    seed: int, count: int, distinct: int, limit: int, hide: int
) -> None:
    random = np.random.default_rng(seed)
    vectors = random_units(distinct, seed, 8)[random.integers(0, distinct, count)]
    hidden = frozenset(random.integers(0, count, hide).tolist())
    index, query = built(vectors, clusters=5), random_units(1, seed + 1, 8)[0]
    rows, _ = index.search(query, limit, index.clusters, hidden)
    assert rows.tolist() == brute_force(vectors, query, limit, hidden)


def test_hidden_rows_never_come_and_the_limit_is_still_filled() -> None:
    vectors = random_units(300, 10)
    index = built(vectors)
    best = index.search(vectors[0], 25, index.clusters)[0]
    for probes in (1, 3, index.clusters):
        rows, _ = index.search(vectors[0], 20, probes, frozenset(best.tolist()))
        assert len(rows) == 20
        assert not set(rows.tolist()) & set(best.tolist())


def test_a_limit_past_the_end_gives_every_row() -> None:
    vectors = random_units(30, 11)
    index = built(vectors)
    assert sorted(index.search(vectors[3], 1000, 1)[0].tolist()) == list(range(30))
    assert len(index.search(vectors[3], 1000, 1, frozenset({3, 4}))[0]) == 28


def test_too_few_rows_in_the_probed_lists_means_more_lists() -> None:
    vectors = random_units(90, 12)
    index = built(vectors, clusters=30)
    for query in random_units(20, 13):
        first = index.nearest_clusters(query[None], 1)[0][0, 0]
        rows, scores = index.search(query, 40, 1)
        assert len(rows) == 40
        assert (np.diff(scores) <= 0).all()
        assert set(index.members(int(first)).tolist()) <= set(index.search(query, 90, 1)[0].tolist())


def test_a_search_of_one_list_stays_in_it_where_it_has_enough() -> None:
    vectors = random_units(2000, 14)
    index = built(vectors, clusters=8)
    for query in random_units(10, 15):
        members = index.members(int(index.nearest_clusters(query[None], 1)[0][0, 0]))
        rows, _ = index.search(query, 5, 1)
        assert rows.tolist() == members[brute_force(vectors[members], query, 5)].tolist()


def test_eight_threads_with_different_probes_agree_with_one() -> None:
    vectors, queries = random_units(3000, 16), random_units(160, 17)
    index = built(vectors, clusters=40)

    def search(n: int) -> tuple[list[int], list[float]]:
        rows, scores = index.search(queries[n], 10, probes=1 + n % 40)
        return rows.tolist(), scores.tolist()

    serial = [search(n) for n in range(len(queries))]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(search, range(len(queries)))) == serial


# --------------------------------------------------------------------------------------------------------- on disk


def test_a_written_index_answers_the_same_when_it_is_mapped(tmp_path: Path) -> None:
    vectors = random_units(700, 18)
    index = built(vectors)
    index.write(tmp_path / "index.faiss")
    mapped = ClusterIndex.read(tmp_path / "index.faiss", vectors)
    assert (len(mapped), mapped.clusters, mapped.dim) == (700, 12, DIM)
    for number in range(12):
        np.testing.assert_array_equal(mapped.members(number), index.members(number))
    for query in random_units(20, 19):
        for found, expected in zip(mapped.search(query, 10, 3), index.search(query, 10, 3), strict=True):
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(
            mapped.nearest_clusters(query[None], 4)[1], index.nearest_clusters(query[None], 4)[1]
        )


def test_an_index_of_other_rows_is_refused_by_name(tmp_path: Path) -> None:
    built(random_units(50)).write(tmp_path / "index.faiss")
    with pytest.raises(CorruptGeneration, match=r"index\.faiss"):
        ClusterIndex.read(tmp_path / "index.faiss", random_units(51))
    (tmp_path / "index.faiss").write_bytes(b"no index")
    with pytest.raises(CorruptGeneration, match=r"index\.faiss"):
        ClusterIndex.read(tmp_path / "index.faiss", random_units(50))


# -------------------------------------------------------------------------------------------------------- the margin


@pytest.mark.parametrize("storage", ["flat", "fp16", "sq8"])
@given(seed=st.integers(0, 10_000), probes=st.integers(1, 7), margin=st.floats(0, 0.6), limit=st.integers(1, 8))
@settings(max_examples=60)
def test_a_search_with_a_margin_visits_the_lists_that_are_nearly_as_near(
    storage: str, seed: int, probes: int, margin: float, limit: int
) -> None:
    vectors, query = random_units(300), random_units(1, seed)[0]
    assignment, _ = nearest_centroids(centroids := random_units(12, 1), vectors, 1)
    index = ClusterIndex.build(centroids, vectors, assignment[:, 0], storage)
    near = centroids.astype(np.float64) @ query
    visited = [n for n in np.argsort(-near)[: REACH * probes] if near[n] >= near.max() - margin]
    assume(all(abs(near[n] - near.max() + margin) > 1e-6 for n in range(12)))
    there = np.isin(assignment[:, 0], visited)
    assume(there.sum() >= limit)
    rows, scores = index.search(query, limit, probes, margin=margin)
    hidden = frozenset(np.flatnonzero(~there).tolist())
    assert rows.tolist() == brute_force(vectors, query, limit, hidden)
    np.testing.assert_allclose(scores, similarities(vectors, query)[rows], atol=1e-6)


def test_a_margin_that_holds_too_few_gives_way() -> None:
    vectors = random_units(300)
    index, query = built(vectors), random_units(1, 5)[0]
    rows, _ = index.search(query, 290, 2, margin=0.0)
    assert len(rows) == 290
    rows, _ = index.search(query, 5, index.clusters, margin=0.0)
    assert rows.tolist() == brute_force(vectors, query, 5), "all lists are all lists"


@pytest.mark.parametrize("storage", ["flat", "fp16", "sq8", "pq8"])
def test_to_warm_an_index_changes_nothing(tmp_path: Path, storage: str) -> None:
    vectors = random_units(300)
    assignment, _ = nearest_centroids(centroids := random_units(12, 1), vectors, 1)
    ClusterIndex.build(centroids, vectors, assignment[:, 0], storage).write(tmp_path / "index.faiss")
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    index, query = ClusterIndex.read(tmp_path / "index.faiss", mapped), random_units(1, 5)[0]
    before = index.search(query, 10, 4)
    index.warm()
    np.testing.assert_array_equal(before, index.search(query, 10, 4))
