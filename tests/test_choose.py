"""The storage that is chosen within budgets, and the budgets that are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldframe.errors import InvalidArgument
from coldframe.index import ClusterIndex
from coldframe.storage import storage_bytes
from indexer.choose import DEFAULT_MEMORY, MANY_ROWS, Budgets, Choice, choose, storages
from indexer.measure import measure
from indexer.train import assign, train
from tests.test_index import random_units
from tests.test_storage import bundles

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

ROWS, DIM = 1_200, 48
ALL = ["fp16", "flat", "sq8", "pq12", "pq6", "pq3"]
BY_SIZE = ["flat", "fp16", "sq8", "pq12", "pq6", "pq3"]


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float32]:
    return bundles(ROWS)


@pytest.fixture(scope="module")
def clustering(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    centroids, assignment, _ = assign(vectors, train(vectors, 40, 0))
    return centroids, assignment


@pytest.fixture
def choice(
    vectors: NDArray[np.float32], clustering: tuple[NDArray[np.float32], NDArray[np.int64]], tmp_path: Path
) -> Any:
    centroids, assignment = clustering

    def chosen(**budgets: Any) -> Choice:
        return choose(tmp_path / "index.faiss", centroids, vectors, assignment, budgets=Budgets(**budgets), seed=0)

    return chosen


def room_for(storage: str) -> int:
    return storage_bytes(storage, ROWS, DIM)


# --- what fits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(6))
def test_kinds_that_fit_come_the_best_first(place: int) -> None:
    fitting = set(BY_SIZE[place:])
    assert storages(ROWS, DIM, Budgets(memory_bytes=room_for(BY_SIZE[place]))) == [k for k in ALL if k in fitting]
    if place:
        larger = BY_SIZE[place - 1]
        assert larger not in storages(ROWS, DIM, Budgets(memory_bytes=room_for(larger) - 1))


def test_without_a_memory_budget_a_large_corpus_gets_smaller_codes() -> None:
    most = DEFAULT_MEMORY // storage_bytes("fp16", 1, 768)
    assert most > 2_500_000
    assert storages(MANY_ROWS - 1, 768, Budgets())[0] == "fp16"
    assert storages(MANY_ROWS, 768, Budgets())[:2] == ["rabitq", "fp16"]
    assert storages(most, 768, Budgets())[:2] == ["rabitq", "fp16"]
    assert storages(most + 1, 768, Budgets())[:2] == ["rabitq", "sq8"]
    assert storages(4 * most, 768, Budgets())[:2] == ["rabitq", "pq192"]


def test_few_articles_and_odd_dimensions_get_no_codebooks() -> None:
    assert storages(255, DIM, Budgets()) == ["fp16", "flat", "sq8"]
    assert storages(ROWS, 37, Budgets()) == ["fp16", "flat", "sq8"]
    assert storages(ROWS, 20, Budgets())[3:] == ["pq5"]


@given(rows=st.integers(1, 10**8), dim=st.sampled_from([1, 7, 32, 384, 768]), memory=st.integers(1, 10**12))
def test_what_does_not_fit_is_never_proposed_and_a_refusal_says_what_would(rows: int, dim: int, memory: int) -> None:
    budgets = Budgets(memory_bytes=memory)
    least = min(storage_bytes(kind, rows, dim) for kind in storages(rows, dim, Budgets(memory_bytes=10**14)))
    if memory < least:
        with pytest.raises(InvalidArgument, match=f"takes {least:,}; allow") as refused:
            storages(rows, dim, budgets)
        assert refused.value.field == "memory-budget"
    else:
        sizes = [storage_bytes(kind, rows, dim) for kind in storages(rows, dim, budgets)]
        assert max(sizes) <= memory
        assert min(sizes) == least
        assert sizes[2:] == sorted(sizes[2:], reverse=True)


# --- what is chosen --------------------------------------------------------------------------------------------------


def test_without_budgets_lists_are_fp16_and_nothing_is_measured(choice: Any) -> None:
    chosen = choice()
    assert (chosen.storage, chosen.probes, chosen.recall, chosen.latency_ms) == ("fp16", None, None, None)
    assert chosen.bytes == room_for("fp16")
    assert [kind["storage"] for kind in chosen.considered] == ALL
    assert [kind["reason"] for kind in chosen.considered] == ["", *["not needed"] * 5]


def test_many_articles_get_signs_where_those_find_enough(
    choice: Any, vectors: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.choose.MANY_ROWS", ROWS)
    chosen = choice()
    measured = measure(ClusterIndex.read(tmp_path / "index.faiss", vectors), 0.99, 0)
    assert (chosen.storage, chosen.bytes) == ("rabitq", room_for("rabitq"))
    assert (chosen.probes, chosen.recall) == (measured.probes, measured.recall)
    assert chosen.recall >= 0.99
    assert [kind["storage"] for kind in chosen.considered] == ["rabitq", *ALL]


def test_many_articles_that_signs_do_not_tell_apart_stay_fp16(
    choice: Any, vectors: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.choose.MANY_ROWS", ROWS)
    monkeypatch.setattr("coldframe.storage._RABITQ_BITS", DIM)
    monkeypatch.setattr("coldframe.index._SURE", -math.inf)  # or more are proposed until enough is found
    chosen = choice()
    assert chosen.storage == "fp16"
    assert chosen.considered[0]["reason"] == "finds too few"
    assert ClusterIndex.read(tmp_path / "index.faiss", vectors).storage == "fp16"


def test_whoever_wants_all_neighbours_gets_lists_that_round_nothing(choice: Any) -> None:
    chosen = choice(target_recall=1.0)
    measured = {kind["storage"]: kind for kind in chosen.considered}
    assert chosen.storage == "fp16" if measured["fp16"]["recall"] == 1.0 else chosen.storage == "flat"


@pytest.mark.parametrize("storage", ["sq8", "pq12"])
def test_a_memory_budget_gets_the_best_kind_that_fits(
    choice: Any, storage: str, vectors: NDArray[np.float32], tmp_path: Path
) -> None:
    chosen = choice(memory_bytes=room_for(storage) + 1000)
    assert (chosen.storage, chosen.bytes) == (storage, room_for(storage))
    index = ClusterIndex.read(tmp_path / "index.faiss", vectors)
    assert index.storage == storage
    measured = measure(index, 0.99, 0)
    assert (chosen.probes, chosen.recall) == (measured.probes, measured.recall)
    assert chosen.recall >= 0.99
    reasons = {kind["storage"]: kind["reason"] for kind in chosen.considered}
    place = ALL.index(storage)
    assert [reasons[kind] for kind in ALL] == ["over the memory budget"] * place + [""] + ["not needed"] * (5 - place)


def test_a_memory_budget_too_small_for_fp32_changes_nothing(choice: Any) -> None:
    chosen = choice(memory_bytes=room_for("fp16"))
    reasons = {kind["storage"]: kind["reason"] for kind in chosen.considered}
    assert chosen.storage == "fp16"
    assert (reasons["fp16"], reasons["flat"], reasons["sq8"]) == ("", "over the memory budget", "not needed")


def test_codes_too_short_for_the_target_are_refused_with_what_they_reach(tmp_path: Path) -> None:
    vectors, path = random_units(3_000, dim=DIM), tmp_path / "index.faiss"
    centroids, assignment, _ = assign(vectors, random_units(30, 1, DIM))
    budgets = Budgets(memory_bytes=storage_bytes("pq3", 3_000, DIM), target_recall=1.0)
    with pytest.raises(InvalidArgument, match=r"pq3 finds \d+\.\d%.*--memory-budget") as refused:
        choose(path, centroids, vectors, assignment, budgets=budgets, seed=0)
    assert refused.value.field == "memory-budget"
    assert not path.exists()
    lower = replace(budgets, target_recall=0.3)
    assert choose(path, centroids, vectors, assignment, budgets=lower, seed=0).storage == "pq3"


def test_a_latency_budget_that_all_keep_takes_the_best_and_says_its_time(choice: Any) -> None:
    chosen = choice(latency_ms=10_000.0)
    assert chosen.storage == "fp16"
    assert 0 < chosen.latency_ms < 10_000
    assert chosen.recall >= 0.99
    assert chosen.considered[0]["latency_ms"] == chosen.latency_ms


def test_a_latency_budget_that_none_keeps_is_refused_with_what_each_needs(choice: Any, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidArgument, match=r"in 1e-06 ms: fp16 finds .*flat finds .*sq8 finds .*allow --latency-budget"
    ) as refused:
        choice(latency_ms=1e-6)
    assert refused.value.field == "latency-budget"
    assert not (tmp_path / "index.faiss").exists()


def test_what_a_refusal_asks_for_is_enough(choice: Any) -> None:
    with pytest.raises(InvalidArgument) as refused:
        choice(latency_ms=1e-6, memory_bytes=room_for("sq8"))
    enough = float(str(refused.value).split("--latency-budget ")[1].split(",")[0])
    assert choice(latency_ms=10 * enough, memory_bytes=room_for("sq8")).recall >= 0.99


def test_without_a_latency_budget_the_same_input_makes_the_same_file(choice: Any, tmp_path: Path) -> None:
    files = []
    for _ in range(2):
        chosen = choice(memory_bytes=room_for("pq12"))
        files.append(((tmp_path / "index.faiss").read_bytes(), chosen.storage, chosen.probes, chosen.recall))
    assert files[0] == files[1]
