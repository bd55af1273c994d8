"""Articles from files of every format, and what is refused, row by row and file by file."""

from __future__ import annotations

import gzip
import tracemalloc
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coldframe.errors import InvalidArgument
from indexer.corpus import Article, Columns, Reject, read
from tests.corpus_files import WHOLE_GZIP, Row, only_reject, packed, put, refusal, rows_of, write

WHOLE_ZSTD = packed(gzip.decompress(WHOLE_GZIP), ".zst")
SUFFIXES = [".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"]


# --- formats ---------------------------------------------------------------------------------------------------------

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8).map(str.strip)
texts = st.text(st.characters(codec="utf-8"), max_size=40).map(str.strip)
corpora = st.lists(
    st.tuples(names.filter(bool), texts, texts.filter(bool), texts, st.none() | st.datetimes(datetime(1000, 1, 1))),
    min_size=1,
    max_size=7,
)


@pytest.mark.parametrize("suffix", [suffix + packing for suffix in SUFFIXES for packing in ("", ".gz", ".zst")])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(corpus=corpora)
def test_any_articles_read_back_the_same_from_any_format(tmp_path: Path, suffix: str, corpus: list[Any]) -> None:
    rows = [
        {"id": id_, "title": title, "content": content, "desk": desk, "date": date and date.isoformat()}
        for id_, title, content, desk, date in corpus
    ]
    wanted = [
        Article(id_, title, content, date and date.replace(tzinfo=UTC), {"desk": desk} if desk else {})
        for id_, title, content, desk, date in corpus
    ]
    assert rows_of(write(tmp_path / f"articles{suffix}", rows)) == wanted


