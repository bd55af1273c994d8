"""Interests: seeds kept apart, their turns, and negative seeds, against slow readings of the same rules."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage

from coldframe.store import Store
from server.interests import Turns, cosines, group, negative_part, negative_weights, share_places
from server.search import typical_similarity
from server.view import Base, View
from tests.ranking_oracle import turn

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def unit_rows(random: np.random.Generator, n: int, dim: int = 16) -> NDArray[np.float32]:
    vectors = random.standard_normal((n, dim)) + 2 * np.eye(dim)[random.integers(0, 4, n)]
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def test_seeds_are_alike_that_are_as_two_articles_of_one_cluster_usually_are(newsroom: Path) -> None:
    generation = Store(newsroom).open()
    cosines_within = []
    for number in range(generation.index.clusters):
        own = generation.index.vectors[generation.index.members(number)].astype(np.float64)
        pairs = (own @ own.T)[~np.eye(len(own), dtype=bool)]
        cosines_within += [pairs.mean()] * len(own)
    assert typical_similarity(View.of(Base(generation))) == pytest.approx(np.mean(cosines_within), abs=0.05)


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32), n=st.integers(2, 24), similarity=st.floats(-0.5, 0.95), most=st.integers(1, 24))
def test_groups_are_those_of_average_linkage(seed: int, n: int, similarity: float, most: int) -> None:
    random = np.random.default_rng(seed)
    vectors, weights = unit_rows(random, n), random.uniform(0.1, 3, n)
    found = group(vectors, weights, similarity=similarity, most=most)

    wide = vectors.astype(np.float64)
    tree = linkage([1 - wide[a] @ wide[b] for a, b in combinations(range(n), 2)], "average")
    labels = fcluster(tree, 1 - similarity, "distance")
    if labels.max() > most:
        labels = fcluster(tree, most, "maxclust")
    wanted = {tuple(np.flatnonzero(labels == label).tolist()) for label in set(labels)}
    assert {tuple(interest.seeds) for interest in found} == wanted
    assert len(found) <= most

    for interest in found:
        sums = {s: sum(weights[o] * float(wide[s] @ wide[o]) for o in interest.seeds) for s in interest.seeds}
        assert sums[interest.medoid] == pytest.approx(max(sums.values()), abs=1e-6)
        assert interest.weight == pytest.approx(weights[interest.seeds].sum() / weights.sum())
    assert [i.weight for i in found] == sorted((i.weight for i in found), reverse=True)


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32), n=st.integers(2, 24), similarity=st.floats(-0.5, 0.95), span=st.integers(0, 40))
def test_light_interests_go_by_their_weights_as_heavy_ones_do(seed: int, n: int, similarity: float, span: int) -> None:
    random = np.random.default_rng(seed)
    vectors, weights = unit_rows(random, n), 10.0 ** -random.uniform(0, span, n)  # such as fall with their age
    found = group(vectors, weights, similarity=similarity, most=n)
    for interest in found:
        alone = group(vectors[interest.seeds], weights[interest.seeds], similarity=-1, most=1)
        assert interest.medoid == interest.seeds[alone[0].medoid]
    assert [i.weight for i in found] == sorted((i.weight for i in found), reverse=True)


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 12), twice=st.integers(0, 11))
def test_a_seed_that_comes_twice_is_one_interest_of_twice_the_weight(seed: int, n: int, twice: int) -> None:
    random = np.random.default_rng(seed)
    vectors, weights = unit_rows(random, n), random.uniform(0.1, 3, n)
    found = group(
        np.append(vectors, vectors[[twice % n]], 0), np.append(weights, weights[twice % n]), similarity=1, most=n + 1
    )
    weights[twice % n] *= 2
    once = group(vectors, weights, similarity=1, most=n)
    assert [interest.medoid for interest in found] == [interest.medoid for interest in once]
    assert [interest.weight for interest in found] == pytest.approx([interest.weight for interest in once])


AXES = np.eye(4, dtype=np.float32)


def test_two_tastes_are_kept_apart_and_the_middle_one_stands_for_each() -> None:
    sport, music = [1, 0, 0, 0], [0, 1, 0, 0]
    vectors = np.array([music, [0.8, 0, 0.6, 0], sport, [0.8, 0, 0, 0.6], music], np.float32)
    found = group(vectors, np.ones(5), similarity=0.7, most=5)
    assert [(interest.seeds, interest.medoid) for interest in found] == [([1, 2, 3], 2), ([0, 4], 0)]
    assert [interest.weight for interest in found] == pytest.approx([0.6, 0.4])


def test_a_heavy_seed_stands_for_its_group_and_heavy_groups_come_first() -> None:
    vectors = np.array([[1, 0, 0], [0.8, 0.6, 0], [0.28, 0.96, 0], [0, 0, 1]], np.float32)
    found = group(vectors, np.array([5.0, 1.0, 1.0, 9.0]), similarity=0.4, most=5)
    assert [(interest.seeds, interest.medoid) for interest in found] == [([3], 3), ([0, 1, 2], 0)]


def test_equals_are_told_apart_by_the_lowest_seed() -> None:
    vectors = np.array([[0.6, 0.8], [0.8, 0.6], [-1, 0], [-1, 0]], np.float32)
    found = group(vectors, np.full(4, 0.1), similarity=0.9, most=4)
    assert [(interest.seeds, interest.medoid) for interest in found] == [([0, 1], 0), ([2, 3], 2)]
    # A half of the weights each, the second but for the last bit.
    found = group(vectors[[2, 0, 1]], np.array([0.3, 0.1, 0.2]), similarity=0.9, most=4)
    assert [interest.seeds for interest in found] == [[0], [1, 2]]
    assert share_places([0.6, 0.2, 0.2], [9, 9, 9], 3) == [0, 0, 1]
    assert [interest.seeds for interest in group(AXES, np.ones(4), similarity=0.5, most=2)] == [[0, 1, 2], [3]]
    assert group(np.empty((0, 4), np.float32), np.empty(0), similarity=0.5, most=2) == []
    assert [interest.seeds for interest in group(AXES, np.ones(4), similarity=0.0, most=4)] == [[0, 1, 2, 3]]


@pytest.mark.parametrize("n", range(2, 8))
def test_of_seeds_that_are_all_as_like_each_other_the_lowest_stands_for_them(n: int) -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        common, weights = np.sqrt(random.random()), np.full(n, random.random())
        equal = np.hstack([np.full((n, 1), common), np.sqrt(1 - common**2) * np.eye(n)]).astype(np.float32)
        assert group(equal, weights, similarity=-1, most=1)[0].medoid == 0
    # Of two each is as like the other, though neither is quite of unit length.
    assert [group(unit_rows(random, 2), np.ones(2), similarity=-1, most=1)[0].medoid for _ in range(20)] == [0] * 20


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), min_size=1, max_size=5), st.integers(0, 40))
def test_places_are_shared_by_the_highest_average(numbers: list[tuple[int, int]], limit: int) -> None:
    weights, available = [w for w, _ in numbers], [a for _, a in numbers]
    had = [0] * len(weights)
    wanted: list[int] = []
    while len(wanted) < min(limit, sum(available)):
        number = turn(weights, had, [n for n, most in enumerate(available) if had[n] < most])
        had[number] += 1
        wanted.append(number)
    assert share_places(weights, available, limit) == wanted
    assert share_places(weights, available, limit // 2) == wanted[: limit // 2]
    shares = [weight / sum(weights) for weight in weights]  # as interests have them; no sum may part what is equal
    assert share_places(shares, available, limit) == wanted


def test_the_smaller_interest_does_not_wait_for_its_whole_share() -> None:
    assert share_places([7, 2, 1], [99, 99, 99], 10) == [0, 0, 1, 0, 0, 2, 0, 1, 0, 0]
    assert share_places([1e-12, 3e-12], [99, 99], 4) == [1, 0, 1, 1], "however small"


def test_turns_end_when_all_have_left() -> None:
    turns = Turns([1.0, 1e-300])
    assert turns.next() == 0
    turns.left()
    assert turns.next() == 1
    turns.had()
    turns.left()
    assert turns.next() is None


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32), c=st.integers(0, 20), m=st.integers(0, 4))
def test_the_negative_seed_that_is_most_like_counts(seed: int, c: int, m: int) -> None:
    random = np.random.default_rng(seed)
    vectors, negatives, weights = unit_rows(random, c), unit_rows(random, m), random.random(m)
    found = negative_part(vectors, negatives, weights)
    wanted = [
        -max(
            (w * max(0.0, float(v.astype(np.float64) @ x)) for w, x in zip(weights, negatives, strict=True)), default=0
        )
        for v in vectors
    ]
    assert found.dtype == np.float32
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)
    assert not np.signbit(found[found == 0]).any()


def test_negative_weights_are_held_against_the_largest_positive_one() -> None:
    assert negative_weights(np.array([2.0, -1.0, 4.0, -400.0, -4.0])).tolist() == [0.25, 1.0, 1.0]
    assert negative_weights(np.array([2.0])).tolist() == []


def test_cosines_are_those_of_numpy() -> None:
    vectors = unit_rows(np.random.default_rng(1), 50, 33)
    np.testing.assert_allclose(cosines(vectors, vectors[7]), vectors.astype(np.float64) @ vectors[7], atol=1e-6)
