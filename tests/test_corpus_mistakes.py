"""Files that are not what their name says, or not what an exporter meant: refused or rejected with words that help."""

from __future__ import annotations

import csv
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coldframe.errors import InvalidArgument
from indexer.corpus import Article, Columns, Reject, read
from tests.corpus_files import only_reject, put, refusal, rows_of, write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.mark.parametrize(("suffix", "mark"), [(".csv", ","), (".tsv", "\t")])
def test_rows_that_a_stray_quote_joins_are_not_taken_for_one_article(tmp_path: Path, suffix: str, mark: str) -> None:
    lines = [
        "id,text,desk", "0,a,b",
        '1,"so, he said', "2,b,y", '3,"c" and d,z',
        '4,"two', 'lines",z', '5,"e" f,z', '6,"g,z',
    ]  # fmt: skip
    path = put(tmp_path / f"a{suffix}", "\n".join(lines).replace(",", mark))
    good, joined, article, odd, unclosed = rows_of(path)
    assert (good.id, article.id, odd.id) == ("0", "4", "5")
    assert isinstance(joined, Reject)
    assert (joined.line, joined.reason.partition(",")[0]) == (3, "stray quote: lines 3 to 5 were read as one row")
    assert isinstance(unclosed, Reject)
    assert (unclosed.line, unclosed.kind) == (9, "unclosed quote")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_lines_of_another_encoding_are_refused_as_such(tmp_path: Path, encoding: str) -> None:
    path = put(tmp_path / "a.jsonl", '{"id": "1", "content": "a"}\n'.encode(encoding))
    assert f"{path} does not begin with UTF-8 text. Save it as UTF-8" in refusal(path).message


def test_an_array_of_several_lines_is_rejected_with_the_form_that_is_wanted(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", '[\n {"id": "1", "content": "a"},\n {"id": "2", "content": "b"}\n]\n')
    rows = [row for row in rows_of(path) if isinstance(row, Reject)]
    assert [row.line for row in rows] == [1, 2, 4]
    assert [row.reason.partition(";")[0] for row in rows] == [
        "not JSON: Expecting value, at character 3",
        "not JSON: Extra data, at character 29",
        "not JSON: Expecting value, at character 1",
    ]
    assert all(
        row.reason.endswith('each line must hold one object, such as {"id": "1", "content": "..."}') for row in rows
    )


def test_a_column_of_bytes_is_named_in_the_rejects_and_can_be_left_out(tmp_path: Path) -> None:
    columns = {"id": ["1", "2"], "content": ["a", "b"], "desk": ["x", "y"], "thumb": [b"\x89PNG\xff", None]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    wanted = "not UTF-8: 'thumb' holds bytes that are not UTF-8 text; --attributes says which columns are kept"
    assert only_reject(rows_of(tmp_path / "a.parquet")).reason == wanted
    kept = rows_of(tmp_path / "a.parquet", columns=Columns(attributes=("desk",)))
    assert [row.id for row in kept if isinstance(row, Article)] == ["1", "2"]
    table, lines = (
        put(tmp_path / "a.csv", b"id,body\n1,caf\xe9\n"),
        put(tmp_path / "b.jsonl", b'{"id": 1, "body": "", "\xe9": 1}'),
    )
    assert [row.reason for row in rows_of(table, lines) if isinstance(row, Reject)] == [
        "not UTF-8: 'body' holds bytes that are not UTF-8 text",
        r"not UTF-8: '\udce9' holds bytes that are not UTF-8 text; --attributes says which columns are kept",
    ]


def test_what_python_cannot_hold_within_lists_and_objects_of_a_parquet_file_is_kept_as_text(tmp_path: Path) -> None:
    moment, changes = 1_471_868_040_123_456_789, pa.struct([("at", pa.timestamp("ns")), ("by", pa.string())])
    columns = {
        "id": ["1", "2"],
        "content": ["a", "b"],
        "changes": pa.array([[{"at": moment, "by": "é"}], []], pa.list_(changes)),
        "days": pa.array([[2**31 - 1], None], pa.list_(pa.int32())).cast(pa.list_(pa.date32())),
        "desks": pa.array([[b"Sport"], None], pa.large_list(pa.binary())),
        "seen": pa.array([[("me", moment)], None], pa.map_(pa.string(), pa.timestamp("ns", "UTC"))),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    first, second = rows_of(tmp_path / "a.parquet")
    assert isinstance(first, Article)
    assert first.attributes == {
        "changes": '[{"at": "2016-08-22 12:14:00.123456", "by": "é"}]',
        "days": '["<value out of range: 2147483647>"]',
        "desks": '["Sport"]',
        "seen": '[["me", "2016-08-22 12:14:00.123456+00:00"]]',
    }
    assert second == Article("2", "", "b", None, {"changes": "[]"})


def test_text_that_is_not_utf_8_within_a_list_rejects_its_row_alone(tmp_path: Path) -> None:
    desks = pa.array([b"a", b"\xff", b"c"], pa.binary())
    strings = pa.StringArray.from_buffers(3, *desks.buffers()[1:])
    columns = {"id": ["1", "2", "3"], "content": ["a", "b", "c"]}
    lists = pa.ListArray.from_arrays([0, 1, 2, 3], strings)
    pq.write_table(pa.table({**columns, "desks": lists}), tmp_path / "a.parquet")
    rows = rows_of(tmp_path / "a.parquet")
    assert [row.id for row in rows if isinstance(row, Article)] == ["1", "3"]
    assert only_reject(rows).reason.startswith("not UTF-8: 'desks' holds bytes")


def test_a_parquet_file_with_a_column_name_in_latin_1_is_refused(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"id": ["1"], "content": ["a"], "cafeX": ["b"]}), tmp_path / "b.parquet", store_schema=False
    )
    path = put(tmp_path / "a.parquet", (tmp_path / "b.parquet").read_bytes().replace(b"cafeX", b"caf\xe9X"[:5]))
    assert f"{path} is not a Parquet file that can be read" in refusal(path).message


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".csv.gz", ".csv.zst"])
def test_a_file_that_is_written_anew_while_it_is_read_is_not_taken_for_a_short_one(tmp_path: Path, suffix: str) -> None:
    rows = [{"id": str(n), "content": os.urandom(500).hex()} for n in range(5_000)]
    path = write(tmp_path / f"a{suffix}", rows)
    reading = read([path], Columns())
    next(reading)
    write(path, rows[:1])
    with pytest.raises(InvalidArgument, match=r"a\.\S+ cannot be read: it became shorter while it was read"):
        list(reading)


