"""Live articles in a rebuild: laid over the corpus, embedded once, and a watermark that says up to where."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldframe import settings as app_settings
from coldframe.articles import Articles
from coldframe.encoder import Encoder
from coldframe.errors import CorruptGeneration, InvalidArgument
from coldframe.generation import ARTICLES, REPORT
from coldframe.live import LIVE, Change, Delete, Embedded, LiveArticle, LiveStore, Upsert
from coldframe.store import Store
from coldframe.text import article_text
from indexer import build as building
from indexer.__main__ import app
from indexer.build_flags import parse_moment
from indexer.corpus import Article
from indexer.fold import Folded, fold
from indexer.spool import Spool
from tests.builds import build, build_aloud, letters
from tests.corpus_files import write
from tests.models import longformer_directory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from coldframe.generation import Manifest
    from tests.corpus_files import Row

COUNT = 60
_ZERO = np.zeros(4, np.float32)


@pytest.fixture(scope="module")
def encoder(desk: Path) -> Encoder:
    return Encoder.load(str(desk / "model"), precision="fp32")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a corpus and a store of it."""
    folder = tmp_path_factory.mktemp("desk")
    longformer_directory(folder / "model", window=256, layers=4)
    write(folder / "articles.csv", letters(COUNT))
    build(folder / "store", folder / "articles.csv", model=str(folder / "model"))
    return folder


@pytest.fixture
def store(desk: Path, tmp_path: Path) -> Path:
    return shutil.copytree(desk / "store", tmp_path / "store")


def sent(row: Row, encoder: Encoder, **other: Any) -> Upsert:
    """A row of a corpus as a caller would send it, and a server embed it."""
    article = LiveArticle(
        row["id"],
        row["title"],
        row["content"],
        datetime.fromisoformat(row["date"]).replace(tzinfo=UTC),
        {"desk": row["desk"]},
    )
    text = article_text(article.title, article.content)
    tokens = encoder.tokenize([text])[0]
    vector = encoder.embed([text])[0]
    embedded = Embedded(vector, encoder.fingerprint, encoder.precision, tokens.seen, tokens.used)
    return Upsert(article, replace(embedded, **other))


def apply(store: Path, *changes: Change) -> None:
    with LiveStore(store / LIVE) as live:
        live.apply(changes)


def other_letters() -> list[Row]:
    """The corpus, and five more; of the first ones three are rewritten."""
    rows = letters(COUNT + 5)
    for n in (1, 2, 3):
        rows[n] = rows[n] | {"content": f"z z {rows[n]['content']}", "desk": "z"}
    return rows


def rebuilt(desk: Path, store: Path, rows: list[Row] | None = None, **options: Any) -> tuple[Manifest, str]:
    corpus = desk / "articles.csv" if rows is None else write(store.parent / "corpus.csv", rows)
    return build_aloud(store, corpus, model=str(desk / "model"), **options)


def ids(store: Path) -> list[str]:
    articles = Store(store).open().articles
    return [articles[row].id for row in range(len(articles))]


# --- a build ---------------------------------------------------------------------------------------------------------


def test_live_articles_come_to_the_corpus_that_would_have_had_them(
    desk: Path, store: Path, encoder: Encoder, tmp_path: Path
) -> None:
    rows = other_letters()
    changes = [sent(rows[n], encoder) for n in (1, 2, 3, *range(COUNT, COUNT + 5))]
    apply(store, *changes, Delete("005"), Delete("never seen"))
    manifest, said = rebuilt(desk, store)
    assert "8 folded in, 1 taken out" in said
    assert manifest.watermark == 10
    assert manifest.report["live"] == {
        "watermark": 10,
        "upserts": 8,
        "deletes": 1,
        "yielded": 0,
        "yielded_last": 0,
    }
    assert manifest.corpus.articles == COUNT + 4
    assert "8 folded in, 1 taken out" in (Store(store).directory(manifest.name) / REPORT).read_text()
    del rows[5]
    assert ids(store) == [row["id"] for row in rows]
    # A corpus that says the same, in a store of its own with the same past, comes to the same.
    shutil.copytree(desk / "store", tmp_path / "own" / "store")
    own, _ = rebuilt(desk, tmp_path / "own" / "store", rows)
    assert own.corpus.digest == manifest.corpus.digest
    assert (own.watermark, own.report["live"]["upserts"]) == (0, 0)
    first, second = Store(store).open(), Store(tmp_path / "own" / "store").open()
    assert [first.articles[row].text_digest for row in range(COUNT + 4)] == [
        second.articles[row].text_digest for row in range(COUNT + 4)
    ]
    assert abs(first.index.vectors - second.index.vectors).max() < 1e-5


