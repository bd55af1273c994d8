"""From token states and token ids to one vector."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from coldframe.recipe import LEAD, MEAN, RECIPES, WORDS_SHARE, Placement, Pooler, unit, word_sketch

if TYPE_CHECKING:
    from pathlib import Path

BOUNDS = [(0, 5), (5, 12)]
STATES = torch.randn(4, 12, 6, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([101, 1996, 9000, 9000, 102, 101, 7000, 7001, 7002, 1996, 7000, 102])


def pooled(name: str) -> torch.Tensor:
    pooler = Pooler(RECIPES[name], BOUNDS, total_states=len(STATES), ids=IDS)
    for states in STATES:
        pooler.see(states)
    return pooler.vectors()


def hashed(key: int) -> int:
    h = key + 1
    for factor, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        h = ((h ^ (h >> shift)) * factor) % 2**32
    return h ^ (h >> 16)


def slow_sketch(ids: list[int], width: int) -> list[float]:
    counts: dict[int, float] = {}
    for n, piece in enumerate(ids[1:-1], 1):
        counts[piece] = counts.get(piece, 0) + LEAD / (LEAD + n)
    sketch = [0.0] * width
    for piece, count in counts.items():
        rank = max(piece - 1995, 1)
        for bucket in range(8):
            h = hashed(piece * 8 + bucket)
            sketch[(h >> 1) % width] += (-1) ** (h & 1) * math.log1p(count) * rank / (rank + 100)
    norm = math.hypot(*sketch)
    return [value / norm for value in sketch]


def test_the_sketch_is_its_slow_obvious_version() -> None:
    found = word_sketch(IDS, BOUNDS, 32)
    for row, (start, end) in zip(found.tolist(), BOUNDS, strict=True):
        assert row == pytest.approx(slow_sketch(IDS[start:end].tolist(), 32), abs=1e-6)


@pytest.mark.parametrize("name", ["seed", "mean", "first", "lead", "lead-words"])
def test_rows_of_no_document_count_nowhere(name: str) -> None:
    """Between documents, which are not where they were, and after the last."""
    bounds, rows = [(0, 5), (8, 15)], torch.tensor([0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 14])
    ids, states = torch.full((20,), 5000), torch.full((4, 20, 6), 99.0)
    ids[rows], states[:, rows] = IDS, STATES
    pooler = Pooler(RECIPES[name], bounds, total_states=len(states), ids=ids)
    for state in states:
        pooler.see(state)
    torch.testing.assert_close(pooler.vectors(), pooled(name))


def test_a_text_without_words_has_an_empty_sketch() -> None:
    assert not word_sketch(torch.tensor([101, 102, 101]), [(0, 2), (2, 3)], 16).any()


def test_sketches_keep_the_cosine_of_the_bags() -> None:
    first, second = torch.arange(5000, 5402), torch.cat([torch.arange(5000, 5201), torch.arange(9000, 9201)])
    sketches = word_sketch(torch.cat([first, second]), [(0, 402), (402, 804)], 4096)
    weights = [math.log1p(LEAD / (LEAD + n)) * (p - 1995) / (p - 1895) for n, p in enumerate(first.tolist())]
    others = [math.log1p(LEAD / (LEAD + n)) * (p - 1995) / (p - 1895) for n, p in enumerate(second.tolist())]
    cosine = sum(w * w for w in weights[1:201]) / math.hypot(*weights[1:-1]) / math.hypot(*others[1:-1])
    assert float(sketches[0] @ sketches[1]) == pytest.approx(cosine, abs=4 / math.sqrt(4096))


def test_lead_is_the_weighted_mean_of_directions_over_the_last_layers() -> None:
    expected = np.zeros((2, 6))
    for states in STATES[1:].double().numpy():
        for n, (start, end) in enumerate(BOUNDS):
            weights = [LEAD / (LEAD + i) for i in range(end - start)]
            directions = [state / np.linalg.norm(state) for state in states[start:end]]
            expected[n] += np.average(directions, axis=0, weights=weights)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(pooled("lead").numpy(), expected, atol=1e-6)


def test_words_stand_beside_the_states_with_their_share() -> None:
    both = pooled("lead-words").numpy()
    assert both.shape == (2, RECIPES["lead-words"].dim(6))
    np.testing.assert_allclose((both[:, :6] ** 2).sum(1), 1 - WORDS_SHARE, rtol=1e-5)
    np.testing.assert_allclose((both[:, 6:] ** 2).sum(1), WORDS_SHARE, rtol=1e-5)


def test_what_the_first_recipes_say_of_themselves_stays() -> None:
    seed = {"layers": 4, "pooling": "sum", "normalize": False, "centre": False}
    assert RECIPES["seed"].describe() == seed
    assert set(RECIPES["mean-centred"].describe()) == set(seed)
    assert RECIPES["lead-words"].describe() != RECIPES["lead"].describe()


def test_a_corpus_of_one_direction_is_not_centred() -> None:
    vectors = np.outer(np.arange(1, 9), [1.0, 2.0, 3.0]).astype(np.float32)
    placed = Placement.fit(RECIPES["lead"], vectors)(vectors)
    np.testing.assert_allclose(np.linalg.norm(placed, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("recipe", ["mean", "mean-centred"])
def test_a_placement_can_be_undone(recipe: str) -> None:
    vectors = unit(np.random.default_rng(0).normal(0.5, 1, (50, 8)).astype(np.float32))
    placement = Placement.fit(RECIPES[recipe], vectors)
    np.testing.assert_allclose(placement.undone(placement(vectors)), vectors, atol=1e-6)
    np.testing.assert_allclose(placement(placement.undone(placement(vectors))), placement(vectors), atol=1e-6)


def test_a_placement_is_the_same_after_a_save(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(1, 1, (20, 4)).astype(np.float32)
    for recipe in ("mean", "mean-centred"):
        placement = Placement.fit(RECIPES[recipe], vectors)
        placement.save(tmp_path)
        assert (tmp_path / MEAN).is_file() is (recipe == "mean-centred")
        np.testing.assert_array_equal(Placement.load(tmp_path)(vectors), placement(vectors))
