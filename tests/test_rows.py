"""Searches among some rows only, against numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldframe.index import ClusterIndex, nearest_centroids
from coldframe.rows import RowSet
from tests.mixtures import around, random_units

if TYPE_CHECKING:
    from numpy.typing import NDArray


def clustered(rows: int, clusters: int, seed: int = 0, storage: str = "flat") -> tuple[ClusterIndex, NDArray[np.int32]]:
    centroids = random_units(clusters, 16, seed)
    vectors = around(centroids, rows, seed)
    assignment = nearest_centroids(centroids, vectors, 1)[0][:, 0]
    return ClusterIndex.build(centroids, vectors, assignment, storage), assignment.astype(np.int32)


def oracle(index: ClusterIndex, query: NDArray[np.float32], limit: int, mask: NDArray[np.bool_]) -> list[int]:
    scores = (index.vectors.astype(np.float64) * query.astype(np.float64)).sum(axis=1).astype(np.float32)
    return [row for row in np.argsort(-scores, kind="stable").tolist() if mask[row]][:limit]


@given(st.lists(st.booleans(), min_size=1, max_size=70), st.sets(st.integers(0, 69), max_size=20))
def test_a_row_set_is_a_set(mask: list[bool], gone: set[int]) -> None:
    assignment = np.arange(len(mask), dtype=np.int32) % 3
    some = RowSet.of(np.array(mask), assignment, 3)
    rows = {row for row, there in enumerate(mask) if there}
    assert some.rows().tolist() == sorted(rows)
    assert len(some) == len(rows)
    gone = {row for row in gone if row < len(mask)}
    less = some.without(np.array(sorted(gone), np.int64), assignment)
    assert less.rows().tolist() == sorted(rows - gone)
    assert less.per_cluster.tolist() == [len([row for row in rows - gone if row % 3 == n]) for n in range(3)]
    assert some.rows().tolist() == sorted(rows), "the first set is as it was"
    others = RowSet.of(~np.isin(np.arange(len(mask)), sorted(gone)), assignment, 3)
    both = some.common(others, assignment)
    assert (both.rows().tolist(), both.per_cluster.tolist()) == (less.rows().tolist(), less.per_cluster.tolist())


@pytest.mark.parametrize("storage", ["flat", "fp16", "sq8"])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.003])
def test_an_exact_search_among_rows_equals_numpy(storage: str, share: float) -> None:
    index, assignment = clustered(6_000, 24, storage=storage)
    mask = np.random.default_rng(1).random(len(index)) < share
    allowed = RowSet.of(mask, assignment, index.clusters)
    for query in random_units(20, 16, 9):
        rows, scores = index.search_among(query, 10, index.clusters, allowed)
        assert rows.tolist() == oracle(index, query, 10, mask)
        assert scores.tolist() == index.similarities(rows, query).tolist()


@pytest.mark.parametrize("margin", [None, 0.2])
def test_where_nearly_all_rows_are_allowed_as_much_is_read_as_without_a_filter(
    margin: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, assignment = clustered(20_000, 100)
    gone = np.random.default_rng(2).choice(len(index), 100, replace=False)
    allowed = RowSet.of(~np.isin(np.arange(len(index)), gone), assignment, index.clusters)
    visit, visited = ClusterIndex._visit, []

    def counting(self: ClusterIndex, *given: Any) -> Any:
        visited.append(given[1].tolist())
        return visit(self, *given)

    monkeypatch.setattr(ClusterIndex, "_visit", counting)
    for query in index.vectors[:20]:
        visited.clear()
        without, _ = index.search(query, 10, 8, margin=margin)
        rows, _ = index.search_among(query, 10, 8, allowed, margin)
        assert visited[0] == visited[-1]
        assert set(without.tolist()) - set(gone.tolist()) <= set(rows.tolist())
        more, _ = index.search_among(query, 1_900, 8, allowed, margin)
        assert len(more) == 1_900, "of more lists, where those hold fewer"
        assert set(rows.tolist()) <= set(more.tolist())


@pytest.mark.parametrize("hidden", [70, 250, 800])
def test_what_is_hidden_around_a_question_has_it_look_farther(hidden: int) -> None:
    index, assignment = clustered(20_000, 100)
    everything, found = np.ones(len(index), bool), 0
    for query in index.vectors[:40]:
        mask = everything.copy()
        mask[oracle(index, query, hidden, everything)] = False
        rows, _ = index.search_among(query, 10, 10, RowSet.of(mask, assignment, index.clusters), 0.2)
        found += len(set(rows.tolist()) & set(oracle(index, query, 10, mask)))
    assert found >= 0.95 * 400


def test_a_narrow_filter_still_fills_the_list_and_finds_the_nearest() -> None:
    index, assignment = clustered(20_000, 100)
    rng = np.random.default_rng(2)
    for share in (0.5, 0.1, 0.04):
        mask = rng.random(len(index)) < share
        allowed = RowSet.of(mask, assignment, index.clusters)
        found = 0
        for query in index.vectors[rng.choice(len(index), 100, replace=False)]:
            rows, _ = index.search_among(query, 10, 8, allowed)
            assert len(rows) == 10
            assert mask[rows].all()
            found += len(set(rows.tolist()) & set(oracle(index, query, 10, mask)))
        assert found >= 980


def test_rows_of_far_clusters_are_found_where_no_others_are_allowed() -> None:
    index, assignment = clustered(8_000, 40)
    far = int(np.argmin(index.centroids @ index.centroids[0]))
    mask = assignment == far
    rows, _ = index.search_among(index.centroids[0], 300, 1, RowSet.of(mask, assignment, index.clusters))
    assert rows.tolist() == oracle(index, index.centroids[0], min(300, int(mask.sum())), mask)


def test_nothing_allowed_is_nothing_found() -> None:
    index, assignment = clustered(100, 4)
    nothing = RowSet.of(np.zeros(100, np.bool_), assignment, 4)
    assert index.search_among(index.centroids[0], 10, 2, nothing)[0].tolist() == []


def test_equal_scores_come_in_the_order_of_rows() -> None:
    two = random_units(2, 8, 3)
    vectors = np.repeat(two, 2_000, axis=0)
    assignment = np.repeat(np.array([0, 1], np.int64), 2_000)
    index = ClusterIndex.build(two, vectors, assignment)
    mask = np.ones(4_000, np.bool_)
    mask[:7] = False
    allowed = RowSet.of(mask, assignment.astype(np.int32), 2)
    assert index.search_among(vectors[0], 10, 1, allowed)[0].tolist() == list(range(7, 17))
