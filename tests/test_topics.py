"""Broad topics: clusters of clusters, which keep their names as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldframe.clusters import Lineage, Topic
from coldframe.recipe import unit
from indexer.lineage import Naming
from indexer.topics import Grouping, group_clusters
from tests.mixtures import random_units

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Rows = NDArray[np.int64]


def named(ids: Sequence[str], topics: Sequence[Topic] = (), next_number: int = 100) -> Naming:
    return Naming(list(ids), [Lineage("kept", [], None) for _ in ids], [], next_number, None, list(topics))


def numbered(count: int) -> list[str]:
    return [f"c{number:04}" for number in range(count)]


def family(subjects: Sequence[int], each: int = 6, seed: int = 0) -> tuple[Floats, Rows]:
    """Clusters of `each` articles around the subjects that they are given, one after another."""
    centres = unit(
        np.eye(max(subjects) + 1, 24, dtype=np.float32)[list(subjects)] + 0.2 * random_units(len(subjects), 24)
    )
    assignment = np.repeat(np.arange(len(subjects)), each)
    return unit(centres[assignment] + 0.1 * random_units(len(assignment), 24, seed + 1)), assignment


def topics_of(grouping: Grouping, ids: Sequence[str]) -> list[Topic]:
    inside = [[ids[c] for c in np.flatnonzero(grouping.numbers == n).tolist()] for n in range(len(grouping.ids))]
    return [Topic(name, "", [], clusters, 0) for name, clusters in zip(grouping.ids, inside, strict=True)]


def as_sets(grouping: Grouping) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(grouping.numbers == number).tolist()) for number in range(len(grouping.ids))}


@pytest.mark.parametrize("each", [6, 3_000])
def test_clusters_of_one_subject_are_one_topic_and_the_largest_is_first(each: int) -> None:
    vectors, assignment = family([0, 1, 2, 1, 1, 0], each)
    grouping = group_clusters(vectors, assignment, named(numbered(6)), 3)
    assert grouping.numbers.tolist() == [1, 0, 2, 0, 0, 1]
    assert grouping.ids == ["t0100", "t0101", "t0102"]
    assert grouping.next_number == 103
    assert [grouping.id_of(number) for number in (0, 1, 2)] == ["t0101", "t0100", "t0102"]


@pytest.mark.parametrize(("clusters", "topics"), [(1, 1), (2, 1), (4, 2), (30, 5)])
def test_by_default_there_are_about_as_many_topics_as_clusters_in_one(clusters: int, topics: int) -> None:
    vectors = random_units(clusters * 3)
    grouping = group_clusters(vectors, np.repeat(np.arange(clusters), 3), named(numbered(clusters)), None)
    assert len(grouping.ids) == topics
    assert set(grouping.numbers) == set(range(topics))


def test_there_may_be_no_topics_and_never_more_than_clusters() -> None:
    vectors, assignment = family([0, 1, 2])
    none = group_clusters(vectors, assignment, named(numbered(3)), 0)
    assert (none.ids, none.next_number, none.id_of(0)) == ([], 100, None)
    many = group_clusters(vectors, assignment, named(numbered(3)), 9)
    assert as_sets(many) == {frozenset([0]), frozenset([1]), frozenset([2])}


def test_a_cluster_weighs_as_much_as_it_has_articles() -> None:
    angles = np.array([0.0, 0.5, 1.2])  # the middle one is nearer to the first
    centres = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert as_sets(group_clusters(centres, np.arange(3), named(numbered(3)), 2)) == {frozenset([0, 1]), frozenset([2])}
    heavy = np.repeat(np.arange(3), [100, 100, 1])  # but to part from it costs more than to part from the last
    found = group_clusters(centres[heavy], heavy, named(numbered(3)), 2)
    assert as_sets(found) == {frozenset([0]), frozenset([1, 2])}


# --- from generation to generation -----------------------------------------------------------------------------------


def test_the_same_clusters_in_another_order_keep_their_topics() -> None:
    vectors, assignment = family([0, 1, 2, 1, 1, 0])
    ids = numbered(6)
    before = group_clusters(vectors, assignment, named(ids), 3)
    order = np.array([4, 2, 0, 5, 3, 1])
    place = np.argsort(order)
    naming = named([ids[old] for old in order], topics_of(before, ids), 103)
    after = group_clusters(vectors, place[assignment], naming, 3)
    assert after.next_number == 103
    assert [after.id_of(int(place[old])) for old in range(6)] == [before.id_of(old) for old in range(6)]


@pytest.mark.parametrize("turn", range(4))
def test_of_groupings_that_are_all_as_good_the_one_before_stays(turn: int) -> None:
    angles = np.arange(12) * np.pi / 6
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    topic = [f"t{(number + turn) % 12 // 4:04}" for number in range(12)]  # of each cluster: four neighbours have one
    before = [
        Topic(name, "", [], [own for own, home in zip(numbered(12), topic, strict=True) if home == name], 4)
        for name in sorted(set(topic))
    ]
    after = group_clusters(vectors, np.arange(12), named(numbered(12), before), 3)
    assert [after.id_of(number) for number in range(12)] == topic


def test_a_cluster_that_is_new_joins_the_topic_it_is_like() -> None:
    vectors, assignment = family([0, 1, 2, 1, 0])
    before = [
        Topic("t0007", "", [], ["c0000"], 6),
        Topic("t0003", "", [], ["c0001"], 6),
        Topic("t0009", "", [], ["c0002"], 6),
    ]
    after = group_clusters(vectors, assignment, named([*numbered(3), "c0050", "c0051"], before), 3)
    assert [after.id_of(number) for number in range(5)] == ["t0007", "t0003", "t0009", "t0003", "t0007"]
    assert after.next_number == 100


def test_of_a_topic_that_splits_the_larger_part_keeps_the_name() -> None:
    vectors, assignment = family([0, 1, 0, 2, 2])
    before = [Topic("t0007", "", [], ["c0000", "c0001", "c0002"], 18), Topic("t0003", "", [], ["c0003", "c0004"], 12)]
    after = group_clusters(vectors, assignment, named(numbered(5), before), 3)
    assert [after.id_of(number) for number in range(5)] == ["t0007", "t0100", "t0007", "t0003", "t0003"]
    assert after.next_number == 101


def test_of_a_topic_that_splits_the_part_with_most_articles_keeps_the_name_whatever_is_new_beside_it() -> None:
    vectors, assignment = family([0, 1, 1, 2, 2, 3], each=30)
    sizes = np.array([20, 5, 5, 8, 8, 30])
    kept = np.arange(len(assignment)) % 30 < sizes[assignment]
    before = [Topic("t0007", "", [], ["c0000", "c0001", "c0002"], 30), Topic("t0003", "", [], ["c0003", "c0004"], 16)]
    after = group_clusters(vectors[kept], assignment[kept], named([*numbered(5), "c0050"], before), 4)
    assert [after.id_of(number) for number in range(6)] == ["t0007", "t0101", "t0101", "t0003", "t0003", "t0100"]
    vectors, assignment = family([0, 1, 0], each=30)
    kept = np.arange(len(assignment)) % 30 < np.array([5, 20, 30])[assignment]
    before = [Topic("t0007", "", [], ["c0000", "c0001"], 25)]
    after = group_clusters(vectors[kept], assignment[kept], named([*numbered(2), "c0050"], before), 2)
    assert [after.id_of(number) for number in range(3)] == ["t0100", "t0007", "t0100"]


@pytest.mark.parametrize("parts", [2, 3])
def test_a_topic_made_of_equal_parts_of_others_is_a_new_one(parts: int) -> None:
    vectors, assignment = family([0] * parts + [1, 1])
    ids = numbered(parts + 2)
    before = [Topic(f"t{n:04}", "", [], [ids[n]], 6) for n in range(parts)] + [Topic("t0009", "", [], ids[parts:], 12)]
    after = group_clusters(vectors, assignment, named(ids, before), 2)
    assert [after.id_of(number) for number in range(parts + 2)] == ["t0100"] * parts + ["t0009"] * 2


def test_topics_all_of_whose_clusters_are_gone_are_gone() -> None:
    vectors, assignment = family([0, 0, 1, 1])
    before = [Topic("t0001", "", [], ["c0077"], 5), Topic("t0002", "", [], ["c0002", "c0003", "c0078"], 9)]
    after = group_clusters(vectors, assignment, named(numbered(4), before), 2)
    assert [after.id_of(number) for number in range(4)] == ["t0100", "t0100", "t0002", "t0002"]


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 14), st.integers(0, 6))
def test_every_cluster_has_one_topic_and_the_order_of_previous_topics_decides_nothing(
    seed: int, clusters: int, previous: int
) -> None:
    rng = np.random.default_rng(seed)
    assignment = np.concatenate([np.arange(clusters), rng.integers(clusters, size=40)])
    vectors = random_units(len(assignment), 6, seed)
    ids = numbered(clusters)
    members = [[ids[c] for c in range(clusters) if rng.integers(previous) == n] for n in range(previous)]
    before = [Topic(f"t{n:04}", "", [], inside, 0) for n, inside in enumerate(members)]
    grouping = group_clusters(vectors, assignment, named(ids, before), None)
    assert len(set(grouping.ids)) == len(grouping.ids)
    assert set(grouping.numbers) == set(range(len(grouping.ids)))
    sizes = np.bincount(grouping.numbers[assignment])
    assert (np.diff(sizes) <= 0).all()
    other = group_clusters(vectors, assignment, named(ids, before[::-1]), None)
    assert (other.ids, other.numbers.tolist()) == (grouping.ids, grouping.numbers.tolist())
