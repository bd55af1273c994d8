"""What the flags of a corpus say, to every command that has them."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
import typer
from typer.testing import CliRunner

from coldframe.flags import spread
from coldframe.store import Store
from indexer.__main__ import app
from indexer.corpus import Columns, CorpusConfig
from indexer.corpus_flags import CorpusFlags
from tests.builds import build_aloud, letters
from tests.corpus_files import write
from tests.models import longformer_directory

if TYPE_CHECKING:
    from pathlib import Path

QUERY = "select id as key, title, body, seen, desk, rank from news where desk <> 'z'"
AS_THEY_ARE = ["--id-column", "key", "--content-column", "body", "--date-column", "seen", "--attributes", "desk"]
CLEANED = ["--clean-html", "--date-order", "dmy"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and a database of 60 articles and one that no query asks for."""
    folder = tmp_path_factory.mktemp("desk")
    longformer_directory(folder / "model", window=256, layers=4)
    rows = [
        (row["id"], row["title"], f"<p>{row['content']}</p>", f"{1 + n % 12:02}/02/2026", row["desk"], n)
        for n, row in enumerate(letters(60))
    ]
    with sqlite3.connect(folder / "news.db") as db:
        db.execute("create table news (id text, title text, body text, seen text, desk text, rank integer)")
        db.executemany("insert into news values (?, ?, ?, ?, ?, ?)", [*rows, ("z", "z", "z", "01/02/2026", "z", 0)])
    db.close()
    return folder


def ask(*args: object) -> str:
    answer = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "300"}, catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def query(desk: Path) -> list[object]:
    return ["--query", QUERY, "--database", desk / "news.db", *AS_THEY_ARE, *CLEANED]


@pytest.fixture(scope="module")
def store(desk: Path) -> Path:
    path = desk / "store"
    gates = ["--max-empty-share", "1", "--max-cell-share", "1"]
    ask("build", *query(desk), "--store", path, "--model", desk / "model", "--precision", "fp32", *gates)
    return path


def test_a_build_reads_what_a_query_selects_cleaned_and_with_the_chosen_attributes(store: Path) -> None:
    articles = Store(store).open().articles
    assert len(articles) == 60
    first, wanted = articles[0], letters(1)[0]
    assert (first.id, first.title, first.excerpt) == (wanted["id"], wanted["title"], wanted["content"])
    assert first.attributes == {"desk": wanted["desk"]}
    dates = [articles[row].published_at for row in range(12)]
    assert [(date.day, date.month) for date in dates if date] == [(day, 2) for day in range(1, 13)]


def test_a_dry_run_reads_the_query(desk: Path, store: Path) -> None:
    said = ask("build", *query(desk), "--store", store, "--model", desk / "model", "--precision", "fp32", "--dry-run")
    assert "a query, 60 articles" in said
    assert "0 to embed" in said


def test_calibrate_reads_the_query(desk: Path, store: Path) -> None:
    said = ask("calibrate", "--store", store, *query(desk))
    assert "first lines" not in said
    assert "--story-similarity" in said.splitlines()[-1]


def test_evaluate_reads_the_query(desk: Path) -> None:
    labels = ["--labels", "desk", "--recipes", "mean", "--json"]
    report = json.loads(ask("evaluate", *query(desk), "--model", desk / "model", "--precision", "fp32", *labels))
    assert (report["counts"]["articles"], report["counts"]["labelled"]) == (60, 60)


def test_every_flag_comes_to_the_command() -> None:
    asked: list[CorpusConfig] = []

    def command(*, corpus: CorpusFlags, wide: bool = False) -> None:
        assert wide
        asked.append(corpus.config())

    program = typer.Typer()
    program.command()(spread(command))
    flags = ["--corpus", "a.csv", "--corpus", "b", "--query", "q", "--database", "d", *AS_THEY_ARE, *CLEANED]
    flags += ["--title-column", "head", "--wide"]
    assert CliRunner().invoke(program, flags, catch_exceptions=False).exit_code == 0
    assert asked == [
        CorpusConfig(
            ["a.csv", "b"], "q", "d", clean_html=True, columns=Columns("key", "head", "body", "seen", ("desk",), "dmy")
        )
    ]


@pytest.mark.parametrize(("given", "kept"), [("", ()), ("a", ("a",)), (" a, b c ,", ("a", "b c"))])
def test_attributes_are_names_with_commas_between(given: str, kept: tuple[str, ...]) -> None:
    assert CorpusFlags(attributes=given).config() == CorpusConfig(columns=Columns(attributes=kept))


def test_an_unfinished_build_of_a_query_reads_it_again(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write(tmp_path / "a.csv", letters(60))
    config = CorpusConfig(query=f"select id, title, content from '{corpus}'")
    options: dict[str, Any] = {"model": str(desk / "model"), "corpus": config}
    with monkeypatch.context() as broken:
        broken.setattr("indexer.build.measure", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_aloud(tmp_path / "store", **options)
    write(corpus, letters(61))
    manifest, said = build_aloud(tmp_path / "store", **options)
    assert "begun anew: whether the corpus is the same only reading it again shows" in said
    assert manifest.corpus.articles == 61
    assert "59 from the cache" in said or "60 from the cache" in said
