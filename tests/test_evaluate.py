"""What `indexer evaluate` measures, against slow obvious versions, and how it is asked."""

from __future__ import annotations

import csv
import gzip
import json
import random
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
import typer
from sklearn.metrics import v_measure_score
from typer.testing import CliRunner

from coldframe.errors import InvalidArgument
from coldframe.recipe import RECIPES, unit
from indexer.corpus import CorpusConfig
from indexer.evaluate.baselines import InDegree, Vectors, near_duplicates, nearest, tfidf
from indexer.evaluate.bootstrap import Interval, resampled_means
from indexer.evaluate.command import evaluate_command
from indexer.evaluate.corpus import Corpus, add_links, add_sessions, load
from indexer.evaluate.run import _clustering
from indexer.evaluate.tasks import label_task, link_task, session_tasks, v_measure
from tests.builds import build

if TYPE_CHECKING:
    from pathlib import Path

HEADER = b"source,target,user,article\n"
TOPICS = {"sea": "ship harbour sailor wave tide captain", "farm": "wheat cow tractor barn harvest soil"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "articles.csv"
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["id", "title", "content", "label"])
        for n in range(12):
            topic = ("sea", "farm")[n % 2]
            words = rng.permutation(TOPICS[topic].split())
            writer.writerow([f"a{n:02}", f"Story {n}", f"number{n} " + " ".join(words[:4]), topic])
        writer.writerow(["b00", "Story 0", "NUMBER0  " + "nothing else", ""])
        writer.writerow(["b01", "Again", "number0", ""])
        writer.writerow(["b02", "Once more", "Number0 ", ""])
    return path


@pytest.fixture
def corpus(file: Path) -> Corpus:
    return load(CorpusConfig([str(file)]), None, None, 0)


def table(path: Path, *rows: tuple[object, ...]) -> Path:
    with path.open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)
    return path


def test_duplicates_are_merged_and_counted(corpus: Corpus) -> None:
    assert corpus.counts["duplicates"] == 1
    assert corpus.rows["b02"] == corpus.rows["b01"]
    assert (corpus.counts["articles"], corpus.counts["labelled"]) == (14, 12)


def test_label_agreement_is_the_share_of_the_ten_nearest() -> None:
    rng = np.random.default_rng(1)
    vectors, labels = unit(rng.normal(size=(40, 5)).astype(np.float32)), [str(n % 3) for n in range(40)]
    task = label_task(labels)
    assert task is not None
    for row, value in enumerate(task.values(Vectors(vectors))):
        order = sorted((n for n in range(40) if n != row), key=lambda n: -float(vectors[row] @ vectors[n]))
        assert value == pytest.approx(np.mean([labels[n] == labels[row] for n in order[:10]]))


def test_ties_go_by_row_and_a_profile_never_finds_itself() -> None:
    assert nearest(Vectors(np.ones((6, 1), np.float32)), [(0,), (2, 3)], 3).tolist() == [[1, 2, 3], [0, 1, 4]]


