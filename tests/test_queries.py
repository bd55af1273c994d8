"""Articles by SQL: over files and over databases."""

from __future__ import annotations

import getpass
import shutil
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import duckdb
import fsspec
import pytest

from coldframe.errors import InvalidArgument
from indexer.corpus import Article, Columns, Reject, find_sources, read
from tests.corpus_files import put, write
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROWS: list[dict[str, Any]] = [
    {"id": "07", "title": "A: b", "body": "50% :x", "lang": "en", "date": "2016-08-22"},
    {"id": "8", "title": "C", "body": "d", "lang": "de", "date": "2016-08-23"},
    {"id": "9", "title": "", "body": "", "lang": "en", "date": "soon"},
]
SELECT = "select id, title, body as content, date from {} where lang like 'e%' order by id"
WANTED = [
    Article("07", "A: b", "50% :x", datetime(2016, 8, 22, tzinfo=UTC), {}),
    Reject("query", 2, "no text: title and content are both empty", "9"),
]


def answer(query: str, database: str | None = None, **columns: Any) -> list[Article | Reject]:
    return list(read(find_sources(query=query, database=database), Columns(**columns)))


def refusal(query: str, database: str | None = None) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        answer(query, database)
    return caught.value


@pytest.fixture
def sqlite(tmp_path: Path) -> Path:
    path = tmp_path / "news.db"
    connection = sqlite3.connect(path)
    connection.execute("create table articles (id text, title text, body text, lang text, date text)")
    connection.executemany("insert into articles values (:id, :title, :body, :lang, :date)", ROWS)
    connection.commit()
    connection.close()
    return path


@pytest.fixture
def duck(tmp_path: Path) -> Path:
    path = tmp_path / "news.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("create table articles (id text, title text, body text, lang text, date text)")
        connection.executemany("insert into articles values (?, ?, ?, ?, ?)", [[*row.values()] for row in ROWS])
    return path


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".jsonl", ".parquet"])
def test_files_can_be_queried(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"a{suffix}", ROWS)
    source = f"'{tmp_path}/*{suffix}'"
    (found,) = find_sources(query=SELECT.format(source))
    assert (found.name, found.size, found.version) == ("query", None, None)
    assert found.location == "query " + SELECT.format(source)
    assert answer(SELECT.format(source)) == WANTED


def test_databases_can_be_queried(sqlite: Path, duck: Path) -> None:
    query = SELECT.format("articles")
    for database in (str(sqlite), f"sqlite:///{sqlite}", str(duck), f"duckdb:///{duck}"):
        assert answer(query, database) == WANTED
    (source,) = find_sources(query=query, database=f"sqlite:///{sqlite}?timeout=3")
    assert source.location == f"sqlite:///{sqlite}, query {query}"


def test_a_query_may_name_what_a_store_holds() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/news/a.csv", b"id,text\n07,a\n8,b\n")
    try:
        assert [row.id for row in answer("select * from 'memory://news/*.csv' where text = 'a'")] == ["07"]
    finally:
        memory.store.clear()


@pytest.mark.parametrize("scheme", ["http", "https", "ftp", "s3", "gs", "nope", "hdfs", "zip"])
def test_a_text_that_begins_like_an_address_is_no_file(scheme: str) -> None:
    rows = f"(values (1, '{scheme}://a.example/b.csv'), (2, 'by {scheme}://'), (3, 'c')) t(id, content)"
    for pattern, found in ((f"{scheme}://%", ["1"]), (f"%{scheme}://%", ["1", "2"])):
        assert [row.id for row in answer(f"from {rows} where content like '{pattern}' order by id")] == found


def test_values_of_every_kind_become_text() -> None:
    query = (
        "select 1 as id, 'a' as content, timestamptz '2016-08-22 12:34:00+05:30' as date, 1.50::decimal(4, 2) as price,"
        " [1, 2] as tags, {'a': 1} as more, 'x'::blob as raw, date '2016-08-22' as day, null as nothing, true as free,"
        " uuid '00000000-0000-0000-0000-000000000001' as key, timestamp_ns '2016-08-22 12:34:00.123456789' as exact"
    )
    (article,) = answer(query)
    assert article == Article("1", "", "a", datetime(2016, 8, 22, 7, 4, tzinfo=UTC), {
        "price": "1.50", "tags": "[1, 2]", "more": '{"a": 1}', "raw": "x", "day": "2016-08-22", "free": "true",
        "key": "00000000-0000-0000-0000-000000000001", "exact": "2016-08-22T12:34:00.123456",
    })  # fmt: skip


def test_bytes_that_are_not_utf8_reject_their_row(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "a.db")
    connection.execute("create table t (id, text)")
    connection.execute("insert into t values (1, cast(x'61FF' as text)), (2, x'62')")
    connection.commit()
    connection.close()
    reject, article = answer("select * from t order by id", str(tmp_path / "a.db"))
    assert isinstance(reject, Reject)
    assert (reject.line, reject.kind) == (1, "not UTF-8")
    assert article == Article("2", "", "b", None, {})


def test_columns_and_attributes_are_chosen_as_in_files(duck: Path) -> None:
    rows = answer("from articles order by id", str(duck), content="body", attributes=("lang",))
    assert isinstance(rows[0], Article)
    assert rows[0].attributes == {"lang": "en"}