def test_a_csv_may_have_a_bom_crlf_ends_blank_lines_and_line_breaks_in_fields(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", '\ufeffId,Content\r\n\r\n1,"two\r\nlines"\r\n2,"a ""quoted"" word"\r\n')
    assert rows_of(path) == [
        Article("1", "", "two\r\nlines", None, {}),
        Article("2", "", 'a "quoted" word', None, {}),
    ]
    assert [row.line for row in rows_of(path)] == [3, 5]


def test_the_suffix_is_read_without_case(tmp_path: Path) -> None:
    path = put(tmp_path / "A.CSV.GZ", gzip.compress(b"id,content\n1,a\n"))
    assert rows_of(path) == [Article("1", "", "a", None, {})]


def test_files_are_read_one_after_another(tmp_path: Path) -> None:
    first, second = put(tmp_path / "a.csv", "id,text\n1,a\n"), put(tmp_path / "b.jsonl", '{"id": 2, "body": "b"}\n')
    assert [(row.source, row.id) for row in rows_of(first, second)] == [("a.csv", "1"), ("b.jsonl", "2")]


def test_parquet_values_that_are_not_text(tmp_path: Path) -> None:
    moment = datetime(2016, 8, 22, 7, 4, tzinfo=UTC)
    table = pa.table(
        {
            "id": pa.array([1, 2]),
            "content": pa.array(["a", "b"]).dictionary_encode(),
            "date": pa.array([moment, None], pa.timestamp("ns", "Asia/Kolkata")),
            "score": pa.array([0.5, None]),
            "tags": pa.array([["x", "y"], None]),
            "seen": pa.array([2**53, None], pa.timestamp("ms")),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    first, second = rows_of(tmp_path / "a.parquet")
    assert isinstance(first, Article)
    assert (first.id, first.content, first.published_at) == ("1", "a", moment)
    assert (first.attributes["score"], first.attributes["tags"]) == ("0.5", '["x", "y"]')
    assert second == Article("2", "", "b", None, {})


@pytest.mark.parametrize("unit", ["ms", "us"])
def test_a_parquet_time_beyond_all_years_is_no_date(tmp_path: Path, unit: str) -> None:
    moment = datetime(2016, 8, 22, 7, 4, tzinfo=UTC)
    date = pa.array([2**63 - 1, pa.scalar(moment, pa.timestamp(unit)).value], pa.timestamp(unit))
    pq.write_table(pa.table({"id": ["1", "2"], "content": ["a", "b"], "date": date}), tmp_path / "a.parquet")
    found = [row.published_at for row in rows_of(tmp_path / "a.parquet") if isinstance(row, Article)]
    assert found == [None, moment]


def test_truth_and_the_number_that_is_none_are_written_alike_in_every_format(tmp_path: Path) -> None:
    table = {"id": ["1", "2"], "content": ["a", "b"], "paid": [True, False], "score": [0.5, float("nan")]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    paid = write(
        tmp_path / "a.jsonl", [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    )
    text = put(tmp_path / "a.csv", "id,content,paid,score\n1,a,true,0.5\n2,b,false,\n")
    assert rows_of(text) == rows_of(paid) == rows_of(tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["1"], "content": [float("nan")]}), tmp_path / "b.parquet")
    assert only_reject(rows_of(tmp_path / "b.parquet")).kind == "no text"


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    rows = [{"id": str(n), "content": f"{n} " * 500} for n in range(4000)]
    paths = [write(tmp_path / f"a{suffix}", rows) for suffix in (".csv", ".csv.gz", ".csv.zst", ".jsonl", ".parquet")]
    next(read(paths[-1:], Columns()))  # imports pyarrow
    tracemalloc.start()
    assert sum(1 for _ in read(paths, Columns())) == 5 * len(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000  # the five files hold 50 MB


# --- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        "Article_Id,Title,Content,Date",
        "id,headline,text,published_at",
        "DOC ID,Headline,Body,Publication Date",
        "guid,TITLE,article,time-stamp",
        "uuid,title,content,Published",
        " article-id , title , content , datetime ",
    ],
)
def test_the_usual_column_names_are_recognised(tmp_path: Path, header: str) -> None:
    path = put(tmp_path / "a.csv", f"{header},Desk\n 7 , A title , some text ,2016-08-22,Sport\n")
    assert rows_of(path) == [Article("7", "A title", "some text", datetime(2016, 8, 22, tzinfo=UTC), {"Desk": "Sport"})]


def test_the_first_name_of_the_list_wins_and_the_others_are_attributes(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", "uuid,id,text,content\nu,1,t,c\n")
    assert rows_of(path) == [Article("1", "", "c", None, {"uuid": "u", "text": "t"})]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", "id,key,headline,lead,when\n1,k,h,l,2016-08-22\n")
    columns = Columns(id="key", title="lead", content="headline", date="when")
    assert rows_of(path, columns=columns) == [Article("k", "l", "h", datetime(2016, 8, 22, tzinfo=UTC), {"id": "1"})]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_without_the_columns_the_error_says_which_there_are_and_how_to_name_them(tmp_path: Path, suffix: str) -> None:
    error = refusal(write(tmp_path / f"news{suffix}", [{"key": "1", "Summary": "a"}]))
    assert error.field == "corpus"
    said = (f"news{suffix}", "key, Summary", "docid", "body", "--id-column", "--title-column", "--content-column")
    assert all(part in error.message for part in said)
    assert "--date-column" in error.message


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("role", ["id", "title", "content", "date"])
def test_a_named_column_that_is_not_there_is_an_error_of_its_flag(tmp_path: Path, suffix: str, role: str) -> None:
    path = write(tmp_path / f"news{suffix}", [{"id": "1", "content": "a"}])
    named: Any = {role: "nope"}
    error = refusal(path, columns=Columns(**named))
    assert error.field == f"{role}-column"
    assert "'nope'" in error.message
    assert "id, content" in error.message


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    assert "more than one column named text" in refusal(put(tmp_path / "a.csv", "id,text,text\n1,a,b\n")).message


def test_jsonl_rows_may_differ_in_their_keys(tmp_path: Path) -> None:
    lines: list[Row] = [
        {"id": 1, "content": "a", "desk": None, "words": 12, "score": 0.5, "free": True, "tags": ["é", "b"]},
        {"docid": "2", "text": "b", "desk": " "},
        {"id": "3", "title": "no content key"},
        {"content": "no id key"},
    ]
    first, second, *bad = rows_of(write(tmp_path / "a.jsonl", lines))
    attributes = {"words": "12", "score": "0.5", "free": "true", "tags": '["é", "b"]'}
    assert first == Article("1", "", "a", None, attributes)
    assert second == Article("2", "", "b", None, {})
    assert [(row.line, row.id, row.kind) for row in bad if isinstance(row, Reject)] == [
        (3, "3", "no content"),
        (4, "", "no id"),
    ]


def test_a_date_that_cannot_be_read_stays_as_an_attribute(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", "id,content,Date\n1,a,last week\n2,b,\n3,c,22 Aug 2016\n")
    assert rows_of(path) == [
        Article("1", "", "a", None, {"Date": "last week"}),
        Article("2", "", "b", None, {}),
        Article("3", "", "c", datetime(2016, 8, 22, tzinfo=UTC), {}),
    ]


# --- rows that cannot be used ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "  \t ", '"\n \n"'])
def test_an_article_needs_a_title_or_a_content(tmp_path: Path, content: str) -> None:
    path = put(tmp_path / "a.csv", f"id,title,content\n1,only a title,{content}\n2,  ,{content}\n")
    article, reject = rows_of(path)
    assert article == Article("1", "only a title", "", None, {})
    assert isinstance(reject, Reject)
    assert (reject.id, reject.kind) == ("2", "no text")


@pytest.mark.parametrize(
    ("bad", "kind", "reject_id"),
    [
        (b"caf\xe9,t,latin-1", "not UTF-8", "caf?"),
        (b'2,t,"two\nlines \xff"', "not UTF-8", "2"),
        (b" ,t,no id", "empty id", ""),
        (b"a\0b,t,c", "NUL in id", "a\0b"),
        (b"x" * 513 + b",t,c", "id too long", "x" * 512),
        (b"2,t", "wrong number of fields", ""),
        (b"2,t,c,more", "wrong number of fields", ""),
        (b"2,title," + b"x" * 96, "text too long", "2"),
    ],
)
def test_a_bad_csv_row_is_rejected_alone_with_its_line(tmp_path: Path, bad: bytes, kind: str, reject_id: str) -> None:
    path = put(tmp_path / "a.csv", b'id,title,content\n1,t,"a\nb\nc"\n' + bad + b"\n3,t,d\n")
    rows = rows_of(path, max_text_chars=100)
    assert [row.id for row in rows if isinstance(row, Article)] == ["1", "3"]
    reject = only_reject(rows)
    assert (reject.source, reject.line, reject.kind, reject.id) == ("a.csv", 5, kind, reject_id)


def test_a_row_with_more_attributes_than_can_be_kept_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.corpus.articles.MAX_ATTRIBUTE_CHARS", 20)
    path = put(tmp_path / "a.csv", "id,content,a,b\n1,x,123456789,123456789\n2,x,123456789,1234567890\n")
    article, reject = rows_of(path)
    assert isinstance(article, Article)
    assert reject == Reject("a.csv", 3, "attributes too long: 21 characters, at most 20 are allowed", "2")


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (b'{"id": "2", "content": ', "not JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b"[" * 100_000, "not JSON"),
        (b"9" * 5000, "not JSON"),
        (b'{"id": "2", "content": "\xff"}', "not UTF-8"),
        (b'{"id": "2", "content": "\\ud800"}', "not UTF-8"),
        (b'{"id": "2", "content": "a", "\\udc00": "b"}', "not UTF-8"),
        (b'{"id": "2", "content": ["a"]}', "content is not text"),
        (b'{"id": null, "content": "a"}', "empty id"),
    ],
)
def test_a_bad_jsonl_row_is_rejected_alone_with_its_line(tmp_path: Path, bad: bytes, kind: str) -> None:
    path = put(tmp_path / "a.jsonl", b'{"id": "1", "content": "a"}\n\n' + bad + b'\n{"id": "3", "content": "c"}\n')
    rows = rows_of(path)
    assert [row.id for row in rows if isinstance(row, Article)] == ["1", "3"]
    assert (only_reject(rows).line, only_reject(rows).kind) == (3, kind)


def test_no_depth_of_nesting_stops_the_job(tmp_path: Path) -> None:
    nested = ["[" * depth + "]" * depth for depth in range(900, 1010)]
    lines = [f'{{"id": "{n}", "content": "a", "date": {text}, "tags": {text}}}' for n, text in enumerate(nested)]
    rows = rows_of(put(tmp_path / "a.jsonl", "\n".join(lines)))
    assert len(rows) == len(nested)


def test_a_bad_parquet_row_is_rejected_alone_with_its_number(tmp_path: Path) -> None:
    content = pa.array([b"a", b"\xff", b"c"], pa.binary())
    strings = pa.StringArray.from_buffers(3, content.buffers()[1], content.buffers()[2])
    pq.write_table(pa.table({"id": ["1", "2", "3"], "content": strings}), tmp_path / "a.parquet")
    rows = rows_of(tmp_path / "a.parquet")
    assert [row.id for row in rows] == ["1", "2", "3"]
    assert (only_reject(rows).line, only_reject(rows).kind) == (2, "not UTF-8")


def test_a_quote_that_is_never_closed_rejects_the_row_that_opens_it(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", 'id,content\n1,a\n2,"b\n3,c\n')
    rows = rows_of(path)
    assert [row.id for row in rows if isinstance(row, Article)] == ["1"]
    assert (only_reject(rows).line, only_reject(rows).kind) == (3, "unclosed quote")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_text_of_50_mb_is_rejected_and_the_rest_is_read(tmp_path: Path, suffix: str) -> None:
    rows = [{"id": "1", "content": "a"}, {"id": "2", "content": "x" * 50_000_000}, {"id": "3", "content": "c"}]
    found = rows_of(write(tmp_path / f"a{suffix}", rows))
    assert [row.id for row in found] == ["1", "2", "3"]
    assert only_reject(found).reason == ("text too long: 50,000,000 characters, at most 1,000,000 are allowed")


def test_the_line_break_between_title_and_content_counts(tmp_path: Path) -> None:
    rows = [{"id": f"{n}", "title": "ab", "content": "x" * n} for n in (999_997, 999_998)]
    found = rows_of(write(tmp_path / "a.csv", rows))
    assert [row.id for row in found] == ["999997", "999998"]
    assert only_reject(found).reason == ("text too long: 1,000,001 characters, at most 1,000,000 are allowed")


# --- files that cannot be used ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.csv", b"", "empty"),
        ("a.csv.gz", b"", "empty"),
        ("a.csv", b"\n\n", "empty"),
        ("a.jsonl", b"\n \n", "empty"),
        ("a.parquet", b"", "not a Parquet file"),
        ("a.parquet", b"id,content\n1,a\n", "not a Parquet file"),
        ("a.parquet.gz", gzip.compress(b"PAR1 and more, PAR1", mtime=0), "not a Parquet file"),
        ("a.csv.gz", WHOLE_GZIP[: len(WHOLE_GZIP) // 2], "cut short"),
        ("a.csv.gz", WHOLE_GZIP[:5000] + b"\0" * 50 + WHOLE_GZIP[5050:], "cut short or corrupt"),
        ("a.csv", b"id;content\n1;a\n", "has semicolons between its columns"),
        ("a.csv", b"id\tcontent\n1\ta\n", "has tabs between its columns"),
        ("a.tsv", b"id,content\n1,a\n", "has commas between its columns"),
        ("a.csv.gz", b"id,content\n1,a\n", "not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"id": 1, "content": "a"}\n', mtime=0)[:-4], "cut short"),
        ("a.parquet.gz", WHOLE_GZIP[:100], "cut short"),
        ("a.csv.zst", WHOLE_ZSTD[: len(WHOLE_ZSTD) // 2], "cannot be read: Truncated"),
        ("a.csv.zst", b"id,content\n1,a\n", "cannot be read: ZSTD"),
        ("a.parquet.zst", WHOLE_ZSTD, "not a Parquet file"),
        ("a.csv", WHOLE_GZIP, "UTF-8"),
        ("a.csv", "id,content\n1,a\n".encode("utf-16"), "UTF-8"),
        ("a.csv", "id,content\n1,a\n".encode("utf-16-le"), "does not begin with UTF-8"),
        ("a.csv", "id,content\n1,a\n".encode("utf-16-be"), "does not begin with UTF-8"),
        ("a.txt", b"id,content\n1,a\n", ".csv, .tsv, .jsonl, .ndjson, .parquet"),
        ("a.json.gz", b"{}", ".csv, .tsv, .jsonl, .ndjson, .parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    error = refusal(put(tmp_path / name, data))
    assert error.field == "corpus"
    assert str(tmp_path / name) in error.message
    assert said in error.message


# --- dates -----------------------------------------------------------------------------------------------------------


def days(dates: list[str], columns: Columns | None = None) -> list[str]:
    """What is read of a corpus of these dates: days, or the text where none could be read."""
    rows = [{"id": str(n), "content": "a", "date": date} for n, date in enumerate(dates)]
    with TemporaryDirectory() as folder:
        found = rows_of(write(Path(folder) / "a.jsonl", rows), columns=columns)
    assert [row.id for row in found] == [row["id"] for row in rows], "no row overtakes another"
    articles = [row for row in found if isinstance(row, Article)]
    return [f"{row.published_at:%Y-%m-%d}" if row.published_at else row.attributes["date"] for row in articles]


def test_the_first_date_that_shows_the_order_decides_for_those_before_and_after_it() -> None:
    assert days(["2016-08-22", "01/02/2016", "x", "22/08/2016", "3/4/2016"]) == [
        "2016-08-22", "2016-02-01", "x", "2016-08-22", "2016-04-03",
    ]  # fmt: skip
    assert days(["01/02/2016", "08/22/2016", "3/4/2016"]) == ["2016-01-02", "2016-08-22", "2016-03-04"]


def test_the_month_is_first_where_no_date_shows_the_order() -> None:
    assert days(["01/02/2016", "03/04/2016"]) == ["2016-01-02", "2016-03-04"]


def test_a_date_that_contradicts_the_order_is_kept_as_text() -> None:
    assert days(["22/08/2016", "08/22/2016"]) == ["2016-08-22", "08/22/2016"]
    assert days(["22/08/2016", "01/02/2016"], Columns(date_order="mdy")) == ["22/08/2016", "2016-01-02"]
    assert days(["08/22/2016", "01/02/2016"], Columns(date_order="dmy")) == ["08/22/2016", "2016-02-01"]


def test_one_order_holds_for_all_files_of_a_corpus(tmp_path: Path) -> None:
    first = put(tmp_path / "a.csv", "id,text,date\n1,a,01/02/2016\n")
    second = put(tmp_path / "b.csv", "id,text,date\n2,b,13/02/2016\n")
    found = [row.published_at for row in rows_of(first, second) if isinstance(row, Article)]
    assert found == [datetime(2016, 2, 1, tzinfo=UTC), datetime(2016, 2, 13, tzinfo=UTC)]


def test_rows_wait_for_the_order_a_thousand_at_most_and_a_later_contradiction_stops_the_job() -> None:
    assert days(["01/02/2016"] * 999 + ["22/08/2016"])[0] == "2016-02-01"
    assert days(["01/02/2016"] * 1001 + ["08/22/2016", "22/08/2016"])[-3:] == ["2016-01-02", "2016-08-22", "22/08/2016"]
    with pytest.raises(InvalidArgument, match=r"a\.jsonl, line 1002: in the date 22/08/2016 the day") as caught:
        days(["01/02/2016"] * 1001 + ["22/08/2016"])
    assert caught.value.field == "date-order"
    assert days(["01/02/2016"] * 1001 + ["22/08/2016"], Columns(date_order="dmy"))[-2:] == ["2016-02-01", "2016-08-22"]


def test_rows_that_wait_are_bounded_in_characters_too(tmp_path: Path) -> None:
    rows = [{"id": str(n), "content": "x" * 900_000, "date": "01/02/2016"} for n in range(60)]
    reading = read([write(tmp_path / "a.jsonl", rows)], Columns())
    tracemalloc.start()
    next(reading)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000  # of 54 MB


# --- attributes and markup -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_attributes_can_be_chosen_and_a_date_that_could_not_be_read_stays(tmp_path: Path, suffix: str) -> None:
    row = {"id": "1", "content": "a", "date": "last week", "desk": "Sport", "page": "3", "byline": "x"}
    path = write(tmp_path / f"a{suffix}", [row])
    (article,) = rows_of(path, columns=Columns(attributes=("desk", "page")))
    assert isinstance(article, Article)
    assert article.attributes == {"date": "last week", "desk": "Sport", "page": "3"}
    (article,) = rows_of(path, columns=Columns(attributes=()))
    assert isinstance(article, Article)
    assert article.attributes == {"date": "last week"}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_attribute_that_is_not_there_is_an_error_of_its_flag(tmp_path: Path, suffix: str) -> None:
    error = refusal(write(tmp_path / f"a{suffix}", [{"id": "1", "text": "a"}]), columns=Columns(attributes=("desk",)))
    assert (error.field, "'desk'" in error.message) == ("attributes", True)


def test_markup_is_cleaned_only_if_asked(tmp_path: Path) -> None:
    row = {"id": "1", "title": "A &amp; B<br>C", "content": "<p>x</p><p>y</p>", "desk": "R&amp;D"}
    path = write(tmp_path / "a.jsonl", [row, {"id": "2", "content": "<p></p>"}])
    assert rows_of(path)[0] == Article("1", "A &amp; B<br>C", "<p>x</p><p>y</p>", None, {"desk": "R&amp;D"})
    article, reject = rows_of(path, clean_html=True)
    assert article == Article("1", "A & B C", "x\ny", None, {"desk": "R&amp;D"})
    assert isinstance(reject, Reject)
    assert reject.kind == "no text"


def test_the_length_that_counts_is_that_of_the_text_that_is_left(tmp_path: Path) -> None:
    lines = [{"id": "1", "content": "<b></b>" * 50 + "a"}, {"id": "2", "content": "<b></b>" * 5000 + "a"}]
    article, reject = rows_of(write(tmp_path / "a.jsonl", lines), clean_html=True, max_text_chars=100)
    assert article == Article("1", "", "a", None, {})
    assert isinstance(reject, Reject)
    assert reject.kind == "text too long"


# --- files that cannot be read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_is_named(tmp_path: Path, suffix: str) -> None:
    assert str(tmp_path / f"a{suffix}") in refusal(tmp_path / f"a{suffix}").message


def test_a_format_that_is_not_known_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"notes\.doc"):
        read([put(tmp_path / "a.csv", "id,content\n1,a\n"), put(tmp_path / "notes.doc", "")], Columns())


def test_a_reader_stopped_early_lets_go_of_its_file(tmp_path: Path) -> None:
    rows = read([write(tmp_path / "a.jsonl", [{"id": n, "content": "a"} for n in range(9)])], Columns())
    assert len(list(islice(rows, 2))) == 2
    del rows  # an unclosed file would be a ResourceWarning, which is an error here