def test_links_and_reads_of_unknown_articles_are_counted(corpus: Corpus, tmp_path: Path) -> None:
    links = [("source", "target"), ("a00", "a01"), ("a00", "a01"), ("a00", "no"), ("a02", "a02")]
    add_links(corpus, table(tmp_path / "links.csv", *links))
    assert corpus.links == [(0, 1)]
    reads = [("user", "article", "event", "timestamp")]
    reads += [("u", "a03", "click", "9"), ("u", "a01", "start", "2"), ("u", "a05", "target", "10"), ("u", "x", "", "3")]
    add_sessions(corpus, table(tmp_path / "sessions.csv", *reads), ["target"])
    assert corpus.sessions == [[1, 3]]
    names = ("links of unknown articles", "reads of unknown articles", "reads of skipped events")
    assert [corpus.counts[name] for name in names] == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", HEADER + "ü,a00".encode("latin-1"), "is not UTF-8"),
        ("a.csv", gzip.compress(HEADER, mtime=0), "is not UTF-8"),
        ("a.csv.gz", HEADER, "is not a whole gzip file"),
        (
            "a.csv.gz",
            gzip.compress(HEADER + random.Random(0).randbytes(999).hex().encode(), mtime=0)[:-99],
            "not a whole gzip",
        ),
        ("a.csv", HEADER + b'"' + b"a" * 200_000, "is not CSV"),
        (".", None, "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(
    corpus: Corpus, tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    csv.field_size_limit(2**17)  # the usual one; whoever reads a corpus sets its own
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    adding = {"links": partial(add_links, corpus, path), "sessions": partial(add_sessions, corpus, path, [])}
    for field, add in adding.items():
        with pytest.raises(InvalidArgument, match=said) as caught:
            add()
        assert caught.value.field == field


def test_the_next_article_is_never_in_the_profile_nor_in_what_is_popular() -> None:
    sessions = [[n, n + 1, n + 2, n + 3] for n in range(20)]
    corpus = Corpus([str(n) for n in range(23)], [], [], {}, sessions=sessions)
    tasks = session_tasks(corpus, 0)
    assert [task.name[-6:] for task in tasks] == ["from 1", "from 3"]
    for task in tasks:
        assert all(right.isdisjoint(profile) for profile, right in zip(task.profiles, task.right, strict=True))
    assert tasks[0].popularity is not None
    assert tasks[0].popularity([(0,)]).sum() == 40  # the other half's ten sessions of four


def test_what_is_popular_leaves_out_the_links_asked_for() -> None:
    assert InDegree([(0, 2), (1, 2)], 3)([(0,), (2,)]).tolist() == [[0, 0, 1], [0, 0, 2]]
    corpus = Corpus(["a", "b", "c", "d"], [], [], {}, links=[(0, 1), (0, 2)])
    task = link_task(corpus)
    assert task is not None
    assert task.right == [frozenset({1, 2})]


def test_v_measure_is_scikit_learns() -> None:
    rng = np.random.default_rng(2)
    labels, clusters = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    counts = np.bincount(labels * 4 + clusters, minlength=16).reshape(4, 4)
    assert v_measure(counts) == pytest.approx(v_measure_score(labels, clusters))


def test_intervals_hold_the_mean_and_narrow_with_the_items() -> None:
    rng = np.random.default_rng(3)
    widths = []
    for items in (50, 5_000):
        values = rng.random(items)
        interval = Interval.of(values.mean(), resampled_means(values, 0))
        assert interval.low < interval.value < interval.high
        widths.append((interval.high - interval.low) / (2 * 1.96 * values.std() / np.sqrt(items)))
    assert widths == pytest.approx([1, 1], abs=0.1)


def test_a_clustering_lies_within_its_own_interval() -> None:
    rng = np.random.default_rng(4)
    vectors = unit(rng.standard_normal((120, 8)).astype(np.float32))
    result = _clustering("mean", vectors, [*"abcdefgh"] * 15, 0).result  # labels that tell nothing
    assert result.low < result.value < result.high < result.value + 0.1


def test_near_duplicates_stand_behind_the_first() -> None:
    texts = ["alpha beta gamma delta", "one two three four", "alpha beta gamma delta", "five six seven one"]
    assert near_duplicates(tfidf(texts)).tolist() == [0, 1, 0, 3]


def ask(*flags: str) -> str:
    app = typer.Typer()
    app.command()(evaluate_command)
    result = CliRunner().invoke(app, flags, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_vectors_of_a_store_are_taken_and_come_to_the_same(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "store", file, model="minilm")
    flags = ("--corpus", str(file), "--recipes", "lead-words", "--precision", "fp32", "--json")
    plain = json.loads(ask(*flags))
    monkeypatch.setattr("coldframe.Encoder.embed_ids_by", None)  # nothing is computed again
    assert json.loads(ask(*flags, "--store", str(tmp_path / "store"))) == plain


def test_the_command_recommends_a_recipe(file: Path, tmp_path: Path) -> None:
    links = table(tmp_path / "links.csv", ("source", "target"), ("a00", "a02"), ("a01", "a03"))
    flags = ("--corpus", str(file), "--recipes", "mean,lead-words", "--links", str(links), "--precision", "fp32")
    report = json.loads(ask(*flags, "--json"))
    assert report["recommended"] in RECIPES
    found = {(figure["measure"], figure["of"]) for figure in report["figures"]}
    assert {("neighbour label agreement", name) for name in ("mean", "lead-words", "tf-idf", "random")} <= found
    assert {("link recall@10", "popularity"), ("clustering v-measure", "tf-idf")} <= found
    assert "Recommended for this corpus" in ask(*flags)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_cannot_be_taken_is_refused(file: Path, seed: int) -> None:
    with pytest.raises(InvalidArgument, match=f"--seed is {seed}; it must be 0 to 4294967295"):
        ask("--corpus", str(file), "--seed", str(seed))


def test_a_label_column_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"no column 'topic'.*label"):
        ask("--corpus", str(file), "--labels", "topic")
