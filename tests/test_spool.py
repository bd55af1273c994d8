"""The corpus between reading and embedding: order, duplicates, digest, rejects."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from coldframe.errors import InvalidArgument
from coldframe.text import article_text, text_digest
from indexer.corpus import Article, Columns, read
from indexer.spool import UNDATED, ReadStats, Spool, fill
from tests.corpus_files import WHOLE_GZIP, put, write

if TYPE_CHECKING:
    from pathlib import Path


def spooled(
    folder: Path, *paths: Path, share: float = 1.0, rejects: str = "rejects.jsonl"
) -> tuple[ReadStats, list[Article], str]:
    with Spool(folder / "spool.db") as spool:
        stats = fill(spool, read(paths, Columns()), folder / rejects, max_reject_share=share)
        return stats, list(spool.articles()), spool.digest()


def test_articles_come_out_by_id_and_texts_by_length_each_once(tmp_path: Path) -> None:
    articles = [
        Article("b", "T", "long text", datetime(2016, 8, 22, tzinfo=UTC), {"desk": "Sport"}, "a.csv", 2),
        Article("\U0001f600", "", "tiny", None, {}, "a.csv", 3),
        Article("\uffff", "", "same\0", None, {}, "a.csv", 4),
        Article("B", "", "same\0", None, {}, "a.csv", 5),
    ]
    with Spool(tmp_path / "spool.db") as spool:
        assert [spool.add(article) for article in articles] == [True] * 4
        found = list(spool.articles())
        assert [article.id for article in found] == ["B", "b", "\uffff", "\U0001f600"]
        assert (found[1].title, found[1].attributes) == ("T", {"desk": "Sport"})
        assert (found[1].published_at, found[1].line) == (articles[0].published_at, 2)
        assert found[0].digest == found[2].digest == text_digest(article_text("", "same\0"))
        assert (len(spool), spool.distinct()) == (4, 3)
        texts = [spool.read(text.first) for text in spool.texts()]
        assert [text for _, text in texts] == ["tiny", "same\0", article_text("T", "long text")]
        assert all(digest == text_digest(text) for digest, text in texts)
        assert [(text.digest, text.chars) for text in spool.texts()] == [(d, len(text)) for d, text in texts]


def test_a_spool_in_order_is_opened_again_and_read_by_row(tmp_path: Path) -> None:
    dated = datetime(1969, 12, 31, 23, 59, tzinfo=UTC)
    articles = [
        Article("b", "T", "text", dated, {}, "a.csv", 2),
        Article("\U0001f600", "", "other", None, {}, "a.csv", 3),
        Article("B", "T", "text", None, {}, "a.csv", 4),
    ]
    with Spool(tmp_path / "spool.db") as spool:
        assert all(spool.add(article) for article in articles)
        spool.order()
        digest = spool.digest()
    same, other = text_digest("T\ntext"), text_digest("other")
    with Spool.reopen(tmp_path / "spool.db") as spool:
        assert (len(spool), spool.distinct(), spool.digest()) == (3, 2, digest)
        assert spool.ids() == [article.id for article in spool.articles()] == ["B", "b", "\U0001f600"]
        assert [spool.text(row) for row in range(3)] == ["T\ntext", "T\ntext", "other"]
        assert spool.digests() == [same, same, other]
        assert spool.seconds().tolist() == [UNDATED, -60, UNDATED]
        assert spool.rows([other, same, b"?" * 16]) == {other: [2], same: [0, 1], b"?" * 16: []}


def test_a_text_that_was_removed_is_not_read_of_the_article_that_has_its_place(tmp_path: Path) -> None:
    def told(article_id: str, text: str) -> Article:
        return Article(article_id, "", text, None, {}, "a.csv", 2)

    with Spool(tmp_path / "spool.db") as spool:
        for article in (told("a", "stays"), told("b", "comes again"), told("c", "goes")):
            assert spool.add(article)
        assert spool.remove("c")
        assert spool.add(told("d", "comes again"))
        assert spool.remove("b")
        assert spool.add(told("e", "new"))
        assert not spool.remove("c"), "and what was removed before is mended all the same"
        spool.order()
        assert (len(spool), spool.distinct(), spool.ids()) == (3, 3, ["a", "d", "e"])
        for text in spool.texts():
            digest, read_again = spool.read(text.first)
            assert text.digest == digest == text_digest(read_again)
        found = spool.rows([text_digest(text) for text in ("stays", "comes again", "goes", "new")])
        assert [*found.values()] == [[0], [1], [], [2]]


def test_the_first_of_two_articles_with_one_id_stays_across_files(tmp_path: Path) -> None:
    first = put(tmp_path / "a.csv", "id,content\n1,first\n2,b\n")
    second = put(tmp_path / "b.jsonl", '{"id": "3", "content": "c"}\n{"id": "1", "content": "second"}\n')
    stats, articles, _ = spooled(tmp_path, first, second)
    assert [(article.id, article.content) for article in articles] == [("1", "first"), ("2", "b"), ("3", "c")]
    assert stats.rejects_path is not None
    assert json.loads(stats.rejects_path.read_text()) == {
        "source": "b.jsonl",
        "line": 2,
        "id": "1",
        "reason": "duplicate id: the id '1' was already used in a.csv line 2; the first one is kept",
    }


def test_the_digest_is_the_corpus_whatever_its_files(tmp_path: Path) -> None:
    kept = {"desk": "Sport", "page": "7", "date": "2016-08-22"}
    rows = [{"id": str(n), "content": f"text {n}", **kept} for n in range(9)]
    turned = [dict(reversed(row.items())) for row in reversed(rows)]
    digests = {
        spooled(tmp_path, write(tmp_path / "a.csv", rows))[2],
        spooled(tmp_path, write(tmp_path / "a.parquet", turned))[2],
        spooled(tmp_path, write(tmp_path / "b.jsonl", turned[:4]), write(tmp_path / "c.tsv.gz", turned[4:]))[2],
    }
    assert len(digests) == 1
    changed = [{**row, "desk": "World"} for row in rows]
    assert spooled(tmp_path, write(tmp_path / "a.csv", changed))[2] not in digests


def test_the_counts_add_up_and_the_rejects_are_written(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", b"id,content,date\n1,a,\n3,\xff,\n,b,\n4,c,2016-08-22\n,d,\n5\n")
    with Spool(tmp_path / "spool.db") as spool:
        stats = fill(spool, read([path], Columns()), tmp_path / "out" / "bad.jsonl", max_reject_share=0.9)
        assert spool.undated() == 1
    assert (stats.read, stats.kept, stats.rejected) == (6, 2, 4)
    assert [*stats.reasons.items()] == [("empty id", 2), ("not UTF-8", 1), ("wrong number of fields", 1)]
    assert stats.rejects_path == tmp_path / "out" / "bad.jsonl"
    lines = [json.loads(line) for line in stats.rejects_path.read_text().splitlines()]
    assert [(line["source"], line["line"], line["id"]) for line in lines] == [
        ("a.csv", 3, "3"),
        ("a.csv", 4, ""),
        ("a.csv", 6, ""),
        ("a.csv", 7, ""),
    ]
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["bad.jsonl"]


def test_without_rejects_no_rejects_file_is_left(tmp_path: Path) -> None:
    put(tmp_path / "rejects.jsonl", "")  # as mktemp makes one
    spooled(tmp_path, put(tmp_path / "a.csv", "id,content\n1,a\n,b\n"))
    assert (tmp_path / "rejects.jsonl").is_file()
    stats, _, _ = spooled(tmp_path, put(tmp_path / "a.csv", "id,content\n1,a\n"))
    assert stats.rejects_path is None
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.csv", "spool.db"}


@pytest.mark.parametrize("held", ['{"id": "1", "content": "a"}\n', "id,content\n1,a\n", "[]\n", "7", b"\xff\n"])
def test_a_file_that_is_no_list_of_rejects_is_never_replaced(tmp_path: Path, held: str | bytes) -> None:
    corpus = put(tmp_path / "a.csv", "id,content\n1,a\n")
    put(tmp_path / "b.jsonl", held)
    with pytest.raises(InvalidArgument, match=r"b\.jsonl: .*no list of rejects.*name another") as caught:
        spooled(tmp_path, corpus, rejects="b.jsonl")
    assert caught.value.field == "rejects"
    assert put(tmp_path / "wanted", held).read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_what_is_no_file_is_never_replaced_by_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidArgument, match="no list of rejects"):
        spooled(tmp_path, put(tmp_path / "a.csv", "id,content\n1,a\n,b\n"), rejects="pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_a_corpus_that_breaks_off_leaves_no_rejects_file(tmp_path: Path) -> None:
    good, bad = put(tmp_path / "a.csv", "id,content\n,a\n"), put(tmp_path / "b.csv.gz", WHOLE_GZIP[:500])
    with pytest.raises(InvalidArgument, match="cut short"):
        spooled(tmp_path, good, bad)
    assert not list(tmp_path.glob("rejects*"))


@pytest.mark.parametrize("text", ["id,content\n", "id,content\r\n\r\n"])
def test_a_header_alone_is_no_corpus(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgument, match="no articles") as caught:
        spooled(tmp_path, put(tmp_path / "a.csv", text))
    assert caught.value.field == "corpus"


@pytest.mark.parametrize(
    ("bad", "share", "passes"), [(5, 0.05, True), (6, 0.05, False), (1, 0.0, False), (100, 1.0, False)]
)
def test_more_rejects_than_allowed_stop_the_job(tmp_path: Path, bad: int, share: float, passes: bool) -> None:
    path = put(tmp_path / "a.csv", "id,content\n" + "".join(f"{'' if n < bad else n},text\n" for n in range(100)))
    if passes:
        assert spooled(tmp_path, path, share=share)[0].kept == 100 - bad
        return
    with pytest.raises(InvalidArgument) as caught:
        spooled(tmp_path, path, share=share)
    assert caught.value.field == "max-reject-share"
    said = (
        f"{bad:,} of 100 rows",
        f"{share:.1%}",
        f"empty id ({bad})",
        str(tmp_path / "rejects.jsonl"),
        "--max-reject-share",
    )
    assert all(part in caught.value.message for part in said)
    assert len((tmp_path / "rejects.jsonl").read_text().splitlines()) == bad


def test_a_spool_that_a_crash_left_is_begun_anew(tmp_path: Path) -> None:
    put(tmp_path / "spool.db", b"SQLite format 3\0 and then nothing of use")
    stats, _, _ = spooled(tmp_path, put(tmp_path / "a.csv", "id,content\n1,a\n"))
    assert stats.kept == 1
