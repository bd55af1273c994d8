"""A threshold for stories: what a corpus teaches, what is done where it teaches nothing, and what a person sees."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from coldframe.store import Store
from coldframe.text import text_digest
from indexer.calibrate import LEAST_PAIRS, USUAL_THRESHOLD, Calibration, Near, Pair, calibrate, propose
from indexer.calibrate_command import _table, calibrate_command
from indexer.spool import UNDATED
from indexer.stories import DAY_S
from tests.conftest import Sample, write_corpus
from tests.test_stories import edited, index_of, vectors_of, written

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

AGREED = "the same words stand in both texts of every pair that agrees"


def learn(texts: Sequence[str], days: Sequence[float | None] | None = None, sample: int = 2_000) -> Calibration:
    dates = [UNDATED if day is None else round(day * DAY_S) for day in days or [None] * len(texts)]
    return calibrate(
        index_of(vectors_of(texts)),
        np.array(dates, np.int64),
        [text_digest(text) for text in texts],
        texts.__getitem__,
        window_days=3,
        seed=0,
        sample=sample,
    )


def pairs_of(same: Sequence[float], different: Sequence[float]) -> list[Near]:
    """Near pairs of rows; those below 1,000 have the same words, as `text_of` gives them."""
    near = [Near(2 * n, 2 * n + 1, cosine, None) for n, cosine in enumerate(same)]
    near += [Near(1_000 + 2 * n, 1_001 + 2 * n, cosine, None) for n, cosine in enumerate(different)]
    return sorted(near, key=lambda pair: -pair.cosine)


def text_of(row: int) -> str:
    return AGREED if row < 1_000 else written(row, 30)


# --- what is proposed ------------------------------------------------------------------------------------------------


def test_versions_teach_a_threshold_that_keeps_them() -> None:
    texts = [written(n) for n in range(60)]
    texts += [edited(text, 0.05, n) for n, text in enumerate(texts[:40])]
    calibration = learn(texts)
    assert calibration.learned
    assert len(calibration.same) == 40
    assert calibration.kept(calibration.threshold) >= 0.99
    nearest = max(pair.cosine for pair in calibration.pairs if not pair.same)
    assert nearest < calibration.threshold < min(pair.cosine for pair in calibration.same) + 1e-9


def test_versions_teach_the_same_however_many_copies_each_has() -> None:
    texts = [written(n) for n in range(30)]
    texts += [edited(text, 0.05, n) for n, text in enumerate(texts)]
    once, often = learn(texts), learn(texts * 20)
    assert len(often.same) == len(once.same) == 30
    assert often.threshold == once.threshold


def test_the_threshold_keeps_99_in_100_and_is_the_highest_that_does() -> None:
    cosines = np.linspace(0.8, 1.0, 200).tolist()
    calibration = propose(pairs_of(cosines, []), text_of, sampled=400)
    assert calibration.kept(calibration.threshold) >= 0.99
    assert calibration.kept(calibration.threshold + 0.003) < 0.99


def test_the_threshold_rises_where_texts_would_be_compared_in_vain_too_often() -> None:
    same, different = [0.7] * 30 + [0.95] * 30, np.linspace(0.6, 0.9, 500).tolist()
    assert propose(pairs_of(same, different), text_of, sampled=1_000).threshold == pytest.approx(0.7)
    bounded = propose(pairs_of(same, different), text_of, sampled=100)
    assert bounded.threshold > 0.8
    assert bounded.in_vain(bounded.threshold + 0.001) <= 1
    assert bounded.kept(bounded.threshold) == pytest.approx(0.5)


def test_too_few_versions_teach_nothing_and_it_is_said() -> None:
    calibration = propose(pairs_of([0.95] * (LEAST_PAIRS - 1), [0.6] * 100), text_of, sampled=1_000)
    assert not calibration.learned
    assert calibration.threshold == pytest.approx(0.8, abs=1e-3)  # halfway from the usual 0.6 to 1
    assert propose(pairs_of([0.95] * LEAST_PAIRS, [0.6] * 100), text_of, sampled=1_000).learned


def test_a_guess_is_not_above_a_pair_that_has_the_same_words() -> None:
    calibration = propose(pairs_of([0.85, 0.99], [0.9] * 100), text_of, sampled=1_000)
    assert calibration.threshold == pytest.approx(0.85, abs=1e-3)


def test_where_there_are_no_pairs_the_usual_threshold_stands() -> None:
    for texts, days in ((["alone"], [1.0]), (["one", "two"], [1.0, 100.0])):
        calibration = learn(texts, days)
        assert (calibration.threshold, calibration.learned, calibration.pairs) == (USUAL_THRESHOLD, False, [])
        assert calibration.kept(0.9) == 1
        assert calibration.in_vain(0.9) == 0


# --- which pairs are looked at ---------------------------------------------------------------------------------------


def test_copies_are_no_pairs_and_hide_none() -> None:
    text = written(1)
    calibration = learn([text] * 6 + [edited(text, 0.05, 0), written(2)])
    assert [(pair.first, pair.second) for pair in calibration.same] == [(0, 6)]


def test_pairs_lie_within_the_window() -> None:
    text = written(1)
    versions = [text, *(edited(text, 0.02, 2 * n) for n in range(3))]
    calibration = learn(versions, [1.0, 2.0, 10.0, None])
    assert {(pair.first, pair.second) for pair in calibration.pairs} == {(0, 1), (0, 3), (1, 3), (2, 3)}
    assert {pair.days for pair in calibration.pairs} == {1.0, None}


def test_the_sample_is_bounded_and_its_seed_decides_it() -> None:
    texts = [written(n, 40) for n in range(80)]
    once, again = learn(texts, sample=10), learn(texts, sample=10)
    assert once == again
    assert once.sampled == 10
    assert len(once.pairs) <= 50
    assert [pair.cosine for pair in once.pairs] == sorted((pair.cosine for pair in once.pairs), reverse=True)


# --- the command -----------------------------------------------------------------------------------------------------


def say(*arguments: str, width: int = 160) -> str:
    app = typer.Typer()
    app.command()(calibrate_command)
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": str(width)}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_shows_pairs_and_ends_with_the_flag(store_path: Path) -> None:
    said = say("--store", str(store_path), "--corpus", str(store_path.parent / "articles.csv"))
    articles = Store(store_path).open().articles
    row = articles.row_of("nearly-9")
    assert row is not None
    assert "joined" in said
    assert said.count(articles[row].title) >= 2, "the version and what it is a version of"
    assert said.splitlines()[-1].startswith("--story-similarity 0.")
    assert "a guess" in said


def test_without_a_corpus_first_lines_are_compared(store_path: Path) -> None:
    said = say("--store", str(store_path))
    assert "first lines" in said
    assert "--story-similarity 0." in said


def test_of_a_corpus_that_lacks_articles_the_rest_is_compared(
    store_path: Path, tmp_path: Path, articles: list[Sample]
) -> None:
    write_corpus(tmp_path / "part.csv", articles[:30])
    said = say("--store", str(store_path), "--corpus", str(tmp_path / "part.csv"))
    assert "are left out" in said


def test_a_corpus_of_other_articles_is_refused(store_path: Path, tmp_path: Path) -> None:
    from coldframe.errors import InvalidArgument

    write_corpus(tmp_path / "other.csv", [Sample("elsewhere", "Title", "Content", "")])
    with pytest.raises(InvalidArgument, match="none of the articles"):
        say("--store", str(store_path), "--corpus", str(tmp_path / "other.csv"))


@pytest.mark.parametrize("days", ["nan", "-1", "0", "inf"])
def test_a_window_that_is_none_is_refused(store_path: Path, days: str) -> None:
    from coldframe.errors import InvalidArgument

    with pytest.raises(InvalidArgument, match="--story-window-days is") as caught:
        say("--store", str(store_path), "--story-window-days", days)
    assert caught.value.field == "story-window-days"


def test_columns_of_other_names_are_read(store_path: Path, tmp_path: Path, articles: list[Sample]) -> None:
    with (tmp_path / "odd.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("Nr", "Kopf", "Leib"), *((a.id, a.title, a.content) for a in articles)])
    columns = ("--id-column", "Nr", "--title-column", "Kopf", "--content-column", "Leib")
    said = say("--store", str(store_path), "--corpus", str(tmp_path / "odd.csv"), *columns)
    assert said == say("--store", str(store_path), "--corpus", str(store_path.parent / "articles.csv"))


def test_a_pair_says_whether_its_words_agree() -> None:
    assert Pair(0, 1, 0.9, None, 0.6).same
    assert not Pair(0, 1, 0.9, None, 0.59).same


def test_a_threshold_of_the_table_keeps_what_stands_beside_it_as_it_is_printed() -> None:
    cosines = np.sort(np.random.default_rng(0).uniform(0.8, 0.99, 60))[::-1]
    pairs = [Pair(n, n + 1, float(cosine), 1.0, 1.0) for n, cosine in enumerate(cosines)]
    found, printed = Calibration(0.8, True, pairs, 100), io.StringIO()
    Console(file=printed, width=120).print(_table(found))
    rows = [line.split() for line in printed.getvalue().splitlines()[1:]]
    assert len(rows) > 3
    assert [kept for _, kept, *_ in rows] == [f"{found.kept(float(threshold)):.1%}" for threshold, *_ in rows]