def test_a_database_is_only_read(sqlite: Path, duck: Path) -> None:
    for database in (sqlite, duck):
        assert refusal("delete from articles returning id, body as content", str(database)).field == "query"
        assert len(answer("select id, body as text from articles", str(database))) == len(ROWS)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (" ", "it is empty"),
        ("-- nothing", "one SELECT"),
        ("selec 1", 'syntax error at or near "selec"'),
        ("select * from 'none/*.csv'", "none/*.csv"),
        ("select * from nothing", "nothing does not exist"),
        ("select 1 as id", "the query's result has no content column"),
        ("select 1 as key, 'a' as words", "Its columns are: key, words. Rename in it (select body as content)"),
        ("select 1 as id, 'a' as text, 'b' as text", "more than one column named text"),
        ("select 'a' as text, cast('x' as integer) as id", "'x'"),
        ("select * from 'https://example.com/a.parquet'", "Give that to --corpus"),
        ("select * from 'https://a.example/b.csv' where title not like 's3://%'", "https://. Give that to --corpus"),
        ('select * from "ftp://a.example/b.csv"', "Give that to --corpus"),
        ("select * from 's3://bucket/a.parquet'", "s3fs"),
        ("select * from 'nope://bucket/a.parquet'", "nope"),
    ],
)
def test_a_query_that_cannot_be_answered_is_refused(query: str, said: str) -> None:
    error = refusal(query)
    assert said in error.message
    assert error.field == "query"
    assert "INSTALL" not in error.message


@pytest.mark.parametrize("query", ["selec 1", "select * from nothing", "select 1 as id", "pragma journal_mode = off"])
def test_a_query_that_a_database_cannot_answer_is_refused(sqlite: Path, query: str) -> None:
    error = refusal(query, str(sqlite))
    assert error.field == "query"
    assert "sqlalche.me" not in error.message


@pytest.mark.parametrize(
    ("database", "said"),
    [
        ("none.db", "no such file"),
        ("~nobody-at-all/none.db", "no such file"),
        ("a" * 300, "no such file"),
        ("duckdb:///none.db", "no such file"),
        ("sqlite:///none/none.db", "unable to open"),
        ("postgresql://user:secret@127.0.0.1:1/news", "pip install 'psycopg[binary]'"),
        ("mysql://user:secret@127.0.0.1:1/news", "pip install 'pymysql'"),
        ("nope://user:secret@host/news", "nope"),
        ("postgresql://user:secret@host:port/news", "no database's URL"),
    ],
)
def test_a_database_that_cannot_be_reached_is_refused(database: str, said: str) -> None:
    error = refusal("select 1", database)
    assert error.field == "database"
    assert said in error.message
    assert "secret" not in error.message


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    assert "neither a SQLite nor a DuckDB file" in refusal("select 1", str(put(tmp_path / "a.db", "id,text\n"))).message


@pytest.fixture
def mariadb(tmp_path: Path) -> Iterator[str]:
    """A database in Kathmandu's time, where MariaDB and a driver are installed: its address, without a scheme."""
    pytest.importorskip("pymysql")
    if shutil.which("mariadbd") is None:
        pytest.skip("no MariaDB here")
    user, folder, socket = getpass.getuser(), f"--datadir={tmp_path / 'data'}", tmp_path / "socket"
    own = ["--auth-root-authentication-method=normal", f"--user={user}"]
    subprocess.run(["mariadb-install-db", "--no-defaults", folder, *own], check=True, stdout=subprocess.DEVNULL)
    flags = [folder, f"--user={user}", f"--socket={socket}", "--skip-networking", "--default-time-zone=+05:45"]
    with subprocess.Popen(["mariadbd", "--no-defaults", *flags], stderr=subprocess.DEVNULL) as server:
        try:
            wait_until(socket.exists)
            yield f"root@localhost/mysql?unix_socket={socket}"
        finally:
            server.terminate()


def test_dates_are_in_utc_whatever_zone_a_database_keeps(mariadb: str) -> None:
    wanted = Article("1", "", "a", datetime(2016, 8, 22, 7, 4, tzinfo=UTC), {})
    for scheme in ("mysql", "mariadb"):
        found = answer("select 1 as id, 'a' as text, from_unixtime(1471849440) as date", f"{scheme}://{mariadb}")
        assert found == [wanted]


# --- memory ----------------------------------------------------------------------------------------------------------

_PEAK_MIB = """
import resource, sys
from indexer.corpus import Columns, find_sources, read
rows = sum(1 for _ in read(find_sources(query=sys.argv[1], database=sys.argv[2] or None), Columns()))
print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.parametrize("kind", ["parquet", "sqlite"])
def test_memory_does_not_grow_with_the_answer(tmp_path: Path, kind: str) -> None:
    made = (
        f"copy (select i as id, repeat(md5(i::text), 60) as content from range(60000) t(i)) to '{tmp_path}/a.parquet'"
    )
    duckdb.connect(":memory:").execute(made + " (row_group_size 5000)").close()
    query, database = f"select * from '{tmp_path}/a.parquet'", ""
    if kind == "sqlite":
        connection = sqlite3.connect(tmp_path / "a.db")
        rows = ((row.id, row.content) for row in answer(query) if isinstance(row, Article))
        connection.execute("create table t (id, content)")
        connection.executemany("insert into t values (?, ?)", rows)
        connection.commit()
        connection.close()
        query, database = "select * from t", str(tmp_path / "a.db")
    peaks = []
    for limit in ("limit 6000", ""):
        command = [sys.executable, "-c", _PEAK_MIB, f"{query} {limit}", database]
        rows_read, peak = map(int, subprocess.run(command, capture_output=True, check=True, text=True).stdout.split())
        peaks.append(peak)
    assert rows_read == 60_000
    assert peaks[1] - peaks[0] < 60  # of 110 MB of text
