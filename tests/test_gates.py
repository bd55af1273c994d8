"""What a build must measure before it is published, and how drift is told."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldframe.errors import InvalidArgument
from coldframe.recipe import unit
from indexer.drift import drift
from indexer.gates import Facts, Limits, checks, judge

if TYPE_CHECKING:
    from numpy.typing import NDArray

GOOD = Facts(
    articles=1_000,
    recall=0.992,
    target_recall=0.99,
    sizes=[60] * 16 + [40],
    empty=1,
    previous_articles=1_010,
    survived=0.97,
    drift=0.01,
)
LIMITS = Limits()


def test_a_good_build_passes_every_gate() -> None:
    assert judge(GOOD, LIMITS) == []
    assert [check.gate for check in checks(GOOD, LIMITS)] == [
        "articles",
        "survived",
        "drift",
        "recall",
        "empty",
        "cell",
    ]


@pytest.mark.parametrize(
    ("gate", "worse", "flag", "said"),
    [
        ("articles", {"articles": 800}, "--max-article-loss", "800 articles, 20.8% fewer than the 1,010"),
        ("recall", {"recall": 0.9}, "--recall-slack", "90.0% of the 10 nearest, the target is 99.0%"),
        ("empty", {"empty": 5}, "--max-empty-share", "5 of 22 clusters drew no article"),
        ("cell", {"sizes": [400] + [37] * 16}, "--max-cell-share", "the largest cluster holds 400 of 992 articles"),
        ("survived", {"survived": 0.5}, "--min-survived", "50.0% of the articles of both generations"),
        ("drift", {"drift": 0.3}, "--max-drift", "the drift against the previous generation is 0.300"),
    ],
)
def test_what_is_worse_than_a_limit_is_said_with_its_flag(
    gate: str, worse: dict[str, object], flag: str, said: str
) -> None:
    (breach,) = judge(replace(GOOD, **worse), LIMITS)  # type: ignore[arg-type]
    assert breach.gate == gate
    assert said in breach.message
    assert f"({flag})" in breach.message
    field = flag.removeprefix("--").replace("-", "_")
    allowed = replace(LIMITS, **{field: 0.0 if gate == "survived" else 1.0})
    assert judge(replace(GOOD, **worse), allowed) == []  # type: ignore[arg-type]


def test_without_a_previous_generation_only_the_index_is_judged() -> None:
    first = replace(GOOD, previous_articles=None, survived=None, drift=None)
    assert [check.gate for check in checks(first, LIMITS)] == ["recall", "empty", "cell"]


@pytest.mark.parametrize("field", ["recall", "survived", "drift"])
def test_what_is_not_known_is_not_judged_and_what_is_no_number_never_passes(field: str) -> None:
    assert judge(replace(GOOD, **{field: None}), LIMITS) == []  # type: ignore[arg-type]
    (breach,) = judge(replace(GOOD, **{field: math.nan}), LIMITS)  # type: ignore[arg-type]
    assert "could not be measured" in breach.message


def test_a_corpus_that_grew_has_lost_nothing() -> None:
    (check, *_) = checks(replace(GOOD, articles=5_000), LIMITS)
    assert check.passed
    assert "395.0% more than the 1,010" in check.message
    (check, *_) = checks(replace(GOOD, articles=1_010), LIMITS)
    assert "1,010 articles, as many as those of the previous generation" in check.message


@pytest.mark.parametrize("sizes", [[9], [8, 1], [5, 3, 1], [40, 5, 5, 5]])
def test_a_few_cells_may_be_uneven(sizes: list[int]) -> None:
    assert judge(replace(GOOD, sizes=sizes, empty=0), LIMITS) == []


def test_an_even_share_is_one_of_all_cells_those_without_an_article_too() -> None:
    facts = replace(GOOD, sizes=[90, 5, 5], empty=37)
    assert [breach.gate for breach in judge(facts, replace(LIMITS, max_empty_share=1.0))] == ["cell"]


def test_a_corpus_of_no_cells_is_judged_by_the_rest() -> None:
    assert judge(replace(GOOD, sizes=[], empty=0), LIMITS) == []


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_limits_are_shares(value: float) -> None:
    for field in fields(Limits):
        with pytest.raises(InvalidArgument, match=f"--{field.name.replace('_', '-')} is") as error:
            Limits(**{field.name: value})
        assert error.value.field == field.name.replace("_", "-")


@given(share=st.floats(0, 1), limit=st.floats(0, 1))
def test_a_gate_opens_exactly_at_its_limit(share: float, limit: float) -> None:
    facts = replace(GOOD, survived=share, drift=share)
    closed = {breach.gate for breach in judge(facts, Limits(min_survived=limit, max_drift=limit))}
    assert closed == {gate for gate, bad in [("survived", share < limit), ("drift", share > limit)] if bad}


# --- drift -----------------------------------------------------------------------------------------------------------


def around(centres: NDArray[np.float64], count: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors near centres, (count, dim), each centre drawn alike."""
    rng = np.random.default_rng(seed)
    near = centres[rng.integers(len(centres), size=count)]
    return unit((near + 0.5 * rng.standard_normal(near.shape) / np.sqrt(near.shape[1])).astype(np.float32))


CENTRES = np.asarray(unit(np.random.default_rng(9).standard_normal((8, 32)).astype(np.float32)), np.float64)


def by_the_book(new: NDArray[np.float32], old: NDArray[np.float32]) -> float:
    """The energy statistic, pair by pair."""
    between = np.mean([math.dist(x, y) for x in new for y in old])
    within = [
        np.mean([math.dist(x, y) for i, x in enumerate(v) for j, y in enumerate(v) if i != j]) for v in (new, old)
    ]
    return math.sqrt(max(0.0, float((2 * between - sum(within)) / (2 * between))))


def test_drift_is_the_energy_statistic() -> None:
    new, old = around(CENTRES[:4], 40, 1), around(CENTRES[2:], 50, 2)
    assert drift(new, old) == pytest.approx(by_the_book(new, old), abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_two_halves_of_one_corpus_score_near_nothing_and_another_corpus_high(seed: int) -> None:
    half, other_half = around(CENTRES, 600, seed), around(CENTRES, 600, seed + 100)
    same = drift(half, other_half)
    other = drift(half, around(-CENTRES, 600, seed + 200))
    assert same is not None
    assert other is not None
    assert same < 0.03
    assert other > 0.25


def test_drift_grows_with_the_share_of_what_is_new() -> None:
    old, other = around(CENTRES, 800, 1), around(-CENTRES, 800, 2)
    scores = [drift(np.concatenate([old[count:], other[:count]]), old) for count in (0, 200, 400, 800)]
    assert scores[0] == 0
    assert scores == sorted(scores, key=lambda score: score or 0)
    assert len(set(scores)) == 4


def test_drift_of_large_generations_is_that_of_a_seeded_sample() -> None:
    vectors, previous = around(CENTRES, 5_000, 1), around(CENTRES, 6_000, 2)
    assert drift(vectors, previous, seed=3) == drift(vectors, previous, seed=3)
    assert (drift(vectors, previous) or 0) < 0.02


def test_drift_needs_two_articles_on_either_side_in_one_space() -> None:
    vectors = around(CENTRES, 5, 1)
    assert drift(vectors, vectors[:1]) is None
    assert drift(vectors[:0], vectors) is None
    assert drift(vectors, vectors[:, :16]) is None
    assert drift(vectors[[0, 0]], vectors[[0, 0]]) == pytest.approx(0, abs=1e-3)
    broken = vectors.copy()
    broken[0] = np.nan
    assert math.isnan(drift(broken, vectors) or 0)
