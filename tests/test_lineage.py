"""Clusters keep their names from one generation to the next, and what becomes of the others is told."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldframe.clusters import Topic
from coldframe.generation import CLUSTERS
from coldframe.recipe import unit
from coldframe.store import Store
from indexer.lineage import Naming, Previous, name_clusters, next_number
from tests.generations import publish
from tests.mixtures import Day, around, build_day, next_day, random_units, table_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

AXES = np.eye(12, dtype=np.float32)


def name(
    groups: Sequence[Sequence[str]], centroids: Floats, before: Previous | None = None, least: float = 0.8
) -> tuple[Naming, Previous]:
    """Names clusters that are given as lists of articles, and hands on what the next generation needs."""
    articles = [article for group in groups for article in group]
    assignment = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    naming = name_clusters(centroids, assignment, articles, before, min_similarity=least)
    homes = {article: naming.ids[number] for article, number in zip(articles, assignment, strict=True)}
    table = table_of(naming, [len(group) for group in groups])
    return naming, Previous("before", centroids, table, lambda ids: [homes.get(article) for article in ids])


def some(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number:03}" for number in range(count)]


def near(*axes: int) -> Floats:
    """A direction between axes, (1, 12)."""
    return unit(AXES[list(axes)].sum(axis=0, keepdims=True))


A, B, C, D = (some(letter, 100) for letter in "abcd")


@pytest.fixture
def before() -> Previous:
    """Four clusters of 100 articles: c0000 to c0003, along the first four axes."""
    return name([A, B, C, D], AXES[:4])[1]


# --- names -----------------------------------------------------------------------------------------------------------


def test_the_clusters_of_a_first_generation_are_numbered() -> None:
    naming, _ = name([A, B], AXES[:2])
    assert naming.ids == ["c0000", "c0001"]
    assert [(line.kind, line.parents, line.similarity) for line in naming.lineages] == [("first", [], None)] * 2
    assert (naming.vanished, naming.next_number, naming.survived) == ([], 2, None)


def test_the_same_clusters_in_another_order_keep_their_names(before: Previous) -> None:
    naming, _ = name([C, A, D, B], AXES[[2, 0, 3, 1]], before)
    assert naming.ids == ["c0002", "c0000", "c0003", "c0001"]
    assert [line.kind for line in naming.lineages] == ["kept"] * 4
    assert [line.parents for line in naming.lineages] == [[own] for own in naming.ids]
    assert [line.similarity for line in naming.lineages] == [1.0] * 4
    assert (naming.vanished, naming.next_number, naming.survived) == ([], 4, 1.0)


def test_the_topics_before_are_handed_on(before: Previous) -> None:
    topic = Topic("t0009", "", [], ["c0000", "c0002"], 200)
    told = replace(before, table=replace(before.table, topics=[topic]))
    assert name([C, A], AXES[[2, 0]], told)[0].topics == [topic], "or all topics were new"


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12))
def test_the_order_of_the_previous_clusters_changes_nothing(seed: int, old: int, new: int) -> None:
    rng = np.random.default_rng(seed)
    articles = some("x", 60)
    axes = AXES[rng.integers(4, size=old)]  # equal ones among them: ties
    groups = [
        [a for a, home in zip(articles, rng.integers(old, size=60), strict=True) if home == n] for n in range(old)
    ]
    _, before = name(groups, axes)
    shuffled = rng.permutation(old)
    table = replace(before.table, clusters=[before.table.clusters[place] for place in shuffled])
    assert before.centroids is not None
    other = replace(before, table=table, centroids=before.centroids[shuffled])
    today = [[a for a, home in zip(articles, rng.integers(new, size=60), strict=True) if home == n] for n in range(new)]
    centroids = unit(AXES[rng.integers(4, size=new)] + 0.1 * random_units(new, 12, seed))
    assert name(today, centroids, before)[0] == name(today, centroids, other)[0]


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5), st.sampled_from([0.2, 0.6, 0.9]))
def test_the_best_of_all_assignments_is_taken(seed: int, old: int, new: int, least: float) -> None:
    rng = np.random.default_rng(seed)
    centroids = unit(np.abs(random_units(old + new, 3, seed)))
    homes = rng.integers(old, size=40), rng.integers(new, size=40)
    groups = [[f"{a}" for a in np.flatnonzero(homes[0] == n)] for n in range(old)]
    today = [[f"{a}" for a in np.flatnonzero(homes[1] == n)] for n in range(new)]
    _, before = name(groups, centroids[:old])
    naming, _ = name(today, centroids[old:], before, least)

    def score(one: int, other: int) -> float:
        cosine = float(centroids[old + one].astype(np.float64) @ centroids[other])
        mine, theirs = set(today[one]), set(groups[other])
        return cosine + len(mine & theirs) / len(mine | theirs) if mine | theirs and cosine >= least else 0.0

    padded = max(old, new)
    table = [[score(i, j) if i < new and j < old else 0.0 for j in range(padded)] for i in range(padded)]
    best = max(sum(table[i][j] for i, j in enumerate(order)) for order in permutations(range(padded)))
    kept = {number: int(own[1:]) for number, own in enumerate(naming.ids) if int(own[1:]) < old}
    assert sum(table[i][j] for i, j in kept.items()) == pytest.approx(best, abs=1e-5)
    assert all(table[i][j] > 0 for i, j in kept.items())


def test_centroids_less_alike_than_the_minimum_are_no_match(before: Previous) -> None:
    moved = unit(AXES[:4] + 0.7 * AXES[4:8])  # cosine 0.82 to what they were
    assert name([A, B, C, D], moved, before, 0.8)[0].ids == ["c0000", "c0001", "c0002", "c0003"]
    assert name([A, B, C, D], moved, before, 0.83)[0].ids == ["c0004", "c0005", "c0006", "c0007"]


def test_of_two_like_centroids_the_one_with_the_articles_gets_the_name(before: Previous) -> None:
    alike = unit(AXES[[0, 0]] + np.array([[0.05], [0.06]], np.float32) * AXES[[5, 6]])  # the first a little nearer
    naming, _ = name([A[:20], A[20:]], alike, before)
    assert naming.ids == ["c0004", "c0000"]


def test_without_common_articles_the_centroids_decide(before: Previous) -> None:
    naming, _ = name([some("x", 30), some("y", 20)], AXES[[1, 7]], before)
    assert naming.ids == ["c0001", "c0004"]
    assert [line.kind for line in naming.lineages] == ["kept", "new"]
    assert [line.parents for line in naming.lineages] == [["c0001"], []]
    assert naming.survived is None
    assert [(gone.id, gone.into) for gone in naming.vanished] == [("c0000", []), ("c0002", []), ("c0003", [])]


def test_numbers_are_never_used_again(before: Previous) -> None:
    names = {cluster.id for cluster in before.table.clusters}
    for day in range(6):
        fresh = some(f"day{day}", 80)
        naming, before = name([fresh, A], AXES[[5 + day, 0]], before)
        assert naming.ids[1] == "c0000"
        assert naming.ids[0] not in names
        names.add(naming.ids[0])
    assert sorted(names) == [f"c{n:04}" for n in range(10)]
    assert before.table.next_number == 10


def test_numbers_begin_where_the_store_says_or_where_the_generation_before_ended(before: Previous) -> None:
    articles, fresh = ["x", "y"], np.arange(2)
    for previous, first, wanted in ((None, 7, [7, 8]), (before, 7, [7, 8]), (before, 2, [4, 5])):
        naming = name_clusters(AXES[8:10], fresh, articles, previous, min_similarity=0.8, first_number=first)
        assert naming.ids == [f"c{number:04}" for number in wanted]
        assert naming.next_number == wanted[-1] + 1, "or the next generation gives one of these again"


def test_clusters_that_cannot_be_read_keep_no_store_from_giving_numbers(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    path = store.directory(publish(store)) / CLUSTERS
    assert next_number(store) == 10
    path.write_bytes(path.read_bytes()[:-2])
    assert next_number(store) == 0


# --- kinds -----------------------------------------------------------------------------------------------------------


def test_of_a_cluster_that_splits_the_larger_part_keeps_the_name(before: Previous) -> None:
    halves = np.concatenate([unit(AXES[:1] + 0.2 * AXES[6:7]), unit(AXES[:1] + 0.2 * AXES[7:8]), AXES[1:4]])
    naming, _ = name([A[:40], A[40:], B, C, D], halves, before)
    assert naming.ids == ["c0004", "c0000", "c0001", "c0002", "c0003"]
    assert [line.kind for line in naming.lineages] == ["split", "kept", "kept", "kept", "kept"]
    assert naming.lineages[0].parents == ["c0000"]
    assert naming.lineages[0].similarity is None
    assert naming.vanished == []
    assert naming.survived == pytest.approx(0.9)


def test_articles_that_leave_a_cluster_that_lives_on_with_fresh_ones_alone_were_split_from_it(before: Previous) -> None:
    naming, _ = name([A, some("x", 100), B, C, D], AXES[[8, 0, 1, 2, 3]], before)
    assert naming.ids == ["c0004", "c0000", "c0001", "c0002", "c0003"]
    assert [line.kind for line in naming.lineages] == ["split", "kept", "kept", "kept", "kept"]
    assert naming.lineages[0].parents == ["c0000"]


def test_a_cluster_that_moved_too_far_is_a_new_one_whatever_else_is_new(before: Previous) -> None:
    naming, _ = name([A, some("x", 100), B, C, D], AXES[[8, 9, 1, 2, 3]], before)
    assert [line.kind for line in naming.lineages] == ["new", "new", "kept", "kept", "kept"]
    assert [line.parents for line in naming.lineages[:2]] == [["c0000"], []]


def test_a_cluster_that_is_scattered_evenly_over_many_has_all_of_them_for_heirs() -> None:
    _, before = name([A[:99]], AXES[:1])
    naming, _ = name([A[start : start + 9] for start in range(0, 99, 9)], AXES[1:], before)
    assert [gone.into for gone in naming.vanished] == [naming.ids]


def test_a_cluster_may_fall_into_pieces_none_of_which_is_like_it(before: Previous) -> None:
    pieces = np.concatenate([AXES[5:7], AXES[1:4]])
    naming, _ = name([A[:50], A[50:], B, C, D], pieces, before)
    assert [line.kind for line in naming.lineages] == ["split", "split", "kept", "kept", "kept"]
    assert [line.parents for line in naming.lineages[:2]] == [["c0000"], ["c0000"]]
    (gone,) = naming.vanished
    assert (gone.id, gone.label, gone.size, gone.into) == ("c0000", "about c0000", 100, ["c0004", "c0005"])


def test_two_clusters_merge_into_a_new_one(before: Previous) -> None:
    naming, _ = name([A + B, C, D], np.concatenate([near(0, 1), AXES[2:4]]), before)
    assert naming.ids == ["c0004", "c0002", "c0003"]
    assert [line.kind for line in naming.lineages] == ["merged", "kept", "kept"]
    assert naming.lineages[0].parents == ["c0000", "c0001"]
    assert [(gone.id, gone.into) for gone in naming.vanished] == [("c0000", ["c0004"]), ("c0001", ["c0004"])]
    assert naming.survived == 0.5


def test_a_cluster_that_takes_another_in_keeps_its_name(before: Previous) -> None:
    naming, _ = name([A + B[:60], B[60:] + C, D], np.concatenate([unit(AXES[:1] + 0.3 * AXES[1:2]), AXES[2:4]]), before)
    assert naming.ids == ["c0000", "c0002", "c0003"]
    assert [line.kind for line in naming.lineages] == ["merged", "kept", "kept"]
    assert [line.parents for line in naming.lineages] == [["c0000", "c0001"], ["c0002", "c0001"], ["c0003"]]
    assert [(gone.id, gone.into) for gone in naming.vanished] == [("c0001", ["c0000", "c0002"])]


def test_a_small_cluster_that_goes_into_a_large_one_is_a_merger() -> None:
    _, before = name([A, B[:5], C, D], AXES[:4])
    naming, _ = name([A + B[:5], C, D], AXES[[0, 2, 3]], before)
    assert [line.kind for line in naming.lineages] == ["merged", "kept", "kept"]
    assert naming.lineages[0].parents == ["c0000", "c0001"]


def test_articles_that_move_between_clusters_that_live_on_make_no_merger(before: Previous) -> None:
    naming, _ = name([A + B[:60], B[60:], C, D], AXES[:4], before)
    assert [line.kind for line in naming.lineages] == ["kept"] * 4
    assert naming.lineages[0].parents == ["c0000", "c0001"]


def test_fresh_articles_are_a_new_cluster_whatever_strays_among_them(before: Previous) -> None:
    naming, _ = name([some("x", 50) + A[:3], A[3:], B, C, D], AXES[[8, 0, 1, 2, 3]], before)
    assert naming.ids == ["c0004", "c0000", "c0001", "c0002", "c0003"]
    assert (naming.lineages[0].kind, naming.lineages[0].parents) == ("new", [])


def test_in_a_corpus_of_mostly_fresh_articles_the_few_old_ones_tell(before: Previous) -> None:
    groups = [some(f"x{n}", 150) + old for n, old in enumerate([A[:20], A[20:40], B[:30], C[:30], D[:30]])]
    halves = np.concatenate([unit(AXES[:1] + 0.2 * AXES[6:7]), unit(AXES[:1] + 0.3 * AXES[7:8]), AXES[1:4]])
    naming, _ = name(groups, halves, before)
    assert [line.kind for line in naming.lineages] == ["kept", "split", "kept", "kept", "kept"]


def test_a_cluster_with_a_little_of_everything_is_new_and_names_its_sources(before: Previous) -> None:
    naming, _ = name([A[:30] + B[:20] + C[:2], A[30:], B[20:], C[2:], D], AXES[[9, 0, 1, 2, 3]], before)
    assert naming.lineages[0].kind == "split"
    naming, _ = name([A[:30] + B[:25] + C[:20], A[30:], B[25:], C[20:], D], AXES[[9, 0, 1, 2, 3]], before)
    assert (naming.lineages[0].kind, naming.lineages[0].parents) == ("new", ["c0000", "c0001", "c0002"])
    naming, _ = name([A[:30] + B[:30], A[30:], B[30:], C, D], AXES[[9, 0, 1, 2, 3]], before)
    assert (naming.lineages[0].kind, naming.lineages[0].parents) == ("new", ["c0000", "c0001"]), "half is not most"


def test_what_was_deleted_merged_into_nothing(before: Previous) -> None:
    naming, _ = name([A + B[:3], C, D], AXES[[0, 2, 3]], before)
    assert [line.kind for line in naming.lineages] == ["kept"] * 3
    assert [(gone.id, gone.into) for gone in naming.vanished] == [("c0001", ["c0000"])]


def test_clusters_of_another_encoder_are_named_anew_and_say_where_they_come_from(before: Previous) -> None:
    naming, _ = name([A + B, C, D], np.eye(3, 99, dtype=np.float32), replace(before, centroids=None))
    assert naming.ids == ["c0004", "c0005", "c0006"]
    assert [line.kind for line in naming.lineages] == ["merged", "new", "new"]
    assert [line.parents for line in naming.lineages] == [["c0000", "c0001"], ["c0002"], ["c0003"]]
    assert [(gone.id, gone.into) for gone in naming.vanished] == [
        ("c0000", ["c0004"]),
        ("c0001", ["c0004"]),
        ("c0002", ["c0005"]),
        ("c0003", ["c0006"]),
    ]
    assert (naming.next_number, naming.survived) == (7, None)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9))
def test_every_cluster_and_every_article_is_accounted_for(seed: int, old: int, new: int) -> None:
    rng = np.random.default_rng(seed)
    homes = rng.integers(old, size=80), rng.integers(new, size=80)
    groups = [[f"{a}" for a in np.flatnonzero(homes[0] == n)] for n in range(old)]
    today = [[f"{a + 20}" for a in np.flatnonzero(homes[1] == n)] for n in range(new)]
    _, before = name(groups, unit(np.abs(random_units(old, 4, seed))))
    naming, after = name(today, unit(np.abs(random_units(new, 4, seed + 1))), before)
    was, now = {cluster.id for cluster in before.table.clusters}, set(naming.ids)
    assert len(now) == len(naming.ids) == len(naming.lineages) == new
    assert {gone.id for gone in naming.vanished} == was - now
    assert naming.next_number == old + len(now - was)
    both = [str(a) for a in range(20, 80)]
    was_in, is_in = (dict(zip(both, of.article_clusters(both), strict=True)) for of in (before, after))
    same = [was_in[a] == is_in[a] for a in both]
    assert naming.survived == pytest.approx(np.mean(same))
    for own, line in zip(naming.ids, naming.lineages, strict=True):
        assert (own in was) == (line.similarity is not None)
        assert set(line.parents) <= was
        assert line.kind in ({"kept", "merged"} if own in was else {"new", "split", "merged"})
        assert own in line.parents or own not in was
    for gone in naming.vanished:
        went = Counter(is_in[a] for a in both if was_in[a] == gone.id)
        assert gone.into == sorted(gone.into, key=lambda heir: (-went[heir], naming.ids.index(heir)))
        assert set(gone.into) == {heir for heir, n in went.items() if n >= min(0.1 * went.total(), max(went.values()))}


# --- from day to day -------------------------------------------------------------------------------------------------


def kept(before: Day, after: Day) -> float:
    return 1 - len(after.naming.vanished) / len(before.naming.ids)


@pytest.mark.parametrize("seed", range(5))
def test_with_one_article_in_a_hundred_changed_names_stay(seed: int) -> None:
    topics = random_units(70, 64, seed)
    first = build_day(around(topics, 3_000, seed), some("a", 3_000))
    second = next_day(first, around(topics, 30, seed + 1_000), seed)
    assert kept(first, second) >= 0.95
    assert second.naming.survived is not None
    assert second.naming.survived >= 0.95


def test_names_stay_for_a_week() -> None:
    topics = random_units(40, 64)
    first = today = build_day(around(topics, 1_500), some("a", 1_500))
    for day in range(7):
        today = next_day(today, around(topics, 15, 1_000 + day), day)
    assert len(set(first.naming.ids) & set(today.naming.ids)) >= 0.95 * len(first.naming.ids)


@pytest.mark.parametrize("seed", range(3))
def test_a_subject_that_was_not_there_gets_clusters_of_its_own_and_the_others_keep_their_names(seed: int) -> None:
    topics = random_units(41, 64, seed)
    first = build_day(around(topics[:40], 1_500, seed), some("a", 1_500))
    fresh = some("fresh", 300)
    after = build_day(np.concatenate([first.vectors, around(topics[40:], 300, seed)]), first.articles + fresh, first)
    homes = {after.clusters[article] for article in fresh}
    inside = [article for article, home in after.clusters.items() if home in homes]
    assert len(inside) <= 1.2 * 300
    assert "new" in {
        line.kind for own, line in zip(after.naming.ids, after.naming.lineages, strict=True) if own in homes
    }
    assert kept(first, after) >= 0.9


@pytest.mark.parametrize("comparable", [True, False])
def test_a_generation_on_disk_is_a_previous_one(tmp_path: Path, comparable: bool) -> None:
    store = Store(tmp_path / "store")
    publish(store)
    generation = store.open()
    previous = Previous.of(generation, generation.index.centroids if comparable else None)
    assert (previous.name, previous.table) == (generation.name, generation.table)
    assert (previous.centroids is not None) == comparable
    articles = [generation.articles[row] for row in range(len(generation.articles))][::-1]
    wanted = [generation.clusters[article.cluster].id for article in articles]
    assert previous.article_clusters(["nobody wrote this", *(article.id for article in articles)]) == [None, *wanted]
    assert previous.article_clusters([articles[0].id]) == wanted[:1]