def test_a_file_that_is_replaced_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    rows = [{"id": str(n), "content": "a" * 500} for n in range(5_000)]
    path = write(tmp_path / "a.csv", rows)
    reading = read([path], Columns())
    next(reading)
    write(tmp_path / "b.csv", rows[:1]).rename(path)
    assert len(list(reading)) == len(rows) - 1


@pytest.fixture
def field_limit() -> Iterator[None]:
    """Puts back what is of the whole process, whatever a test makes of it."""
    limit = csv.field_size_limit()
    yield
    csv.field_size_limit(limit)


@pytest.mark.usefixtures("field_limit")
def test_a_field_beyond_all_bounds_stops_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.corpus.formats._MAX_FIELD_CHARS", 1000)
    error = refusal(put(tmp_path / "a.csv", 'id,content\n1,a\n2,"' + "b\n" * 1000))
    assert "a.csv, line 3" in error.message
    assert "quote" in error.message


@pytest.mark.usefixtures("field_limit")
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", ""])
def test_a_line_beyond_all_bounds_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr("indexer.corpus.formats._MAX_FIELD_CHARS", 100_000)
    line = f"[{'0,' * 5_000_000}0]{end}"
    array = put(tmp_path / "a.jsonl", "\n" + line + ('{"id": 3, "content": "c"}' if end else ""))
    table = put(tmp_path / "a.csv", f"id,content\n1,a\n2,{line}")
    tracemalloc.start()
    reject, *others = rows_of(array)
    error = refusal(table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(reject, Reject)
    assert (reject.line, reject.kind, [row.id for row in others]) == (2, "line too long", ["3"] if end else [])
    assert "a.csv, line 3: no line ends within 100,000 characters" in error.message
    assert peak < 5_000_000  # of lines of 10 MB


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl.gz", "a.csv.zst", "a.parquet"])
def test_a_pipe_is_read_to_its_end(tmp_path: Path, name: str) -> None:
    data = write(tmp_path / f"whole-{name}", [{"id": "1", "content": "a"}, {"id": "2", "content": "b"}]).read_bytes()
    os.mkfifo(tmp_path / name)
    with ThreadPoolExecutor(1) as writer:
        written = writer.submit((tmp_path / name).write_bytes, data)
        assert [row.id for row in rows_of(tmp_path / name)] == ["1", "2"]
        written.result(10)