def test_vectors_that_a_server_computed_are_taken_and_others_are_not(
    desk: Path, store: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = letters(COUNT + 5)[COUNT:]
    good = sent(rows[0], encoder)
    coarse = sent(rows[1], encoder, precision="bf16")
    strange = sent(rows[2], encoder, fingerprint="f" * 64)
    short = sent(rows[3], encoder, vector=good.embedded.vector[:5])
    apply(store, good, coarse, strange, short)
    embedded: list[int] = []
    embed_ids = Encoder.embed_ids

    def counted(self: Encoder, documents: Sequence[Sequence[int]]) -> Any:
        embedded.append(len(documents))
        return embed_ids(self, documents)

    monkeypatch.setattr(Encoder, "embed_ids", counted)
    manifest, said = rebuilt(desk, store)
    assert sum(embedded) == 3
    assert manifest.report["cache"] == {"reused": COUNT + 1, "computed": 3}
    assert "1 as a server embedded them" in said
    row = Store(store).open().articles.row_of(rows[0]["id"])
    assert row is not None
    vectors, expected = Store(store).open().index.vectors, Store(store).open().placement(good.embedded.vector[None])
    assert vectors[row].tobytes() == expected[0].tobytes()


def test_nothing_new_is_a_no_op_and_a_live_change_is_not(desk: Path, store: Path, encoder: Encoder) -> None:
    first = str(Store(store).current())
    apply(store, Delete("never seen"))
    assert rebuilt(desk, store)[0].name == first
    apply(store, sent(letters(COUNT + 1)[COUNT], encoder))
    second, _ = rebuilt(desk, store)
    assert (second.name != first, second.watermark) == (True, 2)
    again, said = rebuilt(desk, store)
    assert again.name == second.name
    assert "nothing has changed" in said
    apply(store, Delete(letters(COUNT + 1)[COUNT]["id"]))
    third, _ = rebuilt(desk, store)
    assert (third.watermark, third.corpus.articles) == (3, COUNT)


def test_after_a_rollback_the_watermark_is_the_older_ones(desk: Path, store: Path, encoder: Encoder) -> None:
    for n in (COUNT, COUNT + 1):
        apply(store, sent(letters(COUNT + 2)[n], encoder))
        rebuilt(desk, store)
    assert Store(store).open().manifest.watermark == 2
    Store(store).rollback()
    assert Store(store).open().manifest.watermark == 1
    Store(store).rollback()
    assert Store(store).open().manifest.watermark == 0
    with LiveStore(store / LIVE, read_only=True) as live:
        assert [entry.id for entry in live.since(0)] == ["060", "061"]


def test_a_build_killed_after_reading_goes_on_with_the_watermark_of_what_it_read(
    desk: Path, store: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = letters(COUNT + 2)
    apply(store, sent(rows[COUNT], encoder))

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(building, "embed", killed)
        with pytest.raises(Killed):
            rebuilt(desk, store)
    apply(store, sent(rows[COUNT + 1], encoder), Delete("003"))
    manifest, said = rebuilt(desk, store)
    assert "an unfinished build is gone on with" in said
    assert (manifest.watermark, manifest.corpus.articles) == (1, COUNT + 1)
    following, _ = rebuilt(desk, store)
    assert (following.watermark, following.corpus.articles) == (3, COUNT + 1)


def test_changes_that_come_while_the_corpus_is_read_are_before_or_after_the_watermark_whole(
    desk: Path, store: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = letters(COUNT + 2)
    apply(store, sent(rows[COUNT], encoder))
    since = LiveStore.since

    def late(live: LiveStore, sequence: int) -> Any:
        if live._writer is None:
            apply(store, sent(rows[COUNT + 1], encoder))
        return since(live, sequence)

    with monkeypatch.context() as patch:
        patch.setattr(LiveStore, "since", late)
        manifest, _ = rebuilt(desk, store)
    assert (manifest.watermark, manifest.corpus.articles) == (2, COUNT + 2)


def test_a_damaged_file_of_live_articles_stops_the_build_and_is_left(desk: Path, store: Path) -> None:
    apply(store, Delete("a"), Delete("b"))
    with closing(sqlite3.connect(store / LIVE)) as db, db:
        db.execute("DELETE FROM changes WHERE id = 'a'")
    served = Store(store).current()
    with pytest.raises(CorruptGeneration, match=r"live\.db cannot be trusted"):
        rebuilt(desk, store)
    assert Store(store).current() == served
    assert (store / LIVE).exists()


def test_a_corpus_of_which_all_is_removed_is_refused(desk: Path, store: Path) -> None:
    apply(store, *(Delete(row["id"]) for row in letters(COUNT)))
    with pytest.raises(InvalidArgument, match="was removed online") as refused:
        rebuilt(desk, store)
    assert refused.value.field == "corpus"


def test_a_duplicate_id_of_the_corpus_is_rejected_though_a_live_article_stands(
    desk: Path, store: Path, encoder: Encoder
) -> None:
    rows = letters(COUNT)
    apply(store, sent(rows[7] | {"title": "z z"}, encoder))
    manifest, _ = rebuilt(desk, store, [*rows, rows[7], rows[8]], max_reject_share=0.5)
    assert (manifest.corpus.rejected, manifest.corpus.articles) == (2, COUNT)
    assert "duplicate id: the id '007' was already used in corpus.csv" in (store / "rejects.jsonl").read_text()
    articles = Articles(Store(store).directory(manifest.name) / ARTICLES)
    assert articles[7].title == "z z"


# --- a corpus that is newer ------------------------------------------------------------------------------------------


def test_changes_from_before_the_corpus_yield_for_the_ids_that_it_holds(
    desk: Path, store: Path, encoder: Encoder
) -> None:
    rows = other_letters()
    apply(store, sent(rows[1], encoder), sent(rows[COUNT], encoder), Delete("002"), Delete("never seen"))
    written = datetime.now(UTC)
    apply(store, sent(rows[3], encoder), Delete("004"))
    manifest, said = rebuilt(desk, store, corpus_as_of=written)
    assert "2 folded in, 1 taken out, 2 older than the corpus" in said
    assert manifest.watermark == 6
    articles = Store(store).open().articles
    desks = {article_id: articles[articles.row_of(article_id) or 0].attributes["desk"] for article_id in ("001", "003")}
    assert desks == {"001": rows[1 + 3]["desk"], "003": "z"}
    assert ids(store) == [row["id"] for row in rows[: COUNT + 1] if row["id"] != "004"]
    later, _ = rebuilt(desk, store)
    assert "002" not in ids(store)
    assert later.name != manifest.name


def test_a_corpus_that_is_newer_than_a_change_makes_a_generation_though_it_says_what_it_said_before(
    desk: Path, store: Path
) -> None:
    before = Store(store).current()
    apply(store, Delete("005"))
    written = datetime.now(UTC)
    manifest, _ = rebuilt(desk, store, corpus_as_of=written)
    assert (manifest.watermark, manifest.name != before) == (1, True), "or servers went on without the article"
    assert "005" in ids(store)
    again, said = rebuilt(desk, store, corpus_as_of=written)
    assert (again.name, "nothing has changed" in said) == (manifest.name, True)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01T04:30:00Z", datetime(2026, 3, 1, 4, 30, tzinfo=UTC)),
        ("2026-03-01 04:30:00+05:30", datetime(2026, 2, 28, 23, tzinfo=UTC)),
        ("2026-03-01", datetime(2026, 3, 1, tzinfo=UTC)),
    ],
)
def test_moments_are_read_as_dates_of_a_corpus_are(text: str, moment: datetime) -> None:
    assert parse_moment(text) == moment


@pytest.mark.parametrize("text", ["11/12/2026", "01-02-2026 04:30"])
def test_a_moment_of_two_readings_is_refused_for_one_may_take_months_of_changes_for_older(text: str) -> None:
    with pytest.raises(InvalidArgument, match=f"--corpus-as-of is '{text}'; .* such as 2026-03-01T04:30:00Z"):
        parse_moment(text)
    assert parse_moment("11/13/2026") == parse_moment("2026-11-13")


def test_a_moment_that_is_none_or_still_to_come_is_refused(desk: Path, store: Path) -> None:
    with pytest.raises(InvalidArgument, match="--corpus-as-of is 'yesterday'") as refused:
        parse_moment("yesterday")
    assert refused.value.field == "corpus-as-of"
    for ahead in (timedelta(days=2), timedelta(minutes=30)):
        with pytest.raises(InvalidArgument, match=r"still to come; .* without one it is UTC"):
            rebuilt(desk, store, corpus_as_of=datetime.now(UTC) + ahead)


def test_what_was_deleted_does_not_come_back_because_local_time_was_taken_for_utc(desk: Path, store: Path) -> None:
    apply(store, Delete("005"))
    in_delhi = datetime.now(UTC).astimezone(timezone(timedelta(hours=5, minutes=30)))
    with pytest.raises(InvalidArgument, match="still to come"):  # five hours of changes would have yielded
        rebuilt(desk, store, corpus_as_of=parse_moment(f"{in_delhi:%Y-%m-%d %H:%M:%S}"))
    rebuilt(desk, store, corpus_as_of=datetime.now(UTC) - timedelta(minutes=2))
    assert "005" not in ids(store)


# --- at the command line ---------------------------------------------------------------------------------------------


def asked(desk: Path, store: Path, *more: str) -> int:
    """Builds as a person would; gives the exit status."""
    flags = ["--corpus", desk / "articles.csv", "--store", store, "--model", desk / "model", "--precision", "fp32"]
    with pytest.raises(SystemExit) as ended:
        app_settings.run(app, prog="indexer", prefix="X", args=["build", *map(str, flags), "--force", *more])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_dry_run_counts_the_live_changes(
    desk: Path, store: Path, encoder: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(desk, store, "--dry-run") == 0
    assert "live" not in capsys.readouterr().out
    apply(store, sent(letters(COUNT + 1)[COUNT], encoder))
    rebuilt(desk, store)
    apply(store, Delete("001"), Delete("002"))
    before = Store(store).names()
    assert asked(desk, store, "--dry-run") == 0
    assert "live    3 changes, 2 of them since the current generation" in capsys.readouterr().out
    assert Store(store).names() == before


@pytest.mark.parametrize("how", ["flag", "file"])
def test_the_moment_of_the_corpus_is_taken_from_a_flag_or_a_file(
    desk: Path, store: Path, how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apply(store, Delete("001"))
    (tmp_path / "x.toml").write_text("[build]\ncorpus-as-of = 2026-01-01T00:00:00Z\n")
    more = ["--corpus-as-of", "2026-01-01"] if how == "flag" else ["--config", str(tmp_path / "x.toml")]
    assert asked(desk, store, *more) == 0
    assert "1 taken out" in capsys.readouterr().out
    assert asked(desk, store, "--corpus-as-of", "yesterday") == 2
    assert "--corpus-as-of is 'yesterday'" in capsys.readouterr().err


def test_a_watched_build_takes_up_what_changes_online(
    desk: Path, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = iter(range(3))

    def meanwhile(_: float) -> None:
        now = next(rounds)
        if now == 0:
            apply(store, Delete("001"))
        elif now == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("indexer.build_command.time.sleep", meanwhile)
    assert asked(desk, store, "--watch", "5") == 0
    said = capsys.readouterr().out
    assert said.count("nothing has changed") == 2
    assert said.count("1 taken out") == 2
    assert Store(store).open().manifest.watermark == 1


# --- the spool against a dict ----------------------------------------------------------------------------------------

_IDS = st.sampled_from("abcdef")
_TEXTS = st.sampled_from(["", "one", "two", "three words long"])


def bare(article_id: str, text: str) -> Upsert:
    embedded = Embedded(_ZERO, "f" * 64, "fp32", 1, 1)
    return Upsert(LiveArticle(article_id, f"T{text}", text, None, {}), embedded)


@given(
    corpus=st.dictionaries(_IDS, _TEXTS, max_size=6),
    old=st.lists(st.one_of(_IDS.map(Delete), st.builds(bare, _IDS, _TEXTS)), max_size=6),
    new=st.lists(st.one_of(_IDS.map(Delete), st.builds(bare, _IDS, _TEXTS)), max_size=6),
)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_fold_is_what_a_dict_says(
    tmp_path: Path, corpus: dict[str, str], old: list[Change], new: list[Change]
) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
    latest: dict[str, tuple[bool, str | None]] = {}
    with LiveStore(tmp_path / LIVE) as live, Spool(tmp_path / "corpus.db") as spool:
        for article_id, text in corpus.items():
            spool.add(Article(article_id, f"T{text}", text, None, {}, "a.csv", 1))
        live.apply(old)
        written = datetime.now(UTC)
        live.apply(new)
        for stands, changes in ((False, old), (True, new)):
            for change in changes:
                if isinstance(change, Upsert):
                    latest[change.article.id] = stands, change.article.content
                else:
                    latest[change.id] = stands, None
        wanted = dict(corpus)
        for article_id, (stands, sent_text) in latest.items():
            if stands or article_id not in corpus:
                wanted.pop(article_id, None)
                wanted |= {} if sent_text is None else {article_id: sent_text}
        folded = fold(spool, live, written)
        spool.order()
        assert folded.watermark == len(old) + len(new)
        assert {article.id: article.content for article in spool.articles()} == wanted
        assert (len(spool), spool.ids(), spool.undated()) == (len(wanted), sorted(wanted), len(wanted))
        texts = {article_text(f"T{text}", text) for text in wanted.values()}
        assert spool.distinct() == len(texts)
        assert sorted(spool.read(text.first)[1] for text in spool.texts()) == sorted(texts)
        assert [spool.text(row) for row in range(len(wanted))] == [
            article_text(f"T{wanted[article_id]}", wanted[article_id]) for article_id in sorted(wanted)
        ]


def test_what_there_is_to_say_of_a_fold() -> None:
    assert Folded(7).told == ""
    assert Folded(7, upserts=1_200).told == "live articles: 1,200 folded in"
